"""ConvNorm is a convolution and a batch norm, whichever way it computes them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import randomize, relative_error

from kresnet.errors import ConfigError
from kresnet.zoo import ConvNorm, build, fold, freeze_norms, to_keras, unfreeze_norms, with_dtype


def images(n=4, size=40, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0.3, 1.0, (n, size, size + 5, channels)).astype("float32")


def trained(model, steps, *, learning_rate=0.05):
    """Train on fixed random batches; returns the losses."""
    optimizer = keras.optimizers.SGD(learning_rate, momentum=0.9)
    variables = model.trainable_variables
    optimizer.build(variables)
    rng = np.random.default_rng(5)
    losses = []
    for step in range(steps):
        x, y = images(seed=step), tf.constant(rng.integers(0, 5, 4))
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
            )
        optimizer.apply(tape.gradient(loss, variables), variables)
        losses.append(float(loss))
    return losses


def step_of(model, x, y):
    """What a step computes, under the names of Keras' layers: gradients, and moved statistics."""
    with tf.GradientTape() as tape:
        logits = tf.cast(model(x, training=True), "float64")
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
    learned = model.trainable_variables
    found = {v.path: v.value for v in model.variables if "moving" in v.path}
    gradients = tape.gradient(loss, [v.value for v in learned])
    found |= {v.path: gradient for v, gradient in zip(learned, gradients, strict=True)}
    return {in_keras(v, model): found[v.path] for v in model.variables}


def in_keras(variable, model):
    """The path of a variable in Keras' layers, where norms are layers of their own."""
    layer, name = variable.path.split("/")
    is_both = isinstance(model.get_layer(layer), ConvNorm) and name != "kernel"
    return f"{layer}_norm/{name}" if is_both else variable.path


def in_float64(model):
    """Keras' layers again, all of them in float64."""

    def clone(layer):
        if not isinstance(layer, keras.layers.Layer):
            return layer  # an operation, which computes in what it is given
        return type(layer).from_config(layer.get_config() | {"dtype": "float64"})

    return keras.models.clone_model(model, clone_function=clone)


def statistics(model):
    return {v.path: v.numpy() for v in model.variables if "moving" in v.path}


def test_ten_frozen_steps_equal_conv_and_frozen_batch_norm():
    ours = randomize(build("resnet18", num_classes=5), seed=2)
    freeze_norms(ours, affine=True)
    theirs = to_keras(ours)  # Conv2D and BatchNormalization(trainable=False)
    norms = [la for la in theirs.layers if isinstance(la, keras.layers.BatchNormalization)]
    assert len(norms) == 20
    assert not any(norm.trainable for norm in norms)
    mine, other = (trained(model, 10, learning_rate=2e-4) for model in (ours, theirs))
    assert np.isfinite(mine).all()
    np.testing.assert_allclose(mine, other, rtol=2e-4)
    assert relative_error(ours(images(seed=99)), theirs(images(seed=99))) < 1e-3


def test_ten_steps_with_learned_statistics_equal_conv_and_batch_norm():
    ours = randomize(build("resnet20_cifar", num_classes=5), seed=2)
    theirs = to_keras(ours)
    mine, other = (trained(model, 10, learning_rate=1e-3) for model in (ours, theirs))
    np.testing.assert_allclose(mine, other, rtol=2e-4)
    mine, other = statistics(ours), statistics(theirs)
    for path, value in mine.items():
        layer, name = path.split("/")
        np.testing.assert_allclose(value, other[f"{layer}_norm/{name}"], rtol=2e-3, atol=2e-4)


def test_a_step_in_bfloat16_is_as_near_to_float64_as_that_of_keras():
    """What is computed another way on processors is no less exact, all through a network."""
    ours = build("resnet20_cifar", num_classes=5, dtype="mixed_bfloat16")
    theirs = to_keras(ours)
    exact = in_float64(theirs)
    ratios = []
    for seed in range(2):
        randomize(ours, seed=seed)
        values = {in_keras(v, ours): v.numpy() for v in ours.variables}
        batch = images(seed=seed), tf.constant([2, 1, 4, 0])
        for model in (theirs, exact):
            for variable in model.variables:
                variable.assign(values[variable.path])
        mine, other, expected = (step_of(model, *batch) for model in (ours, theirs, exact))
        assert mine.keys() == other.keys() == expected.keys()
        for path, known in expected.items():
            distances = [tf.norm(tf.cast(step[path], "float64") - known) for step in (mine, other)]
            ratios.append(float(distances[0] / distances[1]))
    assert len(ratios) == 2 * 97  # variables
    assert np.exp(np.mean(np.log(ratios))) < 1.02


def test_frozen_gradients_of_gamma_and_beta_equal_those_of_the_unfused_pair():
    layer = ConvNorm(6, 3, strides=2, frozen=True)
    x = tf.constant(images())
    layer(x)
    randomize(layer, seed=4)
    gamma, beta = layer.gamma.value, layer.beta.value
    with tf.GradientTape() as tape:
        fused = tf.reduce_sum(tf.sin(layer(x, training=True)))
    ours = tape.gradient(fused, [layer.kernel.value, gamma, beta])
    with tf.GradientTape() as tape:
        padded = tf.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        y = tf.nn.conv2d(padded, layer.kernel.value, 2, "VALID")
        y = (y - layer.moving_mean.value) / tf.sqrt(layer.moving_variance.value + 1e-5)
        unfused = tf.reduce_sum(tf.sin(y * gamma + beta))
    theirs = tape.gradient(unfused, [layer.kernel.value, gamma, beta])
    for a, b in zip(ours, theirs, strict=True):
        assert relative_error(a, b) < 1e-4


@pytest.mark.parametrize("affine", [False, True])
def test_frozen_statistics_are_bit_identical_after_fit(affine):
    model = randomize(build("resnet18", num_classes=5))
    freeze_norms(model, affine=affine)
    before = {v.path: v.numpy() for v in model.variables}
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    model.fit(images(8), np.arange(8) % 5, epochs=2, batch_size=4, verbose=0)
    moved = {v.path for v in model.variables if not np.array_equal(before[v.path], v.numpy())}
    assert not any("moving" in path for path in moved)
    assert any("kernel" in path for path in moved)
    assert any("gamma" in path for path in moved) == (not affine)


def test_statistics_stay_when_the_model_is_nested_in_another():
    """The trap of `base(x, training=False)`, which `fit` overrides in Keras 3."""
    base = randomize(build("resnet20_cifar", num_classes=None))
    freeze_norms(base)
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, keras.layers.Dense(2)(base(inputs)))
    before = statistics(base)
    model.compile("sgd", "mse")
    model.fit(images(4, 32)[:, :, :32], np.zeros((4, 2)), epochs=1, verbose=0)
    for path, value in statistics(base).items():
        assert np.array_equal(value, before[path]), path


def test_switching_takes_effect_on_a_compiled_model():
    model = randomize(build("resnet20_cifar", num_classes=2))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = images(4, 32), np.array([0, 1, 1, 0])
    freeze_norms(model)
    model.fit(x, y, verbose=0)
    before = statistics(model)
    unfreeze_norms(model)
    model.fit(x, y, verbose=0)  # without compiling again
    after = statistics(model)
    assert all(not np.array_equal(before[path], after[path]) for path in before)


def test_freezing_also_switches_keras_own_norms_and_counts():
    model = to_keras(build("resnet20_cifar"))
    assert freeze_norms(model) == 19
    assert not any(
        layer.trainable
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    )
    assert unfreeze_norms(model) == 19


def test_a_folded_model_has_no_norms_to_freeze():
    with pytest.raises(ConfigError, match=r"at least one norm: .* A folded model has none"):
        freeze_norms(fold(build("resnet20_cifar")))


def test_an_even_kernel_is_refused():
    with pytest.raises(ConfigError, match=r"must be odd. Received: kernel_size=2"):
        ConvNorm(4, 2)


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet20_cifar", pytest.param("resnet50_v1", marks=pytest.mark.slow)]
)
def test_rewritten_models_compute_the_same(name, tmp_path):
    model = randomize(build(name, num_classes=7, drop_path_rate=0.1, drop_rate=0.1))
    x = images(2, 64)
    expected = model(x, training=False)
    for rewritten in (fold(model), to_keras(model), with_dtype(model, "float32")):
        assert relative_error(rewritten(x, training=False), expected) < 1e-5
    low = with_dtype(model, "mixed_bfloat16")(x, training=False)
    assert low.dtype == tf.float32
    assert 1e-6 < relative_error(low, expected) < 0.05


@pytest.mark.parametrize("rewrite", [fold, to_keras])
def test_what_leaves_kresnet_loads_without_it(rewrite, tmp_path):
    import subprocess
    import sys

    model = rewrite(randomize(build("resnet20_cifar", drop_path_rate=0.2)))
    x = images(2, 32)
    np.save(tmp_path / "x.npy", x)
    model.save(tmp_path / "model.keras")
    program = (
        "import sys, keras, numpy as np\n"
        "sys.modules['kresnet'] = None\n"
        f"m = keras.models.load_model({str(tmp_path / 'model.keras')!r})\n"
        f"np.save({str(tmp_path / 'y.npy')!r}, m.predict(np.load({str(tmp_path / 'x.npy')!r})))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert relative_error(np.load(tmp_path / "y.npy"), model(x)) < 1e-5


def test_a_users_own_head_survives_folding():
    base = randomize(build("resnet18", num_classes=None, dtype="mixed_bfloat16"))
    x = keras.layers.Dense(3, activation="tanh", dtype="float32", name="mine")(base.output)
    model = keras.Model(base.input, [x, base.output])
    both = fold(model, dtype="float32")(images(2, 64))
    expected = with_dtype(model, "float32")(images(2, 64))
    for a, b in zip(both, expected, strict=True):
        assert relative_error(a, b) < 1e-5


def test_only_functional_models_are_rewritten():
    with pytest.raises(
        ConfigError, match=r"must be a functional Keras model.*Received: Sequential"
    ):
        fold(keras.Sequential([keras.Input((32, 32, 3)), ConvNorm(4, 3)]))


def test_a_saved_model_with_our_layers_comes_back(tmp_path):
    model = randomize(build("resnet20_cifar", drop_path_rate=0.1))
    freeze_norms(model)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert relative_error(again(images(2, 32)), model(images(2, 32))) == 0.0
    assert all(la.frozen for la in again.layers if isinstance(la, ConvNorm))
