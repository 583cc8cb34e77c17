"""Batches: every image once to evaluate, and to train the same views for the same seed."""

from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from conftest import stripes
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kresnet.data import pixels
from kresnet.data.augment import Augmentation, geometry
from kresnet.data.balance import sample_weights
from kresnet.data.pipeline import TrainingData, evaluation_batches
from kresnet.data.scan import Row
from kresnet.errors import ConfigError, DataError
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


FIELDS = {field.name for field in fields(Augmentation)}


def training(rows, **options):
    """Training data of plain crops and mirrors, but for the options."""
    chosen = {"policy": "none", "min_area": 0.5} | options
    augmentation = Augmentation(**{k: v for k, v in chosen.items() if k in FIELDS})
    defaults = {"num_classes": 4, "batch_size": 4, "seed": 0, "augmentation": augmentation}
    return TrainingData(
        rows, SMALL, **defaults | {k: v for k, v in options.items() if k not in FIELDS}
    )


def collected(batches, count=None):
    """Images, labels and batch sizes; labels of targets where these are rows of them."""
    batches = list(islice(batches, count))
    labels = np.concatenate([batch[1] for batch in batches])
    return (
        np.concatenate([batch[0] for batch in batches]),
        labels.argmax(axis=1) if labels.ndim == 2 else labels,
        [len(batch[1]) for batch in batches],
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
    _, labels, sizes = collected(data.batches(), 5)
    assert sizes == [4] * 5
    first, second = labels[:10], labels[10:]
    assert sorted(first) == sorted(second) == sorted(row.label for row in rows)
    assert first.tolist() != second.tolist()


def test_the_same_seed_gives_the_same_views_and_another_seed_others(rows):
    first, again = (collected(training(rows).batches(), 3)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, collected(training(rows, seed=1).batches(), 3)[0])


def test_a_stream_may_begin_anywhere(rows):
    data = training(rows)
    whole, rest = collected(data.batches(), 5), collected(data.batches(3), 2)
    np.testing.assert_array_equal(whole[0][12:], rest[0])
    np.testing.assert_array_equal(whole[1][12:], rest[1])


def test_views_of_an_image_differ_from_pass_to_pass(rows):
    data = training(rows[:1], batch_size=1)
    views, _, _ = collected(data.batches(), 4)
    assert len({view.tobytes() for view in views}) == 4


def test_a_batch_is_never_larger_than_the_images_there_are(rows):
    images, _, _ = collected(training(rows, batch_size=64).batches(), 1)
    assert len(images) == 10


def test_mirroring_happens_to_half_and_only_if_wanted(tmp_path):
    ramp = np.zeros((40, 40, 3), np.uint8)
    ramp[..., :] = np.linspace(0, 255, 40, dtype=np.uint8)[np.newaxis, :, np.newaxis]
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    rows = [Row(str(tmp_path / "ramp.png"), 0, "train", 40, 40, "")] * 200

    def mirrored(flip):
        images, _, _ = collected(training(rows, flip=flip).batches(), 50)
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
    box = geometry.random_box(
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
        [geometry.random_box(400, 400, tf.constant([1, k]), min_area=0.3) for k in range(300)]
    )
    areas = boxes[:, 2] * boxes[:, 3] / 400**2
    assert areas.min() >= 0.3 * 0.86  # 4:3 crops near the whole image are cut to fit
    assert areas.max() <= 1.0
    assert 0.55 < areas.mean() < 0.72
    ratios = boxes[:, 3] / boxes[:, 2]
    assert ratios.min() >= 0.74
    assert ratios.max() <= 1.34


EVERYTHING = {
    "policy": "trivial",
    "vertical_flip": True,
    "erase": 0.5,
    "mixup": 0.4,
    "cutmix": 1.0,
    "repeats": 2,
    "smoothing": 0.1,
    "balancing": "sqrt",
}


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for part, again in zip(one, other, strict=True):
            np.testing.assert_array_equal(part, again)


def taken(data, count, start=0):
    return list(islice(data.batches(start), count))


@pytest.mark.slow
def test_with_everything_on_batches_come_again_and_resume(rows, tmp_path):
    whole = taken(training(rows, **EVERYTHING), 8)
    assert_same(whole[5:], taken(training(rows, **EVERYTHING), 3, start=5))
    for cache in ("memory", "disk"):
        data = training(rows, **EVERYTHING, cache=cache, folder=tmp_path)
        assert_same(whole, taken(data, 8))
        assert_same(whole[5:], taken(data, 3, start=5))  # all of it is kept by now
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "workers"),
    [
        ({"batch_size": 4, "mixup": 1.0}, 2),
        pytest.param(EVERYTHING | {"batch_size": 10}, 3, marks=pytest.mark.slow),
    ],
)
def test_slices_of_workers_make_up_the_batches_of_one(rows, options, workers):
    whole = taken(training(rows, **options), 6)
    slices = [taken(training(rows, **options, worker=(k, workers)), 6) for k in range(workers)]
    joined = [
        tuple(np.concatenate(parts) for parts in zip(*batches, strict=True))
        for batches in zip(*slices, strict=True)
    ]
    assert_same(whole, joined)
    assert all(len(batch[2]) for worker in slices for batch in worker)


def test_too_many_workers_or_broken_repeats_are_named(rows):
    with pytest.raises(ConfigError, match=r"two images for each worker.*batch_size=4.*workers=3"):
        training(rows, worker=(0, 3))
    with pytest.raises(ConfigError, match=r"every repeat.*batch_size=4, repeats=3"):
        training(rows, repeats=3)


@pytest.mark.parametrize("workers", [pytest.param(n, marks=pytest.mark.slow) for n in (1, 2)] + [3])
def test_workers_score_every_image_once(rows, workers):
    parts = [
        collected(evaluation_batches(rows, SMALL, batch_size=3, worker=(k, workers)))
        for k in range(workers)
    ]
    whole, _, _ = collected(evaluation_batches(rows, SMALL, batch_size=4))
    together = np.empty_like(whole)
    for k, (images, _, _) in enumerate(parts):
        together[k::workers] = images
    np.testing.assert_array_equal(together, whole)


def test_repeats_are_other_views_of_the_same_images_apart_from_each_other(rows):
    images, labels, _ = collected(training(rows, repeats=2, batch_size=10).batches(), 4)
    shown = labels.reshape(4, 2, 5)
    np.testing.assert_array_equal(shown[:, 0], shown[:, 1])
    views = images.reshape(4, 2, 5, -1)
    assert not (views[:, 0] == views[:, 1]).all(axis=2).any()
    assert sorted(shown[:2, 0].ravel()) == sorted(row.label for row in rows)
    assert training(rows, repeats=2, batch_size=10).steps == 2


@pytest.mark.slow
def test_one_partial_read_is_one_image(tmp_path, rows):
    """Images that lie inside of a larger file, as in a tar or a shard."""
    contents = [Path(row.path).read_bytes() for row in rows]
    whole = tmp_path / "shard"
    whole.write_bytes(b"head" + b"".join(contents))
    starts = np.cumsum([4, *map(len, contents)])
    parts = [
        replace(row, path=str(whole), offset=int(start), size=len(data))
        for row, start, data in zip(rows, starts, contents, strict=False)
    ]
    assert_same(taken(training(rows), 3), taken(training(parts), 3))
    expected = collected(evaluation_batches(rows, SMALL, batch_size=4))[0]
    got = collected(evaluation_batches(parts, SMALL, batch_size=4))[0]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("balancing", ["none", "sqrt", "full"])
def test_weights_of_classes_have_mean_one_and_the_right_ratio(rows, balancing):
    uneven = [replace(row, label=min(k // 6, 2)) for k, row in enumerate(rows)]  # 6 and 4
    heavy = [replace(row, weight=3.0 if k == 0 else 1.0) for k, row in enumerate(uneven)]
    power = {"none": 0, "sqrt": 0.5, "full": 1}[balancing]
    weights = sample_weights(uneven, 3, balancing)
    assert weights.dtype == np.float32
    assert weights.mean() == pytest.approx(1)
    assert weights[9] / weights[0] == pytest.approx((6 / 4) ** power)
    weights = sample_weights(heavy, 3, balancing)
    assert weights.mean() == pytest.approx(1)
    assert weights[0] / weights[1] == pytest.approx(3)


def test_expected_weights_under_mixing_are_the_analytic_ones(rows):
    """Over a whole pass, each class has the total weight that it would have without mixing."""
    uneven = [replace(row, label=int(k > 7)) for k, row in enumerate(rows)]  # 8 and 2
    options = {"num_classes": 2, "batch_size": 10, "balancing": "full", "mixup": 0.4}
    totals = np.zeros(2)
    for _, targets, weights in taken(training(uneven, **options), 150):
        per_class = 10 / (2 * np.array([8, 2]))
        expected = (targets.numpy() * per_class).sum(axis=1)
        np.testing.assert_allclose(weights, expected, rtol=1e-5)
        totals += (targets.numpy() * per_class).sum(axis=0) / 10
    assert totals / 150 == pytest.approx([0.5, 0.5], abs=1e-4)


def test_smoothing_moves_into_the_targets(rows):
    for _, targets, weights in taken(training(rows, smoothing=0.2), 2):
        np.testing.assert_allclose(np.sort(targets, axis=1)[:, ::-1][0], [0.85, 0.05, 0.05, 0.05])
        np.testing.assert_allclose(targets.numpy().sum(axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(weights, 1.0)


@pytest.fixture
def own_rows(rows, tmp_path):
    """Copies of the images that a test may damage."""
    made = []
    for k, row in enumerate(rows):
        copy = tmp_path / f"{k}.png"
        copy.write_bytes(Path(row.path).read_bytes())
        made.append(replace(row, path=str(copy)))
    return made


def damage(row, how):
    path = Path(row.path)
    if how == "deleted":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    else:
        stripes(np.random.default_rng(9), 1, 90).save(path)


REASONS = {
    "deleted": "cannot be read any more: No such file",
    "truncated": "cannot be decoded any more",
    "replaced": "has another size: 90 x 97, not 39 x 46",
}


@pytest.mark.parametrize(
    ("how", "cache"),
    [
        pytest.param("deleted", "none", marks=pytest.mark.slow),
        ("truncated", "memory"),
        pytest.param("replaced", "none", marks=pytest.mark.slow),
    ],
)
def test_a_lost_image_is_named_and_the_next_takes_its_place(own_rows, how, cache):
    whole = taken(training(own_rows), 8)
    told = []
    data = training(own_rows, tell=told.append, max_bad=0.1, cache=cache)
    damage(own_rows[3], how)
    got = taken(data, 8)
    assert [(p.path, REASONS[how] in p.reason) for p in told] == [(own_rows[3].path, True)]

    shown = [int(data._image_of(k)) for k in range(32)]
    before = training(own_rows)
    replaced = np.array([int(before._image_of(k)) == 3 for k in range(32)]).reshape(8, 4)
    assert 3 not in shown
    assert replaced.sum() >= 3
    for batch, whole_batch, spots in zip(got, whole, replaced, strict=True):
        for part, whole_part in zip(batch, whole_batch, strict=True):
            same = [np.array_equal(a, b) for a, b in zip(part, whole_part, strict=True)]
            assert all(np.array(same) | spots)
        labels = batch[1].numpy().argmax(axis=1)
        assert (labels[spots] == own_rows[4].label).all()

    resumed = training(own_rows, tell=told.append, max_bad=0.1, cache=cache)
    assert_same(got[4:], taken(resumed, 4, start=4))
    assert len(told) == 2


@pytest.mark.slow
def test_an_image_lost_on_the_way_leaves_the_batches_before_it_alone(own_rows):
    options = {"batch_size": 2, "max_bad": 0.2}
    whole = taken(training(own_rows, **options), 12)
    data = training(own_rows, **options)
    stream = data.batches()
    first = [next(stream) for _ in range(3)]
    damage(own_rows[5], "deleted")
    rest = [next(stream) for _ in range(37)]
    assert_same(whole[:3], first)
    # Some batches were under way already, the more the busier the reader of this stream was; of
    # those long after them, some would have had the image.
    later = range(60, 80)
    assert 5 in [int(training(own_rows, **options)._image_of(k)) for k in later]
    assert_same(rest[27:], taken(training(own_rows, **options), 10, start=30))


def test_too_many_lost_images_stop_the_run(own_rows):
    for row in own_rows[2:5]:
        damage(row, "deleted")
    data = training(own_rows, max_bad=0.2)
    with pytest.raises(DataError, match=r"At most 20%.*Received: 3 of 10: '.*2\.png' cannot be"):
        taken(data, 10)
    with pytest.raises(DataError, match=r"At most 0%.*Received: [123] of 10: "):
        taken(training(own_rows, max_bad=0.0), 10)


def test_the_loss_of_the_network_is_not_taken_for_a_lost_image(own_rows, monkeypatch):
    data = training(own_rows)
    damage(own_rows[0], "deleted")
    monkeypatch.setattr("kresnet.data.lost.failure", lambda row: None)
    with pytest.raises(tf.errors.OpError):
        taken(data, 5)
