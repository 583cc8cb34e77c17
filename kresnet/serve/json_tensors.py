"""Tensors as TensorFlow Serving's REST API writes them in JSON.

The rules are those of tensorflow/serving util/json_tensor.cc, with one exception: the tokens NaN
and Infinity, which no input of an export takes, are refused as the JSON standard says.
"""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import orjson

from kresnet.serve.signatures import Arrays, Signature, Spec
from kresnet.serve.status import invalid

_MAX_VALUES: Final = 16_000_000
_MAX_CONTAINERS: Final = 4_000_000
"""A list of one number takes four bytes of JSON and about a hundred of memory."""


def parse(body: bytes) -> dict[str, Any]:
    """Parse a body that must be a JSON object.

    Raises:
        RequestError: It is not, or would take too much memory.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    containers = body.count(b"[") + body.count(b"{")
    if containers > _MAX_CONTAINERS or body.count(b",") > _MAX_VALUES:
        raise invalid("The JSON document has too many values. Send encoded images instead.")
    try:
        document = orjson.loads(body)  # its nesting is limited to 1024 levels
    except orjson.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: {error.msg[:200]} at offset: {error.pos}") from None
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {_type_name(document)} Is not object")
    return document


def signature_name(document: Mapping[str, Any]) -> str:
    """Return the signature that is asked for, "" for the default one."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid("'signature_name' key must be a string value.")
    return name


def read_inputs(document: Mapping[str, Any], signature: Signature) -> tuple[Arrays, bool]:
    """Read the inputs in row form ("instances") or column form ("inputs").

    Returns:
        The arrays, and whether they came in row form.

    Raises:
        RequestError: They are not of the form that the signature needs.
    """
    if "instances" in document and "inputs" in document:
        raise invalid(
            "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist"
        )
    if "instances" in document:
        return _from_rows(document["instances"], signature.inputs), True
    if "inputs" in document:
        return _from_columns(document["inputs"], signature.inputs), False
    raise invalid("Missing 'inputs' or 'instances' key")


def _from_rows(rows: Any, specs: Mapping[str, Spec]) -> Arrays:
    if not isinstance(rows, list):
        raise invalid("Expecting 'instances' to be an list/array")
    if not rows:
        raise invalid("No values in 'instances' array")
    if not _is_named(rows[0]):
        if len(specs) > 1:
            raise invalid(
                "instances is a plain list, but expecting list of objects as multiple input "
                "tensors required as per tensorinfo_map"
            )
        for k, row in enumerate(rows):
            if _is_named(row):
                raise invalid(f"Expecting value/list but got object at item {k} of input list")
        ((name, spec),) = specs.items()
        return {name: _array(rows, spec)}
    for k, row in enumerate(rows):
        if not _is_named(row):
            raise invalid(f"Expecting object but got list at item {k} of input list")
        if set(row) != set(specs):
            raise invalid(
                f"Failed to process element: {k} of 'instances' list. JSON object: keys must be "
                f"equal to: {','.join(specs)}"
            )
    return {name: _array([row[name] for row in rows], spec) for name, spec in specs.items()}


def _from_columns(value: Any, specs: Mapping[str, Spec]) -> Arrays:
    if not _is_named(value):
        if len(specs) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        ((name, spec),) = specs.items()
        return {name: _array(value, spec)}
    for name in specs:
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: _array(value[name], spec) for name, spec in specs.items()}


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _array(value: Any, spec: Spec) -> np.ndarray:
    if spec.is_text:
        return _text_array(value, spec.name)
    return number_array(value, spec)


def number_array(value: Any, spec: Spec) -> np.ndarray:
    """Turn nested lists of numbers into an array of the type of `spec`.

    Raises:
        RequestError: The lists are ragged, or hold something else than such numbers.
    """
    kind = np.dtype(spec.dtype.as_numpy_dtype).kind
    wanted = {"u": "iu", "i": "iu", "b": "b"}.get(kind, "iuf")
    try:
        array = np.array(value)
    except (ValueError, OverflowError, TypeError):
        raise invalid(f'"{spec.name}" is not a list of one shape.') from None
    if array.dtype.kind not in wanted or array.ndim > 8:
        raise invalid(f'"{spec.name}" is not of expected type: {spec.dtype.name}')
    if array.dtype.kind in "iu" and kind in "iu" and array.size:
        limits = np.iinfo(spec.dtype.as_numpy_dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise invalid(f'"{spec.name}" must be from {limits.min} to {limits.max}.')
    return array.astype(spec.dtype.as_numpy_dtype)


def _text_array(value: Any, name: str) -> np.ndarray:
    """Turn strings and {"b64": ...} in nested lists into an array of bytes objects."""
    shape, level = [], value
    while isinstance(level, list):
        shape.append(len(level))
        if len(shape) > 8:
            raise invalid(f'Encountered list at unexpected level of "{name}"')
        level = level[0] if level else None
    flat = [value]
    for depth, size in enumerate(shape):
        if not all(isinstance(part, list) and len(part) == size for part in flat):
            raise invalid(f'Encountered list at unexpected size at level: {depth} of "{name}"')
        flat = list(itertools.chain.from_iterable(flat))
    array = np.empty(len(flat), object)
    array[:] = [_text(part, name) for part in flat]
    return array.reshape(shape)


def _text(value: Any, name: str) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if _is_base64(value):
        return decode_base64(value["b64"])
    raise invalid(f'"{name}": JSON {_type_name(value)} is not of expected type: string')


def decode_base64(text: str) -> bytes:
    """Decode base64, with or without padding and spaces, as absl::Base64Unescape does.

    Raises:
        RequestError: It is something else.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    try:
        packed = "".join(text.split()).rstrip("=")
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid("Unable to base64 decode") from None


def write_outputs(outputs: Arrays, *, in_rows: bool) -> bytes:
    """Write a Predict response, in the form in which the request came."""
    plain = {name: _json_ready(name, array) for name, array in sorted(outputs.items())}
    answer: Any
    if not in_rows:
        answer = plain if len(plain) > 1 else next(iter(plain.values()))
    elif len(plain) > 1:
        answer = [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]
    else:
        answer = next(iter(plain.values()))
    return dump({"predictions" if in_rows else "outputs": answer})


def _json_ready(name: str, array: np.ndarray) -> Any:
    if array.dtype != object:
        return np.ascontiguousarray(array)
    if name.endswith("_bytes"):
        return _each(array.tolist(), lambda value: {"b64": base64.b64encode(value).decode()})
    return texts(array)


def texts(array: np.ndarray) -> Any:
    """Turn an array of bytes objects into nested lists of str."""
    return _each(array.tolist(), lambda value: value.decode(errors="replace"))


def _each(value: Any, function: Any) -> Any:
    return [_each(v, function) for v in value] if isinstance(value, list) else function(value)


def dump(value: Any) -> bytes:
    """Write JSON; float32 numbers get the fewest digits that read back as the same number."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def _type_name(value: Any) -> str:
    names = {dict: "Object", list: "Array", str: "String", bool: "Boolean", type(None): "Null"}
    return names.get(type(value), "Number")
