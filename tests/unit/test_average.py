"""The average of weights and statistics: its own variables, scored apart, never mixed in."""

import keras
import numpy as np
import pytest
from conftest import randomize

from kresnet.train.average import Average, decay, moving_variables
from kresnet.train.optimizer import freeze_before
from kresnet.zoo import build, freeze_norms


@pytest.fixture
def model():
    return randomize(build("resnet20_cifar", num_classes=3))


def shaken(model, seed):
    """Give what moves new values, as a step would, and return them."""
    rng = np.random.default_rng(seed)
    for v in moving_variables(model):
        values = rng.normal(size=v.shape)
        v.assign(np.abs(values) if v.name == "moving_variance" else values)
    return [v.numpy() for v in moving_variables(model)]


def test_it_is_the_exponential_average_of_weights_and_statistics(model):
    average = Average(model, reach=0.5)
    expected = [v.numpy().astype("float64") for v in moving_variables(model)]
    for step in range(1, 31):
        keep = min(1 - 1 / 15, (1 + step) / (10 + step))
        values = shaken(model, step)
        expected = [keep * e + (1 - keep) * v for e, v in zip(expected, values, strict=True)]
        average.update(step, 30)
    for e, v in zip(expected, average.variables, strict=True):
        np.testing.assert_allclose(v.numpy(), e, atol=1e-5)
    names = {v.name for v in average.variables}
    assert {"average_kernel", "average_moving_mean", "average_moving_variance"} <= names


def test_the_model_is_bit_for_bit_what_it_was_after_a_look_at_the_average(model):
    average = Average(model, reach=0.1)
    start = [v.numpy() for v in moving_variables(model)]
    values = shaken(model, 1)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    outside = model(images).numpy()
    with average.in_place():
        for v, s in zip(moving_variables(model), start, strict=True):
            np.testing.assert_array_equal(v.numpy(), s)
        assert np.abs(model(images).numpy() - outside).max() > 1e-3
    for v, value in zip(moving_variables(model), values, strict=True):
        np.testing.assert_array_equal(v.numpy(), value)
    for a, s in zip(average.variables, start, strict=True):
        np.testing.assert_array_equal(a.numpy(), s)


def test_an_error_while_the_average_is_in_place_leaves_the_weights(model):
    average = Average(model, reach=0.1)
    values = shaken(model, 1)
    with pytest.raises(KeyError), average.in_place():
        raise KeyError
    np.testing.assert_array_equal(moving_variables(model)[0].numpy(), values[0])


def test_only_what_moves_is_averaged(model):
    whole = len(moving_variables(model))
    assert whole == 3 * 19 + 2 + 2 * 19
    freeze_norms(model)
    assert len(moving_variables(model)) == 3 * 19 + 2
    model = build("resnet20_cifar", num_classes=3)
    freeze_before(model, 3)
    assert {v.path.split("_")[0].split("/")[0] for v in moving_variables(model)} == {
        "stage3",
        "head",
    }


def test_the_reach_is_a_share_of_the_training_whatever_its_length():
    assert decay(19_000, 20_000, reach=0.1) == pytest.approx(1 - 1 / 2000)
    assert decay(950, 1000, reach=0.1) == pytest.approx(1 - 1 / 100)
    assert decay(50, 60, reach=0.1) == pytest.approx(0.85)  # as TensorFlow's: (1 + t) / (10 + t)
    assert decay(1, 10_000, reach=0.1) == pytest.approx(2 / 11)
    assert decay(900, 20, reach=0.1) == pytest.approx(0.9)


# What plain Keras does, and what is different here.


def keras_fit(epochs, callbacks=(), seed=3):
    """Train a norm and a dense layer with Keras' own average."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    )
    model.compile(keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.9), "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, size=(32, 4)), rng.normal(size=(32, 2))
    raw = []
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: raw.append(
            (model.layers[1].kernel.numpy(), model.layers[0].moving_mean.numpy())
        )
    )
    model.fit(x, y, epochs=epochs, batch_size=8, verbose=0, callbacks=[keep, *callbacks])
    return model, raw


def test_keras_validates_the_raw_weights_and_then_replaces_them():
    model, raw = keras_fit(2)
    assert np.abs(model.layers[1].kernel.numpy() - raw[-1][0]).max() > 1e-4  # S14
    np.testing.assert_array_equal(model.layers[0].moving_mean.numpy(), raw[-1][1])  # S6
