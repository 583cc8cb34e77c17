"""What `kresnet.build` promises: shapes, dtypes, names, arguments and their mistakes."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import randomize, relative_error

import kresnet
from kresnet.errors import ConfigError
from kresnet.zoo import VARIANTS, ResNetConfig, build, features, measure

CIFAR_PARAMETERS = {  # option A shortcuts have none
    "resnet20_cifar": 269_722,
    "resnet32_cifar": 464_154,
    "resnet44_cifar": 658_586,
    "resnet56_cifar": 853_018,
    "resnet110_cifar": 1_727_962,
}


@pytest.mark.parametrize("name", CIFAR_PARAMETERS)
def test_cifar_parameters_are_those_of_the_paper(name):
    model = build(name)
    count = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert count == CIFAR_PARAMETERS[name]
    assert model.output_shape == (None, 10)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_logits_are_float32_under_every_policy(dtype):
    model = build("resnet18", num_classes=3, dtype=dtype)
    logits = model(np.zeros((1, 64, 64, 3), "float32"))
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    compute = keras.DTypePolicy(dtype).compute_dtype
    assert model.get_layer("stage1_block1_conv1").compute_dtype == compute
    assert {v.dtype for v in model.trainable_variables} == {"float32"}


def test_the_global_policy_is_neither_used_nor_changed():
    model = build("resnet20_cifar", dtype="mixed_bfloat16")
    keras.backend.clear_session()
    assert keras.config.dtype_policy().name == "float32"
    assert model.get_layer("stem_conv").dtype_policy.name == "mixed_bfloat16"
    policy = keras.DTypePolicy("mixed_bfloat16")
    assert build("resnet20_cifar", dtype=policy).get_layer("stem_conv").dtype_policy == policy


@pytest.mark.parametrize("size", [32, 33, 97, 224])
def test_any_size_gives_halved_features_rounded_up(size):
    model = build("resnet18", num_classes=None)
    ends = [model.get_layer(f"stage{s}_block2_out").output for s in (1, 2, 3, 4)]
    features = keras.Model(model.input, ends)(np.zeros((1, size, size + 8, 3), "float32"))
    for stride, feature in zip((4, 8, 16, 32), features, strict=True):
        side = size
        for _ in range(int(np.log2(stride))):
            side = -(-side // 2)
        assert feature.shape[1] == side


def test_without_classes_there_is_no_head():
    model = build("resnet50", num_classes=None, input_shape=(64, 64))
    assert model.output_shape == (None, 2048)
    assert VARIANTS["resnet50"].num_features == 2048
    assert not any(layer.name.startswith("head") for layer in model.layers)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (None, None, None, 3)),
        ({"input_shape": (64, 96)}, (None, 64, 96, 3)),
        ({"input_shape": (64, 96, 4)}, (None, 64, 96, 4)),
        ({"input_shape": (None, 96), "in_channels": 1}, (None, None, 96, 1)),
    ],
)
def test_input_shape(options, expected):
    assert build("resnet20_cifar", **options).input_shape == expected


def test_classifier_activation():
    model = build("resnet20_cifar", classifier_activation="softmax")
    scores = model(np.random.default_rng(0).normal(size=(2, 32, 32, 3)))
    np.testing.assert_allclose(np.sum(scores, axis=1), 1.0, rtol=1e-5)


def test_drop_path_grows_linearly_and_does_nothing_at_inference():
    model = build("resnet20_cifar", drop_path_rate=0.4)
    rates = [la.rate for la in model.layers if la.name.endswith("_drop_path")]
    np.testing.assert_allclose(rates, np.linspace(0, 0.4, 9)[1:])
    randomize(model)
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    plain = build("resnet20_cifar")
    plain.set_weights([v.numpy() for v in model.variables if "seed" not in v.path])
    assert relative_error(model(x, training=False), plain(x, training=False)) == 0.0


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    from kresnet.zoo.layers import DropPath

    x = np.random.default_rng(0).normal(5, 1, (4000, 2, 2, 1)).astype("float32")
    y = np.asarray(DropPath(0.25, seed=1)(x, training=True))
    dropped = (y == 0).all(axis=(1, 2, 3))
    assert abs(dropped.mean() - 0.25) < 0.03
    np.testing.assert_allclose(y[~dropped], x[~dropped] / 0.75, rtol=1e-5)


def test_a_new_block_is_the_identity():
    """The last norm of each branch starts at gamma 0."""
    model = build("resnet50", num_classes=None)
    x = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")
    both = keras.Model(
        model.input, [model.get_layer(f"stage1_block{b}_out").output for b in (1, 2)]
    )
    before, after = both(x)
    assert relative_error(before, after) == 0.0
    assert np.abs(before).max() > 0


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.fixture
def arrays():
    """Weights of a small net by our own names."""
    model = randomize(build("resnet20_cifar"))
    return {f"{la.name}/{v.name}": v.numpy() for la in model.layers for v in la.weights}


def test_a_class_subset_keeps_its_rows_of_the_head(arrays):
    x = images(2, 32, 32, 3)
    everything = np.asarray(build("resnet20_cifar", weights=arrays)(x))
    subset = build("resnet20_cifar", weights=arrays, keep_classes=(7, None, 2))
    assert subset.output_shape == (None, 3)
    np.testing.assert_allclose(np.asarray(subset(x))[:, [0, 2]], everything[:, [7, 2]], rtol=1e-5)


def test_grey_images_answer_as_grey_colour_images(arrays):
    grey = images(2, 32, 32, 1)
    colour = build("resnet20_cifar", weights=arrays)(np.repeat(grey, 3, axis=-1))
    model = build("resnet20_cifar", weights=arrays, in_channels=1)
    assert relative_error(model(grey), colour) < 1e-5
    assert len(model.preprocessing.mean) == len(model.preprocessing.std) == 1


def test_bands_take_the_kernels_they_are_given(arrays):
    """A near-infrared band behind red, green, blue, that starts as a second red."""
    model = build("resnet20_cifar", weights=arrays, in_channels=4, bands=(0, 1, 2, 0))
    colour = images(2, 32, 32, 3)
    expected = build("resnet20_cifar", weights=arrays)(colour)
    same = np.concatenate([colour, colour[..., :1]], axis=-1)  # the two share red's weight
    assert relative_error(model(same), expected) < 1e-5
    mean = model.preprocessing.mean
    assert mean[3] == mean[0] != mean[1]


def test_a_network_of_ones_own_is_a_config():
    own = ResNetConfig(block="bottleneck", depths=(1, 2), width=8, stem_filters=(24,), groups=2)
    model = build(own, num_classes=3)
    assert model.output_shape == (None, 3)
    assert model.get_layer("stage2_block2_conv3").output.shape[-1] == 64
    assert measure(own, num_classes=3).params == sum(
        int(np.prod(v.shape)) for v in model.trainable_variables
    )


def test_a_regularizer_is_in_the_losses():
    model = build("resnet20_cifar", kernel_regularizer=keras.regularizers.L2(0.01))
    kernels = [v for v in model.trainable_variables if v.name == "kernel"]
    expected = sum(0.01 * float(np.sum(np.square(v.numpy()))) for v in kernels)
    assert float(sum(model.losses)) == pytest.approx(expected, rel=1e-4)
    lasso = build("resnet20_cifar", kernel_regularizer="l1")
    assert len(lasso.losses) == len(kernels)


def test_block_dropout_acts_in_training_only():
    model = randomize(build("wrn16_8_cifar", block_drop_rate=0.3))
    x = images(2, 32, 32, 3)
    assert relative_error(model(x, training=False), model(x, training=False)) == 0.0
    kresnet.freeze_norms(model)
    assert relative_error(model(x, training=True), model(x, training=True)) > 1e-3


@pytest.mark.parametrize("name", ["resnet50", "resnetv2_18"])
def test_branches_start_at_zero_on_request(name):
    model = build(name, zero_init_residual=True, num_classes=None)
    other = build(name, zero_init_residual=False, num_classes=None)
    last = "stage1_block2_conv3" if name == "resnet50" else "stage1_block2_conv2"
    zeroed, free = model.get_layer(last), other.get_layer(last)
    pick = "gamma" if name == "resnet50" else "kernel"
    assert not np.any(getattr(zeroed, pick).numpy())
    assert np.any(getattr(free, pick).numpy())


def test_a_dilated_network_keeps_the_weights_and_the_size(arrays):
    x = images(1, 64, 96, 3)
    usual = randomize(build("resnet18", num_classes=None))
    weights = {f"{la.name}/{v.name}": v.numpy() for la in usual.layers for v in la.weights}
    for stride in (8, 16):
        model = build("resnet18", num_classes=None, output_stride=stride, weights=weights)
        assert features(model, (stride,))(x).shape[1:3] == (64 // stride, 96 // stride)


def test_features_name_the_strides_there_are():
    with pytest.raises(ConfigError, match=r"some of \[1, 2, 4\], which 'resnet20_cifar' has. Rec"):
        features(build("resnet20_cifar"), (4, 8))


def test_published_weights_come_with_their_preprocessing(tmp_path, monkeypatch):
    """From the cache, where someone without a network has put the file."""
    from safetensors.numpy import save_file

    from kresnet.zoo import card_for, to_torch

    monkeypatch.setenv("KRESNET_HOME", str(tmp_path))
    card = card_for("resnet18d", "ra4_e3600_r224_in1k")
    source = randomize(build("resnet18d"))
    (tmp_path / "weights").mkdir()
    save_file(to_torch(source), tmp_path / "weights" / card.file_name)
    model = build("resnet18d.ra4_e3600_r224_in1k")
    x = images(2, 64, 64, 3)
    assert relative_error(model(x), source(x)) < 1e-6
    assert model.preprocessing == card.preprocessing
    assert model.preprocessing.mean == (0.5, 0.5, 0.5)


def test_layer_names_are_stable():
    names = [layer.name for layer in build("resnet18").layers]
    assert names[:10] == [
        "images",
        "stem_conv",
        "stem_act",
        "stem_pool_pad",
        "stem_pool",
        "stage1_block1_conv1",
        "stage1_block1_act1",
        "stage1_block1_conv2",
        "stage1_block1_add",
        "stage1_block1_out",
    ]
    assert "stage2_block1_shortcut" in names
    assert names[-3:] == ["pool", "head_dropout", "head"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: build("resnet5O"),
            r"Unknown variant. Received: name='resnet5O'. Did you mean 're",
        ),
        (lambda: build("vgg16"), r"Received: name='vgg16'. Did you mean one of those `kresnet zoo"),
        (lambda: build("resnet20_cifar", input_shape=(7, 64)), r"sides of at least 8.*\(7, 64"),
        (lambda: build("resnet18", input_shape=(31, 64)), r"sides of at least 32.*\(31, 64\)"),
        (lambda: build("resnet18", input_shape=(64, 64, 3, 1)), r"Received: input_shape=\(64"),
        (
            lambda: build("resnet18", input_shape=(64, 64, 3), in_channels=4),
            r"agree with `input_shape`. Received: in_channels=4",
        ),
        (lambda: build("resnet18", in_channels=0), r"`in_channels` must be at least 1"),
        (lambda: build("resnet18", num_classes=0), r"`num_classes` must be at least 1.*=0"),
        (lambda: build("resnet18", drop_rate=1.0), r"`drop_rate` must be in \[0, 1\).*=1.0"),
        (lambda: build("resnet18", drop_path_rate=-0.1), r"`drop_path_rate` must be in \[0, 1\)"),
        (lambda: build("resnet18", activation="tanh"), r"one of relu, leaky_relu.*'tanh'"),
        (lambda: build("resnet18", output_stride=4), r"`output_stride` must be 8, 16 or 32.*=4"),
        (lambda: build("resnet50_v2", output_stride=8), r"32 where the last block of a stage"),
        (
            lambda: build("resnet18", num_classes=3, keep_classes=(1, 2)),
            r"replaces `num_classes`. Received: num_classes=3, 2 in keep_classes",
        ),
        (
            lambda: build("resnet18.a1_in1k", weights="imagenet"),
            r"given once.*'resnet18.a1_in1k', weights='imagenet'",
        ),
        (lambda: build("resnet18.a9_in1k"), r"No such weights.*Did you mean"),
        (
            lambda: ResNetConfig(block="basic", depths=(1,), stem="deep"),
            r"one number for each convolution of the stem.*\(64,\)",
        ),
        (lambda: build("resnet18", dtype="half-ish"), r"`dtype` must be a Keras dtype policy"),
        (lambda: ResNetConfig(block="basic", depths=()), r"at least one block.*depths=\(\)"),
        (lambda: ResNetConfig(block="basic", depths=(1,), width=0), r"`width` must be positive"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_public_names_resolve():
    for name in kresnet.__all__:
        assert getattr(kresnet, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'bild'"):
        _ = kresnet.bild


@pytest.mark.slow
def test_the_zoo_runs_on_jax_without_tensorflow(tmp_path):
    """Same weights, same outputs and gradients' direction, on another Keras backend."""
    pytest.importorskip("jax")
    model = randomize(build("resnet20_cifar"))
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    weights = {f"{la.name}/{v.name}": v.numpy() for la in model.layers for v in la.weights}
    np.savez(tmp_path / "weights.npz", **weights)
    np.save(tmp_path / "x.npy", x)
    program = f"""
import sys
sys.modules["tensorflow"] = None
import numpy as np, keras
import kresnet
folder = {str(tmp_path)!r}
model = kresnet.build("resnet20_cifar", weights=folder + "/weights.npz", dtype="float32")
x = np.load(folder + "/x.npy")
np.savez(folder + "/y.npz", model=model(x), fold=kresnet.fold(model)(x),
         to_keras=kresnet.to_keras(model)(x))
kresnet.freeze_norms(model)
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
before = np.array(model.get_layer("stem_conv").moving_mean)
model.fit(x, np.array([1, 2]), verbose=0)
assert np.array_equal(before, np.array(model.get_layer("stem_conv").moving_mean))
kresnet.unfreeze_norms(model)
model.fit(x, np.array([1, 2]), verbose=0)
assert not np.array_equal(before, np.array(model.get_layer("stem_conv").moving_mean))
"""
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name, y in np.load(tmp_path / "y.npz").items():
        assert relative_error(y, model(x, training=False)) < 1e-4, name
