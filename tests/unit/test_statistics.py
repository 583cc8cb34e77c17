"""Recalibrated norms have the statistics of all images, each weighed alike."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import randomize

from kresnet.train.optimizer import freeze_before
from kresnet.train.statistics import Recalibration, learning_norms
from kresnet.zoo import build, freeze_norms


@pytest.fixture
def model():
    return randomize(build("resnet8_cifar", num_classes=3, drop_path_rate=0.5, drop_rate=0.5), 2)


def images(count, seed=0):
    return np.random.default_rng(seed).normal(1.0, 2.0, (count, 32, 32, 3)).astype("float32")


def batches(x, *sizes):
    places = np.cumsum(sizes)[:-1]
    return lambda: iter([(tf.constant(part), None) for part in np.split(x, places)])


def statistics(model):
    return [
        np.stack([norm.moving_mean.numpy(), norm.moving_variance.numpy()])
        for norm in learning_norms(model)
    ]


def test_the_first_norm_has_the_mean_and_variance_of_its_convolution(model):
    """The last batch is smaller than the others and counts for less."""
    x = images(19)
    x[16:] += 3.0
    assert Recalibration(model, batches(x, 8, 8, 3))() == 19
    first = model.get_layer("stem_conv")
    features = tf.nn.conv2d(x.astype("float64"), first.kernel.numpy().astype("float64"), 1, "SAME")
    np.testing.assert_allclose(first.moving_mean, np.mean(features, axis=(0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(first.moving_variance, np.var(features, axis=(0, 1, 2)), rtol=1e-4)


def test_one_batch_makes_inference_what_training_is(model):
    """In every norm, not in the first alone; and nothing is dropped on the way."""
    x = images(6)
    Recalibration(model, batches(x, 6))()
    bare = build("resnet8_cifar", num_classes=3)
    for mine, theirs in zip(bare.weights, [w for w in model.weights], strict=True):
        mine.assign(theirs)
    np.testing.assert_allclose(model(x, training=False), bare(x, training=True), atol=2e-4)


def test_it_does_not_depend_on_what_was_before(model):
    recalibrate = Recalibration(model, batches(images(12), 5, 5, 2))
    recalibrate()
    first = statistics(model)
    for norm in learning_norms(model):
        norm.moving_mean.assign(norm.moving_mean + 5.0)
    recalibrate()
    for a, b in zip(first, statistics(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_momentum_rates_and_seeds_stay_as_they_were(model):
    def settings():
        return [
            (layer.name, getattr(layer, "momentum", None), getattr(layer, "rate", None))
            for layer in model.layers
        ]

    before = settings()
    seeds = [v.numpy().tolist() for v in model.variables if "seed" in v.path]
    Recalibration(model, batches(images(4), 4))()
    assert settings() == before
    assert [v.numpy().tolist() for v in model.variables if "seed" in v.path] == seeds
    assert {rate for *_, rate in before if rate} >= {0.5}


def test_frozen_norms_are_left_alone(model):
    freeze_before(model, 3)
    assert {norm.name.split("_")[0] for norm in learning_norms(model)} == {"stage3"}
    freeze_norms(model)
    assert learning_norms(model) == []
    assert learning_norms(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])) == []
