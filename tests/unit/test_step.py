"""A step in parts is the step of the whole batch; the loss is what it says."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import randomize, relative_error

from kresnet.train.optimizer import optimizer_for
from kresnet.train.step import train_step
from kresnet.zoo import build, freeze_norms


def batch(size=7, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.dirichlet([1, 1, 1], size)
    images = rng.normal(size=(size, 32, 32, 3))
    return [tf.constant(a, tf.float32) for a in (images, targets, rng.uniform(0.5, 2, size))]


def stepped(parts, name="sgd", steps=2, **options):
    model = randomize(build("resnet20_cifar", num_classes=3), seed=1)
    freeze_norms(model)
    optimizer = optimizer_for(model, name, weight_decay=1e-3, layer_decay=0.5, clip_norm=1.0)
    step = train_step(model, optimizer, parts=parts, **options)
    optimizer.learning_rate = 0.01
    losses = [float(step(*batch(seed=k))) for k in range(steps)]
    return losses, [v.numpy() for v in model.trainable_variables], optimizer


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("parts", [2, 3, 50])
def test_parts_make_the_step_of_the_whole_batch(parts, name):
    losses, whole, _ = stepped(1, name)
    again, in_parts, optimizer = stepped(parts, name)
    assert losses == pytest.approx(again, rel=1e-5)
    assert int(optimizer.iterations) == 2  # updates, not parts: schedules stay as they are
    untouched = [v.numpy() for v in randomize(build("resnet20_cifar", num_classes=3), seed=1)
                 .trainable_variables]  # fmt: skip
    moved = max(np.abs(a - b).max() for a, b in zip(whole, untouched, strict=True))
    # AdamW's first steps are signs of gradients, so rounding can turn the smallest of them.
    tolerance = 0.05 if name == "adamw" else 1e-4
    for a, b in zip(whole, in_parts, strict=True):
        assert np.abs(a - b).mean() < tolerance * moved


def test_the_loss_is_the_mean_of_weighted_cross_entropies():
    model = randomize(build("resnet20_cifar", num_classes=3), seed=1)
    freeze_norms(model)
    images, targets, weights = batch()
    expected = np.mean(
        weights * keras.losses.categorical_crossentropy(targets, model(images), from_logits=True)
    )
    optimizer = optimizer_for(model, "sgd", weight_decay=0.0, layer_decay=1.0, clip_norm=None)
    assert float(train_step(model, optimizer)(images, targets, weights)) == pytest.approx(
        float(expected), rel=1e-5
    )


def test_sigmoid_counts_every_class_of_a_mixed_image_as_present():
    model = randomize(build("resnet20_cifar", num_classes=3), seed=1)
    freeze_norms(model)
    images, _, weights = batch(size=2)
    targets = tf.constant([[0.7, 0.3, 0.0], [0.15, 0.0, 0.85]])
    present = np.array([[1, 1, 0], [0, 0, 1.0]])
    p = 1 / (1 + np.exp(-model(images).numpy().astype("float64")))
    losses = -(present * np.log(p) + (1 - present) * np.log(1 - p)).mean(axis=1)
    optimizer = optimizer_for(model, "sgd", weight_decay=0.0, layer_decay=1.0, clip_norm=None)
    step = train_step(model, optimizer, loss="sigmoid")
    assert float(step(images, targets, weights)) == pytest.approx(
        float(np.mean(weights * losses)), rel=1e-5
    )


def test_norms_that_learn_take_in_every_part():
    model = randomize(build("resnet20_cifar", num_classes=3), seed=1)
    optimizer = optimizer_for(model, "sgd", weight_decay=0.0, layer_decay=1.0, clip_norm=None)
    norm = model.get_layer("stem_conv")
    images, targets, weights = batch(size=6)
    plain = tf.nn.conv2d(images, norm.kernel, 1, [[0, 0], [1, 1], [1, 1], [0, 0]])
    expected = norm.moving_mean.numpy()
    for part in (plain[:3], plain[3:]):
        expected = 0.9 * expected + 0.1 * tf.reduce_mean(part, [0, 1, 2]).numpy()
    train_step(model, optimizer, parts=2)(images, targets, weights)
    assert relative_error(norm.moving_mean.numpy(), expected) < 1e-4
