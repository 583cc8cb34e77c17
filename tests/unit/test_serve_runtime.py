"""The runtimes give the SavedModel's answers, and the fastest that does is chosen."""

import json
import shutil

import numpy as np
import pytest
import serving

pytest.importorskip("orjson")

from kresnet.errors import ExportError
from kresnet.serve import choose
from kresnet.serve.runtime import PREPARED, PreparedRuntime, answer, image_of_example
from kresnet.serve.status import RequestError


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Version 1 has an ONNX and an OpenVINO file, where those can be made."""
    home = tmp_path_factory.mktemp("exports") / "photos"
    model, contract = serving.write_export(home / "1")
    serving.write_onnx(model, contract, home / "1")
    return home


@pytest.fixture(scope="module")
def images():
    return [*serving.photos(np.random.default_rng(2), 7), b"no image", b""]


@pytest.fixture(scope="module")
def whole(home):
    runtime, _ = choose.open_runtime(home / "1", runtime="tensorflow", tolerance=1e-3)
    return runtime


def inputs_of(signature, images):
    if signature == "serving_default":
        return {"images": np.random.default_rng(3).integers(0, 256, (3, 50, 37, 3), np.uint8)}
    if signature == "classify":
        import tensorflow as tf

        examples = []
        for k, image in enumerate(images):
            example = tf.train.Example()
            name = ("image_bytes", "image/encoded")[k % 2]
            example.features.feature[name].bytes_list.value.append(image)
            examples.append(example.SerializeToString())
        return {"inputs": serving.texts([*examples[:-2], b"damaged", b""])}
    inputs = {"image_bytes": serving.texts(images)}
    if signature == "explain":
        inputs["class_index"] = np.arange(-1, len(images) - 1, dtype=np.int32) % 4
    return inputs


@pytest.fixture(scope="module", params=["onnxruntime", "openvino"])
def runtime(home, request):
    pytest.importorskip("onnx")
    pytest.importorskip("tf2onnx")
    pytest.importorskip(request.param)
    # So small a tolerance leaves bfloat16 out.
    runtime, _ = choose.open_runtime(home / "1", runtime=request.param, tolerance=1e-5)
    assert runtime.name.startswith(request.param)
    return runtime


@pytest.mark.parametrize("signature", ["serving_bytes", "serving_default", "classify", "explain"])
def test_every_runtime_gives_the_saved_models_answers(images, whole, runtime, signature):
    assert isinstance(runtime, PreparedRuntime)
    inputs = inputs_of(signature, images)
    given, expected = answer(runtime, signature, inputs), answer(whole, signature, inputs)
    assert list(sorted(given)) == list(sorted(expected))
    for name, value in expected.items():
        if value.dtype == np.float32:
            np.testing.assert_allclose(given[name], value, atol=1e-4)
        else:
            np.testing.assert_array_equal(given[name], value)


def test_images_of_all_sizes_prepare_to_one(runtime, images):
    function, prepared = runtime.prepare("serving_bytes", {"image_bytes": serving.texts(images)})
    assert function == PREPARED
    assert prepared["images"].shape == (9, 32, 32, 3)
    assert prepared["ok"].tolist() == [True] * 7 + [False] * 2
    # A batch in which no image is good needs no computation.
    outputs = runtime.run(function, {name: array[-2:] for name, array in prepared.items()})
    assert outputs["scores"].tolist() == [[0] * 4] * 2


class Wrong:
    """Stands for a file whose scores are off."""

    def __init__(self, compute, error):
        self.compute, self.error = compute, error

    def __call__(self, images):
        scores = self.compute(images)
        scores[:, 0] += self.error
        return scores


@pytest.mark.slow
def test_a_runtime_that_disagrees_is_not_taken_however_fast(home, monkeypatch):
    pytest.importorskip("onnx")
    pytest.importorskip("tf2onnx")
    pytest.importorskip("onnxruntime")
    right = choose.onnx_compute
    # Nothing is slower than a SavedModel that is measured as if it were.
    measure = choose._measure

    def favour(runtime, *others):
        measured = measure(runtime, *others)
        slow = 1e6 if runtime.name.startswith("tensorflow") else 1
        return choose.Measured(slow, slow, measured.difference)

    monkeypatch.setattr(choose, "_measure", favour)
    monkeypatch.setattr(choose, "_warm_up", lambda *_: None)
    monkeypatch.setattr(choose, "openvino_compute", None)
    monkeypatch.setattr(choose, "_openvino", lambda *_: iter(()))
    chosen, _ = choose.open_runtime(home / "1", runtime="auto", tolerance=1e-3)
    assert chosen.name == "onnxruntime: model.onnx"
    monkeypatch.setattr(choose, "onnx_compute", lambda *a: Wrong(right(*a), 0.004))
    chosen, _ = choose.open_runtime(home / "1", runtime="auto", tolerance=1e-3)
    assert chosen.name == "tensorflow: saved_model"
    with pytest.raises(ExportError, match=r"agrees within 0.001.*differs by 4.0e-03"):
        choose.open_runtime(home / "1", runtime="onnxruntime", tolerance=1e-3)
    chosen, _ = choose.open_runtime(home / "1", runtime="onnxruntime", tolerance=1e-2)
    assert chosen.name == "onnxruntime: model.onnx"
    # What served before is kept without a comparison of times, if it agrees.
    chosen, _ = choose.open_runtime(
        home / "1", runtime="auto", tolerance=1e-3, prefer="tensorflow: saved_model"
    )
    assert chosen.name == "tensorflow: saved_model"


@pytest.mark.slow
def test_a_file_without_the_inner_tensor_is_passed_over(home, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("tf2onnx")
    pytest.importorskip("onnxruntime")
    copy = tmp_path / "photos" / "1"
    shutil.copytree(home / "1", copy)
    model = onnx.load(copy / "model.onnx")
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["other" if name == "prepared" else name for name in names]
    onnx.save(model, copy / "model.onnx")
    shutil.rmtree(copy / "openvino", ignore_errors=True)
    chosen, _ = choose.open_runtime(copy, runtime="auto", tolerance=1e-3)
    assert chosen.name == "tensorflow: saved_model"
    with pytest.raises(ExportError, match="no tensor 'prepared'"):
        choose.open_runtime(copy, runtime="onnxruntime", tolerance=1e-3)


@pytest.mark.slow
def test_other_weights_are_told_by_the_golden_images(home, images, whole, tmp_path):
    copy = tmp_path / "photos" / "1"
    shutil.copytree(home / "1", copy)
    golden = copy / "assets.extra" / "golden"
    golden.mkdir(parents=True)
    scores = answer(whole, "serving_bytes", {"image_bytes": serving.texts(images[:3])})["scores"]
    stored = []
    for k in range(3):
        (golden / f"{k}.jpg").write_bytes(images[k])
        stored.append({"file": f"{k}.jpg", "scores": scores[k].tolist()})
    (golden / "expected.json").write_text(json.dumps({"tolerance": 1e-4, "images": stored}))
    choose.open_runtime(copy, runtime="tensorflow", tolerance=1e-3)
    stored[1]["scores"][0] += 0.02
    (golden / "expected.json").write_text(json.dumps({"tolerance": 1e-4, "images": stored}))
    with pytest.raises(ExportError, match=r"golden images as it did.*files are damaged"):
        choose.open_runtime(copy, runtime="tensorflow", tolerance=1e-3)
    (golden / "expected.json").write_text("{")
    with pytest.raises(ExportError, match="must be readable"):
        choose.open_runtime(copy, runtime="tensorflow", tolerance=1e-3)


def test_damaged_weights_are_refused(home, tmp_path):
    copy = tmp_path / "photos" / "1"
    shutil.copytree(home / "1", copy)
    (weights,) = (copy / "variables").glob("*data*")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ExportError, match=r"must load.*Checksum does not match"):
        choose.open_runtime(copy, runtime="tensorflow", tolerance=1e-3)


def test_wrong_inputs_are_the_clients_fault(whole):
    signature = whole.signatures["serving_default"]
    for array in (
        np.zeros((0, 4, 4, 3)),
        np.zeros((1, 0, 4, 3)),
        np.zeros((1, 4, 4)),
        np.zeros(()),
    ):
        with pytest.raises(RequestError):
            signature.check({"images": array})
    with pytest.raises(RequestError, match="Received: 'x'"):
        signature.check({"x": np.zeros(1)})
    assert image_of_example(b"\xff\xff") == b""
