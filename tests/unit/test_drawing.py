"""Charts and pictures of a report, read back."""

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kresnet.evaluate.calibrate import reliability
from kresnet.evaluate.drawing import line_chart, reliability_chart
from kresnet.evaluate.pictures import data_uri, overlaid, where

values = st.lists(st.none() | st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=70)


@settings(deadline=None, max_examples=60)
@given(values, values)
def test_every_value_of_a_line_is_inside_of_the_drawing(first, second):
    chart = str(line_chart('a < "b"', [("one", first), ("two", second)]))
    if not any(v is not None for v in (*first, *second)):
        assert chart == ""
        return
    root = ElementTree.fromstring(chart)
    assert root.get("aria-label") == 'a < "b"'
    for line, given_values in zip(root.iter("polyline"), (first, second), strict=True):
        points = [tuple(map(float, p.split(","))) for p in line.get("points").split()]
        known = [v for v in given_values if v is not None]
        assert len(points) == len(known)
        assert all(0 <= x <= 440 and 0 <= y <= 260 for x, y in points)
        for (_, a), (_, b), v, w in zip(points, points[1:], known, known[1:], strict=False):
            assert (a - b) * (w - v) >= 0  # higher values are higher up
    assert 2 <= sum(line.get("class") == "grid" for line in root.iter("line")) <= 8


def test_a_reliability_chart_puts_scores_across_and_accuracy_up():
    best = np.array([0.72, 0.72, 0.72, 0.72, 0.98, 0.98])
    right = np.array([True, False, False, False, True, True])
    bins = [
        {"low": b.low, "high": b.high, "n": b.n, "confidence": b.confidence,
         "accuracy": b.accuracy, "interval": b.interval} for b in reliability(best, right)
    ]  # fmt: skip
    root = ElementTree.fromstring(str(reliability_chart("title", bins)))
    (x1, y1), (x2, y2) = sorted(
        (float(dot.get("cx")), float(dot.get("cy"))) for dot in root.iter("circle")
    )
    ideal = next(line for line in root.iter("line") if line.get("class") == "ideal")
    left, bottom, right_end, top = (float(ideal.get(k)) for k in ("x1", "y1", "x2", "y2"))
    assert (x1 - left) / (right_end - left) == pytest.approx(0.72, abs=1e-3)
    assert (x2 - left) / (right_end - left) == pytest.approx(0.98, abs=1e-3)
    assert (y1 - bottom) / (top - bottom) == pytest.approx(0.25, abs=1e-3)
    assert y2 == pytest.approx(top, abs=0.1)
    said = [title.text for title in root.iter("title")]
    assert said[0].startswith("4 answers with a mean score of 72.0%: 25.0% are right")


def test_evidence_is_told_in_words_and_is_bright_in_the_picture():
    heat = np.zeros((7, 7))
    heat[0, 6] = 1.0
    assert where(heat) == "upper right"
    assert where(np.eye(7)[::-1] * 0) == "nowhere"
    assert where(np.outer(np.hanning(9), np.hanning(9))) == "centre"
    assert where(heat[::-1]) == "lower right"
    grey = np.full((70, 70, 3), 100, np.uint8)
    drawn = overlaid(grey, heat).astype(int).sum(axis=-1)
    assert np.unravel_index(drawn.argmax(), drawn.shape)[0] < 20
    assert np.unravel_index(drawn.argmax(), drawn.shape)[1] > 50
    assert drawn[5, 65] > 300 > drawn[60, 5]


def test_a_picture_in_a_uri_is_the_picture():
    rng = np.random.default_rng(0)
    square = np.asarray(Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)).resize((64, 64)))
    found = re.fullmatch(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", data_uri(square))
    back = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))), float)
    assert np.abs(back - square).mean() < 6
