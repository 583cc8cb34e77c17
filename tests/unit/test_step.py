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
    model = randomize(build("resnet8_cifar", num_classes=3), seed=1)
    freeze_norms(model)
    optimizer = optimizer_for(model, name, weight_decay=1e-3, layer_decay=0.5, clip_norm=1.0)
    step = train_step(model, optimizer, parts=parts, **options)
    optimizer.learning_rate = 0.01
    losses = [float(step(*batch(seed=k))) for k in range(steps)]
    return losses, [v.numpy() for v in model.trainable_variables], optimizer


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (3, "adamw"),
        (50, "sgd"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in ((2, "sgd"), (3, "sgd"), (2, "adamw"), (50, "adamw"))
        ),
    ],
)
def test_parts_make_the_step_of_the_whole_batch(parts, name):
    losses, whole, _ = stepped(1, name)
    again, in_parts, optimizer = stepped(parts, name)
    assert losses == pytest.approx(again, rel=1e-5)
    assert int(optimizer.iterations) == 2  # updates, not parts: schedules stay as they are
    untouched = [v.numpy() for v in randomize(build("resnet8_cifar", num_classes=3), seed=1)
                 .trainable_variables]  # fmt: skip
    moved = max(np.abs(a - b).max() for a, b in zip(whole, untouched, strict=True))
    # AdamW's first steps are signs of gradients, so rounding can turn the smallest of them.
    tolerance = 0.05 if name == "adamw" else 1e-4
    for a, b in zip(whole, in_parts, strict=True):
        assert np.abs(a - b).mean() < tolerance * moved


def test_the_loss_is_the_mean_of_weighted_cross_entropies():
    model = randomize(build("resnet8_cifar", num_classes=3), seed=1)
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
    model = randomize(build("resnet8_cifar", num_classes=3), seed=1)
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
    model = randomize(build("resnet8_cifar", num_classes=3), seed=1)
    optimizer = optimizer_for(model, "sgd", weight_decay=0.0, layer_decay=1.0, clip_norm=None)
    norm = model.get_layer("stem_conv")
    images, targets, weights = batch(size=6)
    plain = tf.nn.conv2d(images, norm.kernel, 1, [[0, 0], [1, 1], [1, 1], [0, 0]])
    expected = norm.moving_mean.numpy()
    for part in (plain[:3], plain[3:]):
        expected = 0.9 * expected + 0.1 * tf.reduce_mean(part, [0, 1, 2]).numpy()
    train_step(model, optimizer, parts=2)(images, targets, weights)
    assert relative_error(norm.moving_mean.numpy(), expected) < 1e-4


def test_parts_with_norms_that_learn_and_branches_that_drop_come_one_after_the_other():
    """Each part has its own statistics and its own draws; the update is of the sum."""
    model, other = (
        randomize(build("resnet8_cifar", num_classes=3, drop_path_rate=0.5, drop_rate=0.3), 1)
        for _ in range(2)
    )
    for mine, theirs in zip(model.variables, other.variables, strict=True):
        theirs.assign(mine)
    start = [v.numpy() for v in model.variables]
    optimizers = [
        optimizer_for(one, "sgd", weight_decay=1e-3, layer_decay=0.5, clip_norm=None)
        for one in (model, other)
    ]
    for optimizer in optimizers:
        optimizer.learning_rate = 0.01
    images, targets, weights = batch(7)
    loss = float(train_step(model, optimizers[0], parts=2)(images, targets, weights))

    expected, gradient = 0.0, [0.0] * len(other.trainable_variables)
    for part in (slice(0, 3), slice(3, 7)):
        with tf.GradientTape() as tape:
            logits = other(images[part], training=True)
            errors = tf.nn.softmax_cross_entropy_with_logits(targets[part], logits)
            share = tf.reduce_sum(weights[part] * errors) / 7
        moves = tape.gradient(share, other.trainable_variables)
        gradient = [g + m for g, m in zip(gradient, moves, strict=True)]
        expected += float(share)
    optimizers[1].apply(gradient, other.trainable_variables)

    assert loss == pytest.approx(expected, rel=1e-4)
    moved = set()
    for before, mine, theirs in zip(start, model.variables, other.variables, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=1e-3, atol=1e-5)
        if not np.array_equal(before, mine.numpy()):
            moved.add(mine.name.split("_state")[0])
    assert {"kernel", "gamma", "beta", "moving_mean", "moving_variance"} <= moved
    assert any("seed" in name for name in moved)


def test_the_step_takes_images_of_any_size():
    model = randomize(build("resnet8_cifar", num_classes=3, input_shape=(None, None)), seed=1)
    optimizer = optimizer_for(model, "sgd", weight_decay=0.0, layer_decay=1.0, clip_norm=None)
    step = train_step(model, optimizer, parts=2)
    images, targets, weights = batch()
    losses = [float(step(tf.tile(images, [1, n, n, 1]), targets, weights)) for n in (1, 2, 1)]
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1]
