"""Two hundred real photos through the page: what it shows is what the export says."""

import io

import numpy as np
import pytest
import serving
import tensorflow as tf
from PIL import Image

from browser.harness import ask, encoded


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = tmp_path_factory.mktemp("saved_models") / "flowers"
    serving.write_export(home / "1", seed=4)
    with serving.running(home, "--runtime", "tensorflow") as running:
        running.home = home
        yield running


@pytest.fixture(scope="module")
def photos(shared):
    """Names and contents; every eighth is stored turned, as phones do."""
    paths = sorted((shared / "flowers").glob("*/*.jpg"))[::3][:200]
    found = []
    for k, path in enumerate(paths):
        content = path.read_bytes()
        if k % 8 == 0:
            exif = Image.Exif()
            exif[0x0112] = 2 + k // 8 % 7
            content = encoded(Image.open(io.BytesIO(content)), exif=exif)
        found.append((f"{k}.jpg", content))
    return found


@pytest.mark.slow
def test_two_hundred_photos_are_shown_as_the_export_answers(page, server, photos):
    assert len(photos) == 200
    page.set_default_timeout(300_000)
    cards = ask(page, *photos)
    shown = cards.evaluate_all(
        """(cards) => cards.map((card) => [card.querySelector("h3").textContent,
            [...card.querySelectorAll(".classes li")].map((row) =>
              [row.querySelector("bdi").textContent, row.querySelector("data").value])])"""
    )
    export = tf.saved_model.load(str(server.home / "1")).signatures["serving_bytes"]
    worst, agreed = 0.0, 0
    for (name, content), (title, rows) in zip(photos, shown, strict=True):
        assert title == name
        answer = {key: value.numpy()[0] for key, value in export(tf.constant([content])).items()}
        scores = {
            label.decode(): score
            for label, score in zip(answer["labels"], answer["scores"], strict=True)
        }
        assert scores.keys() == {label for label, _ in rows}
        worst = max(worst, *(abs(float(value) - scores[label]) for label, value in rows))
        agreed += rows[0][0] == answer["label"].decode()
    assert agreed == 200
    assert worst <= 1e-5, np.float32(worst)
