"""TensorFlow Serving's answers that REST and gRPC share: state, metadata, classification."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from kresnet.serve.models import Loaded, Models
from kresnet.serve.signatures import CLASSIFY, Arrays, Signature
from kresnet.serve.status import RequestError, Status, invalid

DEFAULT_SIGNATURE = "serving_default"


def find_signature(loaded: Loaded, name: str, missing: Status) -> Signature:
    """Return a signature of a version.

    Args:
        loaded: The version.
        name: "" is the default one.
        missing: What to raise if there is none of that name.
    """
    name = name or DEFAULT_SIGNATURE
    if name not in loaded.runtime.signatures:
        raise RequestError(
            missing,
            f'Serving signature name: "{name[:100]}" not found in signature def; there are '
            f"{', '.join(sorted(loaded.runtime.signatures))}.",
        )
    return loaded.runtime.signatures[name]


def check_method(signature: Signature, method: str) -> None:
    """Refuse to classify with a signature that is none of classification, as TF Serving does.

    Raises:
        RequestError: The signature is made for something else.
    """
    if signature.method != method:
        hint = '; set "signature_name" to "classify"' if method == CLASSIFY else ""
        raise invalid(
            f"Expected signature method_name to be {method}. Was: {signature.method}{hint}"
        )


def model_status(models: Models, name: str, version: int | None) -> Any:
    """Return a GetModelStatusResponse.

    Raises:
        RequestError: There is no such version.
    """
    states = models.states if name == models.name else {}
    if version is not None:
        states = {version: states[version]} if version in states else {}
    if not states:
        what = "any versions" if version is None else f"version {version}"
        raise RequestError(Status.NOT_FOUND, f"Could not find {what} of model {name[:100]!r}.")
    response = get_model_status_pb2.GetModelStatusResponse()
    for number, state in sorted(states.items(), reverse=True):
        entry = response.model_version_status.add()
        entry.version = number
        entry.state = get_model_status_pb2.ModelVersionStatus.State.Value(state.state)
        entry.status.error_code = 2 if state.error else 0  # UNKNOWN and OK
        entry.status.error_message = state.error
    return response


def model_metadata(models: Models, loaded: Loaded) -> Any:
    """Return a GetModelMetadataResponse with the signatures."""
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = models.name
    response.model_spec.version.value = loaded.version
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, definition in loaded.definitions.items():
        signatures.signature_def[name].CopyFrom(definition)
    response.metadata["signature_def"].Pack(signatures)
    return response


def as_json(message: Any) -> dict[str, Any]:
    """Turn a message into JSON types, with the field names of the .proto file."""
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def metadata_json(models: Models, loaded: Loaded) -> dict[str, Any]:
    """Return the metadata in the form of TF Serving's REST API."""
    response = model_metadata(models, loaded)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    return {
        "model_spec": {
            "name": models.name,
            "signature_name": "",
            "version": str(loaded.version),
        },
        "metadata": {"signature_def": as_json(signatures)},
    }


def examples_array(serialized: Iterable[bytes], signature: Signature) -> Arrays:
    """Make the input of a classification of serialised examples."""
    texts = list(serialized)
    array = np.empty(len(texts), object)
    array[:] = texts
    return {next(iter(signature.inputs)): array}
