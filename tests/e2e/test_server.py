"""The real server in a process of its own, asked by real clients."""

import contextlib
import http.client
import io
import json
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import serving
import tensorflow as tf
from PIL import Image

httpx = pytest.importorskip("httpx")
grpc = pytest.importorskip("grpc")
apis = pytest.importorskip("tensorflow_serving.apis")

from tensorflow_serving.apis import (  # noqa: E402 - after the check that it is there
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

MAX_BODY_MB = 1
MAX_PIXELS = 20_000


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("exports") / "photos"
    serving.write_export(home / "3")
    return home


@pytest.fixture(scope="module")
def server(home):
    options = ("--max-body-mb", MAX_BODY_MB, "--max-batch", 8, "--max-pixels", MAX_PIXELS)
    with serving.running(home, *options) as server:
        yield server
        assert server.process.poll() is None  # nothing that the tests sent has ended it
        assert not server.strays


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def stubs(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield (
            prediction_service_pb2_grpc.PredictionServiceStub(channel),
            model_service_pb2_grpc.ModelServiceStub(channel),
        )


@pytest.fixture(scope="module")
def images():
    return [*serving.photos(np.random.default_rng(5), 5), b"not an image"]


@pytest.fixture(scope="module")
def truth(home, images):
    """What the SavedModel says by itself, by signature."""
    signatures = tf.saved_model.load(str(home / "3")).signatures
    plain = signatures["serving_bytes"](image_bytes=tf.constant(images))
    explained = signatures["explain"](
        image_bytes=tf.constant(images), class_index=tf.constant([-1, 0, 1, 2, 3, -1])
    )
    pixels = np.random.default_rng(6).integers(0, 256, (3, 41, 33, 3), dtype=np.uint8)
    return {
        "serving_bytes": {name: value.numpy() for name, value in plain.items()},
        "explain": {name: value.numpy() for name, value in explained.items()},
        "pixels": pixels,
        "serving_default": {
            name: value.numpy()
            for name, value in signatures["serving_default"](images=tf.constant(pixels)).items()
        },
    }


def assert_same(given, expected):
    """Compare outputs as JSON or arrays with what the SavedModel says."""
    assert set(given) == set(expected)
    for name, value in expected.items():
        if value.dtype == object:
            texts = np.vectorize(lambda text: text if isinstance(text, str) else text.decode())
            np.testing.assert_array_equal(texts(np.array(given[name], object)), texts(value))
        elif value.dtype == bool:
            np.testing.assert_array_equal(np.array(given[name]), value)
        else:
            np.testing.assert_allclose(np.array(given[name]), value, atol=1e-5)


def by_column(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


# --- every protocol gives the SavedModel's answer -------------------------------------------------


def test_rows_and_columns_agree_with_the_export(client, images, truth):
    rows = client.post("/v1/models/photos:predict", json=serving.row_body(images)).json()
    assert_same(by_column(rows["predictions"]), truth["serving_bytes"])
    body = {
        "signature_name": "serving_bytes",
        "inputs": {"image_bytes": [{"b64": serving.b64(image)} for image in images]},
    }
    columns = client.post("/v1/models/photos/versions/3:predict", json=body).json()
    assert_same(columns["outputs"], truth["serving_bytes"])
    body["inputs"] = body["inputs"]["image_bytes"]  # the name of an only input may be left out
    assert client.post("/v1/models/photos:predict", json=body).json() == columns
    body = {"signature_name": "serving_bytes", "instances": body["inputs"]}
    assert client.post("/v1/models/photos:predict", json=body).json() == rows


def test_the_answer_has_good_bad_and_abstaining_images(truth):
    """Else the comparisons above would see only one kind."""
    answer = truth["serving_bytes"]
    assert answer["ok"].tolist() == [True] * 5 + [False]
    assert 0 < answer["abstain"][:5].sum() < 5
    assert len(np.unique(answer["scores"], axis=0)) == 6


def test_explain_agrees_with_the_export(client, images, truth):
    body = serving.row_body(images, "explain")
    for row, index in zip(body["instances"], [-1, 0, 1, 2, 3, -1], strict=True):
        row["class_index"] = index
    rows = client.post("/v1/models/photos:predict", json=body).json()["predictions"]
    assert_same(by_column(rows), truth["explain"])


def test_pixels_agree_with_the_export(client, truth):
    rows = [{"images": image.tolist()} for image in truth["pixels"]]
    answer = client.post("/v1/models/photos:predict", json={"instances": rows}).json()
    assert_same(by_column(answer["predictions"]), truth["serving_default"])
    body = {
        "inputs": [
            {
                "name": "images",
                "datatype": "UINT8",
                "shape": list(truth["pixels"].shape),
                "data": truth["pixels"].ravel().tolist(),
            }
        ]
    }
    assert_same(kserve(client.post("/v2/models/photos/infer", json=body)), truth["serving_default"])
    body["inputs"][0]["data"] = truth["pixels"].tolist()
    assert_same(kserve(client.post("/v2/models/photos/infer", json=body)), truth["serving_default"])


def kserve(response):
    return {
        output["name"]: np.array(
            output["data"], object if output["datatype"] == "BYTES" else None
        ).reshape(output["shape"])
        for output in response.json()["outputs"]
    }


def infer_body(images, **more):
    tensor = {
        "name": "image_bytes",
        "datatype": "BYTES",
        "shape": [len(images)],
        "data": [serving.b64(image) for image in images],
        "parameters": {"content_type": "base64"},
    }
    return {"inputs": [tensor], **more}


def test_kserve_agrees_with_the_export(client, images, truth):
    answer = client.post("/v2/models/photos/infer", json=infer_body(images, id="a 7"))
    assert_same(kserve(answer), truth["serving_bytes"])
    told = answer.json()
    assert (told["id"], told["model_name"], told["model_version"]) == ("a 7", "photos", "3")
    types = {output["name"]: output["datatype"] for output in told["outputs"]}
    assert types["label"] == "BYTES"
    assert types["scores"] == "FP32"
    assert types["ok"] == "BOOL"
    some = infer_body(images, outputs=[{"name": "scores"}, {"name": "label"}])
    outputs = client.post("/v2/models/photos/versions/3/infer", json=some).json()["outputs"]
    assert [output["name"] for output in outputs] == ["scores", "label"]


def test_uploads_agree_with_the_export(client, images, truth):
    files = [("image", (f"{k}.jpg", image)) for k, image in enumerate(images)]
    answers = client.post("/predict?top=3", files=files).json()
    expected = truth["serving_bytes"]
    for k, answer in enumerate(answers):
        assert answer["label"] == expected["label"][k].decode()
        assert answer["ok"] == expected["ok"][k]
        assert answer["abstain"] == expected["abstain"][k]
        best = np.argsort(-expected["scores"][k])[:3] if answer["ok"] else []
        assert [one["label"] for one in answer["top"]] == [serving.CLASSES[c] for c in best]
        np.testing.assert_allclose(
            [one["score"] for one in answer["top"]], expected["scores"][k][best], atol=1e-5
        )
    raw = client.post("/predict", content=images[2], headers={"content-type": "image/webp"})
    assert raw.json()[0]["label"] == answers[2]["label"]
    np.testing.assert_allclose(raw.json()[0]["score"], answers[2]["score"], atol=1e-5)


def predict_request(images, signature="serving_bytes"):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "photos"
    request.model_spec.signature_name = signature
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(images, tf.string))
    return request


def test_grpc_agrees_with_the_export(stubs, images, truth):
    response = stubs[0].Predict(predict_request(images))
    outputs = {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}
    assert_same(outputs, truth["serving_bytes"])
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("photos", 3, "serving_bytes")
    # As TensorFlow Serving answers, so that clients may read the typed fields.
    assert len(response.outputs["scores"].float_val) == 6 * len(serving.CLASSES)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "photos"
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(truth["pixels"]))
    request.output_filter.append("scores")
    outputs = stubs[0].Predict(request).outputs
    assert set(outputs) == {"scores"}
    np.testing.assert_allclose(
        tf.make_ndarray(outputs["scores"]), truth["serving_default"]["scores"], atol=1e-5
    )


def test_classify_agrees_with_the_export_over_rest_and_grpc(client, stubs, images, truth):
    scores = truth["serving_bytes"]["scores"]
    body = {
        "signature_name": "classify",
        "examples": [{"image_bytes": {"b64": serving.b64(image)}} for image in images],
    }
    results = client.post("/v1/models/photos:classify", json=body).json()["results"]
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name, request.model_spec.signature_name = "photos", "classify"
    for image in images:
        example = request.input.example_list.examples.add()
        example.features.feature["image/encoded"].bytes_list.value.append(image)
    rows = stubs[0].Classify(request).result.classifications
    for k in range(len(images)):
        assert [label for label, _ in results[k]] == list(serving.CLASSES)
        np.testing.assert_allclose([score for _, score in results[k]], scores[k], atol=1e-5)
        assert [one.label for one in rows[k].classes] == list(serving.CLASSES)
        np.testing.assert_allclose([one.score for one in rows[k].classes], scores[k], atol=1e-5)
    request.input.example_list_with_context.context.features.feature[
        "image_bytes"
    ].bytes_list.value.append(images[1])
    request.input.example_list_with_context.examples.add()
    (row,) = stubs[0].Classify(request).result.classifications
    np.testing.assert_allclose([one.score for one in row.classes], scores[1], atol=1e-5)


# --- what is told of server and model -------------------------------------------------------------


def test_state_and_metadata_are_tensorflow_servings(client, stubs, home):
    state = client.get("/v1/models/photos").json()
    assert state == client.get("/v1/models/photos/versions/3").json()
    (version,) = state["model_version_status"]
    assert version == {
        "version": "3",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    told = client.get("/v1/models/photos/metadata").json()
    assert told["model_spec"] == {"name": "photos", "signature_name": "", "version": "3"}
    signatures = told["metadata"]["signature_def"]["signature_def"]
    classify = signatures["classify"]
    assert classify["method_name"] == "tensorflow/serving/classify"
    assert classify["inputs"]["inputs"]["dtype"] == "DT_STRING"
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "photos"
    status = stubs[1].GetModelStatus(request).model_version_status[0]
    assert (status.version, status.state, status.status.error_code) == (3, 30, 0)
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "photos"
    packed = stubs[0].GetModelMetadata(request).metadata["signature_def"]
    given = get_model_metadata_pb2.SignatureDefMap()
    packed.Unpack(given)
    assert set(given.signature_def) == set(signatures)
    name = given.signature_def["serving_bytes"].inputs["image_bytes"].name
    assert name == signatures["serving_bytes"]["inputs"]["image_bytes"]["name"]


def test_kserve_tells_of_server_and_model(client):
    assert client.get("/v2").json()["name"] == "kresnet"
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/photos/ready", "/readyz"):
        assert client.get(path).status_code == 200
    told = client.get("/v2/models/photos").json()
    assert told["versions"] == ["3"]
    assert told["inputs"] == [{"name": "image_bytes", "datatype": "BYTES", "shape": [-1]}]
    assert {"name": "scores", "datatype": "FP32", "shape": [-1, 4]} in told["outputs"]


def test_metrics_count(client, images):
    def metric(name):
        for path in ("/metrics", "/monitoring/prometheus/metrics"):
            lines = client.get(path).text.splitlines()
        return float(next(line for line in lines if line.startswith(name)).split()[-1])

    before = [metric("kresnet_images_total"), metric("kresnet_refused_images_total")]
    client.post("/v1/models/photos:predict", json=serving.row_body(images))
    assert metric("kresnet_images_total") == before[0] + 6
    assert metric("kresnet_refused_images_total") == before[1] + 1
    assert metric("kresnet_version ") == 3
    assert metric("process_resident_memory_bytes") > 1e8
    assert metric('kresnet_requests_total{api="rest_predict",status="200"}') > 0


# --- what is refused ------------------------------------------------------------------------------

GOOD = {"image_bytes": {"b64": "AAAA"}}


@pytest.mark.parametrize(
    ("path", "body", "code", "message"),
    [
        ("/v1/models/photos:predict", b"", 400, "document is empty"),
        ("/v1/models/photos:predict", b"{", 400, "JSON Parse error"),
        ("/v1/models/photos:predict", b"\xff\xfe{}", 400, "JSON Parse error"),
        ("/v1/models/photos:predict", b"[1]", 400, "Is not object"),
        ("/v1/models/photos:predict", b"[" * 900_000, 400, "JSON Parse error"),
        ("/v1/models/photos:predict", {}, 400, "Missing 'inputs' or 'instances' key"),
        ("/v1/models/photos:predict", {"instances": [GOOD], "inputs": 1}, 400, "only one of"),
        ("/v1/models/photos:predict", {"instances": {}}, 400, "to be an list/array"),
        ("/v1/models/photos:predict", {"instances": []}, 400, "No values in 'instances'"),
        ("/v1/models/photos:predict", {"instances": [GOOD]}, 400, "keys must be equal to: images"),
        ("/v1/models/photos:predict", {"signature_name": 3, "instances": [1]}, 400, "string value"),
        ("/v1/models/photos:predict", {"signature_name": "x", "instances": [1]}, 400, "not found"),
        ("/v1/models/photos:predict", {"instances": [[[[1, 2]]]]}, 400, "The shape of"),
        ("/v1/models/photos:predict", {"instances": [[[[1, 2, 300]]]]}, 400, "from 0 to 255"),
        (
            "/v1/models/photos:predict",
            {"instances": [[[[1, 2, 0.5]]]]},
            400,
            "expected type: uint8",
        ),
        ("/v1/models/photos:predict", {"instances": [[[[1, 2, 3], [1]]]]}, 400, "one shape"),
        ("/v1/models/photos:predict", {"instances": [[], []]}, 400, "expected type"),
        ("/v1/models/photos:predict", {"instances": [None]}, 400, "expected type"),
        ("/v1/models/photos:predict", {"instances": [10**400]}, 400, "JSON Parse error"),
        ("/v1/models/photos:predict", {"inputs": {"a": 1}}, 400, "Missing named input: images"),
        ("/v1/models/photos:regress", {"examples": [{}]}, 400, "tensorflow/serving/regress"),
        ("/v1/models/photos:classify", {"examples": [{}]}, 400, '"signature_name" to "classify"'),
        ("/v1/models/photos:classify", {"signature_name": "classify"}, 400, "'examples'"),
        (
            "/v1/models/photos:classify",
            {"signature_name": "classify", "examples": [{"a": [1, "b"]}]},
            400,
            "Unexpected element type",
        ),
        ("/v1/models/other:predict", {"instances": [GOOD]}, 404, "not found for request"),
        ("/v1/models/photos/versions/9:predict", {"instances": [1]}, 404, "version 9"),
        ("/v1/models/photos/versions/x:predict", {"instances": [1]}, 400, "to numeric"),
        ("/v1/models/photos/labels/new:predict", {"instances": [1]}, 400, "version label"),
        ("/v1/models/..%2f..:predict", {"instances": [1]}, 404, "nothing at this path"),
        ("/v2/models/photos/infer", {"inputs": []}, 400, '"inputs" must be'),
        ("/v2/models/photos/infer", {"inputs": [{"name": "x"}]}, 400, "must be one of"),
        (
            "/v2/models/photos/infer",
            {"inputs": [{"name": "image_bytes", "datatype": "FP32"}]},
            400,
            "is BYTES",
        ),
        (
            "/v2/models/photos/infer",
            {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [2**40], "data": [1]}]},
            400,
            "whole number",
        ),
        (
            "/v2/models/photos/infer",
            {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [2, 9], "data": [1]}]},
            400,
            "does not fill",
        ),
        (
            "/v2/models/photos/infer",
            infer_body([b"a"], outputs=[{"name": "z"}]),
            400,
            "outputs are",
        ),
        ("/predict", {"a": 1}, 415, "multipart/form-data"),
        ("/predict?top=0", b"x", 415, "multipart/form-data"),
        ("/v1/models/photos:predict", b"x" * (MAX_BODY_MB * 2**20 + 1), 413, "at most 1048576"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_wrong_requests_are_refused_in_words(client, path, body, code, message):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    response = client.post(path, content=content, headers=headers)
    assert response.status_code == code, response.text
    assert message in response.json()["error"]


def test_the_number_of_images_is_limited(client, stubs):
    response = client.post("/v1/models/photos:predict", json=serving.row_body([b"x"] * 9))
    assert response.status_code == 400
    assert "at most 8 images. Received: 9" in response.json()["error"]
    response = client.post("/predict", files=[("image", ("a", b"x"))] * 9)
    assert response.status_code == 400
    with pytest.raises(grpc.RpcError, match="at most 8 images") as refused:
        stubs[0].Predict(predict_request([b"x"] * 9))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_an_image_of_too_many_pixels_is_not_decoded_and_its_neighbour_is_answered(client, images):
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        stream = io.BytesIO()
        Image.new("RGB", (200, MAX_PIXELS // 200 + 1), "red").save(stream, kind)
        body = serving.row_body([stream.getvalue(), images[0]])
        rows = client.post("/v1/models/photos:predict", json=body).json()["predictions"]
        assert [row["ok"] for row in rows] == [False, True], kind
    pixels = np.zeros((1, 200, MAX_PIXELS // 200 + 1, 3), int).tolist()
    response = client.post("/v1/models/photos:predict", json={"instances": pixels})
    assert response.status_code == 400
    assert f"at most {MAX_PIXELS} pixels" in response.json()["error"]


def test_unknown_paths_and_methods(client):
    assert client.get("/nothing").json() == {"error": "There is nothing at this path."}
    response = client.get("/v1/models/photos:predict")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert client.post("/v1/models/photos").status_code == 405
    for path in ("/static/../../../etc/passwd", "/static/%2e%2e/%2e%2e/console.py", "//etc/passwd"):
        assert client.get(path).status_code in (404, 405)


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda r: r.ClearField("model_spec"), "INVALID_ARGUMENT", "Missing ModelSpec"),
        (lambda r: setattr(r.model_spec, "name", "x"), "NOT_FOUND", "not found for request"),
        (lambda r: setattr(r.model_spec.version, "value", 8), "NOT_FOUND", "version 8"),
        (lambda r: setattr(r.model_spec, "version_label", "a"), "INVALID_ARGUMENT", "label"),
        (
            lambda r: setattr(r.model_spec, "signature_name", "x"),
            "FAILED_PRECONDITION",
            "not found in signature def",
        ),
        (lambda r: r.inputs["more"], "INVALID_ARGUMENT", "does not match signature"),
        (lambda r: r.inputs.clear(), "INVALID_ARGUMENT", "does not match signature"),
        (lambda r: r.output_filter.append("x"), "INVALID_ARGUMENT", "alias not found"),
        (lambda r: r.output_filter.extend(["ok", "ok"]), "INVALID_ARGUMENT", "duplicate"),
        (lambda r: setattr(r.inputs["image_bytes"], "dtype", 1), "INVALID_ARGUMENT", "is string"),
        (
            lambda r: setattr(r.inputs["image_bytes"].tensor_shape.dim[0], "size", 2**40),
            "INVALID_ARGUMENT",
            "values for",
        ),
        (
            lambda r: setattr(r.inputs["image_bytes"].tensor_shape.dim[0], "size", -1),
            "INVALID_ARGUMENT",
            "negative",
        ),
    ],
)
def test_wrong_grpc_requests_get_the_right_code(stubs, images, change, code, message):
    request = predict_request(images[:1])
    change(request)
    with pytest.raises(grpc.RpcError) as refused:
        stubs[0].Predict(request)
    assert refused.value.code().name == code
    assert message in refused.value.details()


def test_a_tensor_that_announces_more_than_it_holds_is_refused(stubs):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "photos"
    proto = request.inputs["images"]
    proto.dtype = 4
    proto.int_val.append(7)
    for size in (1, 10**5, 10**5, 3):
        proto.tensor_shape.dim.add(size=size)
    with pytest.raises(grpc.RpcError, match="too few values") as refused:
        stubs[0].Predict(request)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_what_a_classifier_cannot_do_is_unimplemented(stubs):
    for call, request in (
        (stubs[0].Regress, regression_pb2.RegressionRequest()),
        (stubs[0].MultiInference, inference_pb2.MultiInferenceRequest()),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            call(request)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["x"])
    with pytest.raises(grpc.RpcError, match="x is not supported"):
        stubs[0].GetModelMetadata(request)


def test_a_message_that_is_too_long_is_refused(stubs):
    with pytest.raises(grpc.RpcError) as refused:
        stubs[0].Predict(predict_request([bytes((MAX_BODY_MB + 2) * 2**20)]))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_names_that_could_be_rebound_are_refused(client):
    for host, code in (("evil.example", 403), ("localhost:1", 200), ("[::1]", 200)):
        assert client.get("/healthz", headers={"host": host}).status_code == code


def test_every_answer_carries_the_security_headers(client):
    for path in ("/healthz", "/nothing", "/v1/models/photos"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_the_log_holds_neither_images_nor_names(server, client, images):
    client.post("/predict", files=[("image", ("secret-name.jpg", images[0]))])
    client.get("/v1/models/secret-name")
    time.sleep(0.2)
    text = json.dumps(server.log)
    assert "secret-name" not in text
    assert serving.b64(images[0])[:20] not in text
    last = server.events("request")[-1]
    assert {"time", "level", "api", "status", "milliseconds", "images"} <= set(last)


# --- clients that misbehave -----------------------------------------------------------------------


def test_clients_that_hang_up_leave_nothing_behind(server, client, images):
    address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
    body = json.dumps(serving.row_body(images)).encode()
    head = b"POST /v1/models/photos:predict HTTP/1.1\r\nHost: a.localhost\r\n"
    for k in range(60):
        with socket.create_connection(address) as connection:
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body))
            connection.sendall(body if k % 2 else body[: len(body) // 2])

    def is_idle():
        page = client.get("/metrics").text  # which is the one request under way
        names = ("requests_under_way 1.0", "body_bytes 0.0", "waiting_images 0.0")
        return all(f"\nkresnet_{name}\n" in page for name in names)

    wait_until(is_idle)
    assert client.post("/v1/models/photos:predict", json=serving.row_body(images)).is_success


@pytest.fixture(scope="module")
def patient(home):
    """A server that waits long for a batch and briefly for a request."""
    options = ("--batch-timeout-ms", 200, "--runtime", "tensorflow", "--max-batch", 8)
    with serving.running(home, *options, "--timeout-s", 4) as server:
        yield server


@pytest.mark.slow
def test_slow_clients_do_not_hold_up_others_and_are_cut_off(patient, images):
    address = ("127.0.0.1", int(patient.url.rsplit(":", 1)[1]))
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(address, 30)) for _ in range(30)]
        for k, connection in enumerate(slow):
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\n")
            if k % 2:
                connection.sendall(b"Content-Type: image/png\r\nContent-Length: 100\r\n\r\nabc")
        body = serving.row_body(images)
        answer = httpx.post(f"{patient.url}/v1/models/photos:predict", json=body)
        assert len(answer.json()["predictions"]) == 6
        for k, connection in enumerate(slow):
            received = connection.recv(1000)
            assert received.startswith(b"HTTP/1.1 408" if k % 2 else b"")
            assert k % 2 or received == b""  # endless headers end in a closed connection


def test_endless_headers_are_cut_off(server):
    address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\n")
        pieces = (b"X-%d: %s\r\n" % (k, b"a" * 1000) for k in range(100_000))
        with pytest.raises(OSError, match=r"reset|pipe"):
            connection.sendall(b"".join(pieces))


def test_a_body_in_chunks_is_limited_too(server):
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    chunks = (b"x" * 2**16 for _ in range(MAX_BODY_MB * 16 + 1))
    connection.request(
        "POST", "/predict", chunks, {"Content-Type": "image/png"}, encode_chunked=True
    )
    assert connection.getresponse().status == 413
    connection.close()


# --- batching -------------------------------------------------------------------------------------


def test_requests_share_batches_and_each_gets_its_own_answer(patient, images, truth):
    def counted():
        page = httpx.get(f"{patient.url}/metrics").text
        names = ("kresnet_batch_images_count ", "kresnet_batch_images_sum ")
        return np.array([float(page.split(f"\n{name}")[1].split()[0]) for name in names])

    before, answers = counted(), {}

    def ask(k):
        body = serving.row_body([images[k % 6]])
        answer = httpx.post(f"{patient.url}/v1/models/photos:predict", json=body, timeout=60)
        answers[k] = answer.json()["predictions"]

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(24):
        expected = {n: v[k % 6 : k % 6 + 1] for n, v in truth["serving_bytes"].items()}
        assert_same(by_column(answers[k]), expected)
    batches, rows = counted() - before
    assert rows == 24
    assert batches <= 12  # at most eight rows a batch, and 200 ms for all of them to come


# --- life: swaps, tokens, drain -------------------------------------------------------------------


class Load:
    """Clients that ask without a pause, and remember every answer."""

    def __init__(self, server, images, clients=4):
        self.server, self.images = server, images
        self.versions, self.failures = [], []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(k,)) for k in range(clients)]

    def _ask(self, k):
        with httpx.Client(base_url=self.server.url, timeout=60) as client:
            body = infer_body([self.images[k % 5]])
            while not self._stop.is_set():
                try:
                    answer = client.post(f"/v2/models/{self.server.name}/infer", json=body)
                except httpx.TransportError as error:
                    self.failures.append(error)
                    continue
                if answer.status_code == 200:
                    self.versions.append(int(answer.json()["model_version"]))
                else:
                    self.failures.append(answer.text)
                    if answer.status_code == 503:
                        break

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def wait_until(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture(scope="module")
def swapping(tmp_path_factory):
    home = tmp_path_factory.mktemp("swapping") / "photos"
    serving.write_export(home / "1")
    with serving.running(home) as server:
        yield server, home


@pytest.mark.slow
def test_versions_swap_under_load_without_a_failed_request(swapping, images):
    server, home = swapping
    with Load(server, images) as load:
        wait_until(lambda: len(load.versions) > 20)
        serving.write_export(home / "2", seed=1)
        wait_until(lambda: 2 in load.versions)
        server.wait_for("freed")
        state = httpx.get(f"{server.url}/v1/models/photos").json()["model_version_status"]
        assert [(v["version"], v["state"]) for v in state] == [("2", "AVAILABLE"), ("1", "END")]
        assert httpx.get(f"{server.url}/v1/models/photos/versions/1").status_code == 200
        answer = httpx.post(
            f"{server.url}/v1/models/photos/versions/1:predict", json=serving.row_body(images)
        )
        assert answer.status_code == 404
        # A damaged version is not served, and is tried again when its files change.
        (home / "3").mkdir()
        (home / "3" / "saved_model.pb").write_bytes(b"damaged")
        server.wait_for("version_refused")
        time.sleep(1)
        assert len(server.events("version_refused")) == 1
        state = httpx.get(f"{server.url}/v1/models/photos").json()["model_version_status"]
        assert state[0]["state"] == "END"
        assert state[0]["status"]["error_code"] == "UNKNOWN"
        (home / "3" / "saved_model.pb").write_bytes(b"damaged in another way")
        server.wait_for("version_refused", 2)
        # The served version may be deleted: an older one takes over, or it goes on from memory.
        serving.write_export(home / "4", seed=2)
        wait_until(lambda: load.versions[-1] == 4)
        for folder in ("3", "4", "2"):
            (home / folder).rename(home / f".{folder}")
        wait_until(lambda: load.versions[-1] == 1)
        (home / "1").rename(home / ".1")
        count = len(load.versions)
        wait_until(lambda: len(load.versions) > count + 50)
        assert load.versions[-1] == 1
    assert not load.failures
    order = [v for k, v in enumerate(load.versions) if k == 0 or v != load.versions[k - 1]]
    assert [v for v in order if v in (1, 2, 4)][-1] == 1
    assert set(load.versions) == {1, 2, 4}


@pytest.mark.slow
def test_sigterm_under_load_answers_what_was_accepted(swapping, images):
    """Every request is answered, or refused in words; no connection breaks."""
    server, _ = swapping
    codes = []
    with Load(server, images, clients=6) as load:
        wait_until(lambda: len(load.versions) > 50)
        ending = threading.Thread(target=lambda: codes.append(server.terminate()))
        ending.start()
        server.wait_for("stopping")
        answer = httpx.get(f"{server.url}/readyz")
        assert (answer.status_code, answer.json()) == (503, {"status": "stopping"})
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        ending.join()
    assert codes == [0]
    assert server.events("stopped")[0]["unanswered"] == 0
    assert load.failures  # the clients went on to the end
    assert set(map(str, load.failures)) == {'{"error":"The server is stopping."}'}


@pytest.fixture(scope="module")
def guarded(home, tmp_path_factory):
    token_file = tmp_path_factory.mktemp("secret") / "token"
    token_file.write_text("s3cret-token\n")
    with serving.running(home, "--token-file", token_file, "--host", "0.0.0.0") as server:
        yield server


@pytest.mark.slow
def test_a_token_is_asked_for_everywhere_but_at_the_probes(guarded, images):
    url = guarded.url.replace("0.0.0.0", "127.0.0.1")
    paths = ("/v1/models/photos", "/v1/models/photos/metadata", "/v2/models/photos", "/metrics")
    right = {"authorization": "Bearer s3cret-token"}
    for path in paths:
        for header in (None, "Bearer wrong", "Basic s3cret-token", "Bearer", "Bearer é"):
            headers = {"authorization": header.encode()} if header else {}
            answer = httpx.get(url + path, headers=headers)
            assert answer.status_code == 401, (path, header)
            assert answer.headers["www-authenticate"] == "Bearer"
        assert httpx.get(url + path, headers=right).status_code == 200
    body = serving.row_body(images[:1])
    for path in ("/v1/models/photos:predict", "/v2/models/photos/infer", "/predict"):
        assert httpx.post(url + path, json=body).status_code == 401
    for path in ("/healthz", "/readyz", "/v2/health/ready", "/v2/health/live"):
        assert httpx.get(url + path).status_code == 200
    with grpc.insecure_channel(guarded.grpc.replace("0.0.0.0", "127.0.0.1")) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.Predict(predict_request(images))
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        metadata = [("authorization", "Bearer s3cret-token")]
        assert stub.Predict(predict_request(images), metadata=metadata).outputs
    assert "s3cret" not in json.dumps(guarded.log)


@pytest.mark.slow
def test_a_second_signal_ends_at_once(guarded):
    guarded.process.terminate()
    guarded.wait_for("stopping")
    guarded.process.terminate()
    assert guarded.process.wait(10) == 128 + 15


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing"], 6, "An export is a folder NAME or NAME/VERSION"),
        (["HOME", "--host", "0.0.0.0"], 2, "needs a token"),
        (["HOME", "--max-batch", "0"], 2, "`max_batch` must be at least 1"),
        (["HOME", "--runtime", "torch"], 2, "`runtime` must be one of auto, tensorflow"),
        (["HOME", "--token-file", "absent"], 2, "`--token-file` must be a readable text file"),
        (["HOME", "--port", "PORT"], 4, "cannot be bound. Choose another with --port"),
        pytest.param(
            *(["HOME", "--runtime", "openvino"], 6, "must hold a file for the runtime"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_mistakes_at_the_start_end_in_one_line(home, arguments, code, message):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        values = {"HOME": str(home), "PORT": str(taken.getsockname()[1])}
        arguments = [values.get(argument, argument) for argument in arguments]
        if "--port" not in arguments:
            arguments += ["--port", "0"]
        done = subprocess.run(
            [sys.executable, "-m", "kresnet", "serve", *arguments, "--grpc-port", "0"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == code, done.stderr
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
