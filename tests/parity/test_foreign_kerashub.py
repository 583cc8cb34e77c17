"""Same weights, same outputs as KerasHub's ResNets, through the preset folders that it saves."""

import json

import h5py
import numpy as np
import pytest
from conftest import randomize, relative_error

from kresnet.errors import WeightsError
from kresnet.zoo import build, load_weights
from kresnet.zoo.cards import IMAGENET

FOUR = {"stackwise_num_filters": [64, 128, 256, 512], "stackwise_num_strides": [1, 2, 2, 2]}
KINDS = {
    "resnet18": ([2, 2, 2, 2], "basic_block", [64], False),
    "resnet18_vd": ([2, 2, 2, 2], "basic_block_vd", [32, 32, 64], False),
    "resnet34_vd": ([3, 4, 6, 3], "basic_block_vd", [32, 32, 64], False),
    "resnet50": ([3, 4, 6, 3], "bottleneck_block", [64], False),
    "resnet50c": ([3, 4, 6, 3], "bottleneck_block", [32, 32, 64], False),
    "resnet50d": ([3, 4, 6, 3], "bottleneck_block_vd", [32, 32, 64], False),
    "resnet200_vd": ([3, 12, 48, 3], "bottleneck_block_vd", [32, 32, 64], False),
    "resnetv2_18": ([2, 2, 2, 2], "basic_block", [64], True),
    "resnetv2_50": ([3, 4, 6, 3], "bottleneck_block", [64], True),
}


@pytest.fixture(scope="session")
def hub():
    return pytest.importorskip("keras_hub")


def backbone(hub, kind):
    blocks, block_type, stem, preact = KINDS[kind]
    made = hub.models.ResNetBackbone(
        input_conv_filters=stem,
        input_conv_kernel_sizes=[7] if len(stem) == 1 else [3, 3, 3],
        stackwise_num_blocks=blocks,
        block_type=block_type,
        use_pre_activation=preact,
        **FOUR,
    )
    return randomize(made, seed=8)


def forget_names(folder):
    """Make the file one of an older Keras, which did not keep the names of layers."""
    with h5py.File(folder / "model.weights.h5", "a") as file:
        for layer in file["layers"].values():
            del layer["vars"].attrs["name"]


QUICK = ("resnet18", "resnetv2_50")


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in KINDS]
)
def test_pooled_features_agree(hub, kind, tmp_path):
    reference = backbone(hub, kind)
    reference.save_to_preset(str(tmp_path))
    model = build(kind, num_classes=None)
    report = load_weights(model, tmp_path)
    assert (report.scheme, report.head, report.unused) == ("KerasHub", "none", ())
    assert report.preprocessing == IMAGENET  # there is no image_converter.json
    for size in (97, 128):
        x = np.random.default_rng(size).normal(size=(2, size, size + 3, 3)).astype("float32")
        expected = np.asarray(reference(x, training=False)).mean(axis=(1, 2))
        assert relative_error(model(x, training=False), expected) < 1e-5
    forget_names(tmp_path)
    again = build(kind, num_classes=None)
    load_weights(again, tmp_path)
    for found, kept in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, kept)


@pytest.fixture(scope="module")
def classifier(hub, tmp_path_factory):
    """A saved ResNet-18 with a head of five classes and an image converter."""
    folder = tmp_path_factory.mktemp("preset") / "resnet_18"
    converter = hub.layers.ResNetImageConverter(
        image_size=(160, 160),
        scale=[1 / (255 * 0.229), 1 / (255 * 0.224), 1 / (255 * 0.225)],
        offset=[-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
        interpolation="bicubic",
    )
    model = hub.models.ResNetImageClassifier(
        backbone=backbone(hub, "resnet18"),
        num_classes=5,
        preprocessor=hub.models.ResNetImageClassifierPreprocessor(image_converter=converter),
    )
    randomize(model, seed=9)
    model.save_to_preset(str(folder))
    return model, folder


def test_logits_and_preprocessing_of_a_task_agree(classifier):
    reference, folder = classifier
    model = build("resnet18", num_classes=5)
    report = load_weights(model, folder)
    assert report.head == "loaded"
    x = np.random.default_rng(0).normal(size=(2, 96, 99, 3)).astype("float32")
    assert relative_error(model(x, training=False), reference(x, training=False)) < 1e-5
    said = report.preprocessing
    assert (said.image_size, said.crop_pct, said.interpolation) == (160, 1.0, "bicubic")
    pixels = np.random.default_rng(1).integers(0, 256, (1, 160, 160, 3)).astype("float32")
    ours = (pixels / 255 - np.array(said.mean)) / np.array(said.std)
    theirs = reference.preprocessor.image_converter(pixels)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_preset_needs_no_head(classifier):
    assert (
        load_weights(build("resnet18", num_classes=2), classifier[1], new_head=True).head == "new"
    )


@pytest.mark.parametrize(
    ("kind", "wrong", "text"),
    [
        ("resnet50", "resnet50_v1", "stride in the 3x3 convolution.*'resnet50'"),
        ("resnet50c", "resnet50d", "need a variant without average.*'resnet50c'"),
        ("resnet50d", "resnet50c", "need a 'd' variant, whose shortcuts average.*'resnet50d'"),
    ],
)
def test_other_strides_are_refused(hub, kind, wrong, text, tmp_path):
    backbone(hub, kind).save_to_preset(str(tmp_path))
    with pytest.raises(WeightsError, match=text):
        load_weights(build(wrong, num_classes=None), tmp_path)


def test_basic_vd_is_another_network_than_resnet18d(hub, tmp_path):
    """It projects in its first stage as well."""
    backbone(hub, "resnet18_vd").save_to_preset(str(tmp_path))
    with pytest.raises(WeightsError, match=r"unused \(5\): stack0_block0_0_bn/beta, "):
        load_weights(build("resnet18d", num_classes=None), tmp_path)


def hand_written(folder, *, named=True, depths=(2, 2, 2, 2), **changes):
    """The preset of a ResNet-18 backbone as KerasHub lays it out, and its kernels by name."""
    folder.mkdir()
    config = {
        "stackwise_num_blocks": list(depths),
        "input_conv_filters": [64],
        "block_type": "basic_block",
        "use_pre_activation": False,
    }
    tree = {"class_name": "ResNetBackbone", "config": config | changes}
    (folder / "config.json").write_text(json.dumps(tree))
    names, shapes, inside = ["conv1"], [(7, 7, 3, 64)], 64
    for stack, depth in enumerate(depths):
        outside = 64 * 2**stack
        for block in range(depth):
            projects = stack > 0 and block == 0
            names += [f"stack{stack}_block{block}_{k}" for k in ("102" if projects else "12")]
            shapes += [(3, 3, inside, outside)]
            shapes += [(1, 1, inside, outside)] if projects else []
            shapes += [(3, 3, outside, outside)]
            inside = outside
    rng = np.random.default_rng(0)
    kernels = {n: rng.normal(size=s).astype("f4") for n, s in zip(names, shapes, strict=True)}
    with h5py.File(folder / "model.weights.h5", "w") as file:
        for number, (name, kernel) in enumerate(kernels.items()):
            end = f"_{number}" if number else ""
            conv = file.create_group(f"layers/conv2d{end}/vars")
            norm = file.create_group(f"layers/batch_normalization{end}/vars")
            conv["0"] = kernel
            for variable in range(4):
                norm[str(variable)] = np.full(kernel.shape[-1], variable + 1, "f4")
            if named:
                conv.attrs["name"], norm.attrs["name"] = f"{name}_conv", f"{name}_bn"
    return kernels


@pytest.mark.parametrize("named", [True, False])
def test_a_hand_written_preset(tmp_path, named):
    kernels = hand_written(tmp_path / "preset", named=named)
    model = build("resnet18", num_classes=None)
    assert load_weights(model, tmp_path / "preset").scheme == "KerasHub"
    pairs = {"stage3_block1_shortcut": "stack2_block0_0", "stage3_block1_conv2": "stack2_block0_2"}
    for ours, theirs in (pairs | {"stem_conv": "conv1"}).items():
        layer = model.get_layer(ours)
        np.testing.assert_array_equal(layer.kernel.numpy(), kernels[theirs])
        for number, variable in enumerate((layer.gamma, layer.beta, layer.moving_mean), start=1):
            np.testing.assert_array_equal(variable.numpy(), number)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stackwise_num_blocks": [2, 2, 2, 3]}, "has 20 conv2d layers where its config has 22"),
        ({"stackwise_num_blocks": [2, 2, -2, 2]}, "does not describe a ResNet"),
        ({"stackwise_num_blocks": [10**9]}, "does not describe a ResNet"),
        ({"stackwise_num_blocks": "2222"}, "does not describe a ResNet"),
        ({"stackwise_num_blocks": None}, "TypeError"),
        ({"input_conv_filters": [1] * 50}, "does not describe a ResNet"),
        ({"use_pre_activation": 1}, "does not describe a ResNet"),
        ({"block_type": 3}, "does not describe a ResNet"),
    ],
)
def test_a_lying_config_is_refused(tmp_path, changes, reason):
    hand_written(tmp_path / "preset", **changes)
    with pytest.raises(WeightsError, match=f"must be whole.*{reason}"):
        load_weights(build("resnet18", num_classes=None), tmp_path / "preset")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("config.json", "[1]", "config is of '.1.', not of a ResNetBackbone"),
        ("config.json", '{"class_name": "VGGBackbone"}', "config is of 'VGGBackbone'"),
        ("config.json", "{", "JSONDecodeError"),
        ("config.json", "[" * 200_000, "RecursionError"),
        ("config.json", " " * 1024**2 + "1", "larger than 1048576 bytes"),
        ("image_converter.json", '{"config": {"scale": 0}}', "no usable scale and offset"),
        ("image_converter.json", '{"config": {"offset": NaN}}', "no usable scale and offset"),
        ("image_converter.json", '{"config": {"scale": [1, 2]}}', "ValueError"),
    ],
)
def test_other_json_is_refused(tmp_path, name, text, reason):
    hand_written(tmp_path / "preset")
    (tmp_path / "preset" / name).write_text(text)
    with pytest.raises(WeightsError, match=f"must be whole.*{reason}"):
        load_weights(build("resnet18", num_classes=None), tmp_path / "preset")


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5", "task.weights.h5"])
def test_a_member_that_is_elsewhere_is_refused(tmp_path, name):
    hand_written(tmp_path / "preset")
    hand_written(tmp_path / "other")
    source = name if name == "config.json" else "model.weights.h5"
    elsewhere = tmp_path / "other" / source
    (tmp_path / "preset" / name).unlink(missing_ok=True)
    (tmp_path / "preset" / name).symlink_to(elsewhere)
    with pytest.raises(WeightsError, match=f"{name} is a link out of the folder"):
        load_weights(build("resnet18", num_classes=None), tmp_path / "preset")


def test_a_folder_that_is_no_preset(tmp_path):
    with pytest.raises(WeightsError, match=r"must be whole.*config\.json is missing"):
        load_weights(build("resnet18"), tmp_path)
