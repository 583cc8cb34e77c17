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
from kresnet.zoo import VARIANTS, ResNetConfig, build

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


def test_layer_names_are_stable():
    names = [layer.name for layer in build("resnet18").layers]
    assert names[:10] == [
        "images",
        "stem_conv",
        "stem_relu",
        "stem_pad",
        "stem_pool",
        "stage1_block1_conv1",
        "stage1_block1_relu1",
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
        (lambda: build("vgg16"), r"Received: name='vgg16'. Did you mean one of resnet18"),
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
