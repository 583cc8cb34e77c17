"""Batches: every image once to evaluate, and to train the same views for the same seed."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import stripes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kresnet.data import augment, pixels
from kresnet.data.pipeline import TrainingData, evaluation_batches
from kresnet.data.scan import Row
from kresnet.zoo import Preprocessing

SMALL = Preprocessing(image_size=32, crop_pct=1.0)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    made = []
    for k in range(10):
        path = folder / f"{k} é,'.png"
        stripes(rng, k % 4, 36 + k).save(path)
        made.append(Row(str(path), k % 4, "train", 36 + k, 43 + k, ""))
    return made


def training(rows, **options):
    defaults = {"batch_size": 4, "min_area": 0.5, "flip": True, "seed": 0}
    return TrainingData(rows, SMALL, **defaults | options)


def collected(dataset):
    batches = list(dataset)
    return (
        np.concatenate([images for images, _ in batches]),
        np.concatenate([labels for _, labels in batches]),
        [len(labels) for _, labels in batches],
    )


def test_evaluation_scores_every_image_once_in_order(rows):
    images, labels, sizes = collected(evaluation_batches(rows, SMALL, batch_size=4))
    assert sizes == [4, 4, 2]
    assert labels.tolist() == [row.label for row in rows]
    for row, image in zip(rows, images, strict=True):
        expected = pixels.prepare(tf.io.read_file(row.path), SMALL)
        np.testing.assert_array_equal(image, expected)


def test_every_image_comes_once_before_any_comes_again_and_in_a_new_order(rows):
    data = training(rows, flip=False, min_area=1.0)
    assert data.steps == 3
    _, labels, sizes = collected(data.batches().take(5))
    assert sizes == [4] * 5
    first, second = labels[:10], labels[10:]
    assert sorted(first) == sorted(second) == sorted(row.label for row in rows)
    assert first.tolist() != second.tolist()


def test_the_same_seed_gives_the_same_views_and_another_seed_others(rows):
    first, again = (collected(training(rows).batches().take(3))[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, collected(training(rows, seed=1).batches().take(3))[0])


def test_a_stream_may_begin_anywhere(rows):
    data = training(rows)
    whole, rest = collected(data.batches().take(5)), collected(data.batches(3).take(2))
    np.testing.assert_array_equal(whole[0][12:], rest[0])
    np.testing.assert_array_equal(whole[1][12:], rest[1])


def test_views_of_an_image_differ_from_pass_to_pass(rows):
    data = training(rows[:1], batch_size=1)
    views, _, _ = collected(data.batches().take(4))
    assert len({view.tobytes() for view in views}) == 4


def test_a_batch_is_never_larger_than_the_images_there_are(rows):
    images, _, _ = collected(training(rows, batch_size=64).batches().take(1))
    assert len(images) == 10


def test_mirroring_happens_to_half_and_only_if_wanted(tmp_path):
    ramp = np.zeros((40, 40, 3), np.uint8)
    ramp[..., :] = np.linspace(0, 255, 40, dtype=np.uint8)[np.newaxis, :, np.newaxis]
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    rows = [Row(str(tmp_path / "ramp.png"), 0, "train", 40, 40, "")] * 200

    def mirrored(flip):
        images, _, _ = collected(training(rows, flip=flip).batches().take(50))
        return (images[:, :, 0].mean(axis=(1, 2)) > images[:, :, -1].mean(axis=(1, 2))).mean()

    assert mirrored(False) == 0.0
    assert 0.35 < mirrored(True) < 0.65


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    seed=st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)),
    min_area=st.floats(0.01, 1.0),
)
def test_a_random_crop_lies_inside_the_image(height, width, seed, min_area):
    box = augment.random_box(
        tf.constant(height), tf.constant(width), tf.constant(seed), min_area=min_area
    )
    top, left, crop_height, crop_width = box.numpy()
    assert crop_height > 0
    assert crop_width > 0
    slack = 1e-3 * max(height, width)
    assert top >= 0
    assert left >= 0
    assert top + crop_height <= height + slack
    assert left + crop_width <= width + slack


def test_crops_cover_the_wanted_areas_of_a_square_image():
    boxes = np.array(
        [augment.random_box(400, 400, tf.constant([1, k]), min_area=0.3) for k in range(300)]
    )
    areas = boxes[:, 2] * boxes[:, 3] / 400**2
    assert areas.min() >= 0.3 * 0.86  # 4:3 crops near the whole image are cut to fit
    assert areas.max() <= 1.0
    assert 0.55 < areas.mean() < 0.72
    ratios = boxes[:, 3] / boxes[:, 2]
    assert ratios.min() >= 0.74
    assert ratios.max() <= 1.34
