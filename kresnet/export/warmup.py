"""Requests that TensorFlow Serving plays to a new version before it lets clients in.

The file is a TFRecord of `tensorflow.serving.PredictionLog`. Its few messages are described here
field by field, after tensorflow_serving/apis/*.proto, so that an export needs no package of
TensorFlow Serving. Fields that hold messages of TensorFlow are declared as bytes: on the wire they
are the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from kresnet.data import pixels

WARMUP_FILE: Final = Path("assets.extra") / "tf_serving_warmup_requests"
BATCH_SIZES: Final = (1, 8)

_STRING, _BYTES = (
    descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
)
# Message -> field -> (number, type, whether repeated).
_MESSAGES: Final[dict[str, dict[str, tuple[int, Any, bool]]]] = {
    "ModelSpec": {"name": (1, _STRING, False), "signature_name": (3, _STRING, False)},
    "Input": {"key": (1, _STRING, False), "value": (2, _BYTES, False)},  # an entry of the map
    "PredictRequest": {"model_spec": (1, "ModelSpec", False), "inputs": (2, "Input", True)},
    "PredictLog": {"request": (1, "PredictRequest", False)},
    "ExampleList": {"examples": (1, _BYTES, True)},
    "Examples": {"example_list": (1, "ExampleList", False)},
    "ClassificationRequest": {
        "model_spec": (1, "ModelSpec", False),
        "input": (2, "Examples", False),
    },
    "ClassifyLog": {"request": (1, "ClassificationRequest", False)},
    "PredictionLog": {
        "classify_log": (2, "ClassifyLog", False),
        "predict_log": (6, "PredictLog", False),
    },
}


def write_warmup(directory: Path, name: str, image: bytes) -> None:
    """Write one request for each signature and a few batch sizes.

    Args:
        directory: The version's directory.
        name: Of the export.
        image: Bytes of a small image file.
    """
    path = directory / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for count in BATCH_SIZES:
            for record in _records(name, image, count):
                writer.write(record)


def _records(name: str, image: bytes, count: int) -> Iterator[bytes]:
    images = np.repeat(pixels.decode(image).numpy()[np.newaxis], count, axis=0)
    contents = np.array([image] * count, object)
    best = np.full(count, -1, np.int32)
    yield _predict(name, "serving_default", {"images": images})
    yield _predict(name, "serving_bytes", {"image_bytes": contents})
    yield _predict(name, "explain", {"image_bytes": contents, "class_index": best})
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[image]))
    example = tf.train.Example(features=tf.train.Features(feature={"image_bytes": feature}))
    yield _classify(name, [example.SerializeToString()] * count)


def _predict(name: str, signature: str, inputs: Mapping[str, np.ndarray]) -> bytes:
    log = _message("PredictionLog")()
    log.predict_log.request.model_spec.name = name
    log.predict_log.request.model_spec.signature_name = signature
    for key, array in sorted(inputs.items()):
        value = tf.make_tensor_proto(array).SerializeToString()
        log.predict_log.request.inputs.add(key=key, value=value)
    return log.SerializeToString()


def _classify(name: str, examples: list[bytes]) -> bytes:
    log = _message("PredictionLog")()
    log.classify_log.request.model_spec.name = name
    log.classify_log.request.model_spec.signature_name = "classify"
    log.classify_log.request.input.example_list.examples.extend(examples)
    return log.SerializeToString()


@cache
def _message(name: str) -> Any:
    """Return the class of a message; the pool is our own, so it meets nobody else's."""
    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="warmup.proto", package="kresnet")
    for message, fields in _MESSAGES.items():
        description = file.message_type.add(name=message)
        for field, (number, kind, repeated) in fields.items():
            label = field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
            added = description.field.add(name=field, number=number, label=label)
            if isinstance(kind, str):
                added.type, added.type_name = field_type.TYPE_MESSAGE, f".kresnet.{kind}"
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"kresnet.{name}"))
