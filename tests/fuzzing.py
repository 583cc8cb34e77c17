"""Send mutated requests to a running server and count what it answers.

    python tests/fuzzing.py EXPORT --bodies 100000

Bodies are made from right ones: bytes are flipped, cut, doubled and swapped, values of JSON
documents are replaced, images are damaged before they are put into JSON, forms and messages.
The campaign is the same for the same seed, however many clients send it.
"""

import argparse
import collections
import copy
import http.client
import json
import random
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import psutil
import serving
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)

ALLOWED_HTTP = {200, 400, 404, 405, 413, 415, 503, 504}
ALLOWED_GRPC = {
    *("OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED"),
    *("UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"),
}
TOKENS = [
    *(b"null", b"-1", b"1e999", b"NaN", b"[[]]", b"{}", b'"\\ud800"', b"\x00", b"\xff\xd8\xff"),
    *(b"9" * 400, b"[" * 500, b'{"b64":"!"}', b"18446744073709551616", b"--x\r\n\r\n", b'""'),
]
VALUES = [
    *(None, True, False, 0, -1, 255, 256, 2**63, 0.5, 1e308, "", "x", "é", [], {}, [[]], [[1], 2]),
    *({"b64": ""}, {"b64": 1}, {"b64": "AA", "x": 1}, {"b64": "****"}, ["a", 1], [None]),
]


def damage(rng, data):
    """Return bytes with one to four mutations."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 2, 8, 64)))
        kind = rng.randrange(6)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:end]
        elif kind == 2:
            data[at:at] = rng.choice(TOKENS)
        elif kind == 3:
            data[at:at] = data[at:end] * rng.randint(1, 20)
        elif kind == 4:
            data[at:end] = rng.randbytes(end - at)
        else:
            del data[at:]
    return bytes(data)


def replaced(rng, document):
    """Return a JSON document with one to three values replaced, added or taken away."""
    document = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(document))
        holder, key = rng.choice(places)
        kind = rng.randrange(4)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            other, at = rng.choice(places)
            if isinstance(other, dict) or at < len(other):
                holder[key] = copy.deepcopy(other.get(at) if isinstance(other, dict) else other[at])
        else:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
        if not document:
            break
    return document


def _places(value):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(items):
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def documents(name, images):
    """Right JSON documents, each with its path."""
    rows = [{"image_bytes": {"b64": serving.b64(image)}} for image in images[:2]]
    explain = [{**row, "class_index": k} for k, row in enumerate(rows)]
    tensor = {
        **{"name": "image_bytes", "datatype": "BYTES", "shape": [2]},
        **{"data": [row["image_bytes"]["b64"] for row in rows]},
        "parameters": {"content_type": "base64"},
    }
    pixels = np.arange(2 * 4 * 5 * 3).reshape(2, 4, 5, 3).tolist()
    v1, v2 = f"/v1/models/{name}", f"/v2/models/{name}"
    return [
        (f"{v1}:predict", {"signature_name": "serving_bytes", "instances": rows}),
        (
            f"{v1}:predict",
            {"signature_name": "serving_bytes", "inputs": {"image_bytes": tensor["data"]}},
        ),
        (f"{v1}:predict", {"signature_name": "explain", "instances": explain}),
        (f"{v1}:predict", {"instances": pixels}),
        (f"{v1}:classify", {"signature_name": "classify", "examples": rows}),
        (f"{v1}:regress", {"signature_name": "classify", "context": {}, "examples": rows}),
        (f"{v2}/infer", {"id": "1", "inputs": [tensor], "outputs": [{"name": "scores"}]}),
        (
            f"{v2}/infer",
            {
                "inputs": [
                    {"name": "images", "datatype": "UINT8", "shape": [2, 4, 5, 3], "data": pixels}
                ]
            },
        ),
    ]


def messages(name, images):
    """Right gRPC messages, each with its method."""
    predict = predict_pb2.PredictRequest()
    predict.model_spec.name, predict.model_spec.signature_name = name, "serving_bytes"
    predict.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(images[:2], tf.string))
    pixels = predict_pb2.PredictRequest()
    pixels.model_spec.name = name
    pixels.inputs["images"].CopyFrom(
        tf.make_tensor_proto(np.arange(60, dtype=np.uint8).reshape(1, 4, 5, 3))
    )
    pixels.output_filter.append("scores")
    classify = classification_pb2.ClassificationRequest()
    classify.model_spec.name, classify.model_spec.signature_name = name, "classify"
    feature = classify.input.example_list.examples.add().features.feature["image_bytes"]
    feature.bytes_list.value.append(images[0])
    metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    status = get_model_status_pb2.GetModelStatusRequest()
    metadata.model_spec.name = status.model_spec.name = name
    return [
        ("/tensorflow.serving.PredictionService/Predict", predict),
        ("/tensorflow.serving.PredictionService/Predict", pixels),
        ("/tensorflow.serving.PredictionService/Classify", classify),
        ("/tensorflow.serving.PredictionService/GetModelMetadata", metadata),
        ("/tensorflow.serving.ModelService/GetModelStatus", status),
    ]


class Campaign:
    """All bodies of a campaign, by number."""

    def __init__(self, name, images, seed=0):
        self._name, self._images, self._seed = name, images, seed

    def request(self, number):
        """Return protocol, path or method, headers and body of one request."""
        rng = random.Random(f"{self._seed} {number}")
        images = [
            damage(rng, image) if rng.random() < 0.5 else image
            for image in rng.sample(self._images, 2)
        ]
        kind = number % 8
        if kind < 3:
            path, document = rng.choice(documents(self._name, images))
            if rng.random() < 0.7:
                document = replaced(rng, document)
            body = json.dumps(document).encode()
            if rng.random() < 0.4:
                body = damage(rng, body)
            return "http", path, {"Content-Type": "application/json"}, body
        if kind == 3:
            boundary = rng.choice(["b", "x" * 70, "--", "é"])
            part = (
                f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n'
                "Content-Type: image/png\r\n\r\n"
            ).encode()
            body = b"".join(part + image + b"\r\n" for image in images)
            body += f"--{boundary}--\r\n".encode()
            if rng.random() < 0.8:
                body = damage(rng, body)
            kind_of = f"multipart/form-data; boundary={boundary}".encode()
            return "http", "/predict", {"Content-Type": kind_of}, body
        if kind == 4:
            body = damage(rng, images[0])
            return "http", "/predict?top=2", {"Content-Type": "image/jpeg"}, body
        method, message = rng.choice(messages(self._name, images))
        body = message.SerializeToString()
        return "grpc", method, {}, damage(rng, body) if rng.random() < 0.8 else body


class Sender:
    """Sends requests and names what came back."""

    def __init__(self, server):
        self._address = server.url.removeprefix("http://")
        self._http = http.client.HTTPConnection(self._address, timeout=60)
        self._channel = grpc.insecure_channel(server.grpc)

    def send(self, protocol, path, headers, body):
        """Return the status, and the text where it is none that may be."""
        if protocol == "grpc":
            return self._send_grpc(path, body)
        try:
            self._http.request("POST", path, body, headers)
            response = self._http.getresponse()
            text = response.read()
        except (http.client.HTTPException, OSError) as error:
            self._http.close()
            return "broken", repr(error)
        return response.status, "" if response.status in ALLOWED_HTTP else text.decode()

    def _send_grpc(self, method, body):
        try:
            self._channel.unary_unary(method)(body, timeout=60)
        except grpc.RpcError as error:
            code = error.code().name
            return code, "" if code in ALLOWED_GRPC else error.details()
        return "OK", ""

    def close(self):
        self._http.close()
        self._channel.close()


def run(server, campaign, count, clients=4):
    """Send a campaign; returns counts by status, what may not be, and the memory of the server."""
    counts, wrong, memory = collections.Counter(), [], []
    numbers = iter(range(count))
    lock = threading.Lock()
    process = psutil.Process(server.process.pid)

    def work():
        sender = Sender(server)
        while True:
            with lock:
                number = next(numbers, None)
                if number is None:
                    break
                if number % max(count // 20, 1) == 0:
                    memory.append(process.memory_info().rss)
            request = campaign.request(number)
            start = time.monotonic()
            status, text = sender.send(*request)
            seconds = time.monotonic() - start
            with lock:
                if seconds > 5:  # and how much memory the machine had, which may be the reason
                    free = psutil.virtual_memory().available // 10**6
                    print(f"body {number} to {request[1]} took {seconds:.0f} s, {free} MB free")
                counts[f"{request[0]} {status}"] += 1
                if text:
                    wrong.append((number, request[1], status, text[:500]))
        sender.close()

    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    memory.append(process.memory_info().rss)
    return counts, wrong, memory


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export", type=Path)
    parser.add_argument("--bodies", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    images = serving.photos(np.random.default_rng(options.seed), 8)
    with serving.running(options.export, "--quiet", "--max-body-mb", 1) as server:
        start = time.monotonic()
        campaign = Campaign(server.name, images, options.seed)
        counts, wrong, memory = run(server, campaign, options.bodies)
        seconds = time.monotonic() - start
        print(
            f"{options.bodies} bodies in {seconds:.0f} s, {options.bodies / seconds:.0f} a second"
        )
        print("answers:", dict(sorted(counts.items())))
        print("memory of the server, MB:", [round(size / 1e6) for size in memory])
        print("answers that may not be:", wrong[:5], len(wrong))
        faults = [line for line in server.log if line["level"] == "error"]
        print("faults in the log:", faults[:3], len(faults))
        print("stray lines:", server.strays[:3], len(server.strays))
        print("exit code after SIGTERM:", server.terminate())


if __name__ == "__main__":
    main()
