"""TensorFlow Serving's REST API, version 1.

https://github.com/tensorflow/serving/blob/master/tensorflow_serving/g3doc/api_rest.md, with the
shapes and the words of util/json_tensor.cc and model_servers/http_rest_api_handler.cc.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from starlette.responses import Response
from starlette.routing import Route

from kresnet.serve import json_tensors, tfs
from kresnet.serve.http import Call, Desk, json_bytes_response, json_response
from kresnet.serve.service import Service
from kresnet.serve.signatures import CLASSIFY
from kresnet.serve.status import Status, invalid

_REGRESS = "tensorflow/serving/regress"


def routes(service: Service, desk: Desk) -> list[Route]:
    """Return the routes below /v1."""
    api = _Rest(service)
    found = []
    for which in ("", "/versions/{version:plain}", "/labels/{label:plain}"):
        model = "/v1/models/{name:plain}" + which
        found += [
            Route(f"{model}:predict", desk.endpoint("rest_predict", api.predict), methods=["POST"]),
            Route(
                f"{model}:classify", desk.endpoint("rest_classify", api.classify), methods=["POST"]
            ),
            Route(f"{model}:regress", desk.endpoint("rest_regress", api.regress), methods=["POST"]),
            Route(model, desk.endpoint("rest_status", api.status), methods=["GET"]),
            Route(f"{model}/metadata", desk.endpoint("rest_metadata", api.metadata)),
        ]
    return found


class _Rest:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def predict(self, call: Call) -> Response:
        document = await call.json()
        with self._service.models.use(*call.model) as loaded:
            signature = tfs.find_signature(
                loaded, json_tensors.signature_name(document), Status.INVALID_ARGUMENT
            )
            inputs, in_rows = json_tensors.read_inputs(document, signature)
            outputs = await self._service.predict(
                loaded, signature, inputs, call.deadline, call.trace
            )
        return json_bytes_response(json_tensors.write_outputs(outputs, in_rows=in_rows))

    async def classify(self, call: Call) -> Response:
        document = await call.json()
        with self._service.models.use(*call.model) as loaded:
            signature = tfs.find_signature(
                loaded, json_tensors.signature_name(document), Status.INVALID_ARGUMENT
            )
            tfs.check_method(signature, CLASSIFY)
            inputs = tfs.examples_array(_examples(document), signature)
            outputs = await self._service.predict(
                loaded, signature, inputs, call.deadline, call.trace
            )
        results = [
            [[label, score] for label, score in zip(labels, scores, strict=True)]
            for labels, scores in zip(
                json_tensors.texts(outputs["classes"]), outputs["scores"], strict=True
            )
        ]
        return json_response({"results": results})

    async def regress(self, call: Call) -> Response:
        document = await call.json()
        with self._service.models.use(*call.model) as loaded:
            signature = tfs.find_signature(
                loaded, json_tensors.signature_name(document), Status.INVALID_ARGUMENT
            )
            tfs.check_method(signature, _REGRESS)
        raise invalid("A classifier does not regress.")

    async def status(self, call: Call) -> Response:
        return json_response(tfs.as_json(tfs.model_status(self._service.models, *call.model)))

    async def metadata(self, call: Call) -> Response:
        with self._service.models.use(*call.model) as loaded:
            return json_response(tfs.metadata_json(self._service.models, loaded))


def _examples(document: dict[str, Any]) -> list[bytes]:
    examples = document.get("examples")
    if not isinstance(examples, list):
        raise invalid("When method is classify, key 'examples' is expected and must be a list")
    if not examples:
        raise invalid("'examples' value is an empty array")
    context = document.get("context", {})
    return [_example(context, example) for example in examples]


def _example(context: Any, features: Any) -> bytes:
    example = tf.train.Example()
    for part in (context, features):
        if not isinstance(part, dict):
            raise invalid("Example must be JSON object")
        for name, value in part.items():
            feature = example.features.feature[name]
            feature.Clear()
            for item in value if isinstance(value, list) else [value]:
                _add(feature, name, item)
    return example.SerializeToString()


def _add(feature: Any, name: str, value: Any) -> None:
    kind: str
    if isinstance(value, bool | int):
        kind, value = "int64_list", int(value)
        if not -(2**63) <= value < 2**63:
            raise invalid(f"Feature: {name[:100]} has an element that is no int64.")
    elif isinstance(value, float):
        kind = "float_list"
    elif isinstance(value, str):
        kind, value = "bytes_list", value.encode()
    elif isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str):
        kind, value = "bytes_list", json_tensors.decode_base64(value["b64"])
    else:
        raise invalid(f"Feature: {name[:100]} has element with unexpected JSON type")
    if feature.WhichOneof("kind") not in (None, kind):
        raise invalid(f"Unexpected element type in feature: {name[:100]}")
    getattr(feature, kind).value.append(value)
