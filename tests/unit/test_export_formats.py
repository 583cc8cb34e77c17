"""ONNX, OpenVINO, LiteRT and .keras: the same answers as the Keras model, or no file."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from small_export import picture, small_contract, small_model

from kresnet.data import pixels
from kresnet.errors import ConfigError, ExportError, ResourceError
from kresnet.export import formats, golden, publish
from kresnet.export.contract import TOLERANCES, Contract
from kresnet.export.formats import FORMATS, choose_formats
from kresnet.export.reference import Reference, Sample
from kresnet.export.rounding import rounded
from kresnet.export.saved_model import write_saved_model
from kresnet.export.verify import verify_file
from kresnet.export.versions import list_versions
from kresnet.zoo import VARIANTS, Preprocessing, fold, with_dtype


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    paths = []
    for k, size in enumerate([(57, 41), (30, 90), (200, 33), (32, 32), (20, 20)] * 4):
        path = folder / f"{k}.png"
        path.write_bytes(picture(k, *size))
        paths.append(str(path))
    return paths


def labelled(samples, contract, model):
    """Samples with the labels that the Keras model gives them."""
    plain = Reference(model, contract, [Sample(path) for path in samples], [])
    best = plain.scores("pixels").argmax(axis=1)
    return [Sample(path, int(label)) for path, label in zip(samples, best, strict=True)]


@pytest.fixture
def files(samples, tmp_path):
    """What writes formats, with labels that the Keras model gets right by construction."""
    model = small_model()
    contract = small_contract(model)
    reference = Reference(model, contract, labelled(samples, contract, model), golden.drawn())
    return publish.Files(model, contract, tmp_path, reference, tuple(samples), lambda _: None)


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("keras", "onnx") else pytest.param(name, marks=pytest.mark.slow)
        for name in FORMATS
    ],
)
def test_every_format_answers_as_the_keras_model(files, name):
    for module in FORMATS[name].modules:
        pytest.importorskip(module)
    files.add(name)
    check = files.checks[FORMATS[name].file]
    assert check.max_difference < 1e-5
    assert check.top1_agreement == 1
    assert check.images == 20
    assert check.accuracy == check.reference_accuracy >= 0.9
    assert check.bytes > 4 * 270_000
    assert len(np.unique(files.reference.scores("pixels").argmax(axis=1))) >= 3


@pytest.mark.parametrize("name", ["onnx", pytest.param("litert", marks=pytest.mark.slow)])
def test_8_bits_are_kept_where_they_cost_little_and_refused_where_they_cost_more(
    files, name, monkeypatch
):
    for module in FORMATS[name].modules:
        pytest.importorskip(module)
    from kresnet.export import quantize

    monkeypatch.setattr(quantize, "CALIBRATIONS", ("MinMax", "Entropy"))
    kept = FORMATS[name].int8_file
    files.add_int8(name, bound=100.0)
    check = files.checks.pop(kept)
    assert 1e-5 < check.max_difference < 0.5  # it is another network, and not a wrong one
    assert check.top1_agreement >= 0.8
    assert check.bytes < 500_000
    assert files.remarks == []

    files.add_int8(name, bound=-0.5)  # nobody can be better than right
    assert files.checks == {}
    assert not (files.directory / kept).exists()
    (remark,) = files.remarks
    assert remark.startswith(f"{kept} was not kept: ")
    assert "MinMax loses" in remark
    assert remark.endswith("of accuracy on 20 images, and the bound is -0.5")


def test_8_bits_need_labels_and_training_images(files):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    files.calibration = ()
    files.add_int8("onnx", 0.5)
    assert files.remarks == ["model.int8.onnx needs training images to set its ranges by"]
    files.add_int8("keras", 0.5)  # which has none
    assert len(files.remarks) == 1


def test_a_damaged_file_is_refused(files):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    files.add("onnx")
    path = files.directory / "model.onnx"
    model = onnx.load(path)
    kernel = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = onnx.numpy_helper.to_array(kernel).copy()
    values.flat[values.size // 3] += 3.0
    kernel.CopyFrom(onnx.numpy_helper.from_array(values, kernel.name))
    onnx.save(model, path)
    with pytest.raises(ExportError, match=r"model.onnx must answer as the Keras model.*max \|dp\|"):
        verify_file("onnxruntime", path, "pixels", files.reference)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ExportError, match=r"load and answer in a fresh process, with onnxruntime"):
        verify_file("onnxruntime", path, "pixels", files.reference)


def session(model):
    onnxruntime = pytest.importorskip("onnxruntime")
    content = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(),
        Preprocessing(image_size=160, crop_pct=0.95, interpolation="bicubic"),
        Preprocessing(image_size=33, crop_pct=1.0, mean=(0.1, 0.5, 0.9), std=(1.0, 0.5, 0.3)),
        Preprocessing(image_size=32, crop_pct=1.0, interpolation="bicubic"),
    ],
    ids=["224 bilinear", "160 bicubic", "33 bilinear", "32 bicubic"],
)
def test_onnx_prepares_images_of_every_size_as_pixels_does(preprocessing):
    pytest.importorskip("tf2onnx")
    from kresnet.export.onnx import preparation

    contract = Contract(
        name="x", variant="resnet18", classes=("a",), preprocessing=preprocessing, versions={}
    )
    run = session(preparation(contract))
    rng = np.random.default_rng(0)
    grey_level = 1 / (255 * np.array(preprocessing.std))
    sizes = [(224, 224), (240, 321), (417, 97), (31, 30), (1, 5), (900, 601), (7, 300), (160, 160)]
    for height, width in sizes:
        images = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        (found,) = run.run(["prepared"], {"images": images})
        expected = pixels.prepare_pixels(images, preprocessing).numpy()
        assert (np.abs(found - expected) / grey_level).max() < 1e-3, (height, width)


def test_onnx_has_names_labels_and_a_place_to_cut(files, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("tf2onnx")
    files.add("onnx")
    path = str(files.directory / "model.onnx")
    run = session(path)
    (images,), (scores,) = run.get_inputs(), run.get_outputs()
    assert (images.name, images.type) == ("images", "tensor(uint8)")
    assert images.shape == ["batch", "height", "width", 3]
    assert (scores.name, scores.shape) == ("scores", ["batch", 5])
    model = onnx.load(path)
    assert [(o.domain, o.version) for o in model.opset_import if o.domain == ""] == [("", 17)]
    assert not {n.op_type for n in model.graph.node} & {"BatchNormalization", "Resize"}
    metadata = {p.key: p.value for p in model.metadata_props}
    assert Contract.model_validate_json(metadata["kresnet"]) == files.contract

    cut = str(tmp_path / "cut.onnx")
    onnx.utils.extract_model(path, cut, ["prepared"], ["scores"])
    mixed = [picture(1, 50, 70), picture(2, 90, 30), picture(3)]
    preprocessing = files.contract.preprocessing
    prepared = np.stack([pixels.prepare(image, preprocessing).numpy() for image in mixed])
    (found,) = session(cut).run(["scores"], {"prepared": prepared})
    for image, row in zip(mixed, found, strict=True):
        decoded = pixels.decode(image).numpy()[np.newaxis]
        np.testing.assert_allclose(row, run.run(None, {"images": decoded})[0][0], atol=1e-5)


GROUPED = replace(VARIANTS["resnext50_32x4d"], depths=(1, 1, 1, 1), image_size=64)


@pytest.mark.parametrize(
    "variant",
    ["resnet20_cifar", pytest.param(GROUPED, marks=pytest.mark.slow)],
    ids=["plain", "grouped"],
)
def test_rounding_with_compensation_beats_rounding_to_the_nearest(variant):
    model = small_model(variant)
    folded = fold(model, dtype="float32", portable=False)
    images = [pixels.prepare(picture(seed), model.preprocessing).numpy() for seed in range(40)]
    ours = rounded(folded, images[:32])
    nearest = with_dtype(folded, "float32")
    steps_of = {}
    for layer in nearest.layers:
        if hasattr(layer, "kernel"):
            kernel = layer.kernel.numpy()
            steps_of[layer.name] = steps = (
                np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1))) / 127
            )
            layer.kernel.assign(np.rint(kernel / steps) * steps)
    unseen = np.stack(images[32:])
    expected, found, plain = (m(unseen, training=False).numpy() for m in (folded, ours, nearest))
    assert np.abs(found - expected).mean() < 0.7 * np.abs(plain - expected).mean()
    assert len(steps_of) > 15
    for name, steps in steps_of.items():
        multiples = ours.get_layer(name).kernel.numpy() / steps
        np.testing.assert_allclose(multiples, np.rint(multiples), atol=1e-3)
        # Each channel keeps its largest weight, so whoever quantizes it finds the same steps.
        assert np.allclose(np.abs(multiples).max(axis=tuple(range(multiples.ndim - 1))), 127)


def test_a_missing_package_is_told_in_one_line(monkeypatch):
    have = formats.find_spec
    monkeypatch.setattr(
        formats, "find_spec", lambda name: None if name == "tf2onnx" else have(name)
    )
    with pytest.raises(
        ResourceError,
        match=r"^model.onnx needs tf2onnx, not installed here. Install: pip install "
        r"'kresnet\[onnx\]'. Received: --formats onnx,keras.$",
    ):
        choose_formats(["onnx", "keras"])
    chosen, hints = choose_formats(["all"])
    assert "keras" in chosen
    assert "onnx" not in chosen
    assert [hint.split()[0] for hint in hints] == ["model.onnx", "openvino/model.xml"]
    assert "pip install 'kresnet[openvino]'" in hints[1]


def test_formats_are_chosen_by_name():
    assert choose_formats(["saved_model"]) == ((), ())
    assert choose_formats(["keras", "saved_model"]) == (("keras",), ())
    for wrong in (["onxn"], []):
        with pytest.raises(
            ConfigError, match=r"must be all, or some of saved_model, onnx, .*keras"
        ):
            choose_formats(wrong)


def test_the_keras_file_holds_only_built_in_layers(files):
    files.add("keras")
    with zipfile.ZipFile(files.directory / "model.keras") as archive:
        config = json.loads(archive.read("config.json"))
    modules = set()

    def walk(node):
        children = node.values() if isinstance(node, dict) else node
        if isinstance(node, dict) and {"class_name", "module"} <= node.keys():
            modules.add(node["module"].split(".")[0])
        if isinstance(node, dict | list):
            for child in children:
                walk(child)

    walk(config)
    assert modules == {"keras"}
    loaded = tf.keras.models.load_model(files.directory / "model.keras", safe_mode=True)
    assert loaded.input_shape == (None, 32, 32, 3)
    assert loaded.output_shape == (None, 5)


def test_a_saved_model_in_bfloat16_is_near_and_half_as_large(samples, tmp_path):
    model = small_model()
    answers, sizes = {}, {}
    for precision in ("float32", "bfloat16"):
        contract = small_contract(model, precision=precision)
        (tmp_path / precision).mkdir()
        write_saved_model(model, contract, tmp_path / precision)
        loaded = tf.saved_model.load(str(tmp_path / precision))
        contents = tf.constant([Path(path).read_bytes() for path in samples])
        answers[precision] = loaded.signatures["explain"](
            image_bytes=contents, class_index=tf.fill([len(samples)], -1)
        )
        sizes[precision] = sum(f.stat().st_size for f in (tmp_path / precision).glob("variables/*"))
    scores = {precision: answer["scores"].numpy() for precision, answer in answers.items()}
    assert scores["bfloat16"].dtype == answers["bfloat16"]["heatmap"].numpy().dtype == np.float32
    np.testing.assert_allclose(scores["bfloat16"].sum(axis=1), 1, atol=1e-6)
    difference = np.abs(scores["bfloat16"] - scores["float32"]).max()
    assert 1e-4 < difference < TOLERANCES["bfloat16"]  # it does compute in bfloat16
    assert sizes["bfloat16"] < 0.6 * sizes["float32"]


@pytest.mark.slow
def test_an_export_in_bfloat16_is_held_to_its_own_bounds(samples, tmp_path, monkeypatch):
    model = small_model()
    contract = small_contract(model, precision="bfloat16")
    some = labelled(samples, contract, model)
    made = publish.export(model, contract, tmp_path, samples=some, max_accuracy_loss=20.0)
    check = made.contract.formats["saved_model"]
    assert 1e-4 < check.max_difference < TOLERANCES["bfloat16"]
    assert made.contract.precision == Contract.load(made.path).precision == "bfloat16"
    assert golden.load(made.path)[2] == TOLERANCES["bfloat16"]
    assert ", bfloat16" in str(list_versions(tmp_path, "small")[0])

    with pytest.raises(ExportError, match=r"may lose -101 points of accuracy. Received: "):
        publish.export(model, contract, tmp_path, samples=some, max_accuracy_loss=-101.0)
    monkeypatch.setitem(TOLERANCES, "bfloat16", 1e-5)
    with pytest.raises(ExportError, match=r"within 1e-05. Received: .*max \|dp\|"):
        publish.export(model, contract, tmp_path, samples=some, max_accuracy_loss=20.0)
    assert [version.number for version in list_versions(tmp_path, "small")] == [1]
