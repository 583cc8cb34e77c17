"""Pictures with a known answer, and what the tests of the page do again and again."""

import io
import itertools
import re
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw
from playwright.sync_api import expect

from kresnet.export.contract import Contract
from kresnet.export.servable import SIGNATURES, Servable
from kresnet.zoo import Preprocessing

HOSTILE = '<img src=x onerror="window.hacked = true">'
CLASSES = (
    "red", "green", "blue", HOSTILE, "ярко-жёлтый", "אדום", 
    "a label that goes on and on, as some do",
    *(f"class {k:02d}" for k in range(7, 24)),
)  # fmt: skip
THRESHOLD = 0.6
PREPROCESSING = Preprocessing(image_size=64, crop_pct=0.8, mean=(0.0,) * 3, std=(1.0,) * 3)


def colours_model(classes=CLASSES):
    """A network that looks for red, green and blue."""
    inputs = keras.Input((64, 64, 3))
    cells = keras.layers.AveragePooling2D(4)(inputs)  # (16, 16)
    pure = keras.layers.Conv2D(3, 1, activation="relu", name="pure")(cells)
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(pure)
    model = keras.Model(inputs, keras.layers.Dense(len(classes), name="head")(pooled))
    kernel = np.full((1, 1, 3, 3), -1.0) + 2 * np.eye(3)
    model.get_layer("pure").set_weights([kernel, np.full(3, -0.1)])
    weights = np.zeros((3, len(classes)))
    weights[:3, :3] = 100 * np.eye(3)
    model.get_layer("head").set_weights([weights, np.linspace(0.3, 0.0, len(classes))])
    return model


def write_colours(home, labels, classes=CLASSES, **fields):
    """Write version 1 of an export that looks for red, green and blue."""
    directory = home / "1"
    model = colours_model(classes)
    contract = Contract(
        name=home.name,
        variant="colours",
        classes=classes,
        preprocessing=PREPROCESSING,
        versions={},
        **{"threshold": THRESHOLD} | fields,
    )
    labels.write_text("\n".join(classes) + "\n", encoding="utf-8")
    servable = Servable(model, contract, labels)
    calls = (servable.serve_images, servable.serve_bytes, servable.explain, servable.classify)
    signatures = dict(zip(SIGNATURES, calls, strict=True))
    tf.saved_model.save(servable, str(directory), signatures=signatures)
    contract.save(directory)
    return directory


def picture(color="red", size=(300, 200), at=(0.5, 0.5), share=0.25):
    """A grey picture with one square of `color`, whose centre is `at` (x, y) in 0..1."""
    image = Image.new("RGB", size, (128, 128, 128))
    half = share * min(size) / 2
    x, y = at[0] * size[0], at[1] * size[1]
    ImageDraw.Draw(image).rectangle((x - half, y - half, x + half, y + half), fill=color)
    return image


def encoded(image, format="JPEG", **options):
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **({"quality": 95} if format == "JPEG" else {}), **options)
    return buffer.getvalue()


def ask(page, *files):
    """Give the page files, each a name and bytes, and wait for every answer."""
    payloads = [
        {"name": name, "mimeType": "application/octet-stream", "buffer": content}
        for name, content in files
    ]
    page.set_input_files("#files", payloads)
    settle(page)
    return page.locator(".card")


def luminance(color):
    """Relative luminance of "rgb(r, g, b)" as WCAG 2.2 defines it."""
    channels = np.array([float(part) for part in re.findall(r"[\d.]+", color)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    """Contrast ratio of two colours, 1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@contextmanager
def alone(page, file):
    """Open a page that is a file, without a network: it asks for nothing but itself."""
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.context.set_offline(True)
    page.goto(file.as_uri())
    yield page
    others = [url for url in asked if not url.startswith(("file:", "data:"))]
    assert not others, others
    files = [url for url in asked if url.startswith("file:")]
    assert len(files) == 1, files


def read_by_keyboard(page, names, *, tabs):
    """Go through a report by the tab key: what is named is reached, and all can be told apart."""
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the summary")).to_be_focused()
    reached = []
    for _ in range(tabs):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                """() => {
                const at = document.activeElement;
                if (at === document.body) return "";
                if (getComputedStyle(at).outlineStyle === "none") throw at.outerHTML;
                return at.getAttribute("aria-label") ?? at.innerText;
            }"""
            )
        )
    assert set(names) <= set(reached), reached
    for region in page.get_by_role("region").all():
        snapshot = region.aria_snapshot()
        assert re.match(r'- region ".+"', snapshot), snapshot
    levels = page.evaluate(
        "() => [...document.querySelectorAll('h1, h2, h3')].map(e => Number(e.tagName[1]))"
    )
    assert levels[0] == 1, levels
    assert levels.count(1) == 1, levels
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels)), levels


def settle(page):
    """Wait until nothing is being asked any more."""
    expect(page.locator("[aria-busy]")).to_have_count(0, timeout=300_000)


def heat(card):
    """Where the centre of the shown heat is in the photo, x and y in 0..1, as seen on the screen.

    It is found by hiding and showing the heatmap: cold places of it are darker than the photo, hot
    ones brighter.
    """
    canvas, photo = card.locator("canvas"), card.locator("img")
    canvas.evaluate("canvas => { canvas.style.outline = canvas.style.boxShadow = 'none' }")
    shown = np.asarray(Image.open(io.BytesIO(photo.screenshot())).convert("RGB"), float)
    canvas.evaluate("canvas => { canvas.hidden = true }")
    plain = np.asarray(Image.open(io.BytesIO(photo.screenshot())).convert("RGB"), float)
    canvas.evaluate("canvas => { canvas.hidden = false }")
    changed = np.maximum(shown - plain, 0).sum(axis=-1)
    changed[changed < 60] = 0  # a little blue, where the photo has none
    y, x = np.mgrid[: changed.shape[0], : changed.shape[1]] + 0.5
    total = changed.sum()
    assert total > 1000, "no heat is shown"
    return float((changed * x).sum() / total / x.shape[1]), float(
        (changed * y).sum() / total / y.shape[0]
    )
