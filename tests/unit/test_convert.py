"""Foreign weights into kresnet models: same outputs as the network they come from."""

import json
import re

import keras
import numpy as np
import pytest
from conftest import SHARED, relative_error
from safetensors.numpy import save_file

from kresnet.errors import ConfigError, ResourceError, WeightsError
from kresnet.zoo import build
from kresnet.zoo.cards import CAFFE, CIFAR10, IMAGENET
from kresnet.zoo.convert import LoadReport, load_weights, save_torch, to_torch

# TensorFlow 2.21's arrays do not know NumPy 2's copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

DATA = SHARED / "weights"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="the real weights are not beside the repo"
)


def torch_state(model, seed=0, classes=None):
    """A state dict in torch's layout for `model`, every number random and none of them usual."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, array in to_torch(model).items():
        shape = array.shape
        if classes is not None and name.startswith(("fc", "linear")):
            shape = (classes, *shape[1:])
        if name.endswith("num_batches_tracked"):
            state[name] = np.array(7)
        elif name.endswith("running_var"):
            state[name] = rng.uniform(0.3, 2.0, shape).astype("float32")
        elif len(shape) == 4:
            scale = np.sqrt(1 / np.prod(shape[1:]))
            state[name] = (rng.normal(size=shape) * scale).astype("float32")
        else:
            middle = 1.0 if re.search(r"(bn\d|downsample\.1)\.weight", name) else 0.0
            state[name] = rng.normal(middle, 0.2, shape).astype("float32")
    return state


@pytest.fixture(scope="module")
def cifar():
    """A small model that each test may overwrite."""
    return build("resnet20_cifar")


@pytest.fixture(scope="module")
def state(cifar):
    return torch_state(cifar)


def values(model):
    return {f"{la.name}/{v.name}": v.numpy() for la in model.layers for v in la.weights}


def images(size, channels=3, seed=1):
    return np.random.default_rng(seed).normal(0.3, 1.0, (2, size, size + 3, channels)).astype("f4")


def test_torch_resnet18_has_the_same_outputs(torchvision_models):
    import torch

    model = build("resnet18")
    state = torch_state(model)
    oracle = torchvision_models.resnet18()
    oracle.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    x = images(97)
    with torch.no_grad():
        expected = oracle.eval()(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    report = load_weights(model, state)
    assert (report.scheme, report.head, report.preprocessing) == ("torch", "loaded", IMAGENET)
    assert len(report.matched) == len(values(model))
    assert relative_error(model.predict(x, verbose=0), expected) < 1e-4


def test_keras_applications_resnet50_has_the_same_outputs(tmp_path):
    oracle = keras.applications.ResNet50(weights=None, classifier_activation=None)
    rng = np.random.default_rng(0)
    for layer in oracle.layers:
        for variable in layer.weights:
            low, high = {"gamma": (0.5, 1.5), "moving_variance": (1e-5, 2.0)}.get(
                variable.name, (-0.2, 0.2)
            )
            if variable.name == "kernel":
                low, high = (s * np.sqrt(3 / np.prod(variable.shape[:-1])) for s in (-1, 1))
            variable.assign(rng.uniform(low, high, variable.shape))
    oracle.save(tmp_path / "w.h5")
    model = build("resnet50_v1")
    report = load_weights(model, tmp_path / "w.h5")
    assert (report.scheme, report.head) == ("keras.applications", "loaded")
    assert report.preprocessing == CAFFE
    x = images(224)[:1, :, :224]
    expected = oracle.predict(x[..., ::-1], verbose=0)
    assert relative_error(model.predict(x, verbose=0), expected) < 1e-4
    with pytest.raises(WeightsError, match="need a v1 variant, with the stride in the first 1x1"):
        load_weights(build("resnet50"), tmp_path / "w.h5")


def test_folding_is_exact():
    """Bias into the mean, one epsilon into another, at variances where the epsilon matters."""
    model = build("resnet50_v1", num_classes=None)
    rng = np.random.default_rng(0)
    arrays = {}
    for path, array in values(model).items():
        layer, variable = path.split("/")
        s, b, k = [*re.findall(r"\d+", layer), "0"][:3] if "stage" in layer else (0, 0, 0)
        prefix = "conv1" if layer == "stem_conv" else f"conv{int(s) + 1}_block{b}_{k}"
        part = "conv" if variable == "kernel" else "bn"
        draw = (
            rng.uniform(1e-6, 1e-4, array.shape)
            if "var" in variable
            else rng.normal(size=array.shape)
        )
        arrays[f"{prefix}_{part}/{variable}"] = draw
        arrays[f"{prefix}_conv/bias"] = rng.normal(size=array.shape[-1])
    load_weights(model, arrays)
    norm = {v.name: v.numpy().astype("f8") for v in model.get_layer("stage3_block2_conv2").weights}
    source = {k.split("/")[1]: v for k, v in arrays.items() if k.startswith("conv4_block2_2_")}
    x = 0.37
    expected = (
        source["gamma"]
        * (x + source["bias"] - source["moving_mean"])
        / np.sqrt(source["moving_variance"] + 1.001e-5)
        + source["beta"]
    )
    found = (
        norm["gamma"] * (x - norm["moving_mean"]) / np.sqrt(norm["moving_variance"] + 1e-5)
        + norm["beta"]
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(
        model.get_layer("stem_conv").kernel.numpy()[:, :, 0],
        arrays["conv1_conv/kernel"][:, :, 2].astype("float32"),
    )


def test_folded_norms_only_add_the_bias(cifar):
    rng = np.random.default_rng(0)
    folded = {}
    for name, array in torch_state(cifar).items():
        if array.ndim == 4:
            folded[name] = array
            folded[name.replace("weight", "bias")] = rng.normal(size=len(array)).astype("float32")
        elif name.startswith("linear"):
            folded[name] = array
    report = load_weights(cifar, folded)
    assert report.scheme == "torch-folded"
    layer = cifar.get_layer("stage2_block1_conv1")
    gamma, variance = layer.gamma.numpy(), layer.moving_variance.numpy()
    assert np.all(gamma / np.sqrt(variance + np.float32(layer.epsilon)) == np.float32(1.0))
    np.testing.assert_array_equal(layer.moving_mean.numpy(), 0)
    np.testing.assert_array_equal(layer.beta.numpy(), folded["layer2.0.conv1.bias"])


def test_linear_and_fc_are_the_same_head(cifar, state):
    load_weights(cifar, state)
    before = values(cifar)
    renamed = {name.replace("linear", "fc"): array for name, array in state.items()}
    assert load_weights(cifar, renamed).head == "loaded"
    np.testing.assert_equal(values(cifar), before)


@pytest.mark.parametrize("name", ["w.npz", "w.safetensors", "w.h5"])
def test_our_own_names_load_back(cifar, state, tmp_path, name):
    load_weights(cifar, state)
    saved = values(cifar)
    if name == "w.npz":
        np.savez(tmp_path / name, **saved)
    elif name == "w.safetensors":
        save_file(saved, tmp_path / name)
    else:
        cifar.save(tmp_path / name)
    fresh = build("resnet20_cifar")
    report = load_weights(fresh, tmp_path / name)
    assert (report.scheme, report.preprocessing) == ("kresnet", CIFAR10)
    np.testing.assert_equal(values(fresh), saved)


def test_our_own_names_keep_the_models_preprocessing(cifar, state):
    load_weights(cifar, state)
    model = build("resnet20_cifar")
    model.preprocessing = CAFFE
    assert load_weights(model, values(cifar)).preprocessing is CAFFE


def test_to_torch_gives_back_what_was_loaded(cifar, state):
    load_weights(cifar, state)
    again = to_torch(cifar)
    assert again.keys() == state.keys()
    for name, array in state.items():
        if name.endswith("num_batches_tracked"):
            assert again[name] == 0
            assert again[name].dtype == np.int64
        else:
            np.testing.assert_array_equal(again[name], array)
            assert again[name].flags.c_contiguous


@pytest.mark.parametrize("variant", ["resnet18", "resnet50"])
def test_torchvision_takes_to_torch(torchvision_models, variant):
    import torch

    exported = to_torch(build(variant))
    oracle = getattr(torchvision_models, variant)()
    tensors = {name: torch.from_numpy(array) for name, array in exported.items()}
    oracle.load_state_dict(tensors, strict=True)


def test_to_torch_refuses_other_layers(cifar):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="extra")])
    with pytest.raises(WeightsError, match=r"must be one of a kresnet model\. Received: layer='ex"):
        to_torch(model)


@pytest.mark.parametrize(("channels", "scale"), [(1, 1.0), (2, 1.5), (4, 0.75), (7, 3 / 7)])
def test_other_input_channels(state, channels, scale):
    model = build("resnet20_cifar", in_channels=channels)
    load_weights(model, state)
    kernel = model.get_layer("stem_conv").kernel.numpy()
    source = state["conv1.weight"].transpose(2, 3, 1, 0)
    if channels == 1:
        expected = source.sum(axis=2, keepdims=True)
    else:
        expected = np.stack([source[:, :, i % 3] for i in range(channels)], axis=2) * scale
    np.testing.assert_allclose(kernel, expected, rtol=1e-5, atol=1e-6)


def test_a_gray_image_gives_what_its_rgb_copy_gives(cifar, state):
    gray = build("resnet20_cifar", in_channels=1)
    load_weights(gray, state)
    load_weights(cifar, state)
    x = images(32, channels=1)
    expected = cifar.predict(np.repeat(x, 3, axis=-1), verbose=0)
    assert relative_error(gray.predict(x, verbose=0), expected) < 1e-4


def test_a_model_without_head_ignores_the_files(state):
    model = build("resnet20_cifar", num_classes=None)
    report = load_weights(model, state)
    assert (report.head, report.unused, report.missing) == ("none", (), ())


def test_a_new_head_stays_as_it_was_built(state):
    model = build("resnet20_cifar", num_classes=3)
    before = model.get_layer("head").kernel.numpy()
    report = load_weights(model, state, new_head=True)
    assert (report.head, report.unused, report.missing) == ("new", (), ())
    np.testing.assert_array_equal(model.get_layer("head").kernel.numpy(), before)
    assert "head/kernel" not in report.matched


def test_new_head_loads_a_head_that_fits(cifar, state):
    assert load_weights(cifar, state, new_head=True).head == "loaded"


def without_head(state):
    return {name: array for name, array in state.items() if not name.startswith("linear")}


def test_a_checkpoint_without_head(cifar, state):
    assert load_weights(cifar, without_head(state), new_head=True).head == "new"
    with pytest.raises(WeightsError, match=r"missing \(2\): head/bias, head/kernel\nPass new_head"):
        load_weights(cifar, without_head(state))
    report = load_weights(cifar, without_head(state), strict=False)
    assert (report.head, report.missing) == ("new", ("head/kernel", "head/bias"))


def test_another_number_of_classes(state):
    model = build("resnet20_cifar", num_classes=3)
    with pytest.raises(WeightsError) as error:
        load_weights(model, state)
    assert str(error.value).splitlines() == [
        "The checkpoint must hold exactly the model's variables. Received: source='arrays' "
        "(torch names), 95 variables fit.",
        "mismatched (2): head/bias (3,) from linear.bias (10,), "
        "head/kernel (64, 3) from linear.weight (10, 64)",
        "Pass new_head=True to keep a new head, or build with the checkpoint's num_classes.",
    ]
    report = load_weights(model, state, strict=False)
    assert (report.head, len(report.mismatched), len(report.matched)) == ("new", 2, 95)


def test_the_wrong_depth_is_refused_with_short_lists(cifar, state):
    before = values(cifar)
    other = torch_state(build("resnet32_cifar"), seed=3)
    with pytest.raises(WeightsError) as error:
        load_weights(cifar, other)
    lines = str(error.value).splitlines()
    assert lines[1].startswith("unused (60): layer1.3.bn1.bias, ")
    assert lines[1].count(", ") == 10
    assert lines[1].endswith(", ...")
    assert lines[2].startswith("Build the variant the checkpoint was made for, or pass strict=")
    np.testing.assert_equal(values(cifar), before)  # nothing was written


def test_not_strict_loads_what_fits(cifar, state):
    partial = dict(state)
    del partial["layer1.0.bn1.weight"]
    partial["layer1.1.conv1.weight"] = np.ones((16, 16, 5, 5), "float32")
    partial["stray"] = np.ones(3)
    before = values(cifar)
    report = load_weights(cifar, partial, strict=False)
    assert report.missing == ("stage1_block1_conv1/gamma",)
    assert report.unused == ("stray",)
    (mismatched,) = report.mismatched
    assert mismatched == (
        "stage1_block2_conv1/kernel (3, 3, 16, 16) from layer1.1.conv1.weight (16, 16, 5, 5)"
    )
    after = values(cifar)
    for name in ("stage1_block1_conv1/gamma", "stage1_block2_conv1/kernel"):
        np.testing.assert_array_equal(after[name], before[name])
    assert str(report) == (
        "arrays (torch names): 95 variables loaded, head: loaded\n"
        "missing (1): stage1_block1_conv1/gamma\nunused (1): stray\n"
        f"mismatched (1): {mismatched}"
    )


def test_arrays_that_must_go_together_have_one_shape(cifar):
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    arrays = {f"conv1_bn/{name}": np.ones(16) for name in names}
    arrays |= {"conv1_conv/kernel": np.ones((3, 3, 3, 16)), "conv1_conv/bias": np.ones(1)}
    report = load_weights(cifar, arrays, strict=False)
    assert report.mismatched == (
        "stem_conv/moving_mean (16,) from conv1_bn/moving_mean (16,) and conv1_conv/bias (1,)",
    )


def test_nothing_that_fits_is_always_an_error(cifar):
    with pytest.raises(WeightsError, match=r"0 variables fit\.\nmissing \(96\)"):
        load_weights(cifar, {"conv1.weight": np.ones(3)}, strict=False)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_must_be_finite(cifar, state, value, dtype):
    broken = {name: array.copy() for name, array in state.items()}
    broken["layer1.0.bn1.bias"][3] = value
    broken["linear.bias"][0] = value
    broken["layer1.0.bn1.bias"] = broken["layer1.0.bn1.bias"].astype(dtype)
    before = values(cifar)
    with pytest.raises(WeightsError, match=r"must be finite.*layer1\.0\.bn1\.bias with NaN"):
        load_weights(cifar, broken)
    np.testing.assert_equal(values(cifar), before)


def test_values_must_fit_float32(cifar, state):
    broken = state | {"linear.bias": np.full(10, 1e300)}
    with pytest.raises(WeightsError, match=r"linear\.bias with NaN, infinity or a value out of"):
        load_weights(cifar, broken)


def test_arrays_must_be_numbers(cifar, state):
    with pytest.raises(WeightsError, match=r"must hold arrays of numbers\. Received: .*classes of"):
        load_weights(cifar, state | {"classes": np.array(["a", "b"])})


def test_other_dtypes_are_converted(cifar, state):
    import ml_dtypes

    half = {k: a.astype(ml_dtypes.bfloat16) if a.ndim else a for k, a in state.items()}
    load_weights(cifar, half)
    np.testing.assert_array_equal(
        cifar.get_layer("head").bias.numpy(), half["linear.bias"].astype("float32")
    )


def test_unknown_names_are_shown(cifar):
    with pytest.raises(WeightsError) as error:
        load_weights(cifar, {f"w{i}": np.ones(2) for i in range(9)})
    assert "with 9 names: 'w0', 'w1', 'w2', 'w3', 'w4'. Rename its arrays" in str(error.value)
    with pytest.raises(WeightsError, match="with 0 names: none"):
        load_weights(cifar, {})


def test_a_report_is_one_line_when_all_is_well():
    report = LoadReport("a.pth", "torch", ("stem_conv/kernel",), (), (), (), "new", IMAGENET)
    assert str(report) == "a.pth (torch names): 1 variables loaded, head: new"


@needs_data
@pytest.mark.parametrize("depth", [20, 56])
def test_real_cifar_weights(depth):
    (path,) = DATA.glob(f"cifar10/resnet{depth}-*.th")
    report = load_weights(build(f"resnet{depth}_cifar"), path)
    assert (report.scheme, report.head, report.preprocessing) == ("torch", "loaded", CIFAR10)
    assert report.source == str(path)


@needs_data
def test_real_imagenet_weights():
    (path,) = DATA.glob("resnet50_imagenet/*.npz")
    model = build("resnet50_v1")
    report = load_weights(model, path)
    assert (report.scheme, report.head, report.preprocessing) == (
        "torch-folded",
        "loaded",
        IMAGENET,
    )
    assert np.isfinite(model.predict(images(64), verbose=0)).all()


@needs_data
def test_a_real_h5_of_another_network_is_refused(cifar):
    (path,) = DATA.glob("resnet8_cifar10_keras_h5/*.h5")
    with pytest.raises(WeightsError, match=r"MLPerf Tiny names.*\nmissing \(60\).*\nunused \(4\)"):
        load_weights(cifar, path)


def test_kept_classes_have_their_rows(cifar, state):
    model = build("resnet20_cifar", num_classes=4)
    before = values(model)
    report = load_weights(model, state, keep_classes=[7, None, 0, 7])
    assert (report.head, report.mismatched) == ("loaded", ())
    after = values(model)
    for ours, theirs in ((0, 7), (2, 0), (3, 7)):
        np.testing.assert_array_equal(after["head/kernel"][:, ours], state["linear.weight"][theirs])
        assert after["head/bias"][ours] == state["linear.bias"][theirs]
    np.testing.assert_array_equal(after["head/kernel"][:, 1], before["head/kernel"][:, 1])
    assert after["head/bias"][1] == before["head/bias"][1]


def test_kept_classes_give_their_logits(cifar, state):
    model = build("resnet20_cifar", num_classes=3)
    load_weights(model, state, keep_classes=[9, 2, 5])
    load_weights(cifar, state)
    x = images(32)
    expected = cifar.predict(x, verbose=0)[:, [9, 2, 5]]
    assert relative_error(model.predict(x, verbose=0), expected) < 1e-5


def test_kept_classes_with_new_head(state):
    model = build("resnet20_cifar", num_classes=2)
    before = values(model)["head/kernel"]
    assert load_weights(model, state, keep_classes=[None, None], new_head=True).head == "new"
    np.testing.assert_array_equal(values(model)["head/kernel"], before)
    assert load_weights(model, state, keep_classes=[4, None], new_head=True).head == "loaded"
    report = load_weights(model, without_head(state), keep_classes=[4, None], new_head=True)
    assert report.head == "new"


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        ([1, 2], r"one entry for each output of the model's head\. Received: 2 entries, for 3"),
        ([0, 10, 1], r"classes of the checkpoint, 0 to 9, or None\. Received: 10\."),
        ([-1, None, 1], r"classes of the checkpoint, 0 to 9, or None\. Received: -1\."),
    ],
)
def test_kept_classes_must_exist(state, kept, text):
    model = build("resnet20_cifar", num_classes=3)
    before = values(model)
    with pytest.raises(ConfigError, match=text):
        load_weights(model, state, keep_classes=kept)
    np.testing.assert_equal(values(model), before)


def test_kept_classes_need_a_head(state):
    with pytest.raises(ConfigError, match="Received: 1 entries, for 0 outputs"):
        load_weights(build("resnet20_cifar", num_classes=None), state, keep_classes=[1])


@pytest.mark.parametrize(
    ("bands", "expected"),
    [
        ([2, 1, 0], lambda r, g, b: (b, g, r)),
        ([0, 1, 2, None], lambda r, g, b: (r, g, b, (r + g + b) / 3)),
        ([0, 0, 1, 2, 0], lambda r, g, b: (r / 3, r / 3, g, b, r / 3)),
        ([None, None], lambda r, g, b: ((r + g + b) / 6,) * 2),
        ([1], lambda r, g, b: (g,)),
    ],
)
def test_bands_get_the_kernels_of_their_channels(state, bands, expected):
    model = build("resnet20_cifar", in_channels=len(bands))
    load_weights(model, state, bands=bands)
    source = state["conv1.weight"].transpose(2, 3, 1, 0).astype("f8")
    np.testing.assert_allclose(
        model.get_layer("stem_conv").kernel.numpy(),
        np.stack(expected(*(source[:, :, i] for i in range(3))), axis=2),
        rtol=1e-6,
        atol=1e-7,
    )


def test_copies_of_a_band_give_what_the_one_gives(cifar, state):
    model = build("resnet20_cifar", in_channels=5)
    load_weights(model, state, bands=[1, 0, 2, 0, 1])
    load_weights(cifar, state)
    x = images(32)
    expected = cifar.predict(x, verbose=0)
    assert relative_error(model.predict(x[..., [1, 0, 2, 0, 1]], verbose=0), expected) < 1e-5


@pytest.mark.parametrize(
    ("channels", "bands", "mean"),
    [
        (3, None, (0.485, 0.456, 0.406)),
        (1, None, (0.449,)),
        (4, None, (0.485, 0.456, 0.406, 0.485)),
        (4, [2, 1, 0, None], (0.406, 0.456, 0.485, 0.449)),
        (1, [0], (0.485,)),
    ],
)
def test_preprocessing_has_a_mean_for_each_band(state, channels, bands, mean):
    model = build("resnet20_cifar", in_channels=channels)
    said = load_weights(model, state, bands=bands).preprocessing
    assert said.mean == pytest.approx(mean)
    assert len(said.std) == channels
    assert said.image_size == CIFAR10.image_size


@pytest.mark.parametrize(
    ("bands", "text"),
    [
        ([0, 1], r"one entry for each channel of the images\. Received: bands=\[0, 1\], for 3"),
        ([0, 1, 3], r"channels of the checkpoint, 0 to 2, or None\. Received: bands=\[0, 1, 3\]"),
        ([0, 1, -1], r"channels of the checkpoint, 0 to 2, or None"),
    ],
)
def test_bands_must_exist(cifar, state, bands, text):
    before = values(cifar)
    with pytest.raises(ConfigError, match=text):
        load_weights(cifar, state, bands=bands)
    np.testing.assert_equal(values(cifar), before)


def test_a_deep_stem_has_bands_too():
    state = torch_state(build("resnet10t"))
    model = build("resnet10t", in_channels=2)
    load_weights(model, state, bands=[2, 0])
    np.testing.assert_array_equal(
        model.get_layer("stem_conv1").kernel.numpy(),
        state["conv1.0.weight"].transpose(2, 3, 1, 0)[:, :, [2, 0]],
    )


def test_given_preprocessing_is_kept(cifar, state):
    assert load_weights(cifar, state, preprocessing=CAFFE).preprocessing is CAFFE


def test_arrays_of_other_dimensions_are_mismatched(cifar):
    arrays = {"conv1_conv/kernel": np.float32(2), "conv1_bn/beta": np.ones(16)}
    report = load_weights(cifar, arrays, strict=False)
    assert report.mismatched == ("stem_conv/kernel (3, 3, 3, 16) from conv1_conv/kernel ()",)


def test_saved_torch_weights_load_back(cifar, state, tmp_path):
    from safetensors import safe_open

    load_weights(cifar, state)
    cifar.preprocessing = CAFFE
    path = tmp_path / "w.safetensors"
    for _ in range(2):  # the second replaces the first
        save_torch(cifar, path)
    del cifar.preprocessing
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
        assert set(file.keys()) == set(state)
    config = json.loads(metadata["pretrained_cfg"])
    assert metadata["format"] == "pt"
    assert (config["architecture"], config["num_classes"]) == ("resnet20_cifar", 10)
    assert (config["input_size"], config["crop_pct"]) == ([3, 224, 224], 0.875)
    assert config["std"] == [1 / 255] * 3
    fresh = build("resnet20_cifar")
    report = load_weights(fresh, path)
    assert (report.scheme, report.unused, report.missing) == ("torch", (), ())
    np.testing.assert_equal(values(fresh), values(cifar))


def test_saving_torch_weights_needs_a_folder(cifar, tmp_path):
    with pytest.raises(ResourceError, match=r"folder with room and rights\. Received: path="):
        save_torch(cifar, tmp_path / "absent" / "w.safetensors")
    assert list(tmp_path.iterdir()) == []
