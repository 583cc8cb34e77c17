"""The linear probe finds the best linear head, and hands it over as a dense layer."""

import numpy as np
import pytest

from kresnet.train.probe import Heads, _regress, _regress_soft, features, fit_head


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
    x, y = features(model, batches, dtype="float32", progress=done.append)
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
