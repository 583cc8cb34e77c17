"""Gradients that are computed another way on processors are those of the plain convolution."""

import gc
import sys
import weakref
from dataclasses import replace
from itertools import product

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import randomize, relative_error

from kresnet.zoo import VARIANTS, Conv, ConvNorm, build, fold, freeze_norms, gradients
from kresnet.zoo.gradients import MEASURED, convolve, fastest_way
from kresnet.zoo.processor import as_written

WAYS = ("matmul", "shifts", "patches")
SHAPES = [  # kernel, stride, height, width, padding
    (1, 1, 5, 8, "SAME"),
    (1, 2, 7, 6, "SAME"),
    (1, 2, 8, 5, "SAME"),
    (1, 3, 8, 7, "VALID"),
    (3, 1, 7, 4, "SAME"),
    (3, 1, 6, 9, "VALID"),
    (3, 2, 9, 6, "VALID"),
    (3, 2, 8, 8, "VALID"),
    (5, 1, 6, 7, "SAME"),
    (5, 2, 11, 8, "VALID"),
]


def random(*shape, seed=0, dtype="float32"):
    """Numbers that are not symmetric about anything."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0.3, 1.0, shape) + 0.5 * rng.exponential(1.0, shape)
    return tf.cast(tf.constant(values.astype("float32")), dtype)


@pytest.fixture
def every_way(monkeypatch):
    """Have layers compute their gradients in the given way, whatever was measured."""

    def take(way):
        monkeypatch.setattr(gradients, "fastest_way", lambda *shape: way)

    return take


def learned(function, *variables):
    """A loss in which every output counts differently, and its gradients."""
    with tf.GradientTape() as tape:
        tape.watch(variables)
        y = tf.cast(function(*variables), "float64")
        loss = tf.reduce_sum(tf.sin(y) * tf.cast(random(*y.shape, seed=9), "float64"))
    return y, tape.gradient(loss, variables)


def exact(x, kernel, strides, padding):
    """The convolution in float64."""
    x, kernel = (tf.cast(tensor, "float64") for tensor in (x, kernel))
    return tf.nn.conv2d(x, kernel, strides, padding)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_way_gives_the_gradients_of_the_convolution(shape, way):
    size, strides, height, width, padding = shape
    x, kernel = random(3, height, width, 4), random(size, size, 4, 6, seed=1)
    y, mine = learned(lambda x, k: convolve(x, k, strides, padding, way), x, kernel)
    expected, theirs = learned(lambda x, k: exact(x, k, strides, padding), x, kernel)
    assert relative_error(y, expected) < 1e-5
    for a, b in zip(mine, theirs, strict=True):
        assert a.dtype == tf.float32
        assert relative_error(a, b) < 2e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("way", WAYS)
def test_sums_are_float32_and_rounded_once(way, dtype):
    # 4000 terms of one sign: added up in 8 bits they would end at a fraction of their sum.
    x, dy = random(10, 20, 20, 5, dtype=dtype), random(10, 20, 20, 3, seed=1, dtype=dtype)
    x, dy = tf.abs(x), tf.abs(dy)
    mine = gradients.kernel_gradient(x, dy, (3, 3, 5, 3), 1, "SAME", way)
    assert mine.dtype == dtype
    x, dy = tf.cast(x, "float64"), tf.cast(dy, "float64")
    theirs = tf.raw_ops.Conv2DBackpropFilter(
        input=x, filter_sizes=(3, 3, 5, 3), out_backprop=dy, strides=(1, 1, 1, 1), padding="SAME"
    )
    bits = 8 if dtype == "bfloat16" else 11
    error = np.abs(tf.cast(mine, "float64") - theirs) / np.abs(theirs)
    assert error.max() < 2.0**-bits * 1.01


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("size", "strides", "padding"), [(3, 1, "SAME"), (3, 2, "VALID")])
def test_second_derivatives_are_those_of_the_convolution(size, strides, padding, way):
    x, kernel = random(2, 7, 6, 3), random(size, size, 3, 4, seed=1)

    def twice(function):
        with tf.GradientTape() as outer:
            outer.watch((x, kernel))
            _, inner = learned(function, x, kernel)
            value = sum(tf.reduce_sum(tf.cos(tf.cast(g, "float64"))) for g in inner)
        return outer.gradient(value, (x, kernel))

    mine = twice(lambda x, k: convolve(x, k, strides, padding, way))
    theirs = twice(lambda x, k: exact(x, k, strides, padding))
    for a, b in zip(mine, theirs, strict=True):
        assert relative_error(a, b) < 1e-4


@pytest.mark.parametrize("way", WAYS)
def test_second_derivatives_inside_of_a_compiled_function(way):
    x, kernel = random(2, 7, 6, 3), random(3, 3, 3, 4, seed=1)

    @tf.function(autograph=False)
    def twice(x, kernel):
        with tf.GradientTape() as outer:
            outer.watch(kernel)
            with tf.GradientTape() as inner:
                inner.watch((x, kernel))
                y = tf.reduce_sum(tf.sin(convolve(x, kernel, 1, "SAME", way)))
            value = sum(tf.reduce_sum(g**2) for g in inner.gradient(y, (x, kernel)))
        return outer.gradient(value, kernel)

    with tf.GradientTape() as outer:
        outer.watch(kernel)
        with tf.GradientTape() as inner:
            inner.watch((x, kernel))
            y = tf.reduce_sum(tf.sin(exact(x, kernel, 1, "SAME")))
        value = sum(
            tf.reduce_sum(tf.cast(g, "float64") ** 2) for g in inner.gradient(y, (x, kernel))
        )
    assert relative_error(twice(x, kernel), outer.gradient(value, kernel)) < 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("way", ["matmul", "convolution"])
def test_the_bias_of_a_layer_learns_the_sum_of_all_pixels(way, dtype, every_way):
    """100,000 of them, whose sum TensorFlow's BiasAddGrad loses in bfloat16."""
    every_way(way)
    layer = ConvNorm(4, 1, frozen=True, dtype={"bfloat16": "mixed_bfloat16"}.get(dtype, dtype))
    x, upstream = random(32, 56, 56, 3, dtype=dtype), random(32, 56, 56, 4, seed=1, dtype=dtype)
    layer(x)

    @tf.function(autograph=False)
    def gradient(x):
        with tf.GradientTape() as tape:
            y = layer(x, training=True)
        return tape.gradient(y, layer.beta.value, output_gradients=upstream)

    expected = tf.reduce_sum(tf.cast(upstream, "float64"), (0, 1, 2))
    assert relative_error(gradient(x), expected) < {"float32": 1e-6, "bfloat16": 1e-3}[dtype]


@pytest.mark.parametrize("count", [0, 3])
def test_a_bias_has_the_gradients_of_plain_addition(count):
    x, bias = random(count, 7, 6, 4), random(4, seed=1)
    y, mine = learned(gradients.add_bias, x, bias)
    expected, theirs = learned(lambda x, b: tf.cast(x, "float64") + tf.cast(b, "float64"), x, bias)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
    for a, b in zip(mine, theirs, strict=True):
        assert a.dtype == tf.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


OPTIONS = [
    {"strides": strides, "padding": padding, **more}
    for (strides, padding), more in product(
        [(1, "symmetric"), (2, "symmetric"), (2, "same")],
        [{}, {"groups": 2}, {"dilation_rate": 2}, {"use_bias": True}, {"standardize": 1e-6}],
    )
]


@pytest.mark.parametrize(("size", "way"), [(1, "matmul"), (3, "shifts"), (3, "patches")])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_layers_learn_what_they_learn_as_written(options, size, way, every_way):
    every_way(way)
    x = random(2, 9, 8, 4)
    for make in (Conv, lambda *args, **more: ConvNorm(*args, frozen=True, **more)):
        layer = make(6, size, **options)
        layer(x)
        randomize(layer, seed=3)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            y = layer(x, training=True)
            loss = tf.reduce_sum(tf.sin(y) * random(*y.shape, seed=4))
            with as_written():
                z = layer(x, training=True)
            expected = tf.reduce_sum(tf.sin(z) * random(*z.shape, seed=4))
        np.testing.assert_array_equal(y, z)  # forwards nothing changes
        sources = [x, *(v.value for v in layer.trainable_variables)]
        for a, b in zip(
            tape.gradient(loss, sources), tape.gradient(expected, sources), strict=True
        ):
            assert relative_error(a, b) < 1e-4


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "float32", "mixed_float16"])
def test_layers_learn_with_unknown_sizes(dtype, jit, every_way):
    every_way("shifts")
    layer = ConvNorm(6, 3, frozen=True, dtype=dtype)
    layer.build((None, None, None, 4))
    randomize(layer, seed=3)
    kernel = layer.kernel.value
    spec = tf.TensorSpec((None, None, None, 4), tf.float32)

    def compiled():
        @tf.function(input_signature=[spec], autograph=False, jit_compile=jit)
        def gradient(x):
            with tf.GradientTape() as tape:
                y = layer(tf.cast(x, layer.compute_dtype), training=True)
                loss = tf.reduce_sum(tf.sin(tf.cast(y, "float32")))
            return tape.gradient(loss, kernel)

        return gradient

    mine, theirs = compiled(), compiled()
    for shape in ((2, 9, 8, 4), (3, 5, 5, 4)):
        x = random(*shape)
        with as_written():
            expected = theirs(x)
        assert relative_error(mine(x), expected) < {"float32": 1e-5}.get(dtype, 2e-2)


def test_gradients_survive_a_checkpoint_of_activations(every_way):
    every_way("shifts")
    layers = [ConvNorm(6, 3, frozen=True) for _ in range(2)]
    x = random(2, 7, 6, 6)
    for layer in layers:
        layer(x)
        randomize(layer, seed=3)
    sources = [layer.kernel.value for layer in layers]

    def block(x):
        for layer in layers:
            x = tf.nn.relu(layer(x, training=True))
        return x

    def gradient(function):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.sin(function(x)))
        return tape.gradient(loss, sources)

    with as_written():
        expected = gradient(block)
    for a, b in zip(gradient(tf.recompute_grad(block)), expected, strict=True):
        assert relative_error(a, b) < 1e-5


def test_each_shape_of_the_table_goes_its_measured_way():
    for rows in MEASURED.values():
        for row in rows:
            kernel = (row.kernel_size, row.kernel_size, row.channels, row.filters)
            taken = fastest_way(kernel, row.strides, (row.side, row.side), "bfloat16")
            faster = row.way_ms < row.convolution_ms
            assert taken == (row.way if faster else "convolution")


@pytest.mark.parametrize(
    ("kernel", "strides", "sides", "dtype", "way"),
    [
        ((1, 1, 96, 200), 1, (40, 30), "bfloat16", "matmul"),
        ((1, 1, 96, 200), 1, (None, None), "bfloat16", "matmul"),
        ((3, 3, 512, 512), 1, (8, 7), "bfloat16", "shifts"),
        ((3, 3, 512, 512), 1, (None, 7), "bfloat16", "convolution"),  # sizes disagree
        ((3, 3, 16, 16), 1, (8, 8), "bfloat16", "convolution"),  # few channels: like the large maps
        ((3, 3, 512, 512), 2, (16, 16), "bfloat16", "patches"),
        ((5, 5, 64, 64), 1, (7, 7), "bfloat16", "convolution"),  # not measured
        ((1, 1, 96, 200), 1, (7, 7), "float64", "convolution"),
    ],
)
def test_other_shapes_go_the_way_of_the_most_similar(kernel, strides, sides, dtype, way):
    assert fastest_way(kernel, strides, sides, dtype) == way


def step_of(model, *, whole):
    """A compiled function from images to all gradients, as written or as run."""

    @tf.function(autograph=False)
    def gradient(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.sin(model(x, training=True)))
        return tape.gradient(loss, model.trainable_variables)

    def traced(x):
        if whole:
            with as_written():
                return gradient(x)
        return gradient(x)

    return traced


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_network_learns_what_it_learns_as_written(dtype, monkeypatch):
    monkeypatch.setattr(
        gradients, "MEASURED", {d: MEASURED["bfloat16"] for d in ("bfloat16", "float32")}
    )
    taken = []
    way_of = fastest_way
    monkeypatch.setattr(
        gradients, "fastest_way", lambda *shape: taken.append(way_of(*shape)) or taken[-1]
    )
    config = replace(VARIANTS["resnet50"], depths=(1, 1, 1, 2))
    model = randomize(build(config, num_classes=5, input_shape=(64, 64), dtype=dtype), seed=2)
    freeze_norms(model)
    x = random(2, 64, 64, 3)
    mine = step_of(model, whole=False)(x)
    assert {*WAYS, "convolution"} == set(taken)
    theirs = step_of(model, whole=True)(x)
    for variable, a, b in zip(model.trainable_variables, mine, theirs, strict=True):
        assert relative_error(a, b) < (2e-4 if dtype == "float32" else 0.1), variable.path


def test_nothing_is_computed_another_way_beside_other_devices(monkeypatch):
    class Device:
        device_type = "GPU"

    layer = Conv(4, 1, dtype="mixed_bfloat16")
    assert layer._gradient_way(tf.zeros((1, 8, 8, 4)), 1, "same") == "matmul"
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda *kind: [Device])
    assert layer._gradient_way(tf.zeros((1, 8, 8, 4)), 1, "same") == "convolution"


@pytest.mark.slow  # it exports
def test_what_is_exported_has_no_gradients_of_its_own(tmp_path):
    model = randomize(build("resnet8_cifar", num_classes=3, dtype="mixed_bfloat16"))
    x = random(2, 32, 32, 3)
    step_of(model, whole=False)(x)
    for name, one in (("folded", fold(model)), ("whole", model)):
        one.export(tmp_path / name, verbose=False)
        assert b"CustomGradient" not in (tmp_path / name / "saved_model.pb").read_bytes()
        loaded = tf.saved_model.load(tmp_path / name)
        assert relative_error(loaded.serve(x), one(x, training=False)) < 1e-2


def test_a_compiled_step_is_freed_with_its_model():
    """`tf.custom_gradient` would keep the graph, and by it the memory of the variables."""
    model = build("resnet8_cifar", num_classes=3, dtype="mixed_bfloat16")
    step = step_of(model, whole=False)
    step(random(2, 32, 32, 3))
    kept = weakref.ref(model.get_layer("stem_conv").kernel.value.handle)
    assert kept() is not None
    del model, step
    keras.utils.clear_session()
    gc.collect()
    assert kept() is None


def test_a_tape_outside_of_the_function_has_gradients_too():
    x, kernel = random(2, 7, 6, 3), random(3, 3, 3, 4, seed=1)
    compiled = tf.function(lambda x, k: convolve(x, k, 1, "SAME", "shifts"), autograph=False)
    _, mine = learned(compiled, x, kernel)
    _, theirs = learned(lambda x, k: exact(x, k, 1, "SAME"), x, kernel)
    for a, b in zip(mine, theirs, strict=True):
        assert relative_error(a, b) < 1e-5


def test_forward_derivatives_are_those_of_the_convolution():
    x, kernel = random(2, 7, 6, 3), random(3, 3, 3, 4, seed=1)
    direction = random(3, 3, 3, 4, seed=2)
    with tf.autodiff.ForwardAccumulator(kernel, direction) as accumulator:
        y = convolve(x, kernel, 1, "SAME", "shifts")
    assert relative_error(accumulator.jvp(y), exact(x, direction, 1, "SAME")) < 1e-5


def test_without_tensorflows_recorder_gradients_are_its_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow.python.eager.record", None)
    x, kernel = random(2, 7, 6, 3), random(3, 3, 3, 4, seed=1)
    _, mine = learned(lambda x, k: convolve(x, k, 1, "SAME", "patches"), x, kernel)
    _, theirs = learned(lambda x, k: exact(x, k, 1, "SAME"), x, kernel)
    for a, b in zip(mine, theirs, strict=True):
        assert relative_error(a, b) < 1e-5
