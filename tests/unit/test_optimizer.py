"""Layer-wise learning rates, decay groups, the optimizers and where the backward pass ends."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import randomize

from kresnet.errors import ConfigError
from kresnet.train.optimizer import freeze_before, optimizer_for
from kresnet.zoo import build, freeze_norms

OPTIONS = {"weight_decay": 0.0, "layer_decay": 1.0, "clip_norm": None}


@pytest.fixture
def model():
    return randomize(build("resnet20_cifar", num_classes=3))


def moves(model, optimizer, gradient, rate=0.1):
    """How far each variable moves in one step whose gradient is the same everywhere."""
    variables = model.trainable_variables
    before = [v.numpy() for v in variables]
    optimizer.learning_rate = rate
    gradients = [tf.fill(v.shape, gradient) for v in variables]
    tf.function(lambda: optimizer.apply(gradients, variables))()
    return {v.path: v.numpy() - b for v, b in zip(variables, before, strict=True)}


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop", "lamb"])
def test_each_stage_has_its_share_of_the_learning_rate(model, name):
    optimizer = optimizer_for(model, name, **OPTIONS | {"layer_decay": 0.5})
    moved = {path: float(-delta.mean()) for path, delta in moves(model, optimizer, 1.0).items()}
    head = moved["head/kernel"]
    assert head > 0.05
    for path, share in {
        "stem_conv/kernel": 1 / 8,
        "stage1_block1_conv1/gamma": 1 / 4,
        "stage2_block1_conv2/kernel": 1 / 2,
        "stage3_block3_conv2/beta": 1.0,
        "head/bias": 1.0,
    }.items():
        assert moved[path] / head == pytest.approx(share, rel=1e-4), path


@pytest.mark.parametrize("name", ["adam", "rmsprop", "lamb"])
def test_decay_moves_kernels_only_in_every_optimizer(model, name):
    optimizer = optimizer_for(model, name, **OPTIONS | {"weight_decay": 0.2})
    before = {v.path: v.numpy() for v in model.trainable_variables}
    for path, delta in moves(model, optimizer, 0.0).items():
        if path.endswith("kernel"):
            assert (delta * before[path]).sum() < 0.0, path  # towards zero
        else:
            assert np.abs(delta).max() == 0.0, path


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_only_kernels_decay_and_by_their_own_rate(model, name):
    optimizer = optimizer_for(model, name, **OPTIONS | {"weight_decay": 0.2, "layer_decay": 0.5})
    before = {v.path: v.numpy() for v in model.trainable_variables}
    for path, delta in moves(model, optimizer, 0.0).items():
        if not path.endswith("kernel"):
            assert np.abs(delta).max() == 0.0, path
            continue
        share = {"stem_": 1 / 8, "stage1": 1 / 4, "stage2": 1 / 2}.get(path[:6].rstrip("c"), 1.0)
        # Nesterov's look-ahead makes SGD's first step 1 + momentum times as long.
        factor = 0.1 * 0.2 * share * (1.9 if name == "sgd" else 1.0)
        np.testing.assert_allclose(delta, -factor * before[path], rtol=1e-3, atol=1e-7)


def test_adamw_without_groups_is_keras_adamw(model):
    ours = optimizer_for(model, "adamw", **OPTIONS)
    twin = keras.models.clone_model(model)
    twin.set_weights([v.numpy() for v in model.variables])
    theirs = keras.optimizers.AdamW(0.01, weight_decay=0.0)
    theirs.build(twin.trainable_variables)
    for value in (0.3, -0.1, 0.7):
        moves(model, ours, value, rate=0.01)
        moves(twin, theirs, value, rate=0.01)
    for a, b in zip(model.trainable_variables, twin.trainable_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6, atol=ADAM)


ADAM = 1e-6  # of moves of .03: Keras rounds 1 - .999 in one place and not in the other
TWINS = {
    "adam": lambda: keras.optimizers.Adam(0.01),
    "sgd": lambda: keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01, rho=0.9, momentum=0.9, epsilon=1e-3),
}


@pytest.mark.parametrize(
    "name", ["adam", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sgd", "rmsprop"))]
)
def test_without_groups_they_are_keras_own(model, name):
    ours = optimizer_for(model, name, **OPTIONS)
    twin = keras.models.clone_model(model)
    twin.set_weights([v.numpy() for v in model.variables])
    theirs = TWINS[name]()
    theirs.build(twin.trainable_variables)
    for value in (0.3, -0.1, 0.7):
        moves(model, ours, value, rate=0.01)
        moves(twin, theirs, value, rate=0.01)
    for a, b in zip(model.trainable_variables, twin.trainable_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6, atol=ADAM)


def compare_with_paper(model, name, step_of):
    """Compare three updates with `x -= 0.02 * step_of(path, x, m, v, t)` in float64.

    m and v are the running means of the gradient and of its square, not yet corrected for t.
    The decay of "adam" is a part of its gradient.
    """
    rng = np.random.default_rng(6)
    optimizer = optimizer_for(model, name, **OPTIONS | {"weight_decay": 0.1})
    optimizer.learning_rate = 0.02
    variables = model.trainable_variables
    x = {v.path: v.numpy().astype("float64") for v in variables}
    m, square = ({path: np.zeros_like(a) for path, a in x.items()} for _ in range(2))
    apply = tf.function(lambda gradients: optimizer.apply(gradients, variables))
    for t in (1, 2, 3):
        gradients = {path: rng.normal(size=a.shape) for path, a in x.items()}
        apply([tf.constant(gradients[v.path], tf.float32) for v in variables])
        for path, g in gradients.items():
            if name == "adam" and path.endswith("kernel"):
                g = g + 0.1 * x[path]
            m[path] = 0.9 * m[path] + 0.1 * g
            square[path] = 0.999 * square[path] + 0.001 * g * g
            x[path] -= 0.02 * step_of(path, x[path], m[path], square[path], t)
    for v in variables:
        np.testing.assert_allclose(v.numpy(), x[v.path], rtol=1e-5, atol=1e-5, err_msg=v.path)


@pytest.mark.parametrize("name", ["adamw", pytest.param("adam", marks=pytest.mark.slow)])
def test_adam_is_that_of_its_paper(model, name):
    def step_of(path, x, m, v, t):
        factor = np.sqrt(1 - 0.999**t) / (1 - 0.9**t)  # the order at the end of section 2
        decay = 0.1 * x if name == "adamw" and path.endswith("kernel") else 0.0
        return factor * m / (np.sqrt(v) + 1e-7) + decay

    compare_with_paper(model, name, step_of)


def test_lamb_is_algorithm_2_of_its_paper(model):
    def step_of(path, x, m, v, t):
        r = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6)
        if not path.endswith("kernel"):
            return r
        r += 0.1 * x
        return r * np.linalg.norm(x) / np.linalg.norm(r)

    compare_with_paper(model, "lamb", step_of)


def test_l1_pulls_kernels_by_a_constant(model):
    optimizer = optimizer_for(model, "sgd", **OPTIONS, l1=0.3)
    before = {v.path: v.numpy() for v in model.trainable_variables}
    for path, delta in moves(model, optimizer, 0.0).items():
        pull = 0.1 * 0.3 * 1.9 * np.sign(before[path]) if path.endswith("kernel") else 0.0
        np.testing.assert_allclose(delta, -pull * np.ones_like(delta), rtol=1e-3, atol=1e-6)


def test_the_gradient_is_clipped_as_a_whole(model):
    optimizer = optimizer_for(model, "sgd", **OPTIONS | {"clip_norm": 1.0})
    moved = moves(model, optimizer, 5.0, rate=1.0)
    norm = np.sqrt(sum((delta**2).sum() for delta in moved.values()))
    assert norm == pytest.approx(1.9, rel=1e-3)  # 1 + momentum, by Nesterov


@pytest.mark.parametrize("largest", [0.1, 2.0, np.inf, np.nan])
def test_clipping_is_that_of_keras(model, largest):
    rng = np.random.default_rng(7)
    gradients = [tf.constant(rng.normal(size=v.shape), tf.float32) for v in model.trainable_weights]
    norm = float(tf.linalg.global_norm(gradients))
    scaled = [g * (largest / norm) for g in gradients[:-1]] + [None]
    ours = optimizer_for(model, "sgd", **OPTIONS | {"clip_norm": 1.0})._clip_gradients(scaled)
    theirs = keras.optimizers.SGD(global_clipnorm=1.0)._clip_gradients(scaled)
    assert ours[-1] is theirs[-1] is None
    assert np.isfinite(largest) == np.isfinite(ours[0]).all()
    for a, b in zip(ours[:-1], theirs[:-1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_freezing_ends_before_a_stage(model):
    frozen = freeze_before(model, 3)
    trained = {v.path.split("/")[0] for v in model.trainable_variables}
    assert "stem_conv" in frozen
    assert trained == {n for n in trained if n.startswith(("stage3", "head"))}
    assert {"stage3_block1_conv1", "head"} <= trained
    freeze_before(model, 1)
    assert len(model.trainable_variables) == 3 * 19 + 2


def test_nothing_to_train_is_an_error(model):
    model.trainable = False
    with pytest.raises(ConfigError, match=r"needs a trainable variable.*'resnet20_cifar', all fr"):
        optimizer_for(model, "adamw", **OPTIONS)


def test_frozen_affine_leaves_only_kernels_and_the_head(model):
    freeze_norms(model, affine=True)
    assert {v.name for v in model.trainable_variables} == {"kernel", "bias"}
