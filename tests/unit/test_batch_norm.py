"""Norms that learn are Keras' BatchNormalization: outputs, gradients and moving statistics."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import randomize, relative_error

from kresnet.zoo import ConvNorm, Norm
from kresnet.zoo.processor import as_written

SHAPES = [(2, 7, 6, 5), (4, 8, 8, 16), (1, 1, 1, 3), (3, 1, 5, 1), (8, 3, 3, 40)]


def random(*shape, seed=0, mean=0.3, scale=1.0):
    """Numbers that are not symmetric about anything, of another mean in each channel."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0.0, 1.0, shape) + 0.5 * rng.exponential(1.0, shape)
    return scale * values + mean * rng.uniform(0.5, 1.5, shape[-1])


def in_numpy(x, gamma, beta, weights, *, epsilon, relu):
    """Batch norm and a loss behind it in float64: what comes out, and how large its terms are."""
    axes, count = (0, 1, 2), x.size // x.shape[-1]
    mean = x.mean(axis=axes)
    variance = ((x - mean) ** 2).mean(axis=axes)
    slope = 1 / np.sqrt(variance + epsilon)
    normal = (x - mean) * slope
    y = normal * gamma + beta
    out = np.maximum(y, 0) if relu else y
    dy = weights * np.cos(out) * ((y > 0) if relu else 1)
    dbeta, dgamma = dy.sum(axis=axes), (dy * normal).sum(axis=axes)
    dx = gamma * slope * (dy - dbeta / count - normal * dgamma / count)
    values = {"out": out, "dx": dx, "dgamma": dgamma, "dbeta": dbeta}
    values |= {"moving_mean": 0.1 * mean, "moving_variance": 0.9 + 0.1 * variance}
    terms = {"out": 1 + abs(out), "dx": abs(gamma * slope * dy)}
    terms |= {"dgamma": abs(dy * normal).sum(axis=axes), "dbeta": abs(dy).sum(axis=axes)}
    terms |= {name: abs(values[name]) for name in ("moving_mean", "moving_variance")}
    return values, {name: term.max() or 1.0 for name, term in terms.items()}


def stepped(x, weights, layer, *, relu):
    """The output of a layer, and the gradients of a loss behind it."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
        y = tf.nn.relu(y) if relu else y
        loss = tf.reduce_sum(tf.sin(tf.cast(y, "float32")) * weights)
    return y, *tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])


def errors(x, *, relu=False, compiled=False, jit=False):
    """Make a step of a norm on `x`; return its largest errors, relative to the terms."""
    layer = Norm(dtype="float32" if x.dtype == tf.float32 else f"mixed_{x.dtype.name}")
    layer.build(x.shape)
    rng = np.random.default_rng(7)
    layer.gamma.assign(rng.uniform(0.5, 1.5, x.shape[-1]).astype("float32"))
    layer.beta.assign(rng.normal(0.2, 0.3, x.shape[-1]).astype("float32"))
    weights = random(*x.shape, seed=3).astype("float32")

    def step(x, weights):
        return stepped(x, weights, layer, relu=relu)

    step = tf.function(step, autograph=False, jit_compile=jit) if compiled else step
    results = dict(
        zip(("out", "dx", "dgamma", "dbeta"), step(x, tf.constant(weights)), strict=True)
    )
    assert results["out"].dtype == results["dx"].dtype == x.dtype
    results |= {name: getattr(layer, name) for name in ("moving_mean", "moving_variance")}
    exact = (tf.cast(v, "float64").numpy() for v in (x, layer.gamma, layer.beta, weights))
    values, terms = in_numpy(*exact, epsilon=layer.epsilon, relu=relu)
    return {
        name: float(np.abs(tf.cast(results[name], "float64") - values[name]).max() / terms[name])
        for name in values
    }


def worst(found, *, names=None):
    return max(value for name, value in found.items() if names is None or name in names)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_float32_it_is_exact(shape, compiled, relu):
    x = tf.constant(random(*shape), tf.float32)
    assert worst(errors(x, compiled=compiled, relu=relu)) < 1e-5


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_bfloat16_only_results_are_rounded(shape, relu):
    x = tf.cast(random(*shape), tf.bfloat16)
    found = errors(x, relu=relu, compiled=True)
    assert worst(found, names=("moving_mean", "moving_variance")) < 1e-5
    assert found["out"] < 2.0**-8
    # What comes back is rounded at the loss, at the ReLU and at the input.
    assert worst(found) < 3 * 2.0**-8
    with as_written():
        assert worst(found) < 1.01 * worst(errors(x, relu=relu, compiled=True))


def test_of_many_pixels_it_is_as_exact_as_that_of_keras():
    """The operation adds 50,000 numbers one by one; the rounding of bfloat16 hides it."""
    shape = (16, 56, 56, 16)
    x, weights = tf.cast(random(*shape), tf.bfloat16), random(*shape, seed=3).astype("float32")
    rng = np.random.default_rng(7)
    scale, offset = rng.uniform(0.5, 1.5, 16), rng.normal(0.2, 0.3, 16)

    def distances(layer):
        layer.build(shape)
        layer.gamma.assign(scale)
        layer.beta.assign(offset)
        exact = (tf.cast(v, "float64").numpy() for v in (x, layer.gamma, layer.beta, weights))
        values, _ = in_numpy(*exact, epsilon=1e-5, relu=True)
        step = tf.function(lambda x: stepped(x, weights, layer, relu=True), autograph=False)
        found = dict(zip(("out", "dx", "dgamma", "dbeta"), step(x), strict=True))
        found |= {name: getattr(layer, name) for name in ("moving_mean", "moving_variance")}
        return {
            name: np.sqrt(np.sum((tf.cast(found[name], "float64") - known) ** 2 / np.sum(known**2)))
            for name, known in values.items()
        }

    ours = distances(Norm(dtype="mixed_bfloat16"))
    options = {"momentum": 0.9, "epsilon": 1e-5, "dtype": "mixed_bfloat16"}
    theirs = distances(keras.layers.BatchNormalization(**options))
    for name in ("out", "dx", "dgamma", "dbeta"):
        assert ours[name] < 1.05 * theirs[name], name
    for name in ("moving_mean", "moving_variance"):
        assert ours[name] < 1e-5, name


def test_of_many_pixels_it_is_as_exact_as_that_of_pytorch():
    torch = pytest.importorskip("torch")
    shape = (16, 56, 56, 16)
    x, gradient = random(*shape).astype("float32"), random(*shape, seed=3).astype("float32")

    def in_torch(dtype):
        norm = torch.nn.BatchNorm2d(16, eps=1e-5, dtype=dtype)
        images, back = (torch.tensor(a, dtype=dtype).permute(0, 3, 1, 2) for a in (x, gradient))
        y = norm(images.requires_grad_())  # channels last, in memory
        y.backward(back)
        y, dx = (a.detach().permute(0, 2, 3, 1) for a in (y, images.grad))
        return [a.numpy() for a in (y, dx, norm.weight.grad, norm.bias.grad)]

    layer = Norm()
    layer.build(shape)
    with tf.GradientTape() as tape:
        images = tf.constant(x)
        tape.watch(images)
        y = layer(images, training=True)
    learned = [images, layer.gamma.value, layer.beta.value]
    ours = [y, *tape.gradient(y, learned, output_gradients=tf.constant(gradient))]
    exact, theirs = in_torch(torch.float64), in_torch(torch.float32)
    for mine, other, known in zip(ours, theirs, exact, strict=True):
        assert np.abs(mine - known).max() < 1.5 * np.abs(other - known).max()


def test_compiled_by_xla_it_is_the_same():
    x = tf.constant(random(2, 7, 6, 5), tf.float32)
    assert worst(errors(x, compiled=True, jit=True)) < 1e-5


def test_a_mean_that_is_large_beside_the_deviation_costs_no_digits():
    """Variance as mean square minus squared mean would be lost here."""
    x = tf.constant(random(4, 9, 8, 6, mean=3000.0), tf.float32)
    in_one_pass = tf.reduce_mean(x**2, (0, 1, 2)) - tf.reduce_mean(x, (0, 1, 2)) ** 2
    true = tf.math.reduce_variance(tf.cast(x, "float64"), (0, 1, 2))
    assert relative_error(in_one_pass, true) > 0.1
    found = errors(x)
    assert found["moving_variance"] < 1e-5
    # float32 itself rounds such a mean by 1e-4 of the deviation.
    assert worst(found) < 1e-3


def test_large_and_small_numbers_are_normalised_alike():
    for scale in (1e-3, 1.0, 1e4):
        x = tf.constant(random(2, 7, 6, 5, mean=0.3 * scale, scale=scale), tf.float32)
        assert worst(errors(x)) < 2e-5


def pair(dtype, **options):
    """A ConvNorm and the Keras layers that it is, with the same random variables."""
    ours = ConvNorm(6, 3, dtype=dtype, **options)
    conv = keras.layers.Conv2D(6, 3, padding="same", use_bias=False, dtype=dtype)
    norm = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype=dtype)
    for layer in (ours, conv):
        layer.build((None, 8, 7, 4))
    norm.build((None, 8, 7, 6))
    randomize(ours, seed=2)
    conv.kernel.assign(ours.kernel)
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        getattr(norm, name).assign(getattr(ours, name))
    return ours, conv, norm


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_it_is_a_convolution_and_keras_batch_normalization(dtype):
    ours, conv, norm = pair(dtype)
    x = tf.cast(random(3, 8, 7, 4), ours.compute_dtype)
    weights = random(3, 8, 7, 6, seed=5).astype("float32")

    def gradient(function, variables):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.cast(tf.nn.relu(function(x)), "float32")
            loss = tf.reduce_sum(tf.sin(y) * weights)
        return y, *tape.gradient(loss, [x, *(v.value for v in variables)])

    mine = gradient(lambda x: ours(x, training=True), [ours.kernel, ours.gamma, ours.beta])
    theirs = gradient(lambda x: norm(conv(x), training=True), [conv.kernel, norm.gamma, norm.beta])
    # Keras rounds mean and variance to the compute dtype before it normalises.
    tolerance = {"float32": 1e-5, "mixed_float16": 1e-2}.get(dtype, 5e-2)
    for a, b in zip(mine, theirs, strict=True):
        assert relative_error(tf.cast(a, "float32"), tf.cast(b, "float32")) < tolerance
    for name in ("moving_mean", "moving_variance"):
        assert relative_error(getattr(ours, name), getattr(norm, name)) < tolerance


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_on_the_processor_it_is_what_it_is_elsewhere(dtype):
    layers = [pair(dtype, use_bias=True)[0] for _ in range(2)]
    x = tf.cast(random(3, 8, 7, 4), layers[0].compute_dtype)
    mine = layers[0](x, training=True)
    with as_written():
        theirs = layers[1](x, training=True)
    tolerance = 1e-5 if dtype == "float32" else 2.0**-7
    assert relative_error(tf.cast(mine, "float32"), tf.cast(theirs, "float32")) < tolerance
    for name in ("moving_mean", "moving_variance"):
        error = relative_error(getattr(layers[0], name), getattr(layers[1], name))
        assert error < min(tolerance, 1e-5)


def test_an_input_of_unknown_size_is_normalised():
    layer = Norm()
    layer.build((None, None, None, 5))
    step = tf.function(
        lambda x: layer(x, training=True),
        input_signature=[tf.TensorSpec((None, None, None, 5), tf.float32)],
        autograph=False,
    )
    for shape in ((2, 7, 6, 5), (3, 4, 9, 5)):
        y = step(tf.constant(random(*shape), tf.float32)).numpy()
        np.testing.assert_allclose(y.mean(axis=(0, 1, 2)), 0.0, atol=1e-5)
        np.testing.assert_allclose(y.std(axis=(0, 1, 2)), 1.0, atol=1e-4)


def test_second_derivatives_are_those_of_the_formulas():
    """Keras' formulas have another: `tf.nn.moments` takes the mean within the variance as fixed."""
    x = tf.constant(random(2, 4, 3, 5), tf.float32)
    layer = Norm()
    layer.build(x.shape)

    def formula(x):
        mean = tf.reduce_mean(x, (0, 1, 2))
        variance = tf.reduce_mean((x - mean) ** 2, (0, 1, 2))
        return (x - mean) / tf.sqrt(variance + layer.epsilon)

    def twice(function, x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = tf.reduce_sum(tf.sin(function(x)))
            value = tf.reduce_sum(tf.cos(inner.gradient(y, x)))
        return outer.gradient(value, x)

    mine = twice(lambda x: layer(x, training=True), x)
    assert relative_error(mine, twice(formula, tf.cast(x, "float64"))) < 1e-5
