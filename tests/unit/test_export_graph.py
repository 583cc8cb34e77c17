"""The SavedModel's graph: four signatures under three loaders, and every image on its own."""

import json

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_export import (
    CLASSES,
    bomb,
    example,
    picture,
    small_contract,
    small_model,
    strings,
    write_small,
)

from kresnet.data import pixels
from kresnet.errors import ExportError
from kresnet.export import c_api, replay
from kresnet.export.contract import Contract
from kresnet.export.saved_model import GRAPHS_BYTES, size_of_saved_model, write_saved_model
from kresnet.export.verify import tensor_names
from kresnet.serve.engine import Engine

GOOD = {
    "png": picture(1),
    "portrait": picture(2, 30, 90, "JPEG"),
    "webp": picture(3, kind="WEBP"),
    "bmp": picture(4, kind="BMP"),
}
BAD = {
    "truncated": picture(2, 200, 300, "JPEG")[:700],
    "junk": b"\xff\xd8\xff and then nothing that a decoder knows",
    "text": b"hello",
    "empty": b"",
    "bomb": bomb(),
    "tiff": picture(5, kind="TIFF"),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    directory = tmp_path_factory.mktemp("export") / "1"
    model, contract = write_small(directory, threshold=0.42)
    return model, contract, directory


@pytest.fixture(scope="module", params=["tensorflow 2", "session", "C API"])
def run(request, small):
    _, _, directory = small
    if request.param == "tensorflow 2":
        return replay.tensorflow_2(str(directory))
    loader = replay.session if request.param == "session" else replay.c_api
    return loader(str(directory), tensor_names(directory))


@pytest.fixture(scope="module")
def serve(small):
    return replay.tensorflow_2(str(small[2]))


def expected_scores(small, *images):
    model, contract, _ = small
    prepared = tf.stack([pixels.prepare(image, contract.preprocessing) for image in images])
    return tf.nn.softmax(model(prepared, training=False) / contract.temperature).numpy()


def test_a_bad_image_costs_no_other_its_answer(small, run):
    mixed = [*GOOD.values(), *BAD.values(), GOOD["png"]]
    answer = run("serving_bytes", {"image_bytes": strings(*mixed)})
    ok = [True] * len(GOOD) + [False] * len(BAD) + [True]
    assert answer["ok"].tolist() == ok
    expected = expected_scores(small, *GOOD.values())
    found = answer["scores"]
    np.testing.assert_allclose(found[: len(GOOD)], expected, atol=1e-5)
    np.testing.assert_allclose(found[-1], expected[0], atol=1e-5)
    assert not found[len(GOOD) : -1].any()
    names = [name.encode() for name in CLASSES]
    best = [names[k] for k in found.argmax(axis=1)]
    assert answer["label"].tolist() == [
        b if good else b"" for b, good in zip(best, ok, strict=True)
    ]
    np.testing.assert_array_equal(answer["score"], found.max(axis=1))
    assert answer["labels"].tolist() == [names] * len(mixed)
    unsure = found.max(axis=1) < np.float32(0.42)
    assert answer["abstain"].tolist() == (unsure | ~np.array(ok)).tolist()
    assert 0 < unsure[: len(GOOD)].sum() < len(GOOD), "the threshold should divide the good ones"


def test_pixels_are_answered_as_the_file_is(run):
    decoded = pixels.decode(GOOD["portrait"]).numpy()
    by_pixels = run("serving_default", {"images": np.stack([decoded, decoded[::-1]])})
    by_bytes = run("serving_bytes", {"image_bytes": strings(GOOD["portrait"])})
    assert set(by_pixels) == set(by_bytes)
    np.testing.assert_allclose(by_pixels["scores"][0], by_bytes["scores"][0], atol=1e-6)
    assert np.abs(by_pixels["scores"][1] - by_pixels["scores"][0]).max() > 1e-3
    assert by_pixels["ok"].tolist() == [True, True]


def test_classify_takes_examples(small, serve):
    images = [example(image_bytes=GOOD["png"]), example(**{"image/encoded": GOOD["webp"]})]
    other = tf.train.Example(
        features=tf.train.Features(
            feature={"image_bytes": tf.train.Feature(int64_list=tf.train.Int64List(value=[1, 2]))}
        )
    ).SerializeToString()
    bad = [example(image_bytes=BAD["junk"]), example(other=b"x"), b"\xff\xfe", other]
    answer = serve("classify", {"inputs": strings(*images, *bad)})
    assert set(answer) == {"classes", "scores"}
    expected = expected_scores(small, GOOD["png"], GOOD["webp"])
    np.testing.assert_allclose(answer["scores"][:2], expected, atol=1e-5)
    assert not answer["scores"][2:].any()
    assert answer["classes"].tolist() == [[name.encode() for name in CLASSES]] * 6


def grad_cam(small, image, class_index):
    """Grad-CAM by automatic differentiation, on the Keras model (arXiv:1610.02391, section 3)."""
    model, contract, _ = small
    features = tf.keras.Model(model.inputs[0], model.get_layer("pool").input)
    maps = features(pixels.prepare(image, contract.preprocessing)[tf.newaxis], training=False)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        logits = model.get_layer("head")(model.get_layer("pool")(maps))
        score = logits[0, class_index]
    alpha = tf.reduce_mean(tape.gradient(score, maps), axis=(1, 2))
    heat = tf.nn.relu(tf.einsum("nhwf,nf->nhw", maps, alpha))[0].numpy()
    return heat / heat.max() if heat.max() > 0 else heat


def test_explain_is_grad_cam(small, serve):
    images = list(GOOD.values())
    best = expected_scores(small, *images).argmax(axis=1)
    asked = np.array([-1, 2, 99, 0, 1], np.int32)
    answer = serve("explain", {"image_bytes": strings(*images, BAD["junk"]), "class_index": asked})
    shown = [best[0], 2, best[2], 0]
    for image, class_index, heat in zip(images, shown, answer["heatmap"], strict=False):
        np.testing.assert_allclose(heat, grad_cam(small, image, class_index), atol=1e-4)
    assert answer["heatmap"].shape == (5, 8, 8)
    assert answer["heatmap"].max() == 1
    assert not answer["heatmap"][4].any()
    assert answer["ok"].tolist() == [True] * 4 + [False]
    np.testing.assert_allclose(answer["scores"][:4], expected_scores(small, *images), atol=1e-5)


POOL = {**GOOD, **BAD}
ALONE = {}


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(names=st.lists(st.sampled_from([n for n in POOL if n != "bomb"]), min_size=1, max_size=9))
def test_an_answer_does_not_depend_on_its_neighbours(serve, names):
    batch = serve("serving_bytes", {"image_bytes": strings(*[POOL[name] for name in names])})
    for place, name in enumerate(names):
        if name not in ALONE:
            ALONE[name] = serve("serving_bytes", {"image_bytes": strings(POOL[name])})
        assert batch["ok"][place] == (name in GOOD)
        for key in ("label", "ok", "abstain"):
            assert batch[key][place] == ALONE[name][key][0]
        np.testing.assert_allclose(
            batch["scores"][place], ALONE[name]["scores"][0], atol=1e-6, rtol=0
        )


def test_the_signatures_are_as_servers_expect_them(small):
    from tensorflow.core.protobuf import saved_model_pb2

    content = (small[2] / "saved_model.pb").read_bytes()
    (graph,) = saved_model_pb2.SavedModel.FromString(content).meta_graphs
    methods = {name: s.method_name for name, s in graph.signature_def.items() if s.method_name}
    predict = "tensorflow/serving/predict"
    assert methods == {
        "serving_default": predict,
        "serving_bytes": predict,
        "explain": predict,
        "classify": "tensorflow/serving/classify",
    }
    for name in methods:
        for tensor in graph.signature_def[name].outputs.values():
            assert tensor.tensor_shape.dim[0].size == -1  # the batch, or none could be split
    assert list(graph.meta_info_def.tags) == ["serve"]


def test_the_directory_is_hardly_larger_than_the_weights(small):
    model, _, directory = small
    weights = sum(4 * int(np.prod(variable.shape)) for variable in model.variables)
    assert weights < size_of_saved_model(directory) < 1.1 * weights + GRAPHS_BYTES
    stored = sum(file.stat().st_size for file in (directory / "variables").iterdir())
    assert stored < 1.1 * weights


def test_weights_stored_twice_are_refused(tmp_path, monkeypatch):
    from kresnet.export import saved_model

    monkeypatch.setattr(saved_model, "GRAPHS_BYTES", -500_000)
    with pytest.raises(ExportError, match=r"stores each weight once. Received: \d+ bytes for"):
        write_small(tmp_path / "1")


def test_the_contract_is_read_as_it_was_written(small, tmp_path):
    _, contract, directory = small
    assert Contract.load(directory) == contract
    assert contract.threshold == 0.42
    fields = json.loads(contract.model_dump_json())
    for name in ("temperature", "threshold", "weights_sha256", "created", "copy_of", "formats"):
        del fields[name]  # as older versions wrote it
    fields["check"] = {"images": 12}
    old = tmp_path / "assets.extra" / "kresnet.json"
    old.parent.mkdir()
    old.write_text(json.dumps(fields))
    loaded = Contract.load(tmp_path)
    assert (loaded.temperature, loaded.threshold, loaded.formats) == (1.0, None, {})
    old.write_text("{")
    with pytest.raises(ExportError, match=r"holds assets.extra/kresnet.json. Received: .*again"):
        Contract.load(tmp_path)


def test_another_head_is_refused(tmp_path):
    model = small_model()
    contract = small_contract(model)
    bare = tf.keras.Model(model.inputs[0], model.get_layer("pool").output, name="headless")
    with pytest.raises(ExportError, match=r"must end in global average pooling.*'headless'"):
        write_saved_model(bare, contract, tmp_path)


def test_the_engine_answers_each_image_and_refuses_what_an_older_kresnet_wrote(small, tmp_path):
    _, contract, directory = small
    engine = Engine(directory)
    good, bad, unsure = engine.answer([GOOD["png"], BAD["truncated"], GOOD["bmp"]])
    assert bad is None
    assert good.label == CLASSES[list(good.scores.values()).index(good.score)]
    assert (good.abstain, unsure.abstain) == (good.score < 0.42, unsure.score < 0.42)
    assert good.abstain != unsure.abstain

    class Old(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, "image_bytes")])
        def serve(self, image_bytes):
            return {"scores": tf.zeros((tf.shape(image_bytes)[0], 5))}

    old = Old()
    tf.saved_model.save(old, str(tmp_path / "1"), signatures={"serving_bytes": old.serve})
    contract.save(tmp_path / "1")
    with pytest.raises(ExportError, match=r"must load. .*older kresnet\). Export again"):
        Engine(tmp_path / "1")


def test_a_tensorflow_without_its_c_library_is_told(monkeypatch):
    monkeypatch.setattr(c_api.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="libtensorflow_cc"):
        c_api.Session("nowhere", {})
