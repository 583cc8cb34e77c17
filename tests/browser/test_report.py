"""The report of a run in a real browser: alone, on a phone, in the dark, with hostile names."""

import io
import json
import shutil

import pytest
from PIL import Image
from playwright.sync_api import expect

from browser.harness import (
    HOSTILE,
    PREPROCESSING,
    alone,
    colours_model,
    contrast,
    picture,
    read_by_keyboard,
    write_colours,
)
from kresnet.console import Console
from kresnet.data.scan import scan
from kresnet.errors import ConfigError
from kresnet.evaluate.held_out import score
from kresnet.train.plan import plan
from kresnet.train.run import Run
from kresnet.workflow import report_run

NAMES = ("1 red", "2 green", "3 blue", HOSTILE)
COLOURS = ("red", "lime", "blue")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a network that is right about colours, on images of which some have wrong labels."""
    home = tmp_path_factory.mktemp("report")
    for split, count in (("train", 2), ("val", 6), ("test", 5)):
        for label, name in enumerate(NAMES):
            folder = home / "data" / split / name
            folder.mkdir(parents=True)
            for k in range(count):
                size, at = (200 + 10 * k, 160 + label), (0.5, 0.4 + 0.03 * k)
                image = picture(COLOURS[label], size, at) if label < 3 else picture("gray", size)
                image.save(folder / f"{k}.png")
    test = home / "data" / "test"
    picture("red", (200, 200), (0.2, 0.2)).save(test / "2 green" / f"{HOSTILE[:20]}.png")
    (home / "data" / "train" / "1 red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    index = scan(home / "data")
    recipe = plan(
        data=str(home / "data"), num_images=8, classes=index.classes, variant="resnet20_cifar",
        weights=None, image_size=64,
        overrides={"epochs": 3, "precision": "float32", "target_precision": 0.6},
    )  # fmt: skip
    run = Run.create(home / "runs", "colours & <b>more", recipe, index)
    run.save_preprocessing(PREPROCESSING)
    rows = [{"epoch": k, "loss": 1 / k, "val_loss": 1.2 / k, "val_accuracy": k / 4, "lr": 1e-3,
             "average_val_loss": 1.3 / k, "average_val_accuracy": k / 5}
            for k in (1, 2, 3)]  # fmt: skip
    run.write_metrics(rows)
    results = score(run, colours_model(index.classes))
    fields = {"temperature": run.info["temperature"], "threshold": run.info["threshold"]}
    exports = home / "saved_models"
    write_colours(exports / run.info["name"], home / "labels.txt", index.classes, **fields)
    brief = {"accuracy": results["test"].accuracy, "n": results["test"].n}
    result = {"export": "saved_models/x/1", "seconds": 61.2, "test": brief}
    run.update(status="complete", exports=str(exports), kept="fine-tune", result=result)
    what = {"what": "loss nan in epoch 2, step 5", "files": [f"{HOSTILE}/3.png"]}
    troubles = [{"kind": "not finite", **what}, {"kind": "out of memory"}]
    tried = {"validation": {"accuracy": 0.625}}
    refined = {
        "soup": {"of": ["epoch 2", "average of epoch 3"], "kept": False, **tried},
        "statistics": {"images": 8, "kept": True, **tried},
        "size": {"image_size": 64, "tried": {"73": {"accuracy": 0.5}}, "kept": False},
    }
    run.update(kept_epoch=3, kept_weights="average", troubles=troubles, refined=refined)
    assert report_run(run.path, console=Console(quiet=True)) == run.path / "report.html"
    return run


@pytest.fixture
def report(watched, run):
    with alone(watched, run.path / "report.html") as page:
        yield page


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(report, width, scheme):
    report.set_viewport_size({"width": width, "height": 800})
    report.emulate_media(color_scheme=scheme)
    for summary in report.locator("summary").all():
        summary.click()
    inside = report.evaluate("() => [document.documentElement.scrollWidth, innerWidth]")
    assert inside[0] <= inside[1]
    backs = report.locator("section").first.evaluate("e => getComputedStyle(e).backgroundColor")
    for selector in ("p", ".faint", "figcaption", "summary", "dt", ".file"):
        ink = report.locator(f"section {selector}").first.evaluate("e => getComputedStyle(e).color")
        assert contrast(ink, backs) >= 4.5, (selector, ink, backs)


def test_every_picture_has_a_text_and_is_shown(report):
    for summary in report.locator("summary").all():
        summary.click()
    pictures = report.locator("img").all()
    assert len(pictures) >= 3
    for one in pictures:
        assert one.get_attribute("alt").strip()
        expect(one).to_have_js_property("complete", True)
        assert one.evaluate("e => e.naturalWidth") == 200
    drawings = report.locator("svg").all()
    assert len(drawings) == 5  # three curves, reliability before and after
    for one in drawings:
        assert one.get_attribute("role") == "img"
        assert one.get_attribute("aria-label")


def test_names_are_shown_as_they_are_and_do_nothing(report):
    assert report.evaluate("() => window.hacked") is None
    expect(report.get_by_role("heading", level=1)).to_have_text("colours & <b>more")
    assert report.title() == "colours & <b>more: report of a training"
    expect(report.get_by_role("row", name=HOSTILE).first).to_be_visible()
    assert report.locator("img[src=x], h1 b").count() == 0


def test_its_numbers_are_those_of_the_run(report, run):
    final = json.loads((run.path / "evaluation.json").read_text())["test"]
    assert final["accuracy"] < 1  # else there would be nothing to see
    expect(report.locator(".lead")).to_contain_text(f"{final['accuracy']:.1%}")
    cells = [int(text) for text in report.locator(".matrix tbody td").all_inner_texts()]
    assert cells == [count for row in final["confusion"] for count in row]
    left_out = report.locator("#data details")
    left_out.locator("summary").click()
    expect(left_out).to_contain_text("broken.png")
    scores = json.loads((run.path / "calibration.json").read_text())
    value = f"{scores['temperature']['value']:.3f}"
    expect(report.locator("#scores")).to_contain_text(f"a temperature of {value}")


def test_the_training_is_told_with_its_troubles(report):
    training = report.locator("#training")
    expect(training).to_contain_text("Kept: the average of the weights after epoch 3,")
    expect(training).to_contain_text(
        f"Loss nan in epoch 2, step 5: from then on at a third of the learning rate. The batch "
        f"held {HOSTILE}/3.png and others"
    )
    for text in (
        "A mean of epoch 2, average of epoch 3 validates at 62.5%, which is not better.",
        "With statistics of the norms from 8 images it validates at 62.5%, and is kept.",
        "Validated on larger images: 73 px 50.0%; 64 px is kept.",
    ):
        expect(training).to_contain_text(text)
    expect(training).to_contain_text("Out of memory: from then on each batch was computed in")
    loss, accuracy, rate = (training.locator("figure").nth(k) for k in range(3))
    assert loss.locator(".key").all_inner_texts() == ["training", "validation", "average"]
    assert accuracy.locator(".key").all_inner_texts() == ["weights", "their average"]
    assert [chart.locator("polyline").count() for chart in (loss, accuracy, rate)] == [3, 2, 1]
    assert accuracy.locator("title").last.text_content() == "their average, epoch 3: 60.0%"
    training.get_by_text("Every epoch").click()
    cells = training.get_by_role("region", name="Epochs").locator("tbody tr").last
    assert cells.inner_text().split() == [
        "3",
        *map(str, (1 / 3, 1.2 / 3, 3 / 4, 1e-3, 1.3 / 3, 0.6)),
    ]


def test_charts_can_be_read_on_a_phone(report):
    report.set_viewport_size({"width": 360, "height": 800})
    for text in report.locator("svg text").all()[:40]:
        assert text.bounding_box()["height"] >= 10, text.text_content()
    edges = report.evaluate(
        """() => [...document.querySelectorAll("svg text")].map(e => {
            const own = e.getBoundingClientRect();
            const all = e.closest("section").getBoundingClientRect();
            if (getComputedStyle(e.closest("svg")).overflow !== "visible") throw e.outerHTML;
            return Math.min(own.left - all.left, all.right - own.right);
        })"""
    )
    assert min(edges) > 0  # nothing is cut off


def test_a_mistake_is_shown_with_what_speaks_for_it(report):
    wrong = report.locator("#mistakes > .mistakes > li").filter(has_text="2 green, taken for")
    expect(wrong).to_have_count(1)
    expect(wrong).to_contain_text("2 green, taken for 1 red")
    assert wrong.get_by_role("img", name="Evidence for 1 red: upper left").count() == 1
    photo, heat = (
        Image.open(io.BytesIO(wrong.locator("img").nth(k).screenshot())).convert("RGB")
        for k in (0, 1)
    )
    width, height = photo.size
    spot = (int(0.13 * width), int(0.13 * height))  # (0.2 - 0.1) / 0.8 of the centred square
    corner = (int(0.9 * width), int(0.9 * height))
    assert photo.getpixel(spot)[0] > 200 > 60 > photo.getpixel(spot)[1]
    assert heat.getpixel(spot)[1] > photo.getpixel(spot)[1] + 60  # bright where the evidence is
    assert sum(heat.getpixel(corner)) < sum(photo.getpixel(corner)) - 60  # dark where there is none


def test_it_can_be_read_by_keyboard(report):
    names = ("Summary", "Do it again", "Every class", "Confusion matrix", "Every setting")
    read_by_keyboard(report, names, tabs=40)


def test_images_and_an_export_that_are_gone_leave_a_report_without_pictures(watched, run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    names = json.loads((copy / "classes.json").read_text())
    (copy / "classes.json").write_text(json.dumps(names | {"root": str(tmp_path / "moved")}))
    watched.goto(report_run(copy, console=Console(quiet=True)).as_uri())
    assert watched.locator("img").count() == 0
    expect(watched.locator("#mistakes .none").first).to_have_text("no picture")
    Run.open(copy).update(exports=str(tmp_path / "no exports"))
    watched.goto(report_run(copy, console=Console(quiet=True)).as_uri())
    expect(watched.locator("#export")).to_contain_text("There is no export of this run here.")


def test_a_run_that_is_not_finished_has_no_report(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    (copy / "calibration.json").unlink()
    with pytest.raises(ConfigError, match=r"needs a finished run.*calibration.json.*resume"):
        report_run(copy, console=Console(quiet=True))
