"""A real Chromium, a real export whose answers can be told from the picture, and its server."""

import os
import shutil

import pytest

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("starlette", reason="the extra `serve` is not installed")

from playwright.sync_api import expect, sync_playwright
from serving import running

from browser.harness import write_colours

SMALL = ("--runtime", "tensorflow", "--max-body-mb", "2")


@pytest.fixture(scope="session")
def colours(tmp_path_factory):
    """An export whose answer and heatmap are known beforehand."""
    home = tmp_path_factory.mktemp("exports") / "colours & more"
    return write_colours(home, tmp_path_factory.mktemp("labels") / "labels.txt")


@pytest.fixture(scope="package")  # its event loop must be gone when tests elsewhere want one
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("KRESNET_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium: install Debian's chromium, or name one in KRESNET_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found,
            args=[
                "--no-sandbox",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture
def options():
    """Settings of the browser that a test overrides, as the size of the screen."""
    return {"viewport": {"width": 1100, "height": 900}}


@pytest.fixture
def context(browser, options):
    with browser.new_context(**options) as context:
        context.set_default_timeout(60_000)
        yield context


@pytest.fixture
def watched(context):
    """A tab that nothing may go wrong in unseen."""
    page = context.new_page()
    wrong = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else 0)
    yield page
    # A request that the test let fail is logged by the browser itself.
    assert [text for text in wrong if not text.startswith("Failed to load resource")] == []


@pytest.fixture
def page(watched, server):
    """The page, ready."""
    watched.goto(server.url)
    expect(watched).not_to_have_title("kresnet")
    return watched


@pytest.fixture(scope="session")
def server(colours):
    with running(colours.parent, *SMALL) as server:
        yield server


@pytest.fixture(scope="session")
def guarded(colours, tmp_path_factory):
    """A server that asks for the token "open-sesame"."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("open-sesame\n")
    with running(colours.parent, *SMALL, "--token-file", token) as server:
        yield server
