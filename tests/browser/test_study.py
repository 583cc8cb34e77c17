"""The page of a search in a real browser: alone, on a phone, in the dark, by keyboard."""

import pytest
from playwright.sync_api import expect
from searches import write_study

from browser.harness import HOSTILE, alone, contrast, read_by_keyboard
from kresnet.tune.results import findings, write_page

TEST = {"accuracy": 0.8778, "n": 90, "interval": [0.794, 0.93]}


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies") / "flowers"
    ledger = write_study(folder, trials=30, name=HOSTILE, test=TEST)
    found = findings(ledger)
    ledger.close()
    return found, write_page(found, folder)


@pytest.fixture
def report(watched, search):
    with alone(watched, search[1]) as page:
        yield page


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(report, width, scheme):
    report.set_viewport_size({"width": width, "height": 800})
    report.emulate_media(color_scheme=scheme)
    report.get_by_text("Every trial", exact=True).click()
    inside = report.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
    assert inside[0] <= inside[1]
    backs = report.locator("section").first.evaluate("e => getComputedStyle(e).backgroundColor")
    for selector in ("p", ".faint", "figcaption", "summary", "dt", "small", ".key"):
        ink = report.locator(f"section {selector}").first.evaluate("e => getComputedStyle(e).color")
        assert contrast(ink, backs) >= 4.5, (selector, ink, backs)
    for name in ("svg text", "svg text.name"):
        fill = report.locator(name).first.evaluate("e => getComputedStyle(e).fill")
        assert contrast(fill, backs) >= 4.5, (name, fill, backs)


def test_every_drawing_has_a_text(report):
    drawings = report.locator("svg").all()
    assert len(drawings) == 4  # by trials, by hours, importance, values
    for one in drawings:
        assert one.get_attribute("role") == "img"
        assert one.get_attribute("aria-label")


def test_charts_can_be_read_on_a_phone(report):
    report.set_viewport_size({"width": 360, "height": 800})
    for text in report.locator("svg text").all():
        assert text.bounding_box()["height"] >= 10, text.text_content()
    cut, over = report.evaluate(
        """() => {
            const boxes = [...document.querySelectorAll("svg")].map(svg => ({
                all: svg.getBoundingClientRect(),
                texts: [...svg.querySelectorAll("text")].map(e => e.getBoundingClientRect()),
            }));
            const cut = Math.min(...boxes.flatMap(({all, texts}) => texts.map(own => Math.min(
                own.left - all.left, all.right - own.right, own.top - all.top,
                all.bottom - own.bottom))));
            const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
                && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4;
            const over = boxes.flatMap(({texts}) => texts.flatMap(
                (a, k) => texts.slice(k + 1).filter(b => meet(a, b))));
            return [cut, over.length];
        }"""
    )
    assert cut >= -1  # nothing is cut off
    assert over == 0  # no text lies on another


def test_names_are_shown_as_they_are_and_do_nothing(report):
    assert report.evaluate("() => window.hacked") is None
    expect(report.get_by_role("heading", level=1)).to_have_text(HOSTILE)
    assert report.title() == f"{HOSTILE}: report of a search"
    expect(report.get_by_role("region", name="Failed trials")).to_contain_text("SIGKILL <b>.")
    assert report.locator("img, td b").count() == 0


def test_its_numbers_are_those_of_the_study(report, search):
    found, _ = search
    best = found.ranking[0]
    expect(report.locator(".lead")).to_contain_text(f"Trial {best.number} is the best")
    ranking = report.get_by_role("region", name="The best trials")
    cells = ranking.locator("tbody tr td:nth-child(3)").all_inner_texts()
    assert cells == [f"{trial.score:.1%}" for trial in found.ranking[:20]]
    expect(report.locator("#ranking")).to_contain_text(f"and {len(found.ranking) - 20} more")
    report.get_by_text("Every trial", exact=True).click()
    every = report.get_by_role("region", name="Every trial, by number").locator("tbody tr")
    expect(every).to_have_count(30)
    failed = report.get_by_role("region", name="Failed trials").locator("tbody tr th")
    assert failed.all_inner_texts() == ["4", "9", "7"]
    expect(report.locator("#summary")).to_contain_text("On the 90 test images, which no trial has")
    expect(report.locator(".facts")).to_contain_text("87.8%")
    trust = report.locator("#trust")
    expect(trust).to_contain_text(f"Here {len(found.ranking)} trials were compared on 90 images.")
    expect(trust).to_contain_text(f"about {100 * found.luck.points:.1f} points better than it is")
    bars = report.get_by_role("img", name="How much each field matters").locator("text")
    assert bars.first.text_content() == "lr"


def test_it_can_be_read_by_keyboard(report):
    names = ("Summary", "Do it again", "The best trials", "Every trial", "Failed trials", "Space")
    read_by_keyboard(report, names, tabs=16)
