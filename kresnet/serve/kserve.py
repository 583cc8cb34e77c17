"""KServe's Open Inference Protocol, version 2, over REST.

https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md. The
names of the inputs decide the signature, so `image_bytes` and `images` both work.

JSON strings cannot hold the bytes of an image, and the protocol says nothing of it. As MLServer
does, a BYTES input (or the request) may have the parameter `"content_type": "base64"`, and its
strings are then decoded; without it they are taken as UTF-8.
"""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import Any, Final

import numpy as np
import tensorflow as tf
from starlette.responses import Response
from starlette.routing import Route

from kresnet.serve import json_tensors
from kresnet.serve.http import Call, Desk, json_response
from kresnet.serve.models import Loaded
from kresnet.serve.service import Service
from kresnet.serve.signatures import Signature, Spec
from kresnet.serve.status import invalid

DATATYPES: Final = {
    tf.string: "BYTES",
    tf.uint8: "UINT8",
    tf.int32: "INT32",
    tf.int64: "INT64",
    tf.float32: "FP32",
    tf.bool: "BOOL",
}
_MAIN: Final = "serving_bytes"


def routes(service: Service, desk: Desk) -> list[Route]:
    """Return the routes below /v2."""
    api = _KServe(service)
    found = [
        Route("/v2", desk.endpoint("kserve_server", api.server, is_open=True)),
        Route("/v2/health/live", desk.endpoint("kserve_live", api.live, is_open=True)),
        Route("/v2/health/ready", desk.endpoint("kserve_ready", api.ready, is_open=True)),
    ]
    for which in ("", "/versions/{version:plain}"):
        model = "/v2/models/{name:plain}" + which
        found += [
            Route(f"{model}/infer", desk.endpoint("kserve_infer", api.infer), methods=["POST"]),
            Route(f"{model}/ready", desk.endpoint("kserve_model_ready", api.model_ready)),
            Route(model, desk.endpoint("kserve_metadata", api.metadata)),
        ]
    return found


class _KServe:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def server(self, call: Call) -> Response:
        return json_response({"name": "kresnet", "version": version("kresnet"), "extensions": []})

    async def live(self, call: Call) -> Response:
        return json_response({"live": True})

    async def ready(self, call: Call) -> Response:
        is_ready = self._service.is_ready
        return json_response({"ready": is_ready, "live": True}, 200 if is_ready else 503)

    async def model_ready(self, call: Call) -> Response:
        with self._service.models.use(*call.model):
            return json_response({"name": self._service.models.name, "ready": True})

    async def metadata(self, call: Call) -> Response:
        models = self._service.models
        with models.use(*call.model) as loaded:
            signature = loaded.runtime.signatures[_MAIN]
            return json_response(
                {
                    "name": models.name,
                    "versions": [str(number) for number in models.served],
                    "platform": "tensorflow_savedmodel",
                    "inputs": [_described(spec) for spec in signature.inputs.values()],
                    "outputs": [_described(spec) for spec in signature.outputs.values()],
                }
            )

    async def infer(self, call: Call) -> Response:
        document = await call.json()
        identity = document.get("id")
        if identity is not None and not isinstance(identity, str):
            raise invalid('"id" must be a string.')
        with self._service.models.use(*call.model) as loaded:
            tensors = _objects(document, "inputs")
            signature = _signature_of(loaded, tensors)
            parameters = _parameters(document)
            inputs = {
                tensor["name"]: _array(tensor, signature.inputs[tensor["name"]], parameters)
                for tensor in tensors
            }
            names = [output["name"] for output in _objects(document, "outputs", optional=True)]
            wanted = names or list(signature.outputs)
            unknown = [name for name in wanted if name not in signature.outputs]
            if unknown:
                raise invalid(
                    f"The outputs are {', '.join(signature.outputs)}. Received: "
                    f"{unknown[0][:100]!r}."
                )
            outputs = await self._service.predict(
                loaded, signature, inputs, call.deadline, call.trace
            )
            answer: dict[str, Any] = {
                "model_name": self._service.models.name,
                "model_version": str(loaded.version),
            }
        if identity is not None:
            answer["id"] = identity
        answer["outputs"] = [_written(signature.outputs[n], outputs[n]) for n in wanted]
        return json_response(answer)


def _described(spec: Spec) -> dict[str, Any]:
    shape = [-1 if size is None else size for size in spec.shape]
    return {"name": spec.name, "datatype": DATATYPES[spec.dtype], "shape": shape}


def _objects(document: dict[str, Any], key: str, *, optional: bool = False) -> list[dict[str, Any]]:
    """Return a list of tensors, each with a name of its own."""
    tensors = document.get(key, [] if optional else None)
    if not isinstance(tensors, list) or not (tensors or optional):
        raise invalid(f'"{key}" must be a list of tensors.')
    for tensor in tensors:
        if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
            raise invalid(f'Each of "{key}" must be an object with a "name".')
    if len({tensor["name"] for tensor in tensors}) != len(tensors):
        raise invalid(f'The names of "{key}" must differ.')
    return tensors


def _signature_of(loaded: Loaded, tensors: list[dict[str, Any]]) -> Signature:
    given = {tensor["name"] for tensor in tensors}
    for signature in loaded.runtime.signatures.values():
        if set(signature.inputs) == given:
            return signature
    choices = "; ".join(
        " and ".join(signature.inputs) for signature in loaded.runtime.signatures.values()
    )
    raise invalid(f"The names of the inputs must be one of: {choices}.")


def _parameters(holder: dict[str, Any]) -> dict[str, Any]:
    parameters = holder.get("parameters", {})
    if not isinstance(parameters, dict):
        raise invalid('"parameters" must be an object.')
    return parameters


def _array(tensor: dict[str, Any], spec: Spec, parameters: dict[str, Any]) -> np.ndarray:
    datatype, data = tensor.get("datatype"), tensor.get("data")
    if datatype != DATATYPES[spec.dtype]:
        raise invalid(f'The datatype of "{spec.name}" is {DATATYPES[spec.dtype]}.')
    shape = _shape(tensor)
    if not isinstance(data, list):
        raise invalid(f'"data" of "{spec.name}" must be a list.')
    if spec.is_text:
        kind = (parameters | _parameters(tensor)).get("content_type", "str")
        if kind not in ("base64", "str"):
            raise invalid(f'"content_type" of "{spec.name}" must be "base64" or "str".')
        array = _texts(data, spec.name, is_base64=kind == "base64")
    else:
        array = json_tensors.number_array(data, spec)
    if array.size != math.prod(shape) or array.ndim not in (1, len(shape)):
        raise invalid(f'"data" of "{spec.name}" does not fill the shape {shape}.')
    if array.ndim != 1 and list(array.shape) != shape:
        raise invalid(f'"data" of "{spec.name}" is nested in another shape than {shape}.')
    return array.reshape(shape)


def _shape(tensor: dict[str, Any]) -> list[int]:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or len(shape) > 8:
        raise invalid('"shape" must be a list of sizes.')
    for size in shape:
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**31:
            raise invalid('Each size of "shape" must be a whole number.')
    return shape


def _texts(data: list[Any], name: str, *, is_base64: bool) -> np.ndarray:
    array = np.empty(len(data), object)
    for k, text in enumerate(data):
        if not isinstance(text, str):
            raise invalid(f'"data" of "{name}" must be a list of strings.')
        array[k] = json_tensors.decode_base64(text) if is_base64 else text.encode()
    return array


def _written(spec: Spec, array: np.ndarray) -> dict[str, Any]:
    data = array.ravel()
    return {
        "name": spec.name,
        "datatype": DATATYPES[spec.dtype],
        "shape": list(array.shape),
        "data": json_tensors.texts(data) if spec.is_text else data,
    }
