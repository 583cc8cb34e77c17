"""Networks in 8-bit integers: what TensorFlow computes, beside plain sums of rounded numbers."""

import os
import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import randomize
from small_export import picture, small_contract, small_model
from tensorflow.core.protobuf import saved_model_pb2

import kresnet
from kresnet.data import pixels
from kresnet.errors import ExportError
from kresnet.export import publish
from kresnet.export.contract import FormatCheck
from kresnet.export.integers import Integers, Range, in_integers
from kresnet.export.reference import Reference, Sample
from kresnet.export.saved_model import write_saved_model
from kresnet.export.versions import list_versions
from kresnet.zoo import fold

INPUT, OUTPUT, BETWEEN = 2.0, 5.0, 3.0  # peaks
LOW = -4.0  # the end of what is between two convolutions


def images(count=3, size=9, channels=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-INPUT, INPUT, (count, size, size, channels)).astype("float32")


def on_grid(x, peak, signed=True):
    """Numbers as 8 bits hold them."""
    step = peak / (127 if signed else 255)
    return step * np.clip(np.rint(x / step), -127 if signed else 0, 127 if signed else 255)


def convolved(x, layer):
    """A convolution on kernels as 8 bits hold them, with its bias."""
    kernel, bias = layer.get_weights()
    kernel = on_grid(kernel, np.abs(kernel).max((0, 1, 2)))
    x, kernel = (np.asarray(values, "float32") for values in (x, kernel))
    strides, dilations, padding = layer.strides, layer.dilation_rate, layer.padding.upper()
    return tf.nn.convolution(x, kernel, strides, padding, dilations=dilations).numpy() + bias


def with_weights(model, seed=1):
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel, bias = layer.get_weights()
            kernel = rng.normal(size=kernel.shape) / np.sqrt(np.prod(kernel.shape[:3]))
            layer.set_weights([kernel, 0.3 * rng.normal(size=bias.shape)])
    return model


def in_8_bits(model, ranges):
    """The output of a model in 8 bits; `ranges` by name of the layer, "images" for the input."""
    by_tensor = {id(layer.output): ranges[layer.name] for layer in model.layers}
    return Integers(model, by_tensor)(images()).numpy()


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "strides": 2, "padding": "valid"},
        {"kernel_size": 3, "dilation_rate": 2, "padding": "same"},
    ],
    ids=str,
)
@pytest.mark.parametrize("rectified", [False, True])
def test_a_convolution_is_that_of_the_rounded_numbers(options, rectified):
    x = keras.Input((9, 9, 8), name="images")
    y = keras.layers.Conv2D(16, name="conv", **options)(x)
    y = keras.layers.ReLU(name="relu")(y) if rectified else y
    model = with_weights(keras.Model(x, y))
    ranges = {"images": Range(-INPUT, INPUT), "conv": Range(-OUTPUT, OUTPUT)}
    got = in_8_bits(model, ranges | {"relu": Range(0.0, OUTPUT)})
    plain = convolved(on_grid(images(), INPUT), model.get_layer("conv"))
    expected = on_grid(np.maximum(plain, 0) if rectified else plain, OUTPUT, not rectified)
    step = OUTPUT / (255 if rectified else 127)
    assert np.abs(got - expected).max() < 1.01 * step  # a sum between two steps may go either way
    assert np.mean(np.abs(got - expected) > 0.01 * step) < 0.01
    assert len(np.unique(got)) > 50


@pytest.mark.parametrize(("projected", "low"), [(False, LOW), (True, LOW), (True, 0.0)])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_residual_block_is_one_of_the_rounded_numbers(projected, low, swapped):
    x = keras.Input((9, 9, 8), name="images")
    entry = keras.layers.ReLU(name="entry")(x)
    y = keras.layers.Conv2D(8, 3, padding="same", name="first")(entry)
    y = keras.layers.ReLU(name="between")(y)
    y = keras.layers.Conv2D(8, 1, name="second")(y)
    shortcut = keras.layers.Conv2D(8, 1, name="shortcut")(entry) if projected else entry
    y = keras.layers.Add(name="add")([shortcut, y] if swapped else [y, shortcut])
    model = with_weights(keras.Model(x, keras.layers.ReLU(name="out")(y)))
    ranges = {
        "images": Range(-INPUT, INPUT), "entry": Range(0.0, INPUT), "first": Range(-9.0, 9.0),
        "between": Range(0.0, BETWEEN), "second": Range(low, BETWEEN),
        "shortcut": Range(low, BETWEEN), "add": Range(-9.0, 9.0), "out": Range(0.0, OUTPUT),
    }  # fmt: skip
    got = in_8_bits(model, ranges)
    branch = np.maximum(on_grid(images(), INPUT, signed=False), 0)
    around = convolved(branch, model.get_layer("shortcut")) if projected else branch
    branch = convolved(branch, model.get_layer("first"))
    branch = convolved(on_grid(branch, BETWEEN, signed=False), model.get_layer("second"))
    if projected and swapped:  # the first of the two waits for the sum
        branch = low + on_grid(branch - low, BETWEEN - low, signed=False)
    elif projected:
        around = low + on_grid(around - low, BETWEEN - low, signed=False)
    expected = on_grid(np.maximum(branch + around, 0), OUTPUT, signed=False)
    step = OUTPUT / 255
    # A number between two steps may go either way, and then comes through all that follow.
    assert np.abs(got - expected).max() < 3 * step
    assert np.mean(np.abs(got - expected) > 0.01 * step) < 0.1
    assert abs(np.mean(got - expected)) < 0.05 * step


def test_maxima_and_margins_of_zeros_are_exact():
    x = keras.Input((9, 9, 8), name="images")
    y = keras.layers.ReLU(name="relu")(keras.layers.Conv2D(8, 1, name="conv")(x))
    y = keras.layers.ZeroPadding2D(1, name="pad")(y)
    y = keras.layers.MaxPooling2D(3, 2, name="pool")(y)
    model = with_weights(keras.Model(x, y))
    ranges = {"images": Range(-INPUT, INPUT), "conv": Range(-9.0, 9.0)}
    ranges |= dict.fromkeys(("relu", "pad", "pool"), Range(0.0, OUTPUT))
    got = in_8_bits(model, ranges)
    before = keras.Model(x, model.get_layer("relu").output)
    codes = in_8_bits(before, ranges)
    padded = np.pad(codes, ((0, 0), (1, 1), (1, 1), (0, 0)))
    np.testing.assert_allclose(got, tf.nn.max_pool2d(padded, 3, 2, "VALID"), rtol=1e-6)


def test_what_exceeds_its_range_is_cut_off():
    x = keras.Input((9, 9, 8), name="images")
    y = keras.layers.ReLU(name="relu")(keras.layers.Conv2D(8, 1, name="conv")(x))
    model = with_weights(keras.Model(x, y))
    small = {"images": Range(-0.5, 0.5), "conv": Range(-9.0, 9.0), "relu": Range(0.0, 0.1)}
    got = in_8_bits(model, small)
    assert got.max() == pytest.approx(0.1)
    plain = convolved(np.clip(images(), -0.5, 0.5), model.get_layer("conv"))
    np.testing.assert_array_equal(got[plain > 0.15], np.float32(0.1))
    np.testing.assert_array_equal(got[plain < -0.05], 0)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-10, 1e-4])
def test_a_channel_of_hardly_any_weights_keeps_its_bias(size):
    x = keras.Input((9, 9, 8), name="images")
    y = keras.layers.Conv2D(8, 3, padding="same", name="conv")(x)
    model = with_weights(keras.Model(x, keras.layers.ReLU(name="relu")(y)))
    kernel, bias = model.get_layer("conv").get_weights()
    kernel[..., 2] *= size
    bias[2] = 4.0
    model.get_layer("conv").set_weights([kernel, bias])
    ranges = {"images": Range(-INPUT, INPUT), "conv": Range(-9.0, 9.0), "relu": Range(0.0, OUTPUT)}
    got = in_8_bits(model, ranges)
    assert np.abs(got[..., 2] - 4.0).max() < OUTPUT / 255


@pytest.mark.parametrize(
    ("variant", "floats"),
    [
        ("resnet20_cifar", ()),
        ("resnet10t", ()),
        ("resnetv2_18", ("stage1_block1_preact",)),
        pytest.param("seresnet18", ("stage1_block1_se_",), marks=pytest.mark.slow),
        pytest.param("resnet26d", (), marks=pytest.mark.slow),
        pytest.param(
            "seresnext26t_32x4d",
            ("stage1_block1_conv2", "stage1_block1_se_"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_kind_of_network_stays_near_itself(variant, floats):
    model = randomize(kresnet.build(variant, num_classes=5, dtype="float32", input_shape=(64, 64)))
    folded = fold(model, portable=False)
    sides = replace(model.preprocessing, image_size=64)
    seen = np.stack([pixels.prepare(picture(k), sides).numpy() for k in range(32)])
    network = in_integers(folded, list(seen))
    expected, got = (m.predict(seen, verbose=0) for m in (folded, network))
    np.testing.assert_allclose(got.mean(0), expected.mean(0), atol=2e-4)  # the head sees to it
    spread = expected - expected.mean(0)
    assert np.corrcoef((got - got.mean(0)).ravel(), spread.ravel())[0, 1] > 0.9
    assert np.abs(got - expected).max() > 1e-4
    names = [layer.name for layer in network.get_layer("integers").floats]
    assert bool(names) == bool(floats)
    for start in floats:
        assert any(name.startswith(start) for name in names)
    one = np.concatenate([network.predict(seen[k : k + 1], verbose=0) for k in range(4)])
    np.testing.assert_allclose(one, network.predict(seen[:4], verbose=0), atol=1e-5)


def test_fewer_images_that_nothing_is_cut_off_from_make_finer_steps():
    model = small_model()
    folded = fold(model, portable=False)
    seen = [pixels.prepare(picture(k), model.preprocessing).numpy() for k in range(16)]
    whole, most = (in_integers(folded, seen, share) for share in (1.0, 0.5))
    assert np.abs(whole.predict(np.stack(seen), verbose=0)).max() > 0
    last = [m.get_layer("integers")(np.stack(seen)).numpy().max() for m in (whole, most)]
    assert last[0] > last[1]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    for k in range(20):
        paths.append(str(folder / f"{k}.png"))
        (folder / f"{k}.png").write_bytes(picture(k, 50 + 3 * k, 41))
    return paths


def test_a_saved_model_holds_each_kernel_once_in_a_byte(photos, tmp_path):
    model = small_model()
    seen = [pixels.prepare(tf.io.read_file(p), model.preprocessing).numpy() for p in photos]
    folded = fold(model, portable=False)
    contract = small_contract(model, precision="int8")
    write_saved_model(model, contract, tmp_path, network=in_integers(folded, seen))
    stored = saved_model_pb2.SavedModel.FromString((tmp_path / "saved_model.pb").read_bytes())
    graph = stored.meta_graphs[0].graph_def
    functions = [[*function.node_def] for function in graph.library.function]
    kernels = [
        node
        for nodes in (list(graph.node), *functions)
        for node in nodes
        if node.op == "Const" and node.attr["dtype"].type == tf.qint8.as_datatype_enum
    ]
    layers = [layer for layer in folded.layers if isinstance(layer, keras.layers.Conv2D)]
    assert len(kernels) == len(layers) == 19
    loaded = tf.saved_model.load(str(tmp_path))
    assert {tuple(v.shape) for v in loaded.__dict__["_model_variables"]} == {(64, 5), (5,)}


def exporting(photos, **changed):
    """Arguments of an export in int8 of images with the labels that the Keras model gives them."""
    model = small_model()
    contract = small_contract(model, precision="int8")
    plain = Reference(model, contract, [Sample(path) for path in photos], [])
    labels = plain.scores("pixels").argmax(1)
    samples = [Sample(path, int(label)) for path, label in zip(photos, labels, strict=True)]
    options = {"samples": samples, "calibration": photos, "max_accuracy_loss": 20.0}
    return {"model": model, "contract": contract} | options | changed


def test_an_export_in_int8_answers_as_its_network_through_every_loader(photos, tmp_path):
    made = publish.export(root=tmp_path, **exporting(photos))
    check = made.contract.formats["saved_model"]
    assert 1e-4 < check.max_difference < 0.5
    assert check.top1_agreement >= 0.8
    assert check.loaders == ("tf.saved_model.load", "session loader", "C API")
    assert made.contract.precision == "int8"
    (version,) = list_versions(tmp_path, "small")
    assert ", int8" in str(version)
    with pytest.raises(ExportError, match="8 bits need training images"):
        publish.export(root=tmp_path, **exporting(photos, calibration=()))


@pytest.mark.parametrize(
    ("right", "images", "points", "more"),
    [
        (89, 90, 0.5, False),  # one image, which is 1.1 points
        (88, 90, 0.5, True),
        (89, 90, 0.0, True),
        (398, 400, 0.5, False),
        (397, 400, 0.5, True),
        (88, 90, 3.0, False),
    ],
)
@pytest.mark.parametrize("labelled", [True, False])
def test_one_image_less_is_no_loss_unless_none_may_be_lost(labelled, right, images, points, more):
    share = right / images
    check = FormatCheck(
        bytes=1,
        max_difference=0.1,
        top1_agreement=0.5 if labelled else share,
        images=images,
        accuracy=share if labelled else None,
        reference_accuracy=1.0 if labelled else None,
    )
    assert check.loses_more_than(points) is more


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [True, False])
def test_an_export_in_int8_that_loses_more_is_refused(labelled, photos, tmp_path):
    options = exporting(photos, max_accuracy_loss=-101.0)
    if not labelled:
        options["samples"] = [Sample(path) for path in photos]
    lost = "accuracy" if labelled else "agreement"
    with pytest.raises(ExportError, match=rf"in int8 may lose -101 points of {lost}. Received: "):
        publish.export(root=tmp_path, **options)
    assert list_versions(tmp_path) == []


@pytest.mark.slow
def test_without_onednn_it_says_what_it_needs():
    program = (
        "from small_export import small_model\n"
        "from kresnet.errors import ExportError\n"
        "from kresnet.export.integers import in_integers\n"
        "from kresnet.zoo import fold\n"
        "import numpy as np\n"
        "folded = fold(small_model(), portable=False)\n"
        "try: in_integers(folded, [np.zeros((32, 32, 3), 'float32')])\n"
        "except ExportError as error: print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ
        | {"TF_ENABLE_ONEDNN_OPTS": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=True,
    )
    assert "those of oneDNN in TensorFlow, for x86" in run.stdout, run.stderr
