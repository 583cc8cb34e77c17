"""The page for everyone: by keyboard, by ear, on a phone, in the dark, with every way in."""

import base64
import itertools
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import expect

from browser.harness import ask, contrast, encoded, picture, settle

PHONE = {
    "viewport": {"width": 360, "height": 740},
    "device_scale_factor": 2,
    "has_touch": True,
    "is_mobile": True,
}
RED = encoded(picture("red"), "PNG")


def open_everything(page):
    """Bring up all that the page can show at once."""
    page.route("**/v1/models/*:predict", refuse_broken)
    cards = ask(
        page,
        ("red.png", RED),
        ("grey.png", encoded(picture("gray"), "PNG")),
        ("junk.txt", b"junk"),
        ("broken.png", RED + b"broken"),
    )
    page.get_by_role("button", name="Show all 24 classes").first.click()
    for summary in page.locator("summary:visible").all():
        summary.click()
    return cards


def refuse_broken(route):
    content = json.loads(route.request.post_data)["instances"][0]["image_bytes"]["b64"]
    if base64.b64decode(content).endswith(b"broken"):
        route.fulfill(status=500, body="{}")
    else:
        route.continue_()


# ---------------------------------------------------------------- ways in


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_images_can_be_dropped_and_pasted(page, kind):
    page.evaluate(
        """([kind, content]) => {
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "red.png", { type: "image/png" }));
            const target = document.querySelector("footer");
            const init = { bubbles: true, cancelable: true };
            if (kind === "paste") {
              const event = new ClipboardEvent("paste", { ...init, clipboardData: transfer });
              target.dispatchEvent(event);
              return;
            }
            for (const name of ["dragenter", "dragover", "drop"]) {
              const event = new DragEvent(name, { ...init, dataTransfer: transfer });
              target.dispatchEvent(event);
              if (name === "dragenter" && !document.body.matches(".over")) throw "no sign of it";
              if (name !== "dragenter" && !event.defaultPrevented) throw "the page is left";
            }
        }""",
        [kind, base64.b64encode(RED).decode()],
    )
    expect(page.locator(".label bdi")).to_have_text("red")
    expect(page.locator("body")).not_to_have_class("over")


def test_a_dropped_link_or_text_is_explained(page):
    page.evaluate(
        """() => {
            const transfer = new DataTransfer();
            transfer.setData("text/uri-list", "https://example.com/photo.jpg");
            document.body.dispatchEvent(new DragEvent("drop",
              { bubbles: true, cancelable: true, dataTransfer: transfer }));
        }"""
    )
    expect(page.get_by_role("alert")).to_have_text(
        "That was no file. Save the image first, then drop its file."
    )


def test_the_paste_button_reads_the_clipboard(page, context):
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Paste").click()
    expect(page.get_by_role("alert")).to_have_text("There is no image to paste.")
    page.evaluate(
        """async (content) => {
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            const blob = new Blob([bytes], { type: "image/png" });
            await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
        }""",
        base64.b64encode(RED).decode(),
    )
    page.get_by_role("button", name="Paste").click()
    expect(page.locator(".label bdi")).to_have_text("red")
    expect(page.locator("h3")).to_have_text("pasted.png")


def test_a_photo_can_be_taken_with_the_camera(page):
    page.get_by_role("button", name="Take a photo").click()
    dialog = page.get_by_role("dialog", name="Take a photo")
    dialog.get_by_role("button", name="Use this view").click()  # waits until there is a picture
    expect(page.locator("h3")).to_have_text("photo-1.jpg")
    settle(page)
    expect(page.locator(".verdict")).to_be_visible()
    assert page.evaluate("() => document.querySelector('video').srcObject") is None


def test_a_camera_that_may_not_be_used_is_explained(page):
    page.evaluate(
        """() => { navigator.mediaDevices.getUserMedia = () =>
            Promise.reject(new DOMException("", "NotAllowedError")) }"""
    )
    page.get_by_role("button", name="Take a photo").click()
    expect(page.get_by_role("alert")).to_have_text(
        "The browser does not let this page use the camera."
    )
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_too_many_images_at_once_are_counted(page):
    page.route("**/v1/models/*:predict", lambda route: route.fulfill(status=500))
    page.set_input_files(
        "#files",
        [{"name": f"{k}.png", "mimeType": "image/png", "buffer": RED} for k in range(203)],
    )
    expect(page.locator(".card")).to_have_count(200)
    expect(page.locator("#notice")).to_contain_text("so 3 were left out")


# ---------------------------------------------------------------- a token


def test_the_token_is_asked_for_kept_for_the_tab_and_forgotten(watched, guarded):
    page = watched
    page.goto(guarded.url)
    dialog = page.get_by_role("dialog", name="This server asks for a token")
    page.get_by_role("textbox", name="Token").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="The server did not accept the token")).to_be_visible()
    page.get_by_role("textbox", name="Token").fill("open-sesame")
    page.get_by_role("button", name="Use it").click()
    expect(page).to_have_title("colours & more - kresnet")
    page.reload()
    expect(page).to_have_title("colours & more - kresnet")
    expect(dialog).to_be_hidden()
    card = ask(page, ("red.png", RED))
    expect(card.locator(".label bdi")).to_have_text("red")
    card.get_by_text("The same request with curl or Python").click()
    for kind in (".curl", ".python"):
        expect(card.locator(kind)).to_contain_text("KRESNET_TOKEN")
        expect(card.locator(kind)).not_to_contain_text("sesame")
    page.get_by_role("button", name="Forget the token").click()
    assert page.evaluate("() => sessionStorage.length + localStorage.length") == 0
    assert page.context.cookies() == []
    card.locator(".class").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(card.get_by_role("alert")).to_contain_text("This server asks for a token.")


def test_the_lines_of_a_guarded_server_take_the_token_from_the_environment(
    watched, guarded, tmp_path
):
    page = watched
    page.goto(guarded.url)
    page.get_by_role("textbox", name="Token").fill("open-sesame")
    page.keyboard.press("Enter")
    card = ask(page, ("red.png", RED))
    card.locator("summary").click()
    (tmp_path / "red.png").write_bytes(RED)
    environment = os.environ | {"KRESNET_TOKEN": "open-sesame"}
    for command in (["sh", "-c", card.locator(".curl").inner_text()],
                    ["python3", "-c", card.locator(".python").inner_text()]):  # fmt: skip
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        assert "red" in done.stdout


# ---------------------------------------------------------------- keyboard and names

FOCUSED = """() => {
  const at = document.activeElement;
  const { outlineStyle, outlineWidth } = getComputedStyle(at);
  if (at !== document.body && (outlineStyle === "none" || parseFloat(outlineWidth) < 2)) {
    throw `no focus ring: ${at.outerHTML}`;
  }
  const name = at.getAttribute("aria-label") ?? at.labels?.[0]?.innerText ?? at.innerText;
  return name.replace(/\\s+/g, " ").trim();
}"""


def test_everything_can_be_done_by_keyboard(page):
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the answers")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Choose images")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([{"name": "red.png", "mimeType": "image/png", "buffer": RED}])
    expect(page.locator(".label bdi")).to_have_text("red")
    reached = []
    while not (reached and reached[-1].startswith("import base64")):
        assert len(reached) < 40
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUSED))
        if reached[-1].startswith("The same request"):
            page.keyboard.press("Enter")
    assert [name for name in reached if not name.startswith(("ярко", "<img"))][:-4] == [
        "Take a photo", "Paste", "Remove red.png", "Heatmap", "Strength", "red 98.3 %",
        "green 0.1 %", "blue 0.1 %", "Show all 24 classes", "The same request with curl or Python",
    ]  # fmt: skip
    assert [name[:6] for name in reached[-4:]] == ["Copy", "printf", "Copy", "import"]


def test_closing_a_dialog_gives_the_focus_back(page):
    button = page.get_by_role("button", name="Take a photo")
    button.press("Enter")
    page.get_by_role("button", name="Cancel").press("Enter")
    expect(button).to_be_focused()


def test_every_control_has_a_name_and_every_picture_a_text(page):
    open_everything(page)
    for role in ("button", "checkbox", "slider", "searchbox", "heading", "list", "article", "img"):
        elements = page.get_by_role(role).all()
        assert elements, role
        for element in elements:
            assert re.match(rf'- {role} (".+"|/.+/)', element.aria_snapshot()), element
    for name in ("main", "banner", "contentinfo"):
        expect(page.get_by_role(name)).to_have_count(1)
    levels = page.evaluate(
        """() => [...document.querySelectorAll("h1, h2, h3, h4")]
            .filter((h) => h.checkVisibility()).map((h) => Number(h.tagName[1]))"""
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    ids = page.evaluate("() => [...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    assert page.evaluate("() => document.documentElement.lang") == "en"


def test_axe_finds_nothing(page, tmp_path_factory):
    source = axe_core(tmp_path_factory)
    open_everything(page)
    page.evaluate(source)
    found = page.evaluate("async () => (await axe.run()).violations")
    assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found] == []


def axe_core(tmp_path_factory):
    """The text of axe-core, from the npm registry unless KRESNET_AXE names the file."""
    if "KRESNET_AXE" in os.environ:
        return Path(os.environ["KRESNET_AXE"]).read_text(encoding="utf-8")
    folder = tmp_path_factory.mktemp("axe")
    command = ["npm", "install", "--no-save", "--ignore-scripts", "--no-audit", "axe-core@4"]
    try:
        subprocess.run(command, cwd=folder, capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"axe-core cannot be had from npm ({type(error).__name__})")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


# ---------------------------------------------------------------- sight and screens

COLOURS = """() => {
  const seen = (element) => element.checkVisibility({ opacityProperty: true });
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$|transparent/.test(color)) return color;
    }
    return getComputedStyle(document.documentElement).backgroundColor;
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const hasText = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!hasText || !seen(element) || element.disabled) continue;
    const { color } = getComputedStyle(element);
    found.push([element.innerText.slice(0, 40), color, ground(element)]);
  }
  return found;
}"""
EDGES = """() => [...document.querySelectorAll("button, input[type=search]")]
  .filter((element) => element.checkVisibility() && !element.matches(".class, .link, .primary"))
  .map((element) => [element.innerText || element.type, getComputedStyle(element).borderTopColor,
    getComputedStyle(element.parentElement.closest(".card, #drop, .failure") ?? document.body)
      .backgroundColor])"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_edges_have_the_contrast_that_wcag_asks_for(page, scheme):
    page.emulate_media(color_scheme=scheme)
    open_everything(page)
    texts, edges = page.evaluate(COLOURS), page.evaluate(EDGES)
    assert len(texts) > 60
    assert len(edges) > 15
    assert [(text, contrast(*colors)) for text, *colors in texts if contrast(*colors) < 4.5] == []
    assert [(text, contrast(*colors)) for text, *colors in edges if contrast(*colors) < 3] == []
    ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (contrast(ground, "rgb(0, 0, 0)") < 2) == (scheme == "dark")


class TestOnAPhone:
    @pytest.fixture
    def options(self):
        return PHONE

    def test_nothing_is_wider_than_the_screen_or_too_small_to_touch(self, page):
        open_everything(page)
        assert page.evaluate("() => document.documentElement.scrollWidth") == 360
        for element in page.locator("button:visible, summary:visible, label:visible").all():
            box = element.bounding_box()
            small = 24 if "link" in (element.get_attribute("class") or "") else 40
            assert box["height"] >= small, element
            assert box["x"] >= 0, element
            assert box["x"] + box["width"] <= 360, element

    def test_taking_a_photo_opens_the_camera_of_the_phone(self, page):
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Take a photo").tap()
        assert chooser.value.element.get_attribute("capture") == "environment"
        chooser.value.set_files([{"name": "IMG_1.png", "mimeType": "image/png", "buffer": RED}])
        expect(page.locator(".label bdi")).to_have_text("red")


def test_who_wants_no_motion_gets_none(page):
    page.route("**/v1/models/*:predict", lambda route: None)  # stays unanswered
    page.set_input_files("#files", [{"name": "a", "mimeType": "image/png", "buffer": RED}])
    moving = "() => document.getAnimations().length"
    assert page.evaluate(moving) == 1
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(moving) == 0


def test_a_narrow_zoomed_window_needs_no_sideways_scrolling(page):
    page.set_viewport_size({"width": 320, "height": 600})  # 1280 px at 400 %, WCAG 2.2, 1.4.10
    open_everything(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") == 320
