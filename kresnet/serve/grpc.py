"""TensorFlow Serving's gRPC API: PredictionService and ModelService, with its own messages.

https://github.com/tensorflow/serving/tree/master/tensorflow_serving/apis; the checks and the
status codes follow servables/tensorflow/predict_util.cc and classifier.cc.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import (
    classification_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from kresnet.serve import log, tfs
from kresnet.serve.limits import check_token
from kresnet.serve.models import Loaded
from kresnet.serve.service import Service, Trace
from kresnet.serve.signatures import CLASSIFY, Signature, Spec
from kresnet.serve.status import RequestError, Status, invalid

_OVERHEAD: Final = 2**20
"""A message holds more than the images that `max_body_bytes` is about."""

_MAX_FILLED: Final = 2**24
"""Bytes of a tensor that a TensorProto may give by one value for all."""

_MAX_CONNECTION_STREAMS: Final = 1024

_FIELDS: Final = {"O": "string_val", "f": "float_val", "b": "bool_val", "i": "int_val"}

_Work = Callable[[Any, float, Trace], Awaitable[Any]]


class GrpcServer:
    """Serves gRPC on the running event loop.

    Args:
        service: Answers.
    """

    def __init__(self, service: Service) -> None:
        settings = service.settings
        longest = settings.max_body_bytes + _OVERHEAD
        self._server = grpc.aio.server(
            interceptors=[_SafeParsing()],
            options=[
                ("grpc.max_receive_message_length", longest),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", _MAX_CONNECTION_STREAMS),
                ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it
            ],
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            _Prediction(service), self._server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Model(service), self._server)

    async def start(self, host: str, port: int) -> int:
        """Bind and begin to answer; returns the port.

        Raises:
            RuntimeError: The port is taken.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        bound = self._server.add_insecure_port(address)
        if not bound:
            raise RuntimeError(f"cannot bind {address}")
        await self._server.start()
        return bound

    async def stop(self, grace_s: float) -> None:
        """Take no new calls, and give those under way so much time."""
        await self._server.stop(grace_s)


class _SafeParsing(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Hands bytes that are no message to the method; gRPC would call them a fault of the server."""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: Any
    ) -> Any:
        """Replace the parser of a method."""
        handler = await continuation(details)
        if handler is None or handler.request_deserializer is None:
            return handler

        def parse(message: bytes) -> Any:
            try:
                return handler.request_deserializer(message)
            except DecodeError:
                return None

        return grpc.unary_unary_rpc_method_handler(
            handler.unary_unary, parse, handler.response_serializer
        )


class _Servicer:
    """What both services share: limits on the way in, status codes and the log on the way out."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def _call(self, api: str, request: Any, context: Any, work: _Work) -> Any:
        start, trace = time.perf_counter(), Trace()
        code, message = "OK", ""
        response = None
        try:
            response = await self._admitted(request, context, work, trace)
        except RequestError as error:
            code, message = error.status.grpc, error.message
        except asyncio.CancelledError:
            self._tell(api, "CANCELLED", trace, time.perf_counter() - start)
            raise
        except Exception:
            log.error("request_failed", api=api)
            code, message = "INTERNAL", "The server has a fault; see its log."
        self._tell(api, code, trace, time.perf_counter() - start)
        if code != "OK":
            await context.abort(grpc.StatusCode[code], message)
        return response

    async def _admitted(self, request: Any, context: Any, work: _Work, trace: Trace) -> Any:
        if request is None:
            raise invalid("The message cannot be parsed.")
        settings = self._service.settings
        metadata = dict(context.invocation_metadata() or ())
        check_token(settings.token, metadata.get("authorization"))
        remaining = context.time_remaining()
        seconds = min(settings.timeout_s, math.inf if remaining is None else remaining)
        deadline = asyncio.get_running_loop().time() + seconds
        with self._service.gate.request(), self._service.gate.room() as room:
            room.hold(request.ByteSize())
            return await work(request, deadline, trace)

    def _tell(self, api: str, code: str, trace: Trace, seconds: float) -> None:
        self._service.metrics.requests.labels(api, code).inc()
        self._service.metrics.seconds.labels(api).observe(seconds)
        if self._service.settings.log_requests:
            log.event(
                "request",
                api=api,
                status=code,
                milliseconds=round(1e3 * seconds, 1),
                images=trace.rows,
                version=trace.version,
            )


class _Prediction(_Servicer, prediction_service_pb2_grpc.PredictionServiceServicer):
    async def Predict(self, request: Any, context: Any) -> Any:
        return await self._call("grpc_predict", request, context, self._predict)

    async def Classify(self, request: Any, context: Any) -> Any:
        return await self._call("grpc_classify", request, context, self._classify)

    async def GetModelMetadata(self, request: Any, context: Any) -> Any:
        return await self._call("grpc_metadata", request, context, self._metadata)

    async def Regress(self, request: Any, context: Any) -> Any:
        return await self._call("grpc_regress", request, context, _unimplemented)

    async def MultiInference(self, request: Any, context: Any) -> Any:
        return await self._call("grpc_multi_inference", request, context, _unimplemented)

    async def _predict(self, request: Any, deadline: float, trace: Trace) -> Any:
        with self._service.models.use(*_model(request)) as loaded:
            signature = tfs.find_signature(
                loaded, request.model_spec.signature_name, Status.FAILED_PRECONDITION
            )
            wanted = _wanted(request, signature)
            if set(request.inputs) != set(signature.inputs):
                raise invalid(
                    f"input size does not match signature: sent "
                    f"{{{','.join(sorted(n[:60] for n in request.inputs)[:10])}}}, required "
                    f"{{{','.join(signature.inputs)}}}."
                )
            inputs = {
                name: from_proto(request.inputs[name], spec)
                for name, spec in signature.inputs.items()
            }
            outputs = await self._service.predict(loaded, signature, inputs, deadline, trace)
        response = predict_pb2.PredictResponse()
        _describe(response.model_spec, self._service.models.name, loaded, signature)
        for name in wanted:
            to_proto(outputs[name], signature.outputs[name], response.outputs[name])
        return response

    async def _classify(self, request: Any, deadline: float, trace: Trace) -> Any:
        with self._service.models.use(*_model(request)) as loaded:
            signature = tfs.find_signature(
                loaded, request.model_spec.signature_name, Status.INVALID_ARGUMENT
            )
            tfs.check_method(signature, CLASSIFY)
            inputs = tfs.examples_array(_examples(request.input), signature)
            outputs = await self._service.predict(loaded, signature, inputs, deadline, trace)
        response = classification_pb2.ClassificationResponse()
        _describe(response.model_spec, self._service.models.name, loaded, signature)
        for names, scores in zip(outputs["classes"], outputs["scores"], strict=True):
            row = response.result.classifications.add()
            for name, score in zip(names, scores.tolist(), strict=True):
                row.classes.add(label=name.decode(errors="replace"), score=score)
        return response

    async def _metadata(self, request: Any, deadline: float, trace: Trace) -> Any:
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field[:100]} is not supported")
        with self._service.models.use(*_model(request)) as loaded:
            return tfs.model_metadata(self._service.models, loaded)


class _Model(_Servicer, model_service_pb2_grpc.ModelServiceServicer):
    async def GetModelStatus(self, request: Any, context: Any) -> Any:
        return await self._call("grpc_status", request, context, self._status)

    async def HandleReloadConfigRequest(self, request: Any, context: Any) -> Any:
        return await self._call("grpc_reload", request, context, _unimplemented)

    async def _status(self, request: Any, deadline: float, trace: Trace) -> Any:
        return tfs.model_status(self._service.models, *_model(request))


async def _unimplemented(request: Any, deadline: float, trace: Trace) -> Any:
    raise RequestError(Status.UNIMPLEMENTED, "This server classifies images and nothing else.")


def _model(request: Any) -> tuple[str, int | None]:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    spec = request.model_spec
    if spec.version_label:
        raise invalid(f"Unrecognized servable version label: {spec.version_label[:100]}")
    return spec.name, spec.version.value if spec.HasField("version") else None


def _describe(spec: Any, name: str, loaded: Loaded, signature: Signature) -> None:
    spec.name, spec.signature_name = name, signature.name
    spec.version.value = loaded.version


def _wanted(request: Any, signature: Signature) -> list[str]:
    wanted = list(request.output_filter) or list(signature.outputs)
    for name in wanted:
        if name not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {name[:100]} Outputs expected to be "
                f"in the set {{{','.join(signature.outputs)}}}."
            )
    if len(set(wanted)) != len(wanted):
        raise invalid("duplicate output tensor alias")
    return wanted


def _examples(given: Any) -> Iterator[bytes]:
    kind = given.WhichOneof("kind")
    if kind is None:
        raise invalid("Input is empty.")
    listed = getattr(given, kind)
    if not listed.examples:
        raise invalid("Input is empty.")
    for example in listed.examples:
        if kind == "example_list_with_context":
            merged = type(example)()
            merged.CopyFrom(listed.context)
            for name, feature in example.features.feature.items():
                merged.features.feature[name].CopyFrom(feature)
            yield merged.SerializeToString()
        else:
            yield example.SerializeToString()


def from_proto(proto: Any, spec: Spec) -> np.ndarray:
    """Turn a TensorProto into an array.

    A TensorProto may give one value for a whole tensor of any size, so its shape is checked before
    anything is allocated.

    Raises:
        RequestError: It is damaged, or not of the type and rank of `spec`.
    """
    if proto.dtype != spec.dtype.as_datatype_enum:
        raise invalid(f'The type of "{spec.name}" is {spec.dtype.name}.')
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or len(shape) != len(spec.shape):
        raise invalid(f'"{spec.name}" has {len(spec.shape)} dimensions.')
    count = math.prod(shape)
    if min(shape, default=0) < 0:
        raise invalid(f'"{spec.name}" has a negative size.')
    if spec.is_text:
        if count != len(proto.string_val):
            raise invalid(f'"{spec.name}" has {len(proto.string_val)} values for {shape}.')
        array = np.empty(count, object)
        array[:] = list(proto.string_val)
        return array.reshape(shape)
    if count * spec.dtype.size > max(proto.ByteSize(), _MAX_FILLED):
        raise invalid(f'"{spec.name}" has too few values for {shape}.')
    try:
        return np.asarray(tf.make_ndarray(proto)).reshape(shape)
    except (ValueError, TypeError, OverflowError) as error:
        reason = (str(error).splitlines() or ["damaged"])[0]
        raise invalid(f'"{spec.name}" cannot be read: {reason[:200]}') from None


def to_proto(array: np.ndarray, spec: Spec, proto: Any) -> None:
    """Fill a TensorProto with typed values, as TensorFlow Serving does."""
    proto.dtype = spec.dtype.as_datatype_enum
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    field = "int64_val" if spec.dtype == tf.int64 else _FIELDS[array.dtype.kind]
    getattr(proto, field).extend(array.ravel().tolist())
