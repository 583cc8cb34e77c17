"""The same clients against our server and against the real tensorflow_model_server.

The real one is started with the flags and files of the kit, where it is on PATH or
KRESNET_TENSORFLOW_MODEL_SERVER names it; else its half of the tests is skipped. Our own server
keeps the clients honest meanwhile.
"""

import base64
import os
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import yaml

pytest.importorskip("tensorflow_serving", reason="the extra `serve` is not installed")

import grpc
import requests
import serving
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from kresnet.export.warmup import WARMUP_FILE, write_warmup
from kresnet.serve.kit import kit, write_kit

NAME = "model_server_test"
TOLERANCE = 1e-5  # another build of TensorFlow sums in another order
SERVERS = ("kresnet serve", "tensorflow_model_server")


@pytest.fixture(scope="module")
def images():
    return serving.photos(np.random.default_rng(3), 9)


@pytest.fixture(scope="module")
def export(tmp_path_factory, images):
    """Version 1 of an export, with its warm-up."""
    home = tmp_path_factory.mktemp("saved_models") / NAME
    serving.write_export(home / "1", seed=1)
    if not (home / "1" / WARMUP_FILE).exists():
        write_warmup(home / "1", NAME, images[0])
    return home


@pytest.fixture(scope="module")
def expected(export, images):
    """What the export itself answers through tf.saved_model.load."""
    signatures = tf.saved_model.load(str(export / "1")).signatures
    count = len(images)
    answers = {
        "serving_bytes": signatures["serving_bytes"](image_bytes=tf.constant(images)),
        "explain": signatures["explain"](
            image_bytes=tf.constant(images), class_index=tf.fill((count,), 2)
        ),
    }
    return {
        name: {output: value.numpy() for output, value in answer.items()}
        for name, answer in answers.items()
    }


@pytest.fixture(scope="module", params=SERVERS)
def server(request, export, tmp_path_factory):
    if request.param == "kresnet serve":
        with serving.running(export, "--runtime", "tensorflow") as running:
            yield SimpleNamespace(kind=request.param, url=running.url, grpc=running.grpc, log=None)
    else:
        yield from model_server(export, tmp_path_factory.mktemp("kit"))


def model_server(export, folder):
    """Start the real server as the compose file does, but on free ports and without a container."""
    binary = os.environ.get("KRESNET_TENSORFLOW_MODEL_SERVER") or shutil.which(SERVERS[1])
    if not binary:
        pytest.skip("no tensorflow_model_server on PATH or in KRESNET_TENSORFLOW_MODEL_SERVER")
    write_kit(export, folder, cpus=2)
    models = folder / "models.config"
    models.write_text(models.read_text().replace(f"/models/{NAME}", str(export)))
    compose = yaml.safe_load((folder / "docker-compose.yaml").read_text())
    rest, rpc = serving_ports()
    flags = [
        flag.replace("/etc/kresnet", str(folder))
        .replace("--port=8500", f"--port={rpc}")
        .replace("--rest_api_port=8501", f"--rest_api_port={rest}")
        for flag in compose["services"]["serving"]["command"]
    ]
    log = folder / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen([binary, *flags], stdout=file, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{rest}"
        wait_until(lambda: process.poll() is not None or is_ready(url), seconds=300)
        assert process.poll() is None, log.read_text()
        yield SimpleNamespace(kind=SERVERS[1], url=url, grpc=f"127.0.0.1:{rpc}", log=log)
    finally:
        process.kill()
        process.wait()


def serving_ports():
    import socket

    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def is_ready(url):
    """The probe of the kit: metadata is answered only when a version is loaded."""
    try:
        return requests.get(f"{url}/v1/models/{NAME}/metadata", timeout=5).status_code == 200
    except requests.ConnectionError:
        return False


def wait_until(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


# ---------------------------------------------------------------- clients


def b64(content):
    return {"b64": base64.b64encode(content).decode()}


def rest_rows(server, images, signature):
    more = {"class_index": 2} if signature == "explain" else {}
    body = {
        "signature_name": signature,
        "instances": [{"image_bytes": b64(image), **more} for image in images],
    }
    response = requests.post(f"{server.url}/v1/models/{NAME}:predict", json=body, timeout=60)
    assert response.status_code == 200, response.text
    rows = response.json()["predictions"]
    return {output: np.array([row[output] for row in rows]) for output in rows[0]}


def rest_columns(server, images, signature):
    inputs = {"image_bytes": [b64(image) for image in images]}
    if signature == "explain":
        inputs["class_index"] = [2] * len(images)
    body = {"signature_name": signature, "inputs": inputs}
    response = requests.post(
        f"{server.url}/v1/models/{NAME}/versions/1:predict", json=body, timeout=60
    )
    assert response.status_code == 200, response.text
    return {output: np.array(value) for output, value in response.json()["outputs"].items()}


def rpc(server, images, signature):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = NAME
    request.model_spec.signature_name = signature
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(images, shape=[len(images)]))
    if signature == "explain":
        indices = tf.make_tensor_proto([2] * len(images), dtype=tf.int32)
        request.inputs["class_index"].CopyFrom(indices)
    with grpc.insecure_channel(server.grpc) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answer = stub.Predict(request, timeout=60)
    assert answer.model_spec.name == NAME
    return {output: tf.make_ndarray(tensor) for output, tensor in answer.outputs.items()}


CLIENTS = (rest_rows, rest_columns, rpc)


def agree(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if value.dtype == object:
            text = np.vectorize(lambda item: item.decode() if isinstance(item, bytes) else item)
            assert np.array_equal(text(found[name]), text(value)), name
        elif value.dtype == bool:
            assert np.array_equal(found[name], value), name
        else:
            np.testing.assert_allclose(found[name], value, atol=TOLERANCE, err_msg=name)


# ---------------------------------------------------------------- what must hold


@pytest.mark.parametrize("signature", ["serving_bytes", "explain"])
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
def test_it_answers_as_the_export_does(server, client, signature, images, expected):
    agree(client(server, images, signature), expected[signature])


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
def test_one_bad_image_costs_no_other_its_answer(server, client, images, expected):
    found = client(server, [images[0], b"no image", images[1]], "serving_bytes")
    assert found["ok"].tolist() == [True, False, True]
    np.testing.assert_allclose(
        found["scores"][[0, 2]], expected["serving_bytes"]["scores"][:2], atol=TOLERANCE
    )


def test_requests_of_many_clients_get_their_own_answers(server, images, expected):
    wanted = expected["serving_bytes"]["scores"]

    def ask(k):
        which = [k % 9, (k + 4) % 9][: 1 + k % 2]
        found = rpc(server, [images[i] for i in which], "serving_bytes")
        return np.abs(found["scores"] - wanted[which]).max()

    with ThreadPoolExecutor(16) as pool:
        # Refusals of a full queue are the server's right; here there are fewer than it holds.
        assert max(pool.map(ask, range(48))) <= TOLERANCE


def test_pixels_are_answered_too(server, export):
    pixels = np.random.default_rng(5).integers(0, 256, (2, 40, 31, 3), dtype=np.uint8)
    loaded = tf.saved_model.load(str(export / "1")).signatures["serving_default"]
    wanted = loaded(images=tf.constant(pixels))["scores"].numpy()
    response = requests.post(
        f"{server.url}/v1/models/{NAME}:predict", json={"instances": pixels.tolist()}, timeout=60
    )
    rows = response.json()["predictions"]
    np.testing.assert_allclose([row["scores"] for row in rows], wanted, atol=TOLERANCE)


def test_classify_takes_examples(server, images, expected):
    request = classification_pb2.ClassificationRequest()
    request.model_spec.name = NAME
    request.model_spec.signature_name = "classify"
    for image in images:
        example = request.input.example_list.examples.add()
        example.features.feature["image_bytes"].bytes_list.value.append(image)
    with grpc.insecure_channel(server.grpc) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answer = stub.Classify(request, timeout=60)
    rows = [
        {found.label: found.score for found in row.classes} for row in answer.result.classifications
    ]
    wanted = expected["serving_bytes"]
    for row, labels, scores in zip(rows, wanted["labels"], wanted["scores"], strict=True):
        names = [label.decode() for label in labels]
        np.testing.assert_allclose([row[name] for name in names], scores, atol=TOLERANCE)


def test_state_and_metadata_are_told(server):
    (state,) = requests.get(f"{server.url}/v1/models/{NAME}", timeout=60).json()[
        "model_version_status"
    ]
    assert (state["version"], state["state"]) == ("1", "AVAILABLE")
    metadata = requests.get(f"{server.url}/v1/models/{NAME}/metadata", timeout=60).json()
    signatures = metadata["metadata"]["signature_def"]["signature_def"]
    assert {"serving_default", "serving_bytes", "explain", "classify"} <= signatures.keys()
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = NAME
    with grpc.insecure_channel(server.grpc) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        (told,) = stub.GetModelStatus(request, timeout=60).model_version_status
    assert (told.version, told.state) == (1, get_model_status_pb2.ModelVersionStatus.AVAILABLE)


def test_what_is_wrong_is_refused(server):
    response = requests.post(f"{server.url}/v1/models/other:predict", json={"instances": [1]})
    assert response.status_code == 404
    assert "error" in response.json()
    response = requests.post(f"{server.url}/v1/models/{NAME}:predict", data="{")
    assert response.status_code == 400
    assert "error" in response.json()


def test_the_monitoring_path_answers(server, export):
    path = re.search(r'path: "(.*)"', kit(export)["monitoring.config"])[1]
    response = requests.get(server.url + path, timeout=60)
    assert response.status_code == 200
    assert "# TYPE " in response.text


def test_the_warm_up_is_played(server, export):
    if server.log is None:
        pytest.skip("only the real server says so in its log")
    count = sum(1 for _ in tf.data.TFRecordDataset(str(export / "1" / WARMUP_FILE)))
    found = re.search(
        r"Finished reading warmup data.*?warmup records read: (\d+)", server.log.read_text()
    )
    assert found, server.log.read_text()
    assert int(found[1]) == count > 0


@pytest.mark.slow
def test_a_new_version_takes_over(server, export, images):  # the last test: it changes the export
    if not (export / "2").exists():
        serving.write_export(export / "2", seed=2)
    loaded = tf.saved_model.load(str(export / "2")).signatures["serving_bytes"]
    wanted = loaded(image_bytes=tf.constant(images))["scores"].numpy()

    def is_new():
        return np.allclose(rpc(server, images, "serving_bytes")["scores"], wanted, atol=TOLERANCE)

    wait_until(is_new)
    shutil.rmtree(export / "2")
