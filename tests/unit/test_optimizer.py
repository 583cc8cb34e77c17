"""Layer-wise learning rates, decay groups, the schedule and where the backward pass ends."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import randomize

from kresnet.errors import ConfigError
from kresnet.train.optimizer import freeze_before, optimizer_for, warmup_cosine
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


@pytest.mark.parametrize("name", ["adamw", "sgd"])
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
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6)


def test_the_gradient_is_clipped_as_a_whole(model):
    optimizer = optimizer_for(model, "sgd", **OPTIONS | {"clip_norm": 1.0})
    moved = moves(model, optimizer, 5.0, rate=1.0)
    norm = np.sqrt(sum((delta**2).sum() for delta in moved.values()))
    assert norm == pytest.approx(1.9, rel=1e-3)  # 1 + momentum, by Nesterov


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


def test_schedule_rises_then_falls_to_one_percent():
    rates = [warmup_cosine(p, warmup=0.1) for p in np.linspace(0.001, 1.0, 1000)]
    assert rates[0] == pytest.approx(0.01)
    assert np.argmax(rates) == pytest.approx(99, abs=1)
    assert max(rates) <= 1.0
    assert rates[-1] == pytest.approx(0.01)
    assert warmup_cosine(0.55, warmup=0.1) == pytest.approx(0.505)
    assert warmup_cosine(0.0, warmup=0.0) == 1.0
