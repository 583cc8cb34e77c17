"""The linear probe finds the best linear head, and hands it over as a dense layer."""

from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from kresnet.train import probe
from kresnet.train.probe import (
    Frozen,
    Heads,
    View,
    _regress,
    _regress_soft,
    fit_head,
    held_out_probabilities,
    views_of,
)


def blobs(n, classes, width, seed, spread=1.0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(size=(classes, width))
    y = rng.permutation(np.arange(n) % classes)
    return (3.0 + 2.0 * (centres[y] + spread * rng.normal(size=(n, width)))).astype("f4"), y


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("width", [20, 300])  # fewer and more features than images
def test_head_classifies_unseen_features(classes, width):
    x, y = blobs(120, classes, width, seed=0)
    kernel, bias = fit_head(x, y, seed=0)
    assert kernel.shape == (width, classes)
    assert kernel.dtype == bias.dtype == np.float32
    held, truth = blobs(400, classes, width, seed=2)
    assert ((held @ kernel + bias).argmax(axis=1) == truth).mean() > 0.93


@pytest.mark.parametrize("classes", [2, 3])
def test_head_is_logistic_regression_at_the_chosen_strength(classes):
    from sklearn.linear_model import LogisticRegression

    x, y = blobs(90, classes, 10, seed=0, spread=2.0)
    kernel, bias = fit_head(x, y, seed=0)
    logits = x @ kernel + bias
    z = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0).mean())
    ours = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    gaps = [
        np.abs(LogisticRegression(C=10.0**p, max_iter=1000).fit(z, y).predict_proba(z) - ours).max()
        for p in range(-5, 2)
    ]
    assert min(gaps) < 1e-2


def test_noise_gets_strong_regularisation():
    """On features that say nothing, confident answers cost likelihood."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 50)).astype("f4"), rng.permutation(np.arange(100) % 2)
    kernel, bias = fit_head(x, y, seed=0)
    assert np.abs(x @ kernel + bias).max() < 0.5


def test_one_image_of_a_class_is_enough():
    x, y = blobs(30, 3, 8, seed=0, spread=0.1)
    keep = (y != 2) | (np.cumsum(y == 2) == 1)
    kernel, bias = fit_head(x[keep], y[keep], seed=0)
    assert ((x @ kernel + bias).argmax(axis=1) == y).mean() > 0.9


def test_features_are_those_of_the_frozen_model():
    import keras
    import tensorflow as tf
    from conftest import randomize, relative_error

    from kresnet.zoo import build

    model = randomize(build("resnet20_cifar", num_classes=3))
    images = np.random.default_rng(0).normal(size=(7, 32, 32, 3)).astype("f4")
    batches = tf.data.Dataset.from_tensor_slices((images, np.arange(7, dtype="i4"))).batch(3)
    done = []
    x, y = Frozen(model, precision="float32").features(batches, progress=done.append)
    pool = keras.Model(model.input, model.get_layer("pool").output)(images, training=False)
    assert relative_error(x, pool) < 1e-5
    assert y.tolist() == list(range(7))
    assert done == [3, 6, 7]


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("strength", [1e-5, 0.01, 1.0])
def test_soft_labels_of_no_softness_are_hard_ones(classes, strength):
    z, y = blobs(150, classes, 12, seed=5, spread=2.0)
    z = (z - z.mean(axis=0)) / z.std()
    coef, intercept = _regress(z, y, strength)
    soft, soft_intercept = _regress_soft(z, y, strength, 0.0)
    a, b = z @ coef.T + intercept, z @ soft.T + soft_intercept
    centred = [logits - logits.mean(axis=1, keepdims=True) for logits in (a, b)]
    assert np.abs(centred[0] - centred[1]).max() < 0.02 * np.abs(centred[0]).max()


def test_smoothing_and_regularisation_make_a_head_less_sure():
    x, y = blobs(200, 4, 15, seed=6)

    def sureness(**settings):
        kernel, bias = Heads(x, y).fit(seed=0, **settings)
        logits = x @ kernel + bias
        assert (logits.argmax(axis=1) == y).mean() > 0.8
        return (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).max(axis=1).mean()

    hard = sureness(strength=10.0)
    assert 0.7 < sureness(strength=10.0, smoothing=0.15) < 0.9 < hard
    assert sureness(strength=1e-4) < hard


def test_a_strength_that_is_given_is_taken():
    x, y = blobs(90, 3, 10, seed=0, spread=2.0)
    chosen = Heads(x, y).strength(seed=0)
    same = fit_head(x, y, seed=0, strength=chosen)
    for one, other in zip(fit_head(x, y, seed=0), same, strict=True):
        np.testing.assert_array_equal(one, other)
    assert np.abs(fit_head(x, y, seed=0, strength=1e-5)[0]).max() < np.abs(same[0]).max() / 2


def test_the_views_of_an_image_together_count_as_one():
    x, y = blobs(90, 3, 10, seed=0, spread=2.0)
    one = Heads(x, y)
    three = Heads(np.concatenate([x] * 3), np.concatenate([y] * 3), views=3)
    assert three.strength(seed=0) == one.strength(seed=0)
    for smoothing in (0.0, 0.1):
        pairs = zip(
            three.fit(seed=0, smoothing=smoothing), one.fit(seed=0, smoothing=smoothing),
            strict=True,
        )  # fmt: skip
        for many, single in pairs:
            assert np.abs(many - single).max() < 0.02 * np.abs(single).max()


def test_the_strength_is_not_chosen_on_views_of_images_that_were_learned():
    """Noise that repeats in each view is known by heart, and strong where folds share images."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 50)).astype("f4"), rng.permutation(np.arange(100) % 2)
    views = np.concatenate([x, x + 0.01 * rng.normal(size=x.shape).astype("f4")])
    twice = np.concatenate([y, y])
    assert Heads(views, twice, views=2).strength(seed=0) <= 1e-3
    assert Heads(views, twice).strength(seed=0) > 1e-3


def test_views_are_crops_and_mirror_images_where_those_are_as_good():
    assert views_of("center", flip=True) == (View(),)
    assert views_of("mirror", flip=True) == (View(), View(mirror=True))
    assert views_of("mirror", flip=False) == (View(),)
    assert len(set(views_of("crops", flip=True))) == 6
    assert views_of("crops", flip=False) == (View(), View("wide"), View("narrow"))
    assert views_of("crops", flip=True)[0] == View()


@pytest.mark.parametrize(
    "crop_pct", [0.875, *(pytest.param(part, marks=pytest.mark.slow) for part in (0.95, 1.0))]
)
def test_a_view_is_the_evaluation_of_another_part(tmp_path, crop_pct):
    from PIL import Image

    from kresnet.data.pipeline import evaluation_batches
    from kresnet.data.scan import scan
    from kresnet.zoo import build

    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        image = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype="u1"))
        image.save(tmp_path / name / "0.png")
    rows = scan(tmp_path).rows
    known = replace(build("resnet20_cifar", num_classes=2).preprocessing, crop_pct=crop_pct)
    seen = {}
    for view in views_of("crops", flip=True):
        ((seen[view], labels),) = list(view.batches(rows, known))
        assert labels.numpy().tolist() == [0, 1]
    ((plain, _),) = list(evaluation_batches(rows, known, batch_size=2))
    np.testing.assert_array_equal(seen[View()], plain)
    for crop in ("center", "wide", "narrow"):
        np.testing.assert_array_equal(seen[View(crop, True)], seen[View(crop)][:, :, ::-1])
    narrow = evaluation_batches(rows, replace(known, crop_pct=0.8 * crop_pct), batch_size=2)
    np.testing.assert_array_equal(seen[View("narrow")], next(iter(narrow))[0])
    images = [array.numpy().tobytes() for array in seen.values()]
    assert len(set(images)) == 6


def test_regressions_at_once_are_those_one_by_one(monkeypatch):
    rng = np.random.default_rng(4)
    y = rng.integers(0, 3, 900).astype(np.int32)
    x = (rng.normal(size=(900, 600)) + 0.1 * y[:, None]).astype(np.float32)
    limits = [pool["num_threads"] for pool in threadpool_info()]
    heads = []
    for cores in (1, 3):
        monkeypatch.setattr(probe, "cores", lambda cores=cores: cores)
        heads.append((*fit_head(x, y, seed=0), held_out_probabilities(x, y, seed=0, folds=3)))
    for one, several in zip(*heads, strict=True):
        np.testing.assert_array_equal(one, several)
    assert [pool["num_threads"] for pool in threadpool_info()] == limits
