"""The page in a real browser: what it shows is what the model said, whatever is thrown at it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from playwright.sync_api import expect

from browser.harness import CLASSES, HOSTILE, PREPROCESSING, ask, encoded, heat, picture, settle
from kresnet.data import pixels

PREDICT = "**/v1/models/*:predict"


@pytest.fixture(scope="module")
def model(colours):
    return tf.saved_model.load(str(colours)).signatures["explain"]


def test_it_shows_the_labels_and_probabilities_of_the_model(page, model):
    names = ("red", "lime", "blue", "gray")
    files = [(f"{name}.jpg", encoded(picture(name, at=(0.4, 0.6)))) for name in names]
    cards = ask(page, *files)
    expect(cards).to_have_count(4)
    out = model(
        image_bytes=tf.constant([content for _, content in files]),
        class_index=tf.fill((4,), -1),
    )
    for card, (name, _), scores, abstain in zip(
        cards.all(), files, out["scores"].numpy(), out["abstain"].numpy(), strict=True
    ):
        expect(card.get_by_role("heading", level=3)).to_have_text(name)
        card.get_by_role("button", name="Show all 24 classes").click()
        rows = card.locator(".classes li").all()
        shown = {
            row.locator("bdi").inner_text(): np.float32(row.locator("data").get_attribute("value"))
            for row in rows
        }
        assert shown == dict(zip(CLASSES, scores, strict=True))
        assert list(shown.values()) == sorted(shown.values(), reverse=True)
        verdict = "Not sure" if abstain else max(shown, key=shown.get)
        expect(card.locator(".label bdi")).to_have_text(verdict)
    assert out["abstain"].numpy().tolist() == [False, False, False, True]


def test_the_verdict_is_said_in_words(page):
    cards = ask(
        page, ("r.png", encoded(picture("red"), "PNG")), ("g.png", encoded(picture("gray")))
    )
    sure, unsure = cards.locator(".words").all()
    expect(sure).to_have_text("This model answers from 60\u00a0% on.")
    expect(unsure).to_contain_text("The likeliest class, red, has 4.8\u00a0%.")
    expect(page.get_by_role("status")).to_contain_text(".png: ")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_the_heatmap_fits_the_photo_however_it_is_turned(page, format):
    upright = picture("red", size=(330, 210), at=(0.42, 0.33), share=0.2)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's names for what stores it so
    files = []
    for orientation in range(1, 9):
        stored = upright if orientation == 1 else upright.transpose(undo[orientation])
        exif = Image.Exif()
        exif[0x0112] = orientation
        files.append((f"turned {orientation}", encoded(stored, format, exif=exif)))
    for card in ask(page, *files).all():
        expect(card.locator("figcaption")).to_contain_text("Evidence for red is strongest")
        shown = card.locator("img").evaluate("image => [image.naturalWidth, image.naturalHeight]")
        assert shown == [330, 210]
        frame, canvas = card.locator("img").bounding_box(), card.locator("canvas").bounding_box()
        box = pixels.center_box(210, 330, PREPROCESSING.crop_pct).numpy()
        found = [
            canvas["y"] - frame["y"],
            canvas["x"] - frame["x"],
            canvas["height"],
            canvas["width"],
        ]
        assert found == pytest.approx(box * frame["width"] / 330, abs=1)
        assert heat(card) == (pytest.approx(0.42, abs=0.015), pytest.approx(0.33, abs=0.015))


@pytest.mark.parametrize("size", [(8, 8), (20, 40), (60, 12)])
def test_a_picture_of_a_few_pixels_is_shown_large_with_its_heat(page, size):
    [card] = ask(page, ("small.png", encoded(picture("red", size=size, share=0.5), "PNG"))).all()
    photo, canvas = card.locator("img").bounding_box(), card.locator("canvas").bounding_box()
    assert max(photo["width"], photo["height"]) == pytest.approx(224, abs=1)
    assert photo["width"] / photo["height"] == pytest.approx(size[0] / size[1], rel=0.05)
    side = PREPROCESSING.crop_pct * min(photo["width"], photo["height"])
    assert canvas["width"] == pytest.approx(side, rel=0.1)
    assert canvas["height"] == pytest.approx(side, rel=0.1)


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ((0.3, 0.2), "in the upper left"),
        ((0.5, 0.5), "in the middle"),
        ((0.62, 0.8), "at the bottom"),
    ],
)
def test_where_the_evidence_is_is_said_in_words(page, at, words):
    card = ask(page, ("red.png", encoded(picture("red", at=at, share=0.15), "PNG")))
    expect(card.locator("figcaption")).to_contain_text(f"Evidence for red is strongest {words}")


def test_another_class_can_be_explained(page):
    image = picture("red", at=(0.35, 0.3))
    image.paste(picture("blue", at=(0.6, 0.7)).crop((150, 100, 300, 200)), (150, 100))
    card = ask(page, ("both.png", encoded(image, "PNG")))
    before = heat(card)
    card.get_by_role("button", name="blue").click()
    settle(page)
    expect(card.locator("figcaption")).to_contain_text("Evidence for blue")
    expect(card.locator("[aria-pressed=true] bdi")).to_have_text("blue")
    after = heat(card)
    assert before == (pytest.approx(0.35, abs=0.03), pytest.approx(0.3, abs=0.03))
    assert after == (pytest.approx(0.6, abs=0.03), pytest.approx(0.7, abs=0.03))
    expect(card.locator(".curl")).to_contain_text('"class_index": 2')


def test_a_class_without_evidence_has_no_heat(page):
    card = ask(page, ("red.png", encoded(picture("red"), "PNG")))
    card.get_by_role("button", name="blue").click()
    settle(page)
    expect(card.locator("figcaption")).to_contain_text("Nothing here is evidence for blue.")
    with pytest.raises(AssertionError, match="no heat is shown"):
        heat(card)


def test_the_heatmap_can_be_hidden_and_faded(page):
    card = ask(page, ("red.png", encoded(picture("red"), "PNG")))
    card.get_by_role("slider", name="Strength").fill("30")
    expect(card.locator("canvas")).to_have_css("opacity", "0.3")
    card.get_by_role("checkbox", name="Heatmap").uncheck()
    expect(card.locator("canvas")).to_be_hidden()
    card.get_by_role("checkbox", name="Heatmap").check()
    expect(card.locator("canvas")).to_be_visible()


def test_classes_are_found_by_name(page):
    card = ask(page, ("red.png", encoded(picture("red"), "PNG")))
    expect(card.locator(".classes li:visible")).to_have_count(5)
    card.get_by_role("button", name="Show all 24 classes").click()
    card.get_by_role("searchbox", name="Find a class").fill("CLASS 1")
    expect(card.locator(".classes li:visible")).to_have_count(10)
    card.get_by_role("button", name="Show the likeliest 5").click()
    expect(card.locator(".classes li:visible")).to_have_count(5)


def test_what_names_say_is_never_run(page):
    name = '<img src=x onerror="window.hacked=true">.png'
    card = ask(page, (name, encoded(picture("red"), "PNG")))
    expect(card.locator("h3")).to_have_text(name)
    expect(card.locator(".classes")).to_contain_text(HOSTILE)
    card.get_by_role("button", name=HOSTILE).click()
    settle(page)
    expect(card.locator("figcaption")).to_contain_text(HOSTILE)
    assert page.evaluate("() => window.hacked") is None
    assert page.locator("img").count() == 1


def test_nothing_comes_from_another_host_and_nothing_inline_runs(page, server):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    policy = page.reload().headers["content-security-policy"]
    ask(page, ("red.png", encoded(picture("red"), "PNG")))
    assert {"default-src 'none'", "script-src 'self'"} <= set(policy.split("; "))
    assert "unsafe" not in policy
    assert len(asked) >= 7
    assert all(url.startswith((server.url + "/", f"blob:{server.url}/")) for url in asked)
    assert page.locator("[style]:not(canvas, .bar span), script:not([src])").count() == 0


@pytest.mark.parametrize(
    "content", [b"hello", b"\xff\xd8\xff\xe0 no jpeg", encoded(picture())[:500]]
)
def test_what_is_no_image_is_said_so_and_the_others_are_answered(page, content):
    cards = ask(page, ("bad.jpg", content), ("good.jpg", encoded(picture("lime"))))
    expect(cards.nth(0)).to_contain_text("The model cannot read this file. It reads JPEG, PNG")
    expect(cards.nth(0).locator(".classes")).to_be_hidden()
    expect(cards.nth(1).locator(".label bdi")).to_have_text("green")


def test_an_image_that_is_too_big_is_not_even_sent(page):
    page.route(PREDICT, lambda route: pytest.fail("it was sent"))
    card = ask(page, ("big.jpg", encoded(picture("red")) + bytes(2_000_000)))
    expect(card.get_by_role("alert")).to_contain_text("The image is too big: 2.0 MB, and this")
    expect(card.get_by_role("alert")).to_contain_text("accepts up to 1.6 MB")


def test_an_empty_file_is_said_so(page):
    expect(ask(page, ("empty.jpg", b"")).get_by_role("alert")).to_contain_text("The file is empty.")


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (400, '{"error": "JSON <b>Parse</b> error"}', "answered 400: JSON <b>Parse</b> error"),
        (404, '{"error": "Servable not found"}', "does not have this model any more"),
        (413, "", "larger than this server accepts"),
        (429, "", "more to do than it can"),
        (500, "<html>", "The server answered 500."),
        (503, '{"error": "draining"}', "The server is stopping, or not ready yet."),
        (504, "", "took too long to answer"),
    ],
)
def test_a_refusal_is_said_in_words_and_can_be_tried_again(page, status, body, words):
    page.route(PREDICT, lambda route: route.fulfill(status=status, body=body))
    card = ask(page, ("red.png", encoded(picture("red"), "PNG")))
    expect(card.get_by_role("alert")).to_contain_text(words)
    page.unroute(PREDICT)
    card.get_by_role("button", name="Try again").click()
    expect(card.locator(".label bdi")).to_have_text("red")
    expect(card.get_by_role("alert")).to_be_hidden()


def test_a_server_that_has_gone_is_said_so(page):
    page.route(PREDICT, lambda route: route.abort("connectionrefused"))
    card = ask(page, ("red.png", encoded(picture("red"), "PNG")))
    expect(card.get_by_role("alert")).to_contain_text("The server cannot be reached.")


def test_a_busy_server_is_asked_again_when_it_says(page):
    answers = iter([429, 503])

    def busy_twice(route):
        status = next(answers, None)
        if status is None:
            route.continue_()
        else:
            route.fulfill(status=status, headers={"Retry-After": "1"})

    page.route(PREDICT, busy_twice)
    card = ask(page, ("red.png", encoded(picture("red"), "PNG")))
    expect(card.locator(".label bdi")).to_have_text("red")
    assert list(answers) == []


def test_a_removed_image_is_forgotten(page):
    cards = ask(page, ("a.png", encoded(picture())), ("b.png", encoded(picture())))
    page.get_by_role("button", name="Remove a.png").click()
    expect(cards).to_have_count(1)
    expect(page.get_by_role("button", name="Remove b.png")).to_be_focused()
    page.get_by_role("button", name="Remove b.png").click()
    expect(page.get_by_role("button", name="Choose images")).to_be_focused()


def test_the_newest_images_come_first_and_all_can_go(page):
    ask(page, ("a.png", encoded(picture())))
    cards = ask(page, ("b.png", encoded(picture())), ("c.png", encoded(picture())))
    assert cards.locator("h3").all_inner_texts() == ["b.png", "c.png", "a.png"]
    page.get_by_role("button", name="Remove all").click()
    expect(cards).to_have_count(0)


AWKWARD = '-it\'s a "photo" $HOME `id` \\ %s é.jpg'


@pytest.mark.parametrize("name", ["photo.jpg", AWKWARD])
def test_the_lines_for_curl_and_python_give_the_same_answer(page, name, tmp_path):
    content = encoded(picture("blue", at=(0.4, 0.4)))
    card = ask(page, (name, content))
    card.get_by_text("The same request with curl or Python").click()
    (tmp_path / name).write_bytes(content)
    score = float(card.locator(".classes data").first.get_attribute("value"))
    lines = card.locator(".curl").inner_text()
    done = subprocess.run(
        ["sh", "-c", lines], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    (answer,) = json.loads(done.stdout)["predictions"]
    assert (answer["label"], answer["score"]) == ("blue", score)
    assert np.array(answer["heatmap"]).shape == (16, 16)
    script = card.locator(".python").inner_text()
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"blue {score}\n"


def test_the_lines_are_copied(page, context):
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    card = ask(page, ("photo.jpg", encoded(picture())))
    card.get_by_text("The same request with curl or Python").click()
    for which in (0, 1):
        card.get_by_role("button", name="Copy").nth(0).click()
        expect(card.get_by_role("button", name="Copied")).to_have_count(which + 1)
    copied = page.evaluate("() => navigator.clipboard.readText()")
    assert copied == card.locator(".python").inner_text()
