"""Tensors from a file written by `torch.save`, without torch and without running its pickle.

A pickle is a program. This one is run by `_unpickle`, which knows how to build containers and
numbers and, of everything a program may name, only the few things in `_DTYPES` and `_CALLS`.
Nothing is ever imported, called or given attributes on the file's behalf.
"""

from __future__ import annotations

import io
import math
import pickletools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from kresnet.errors import WeightsError

# PROTO 2, LONG1 of 10 bytes: the number every legacy file starts with.
LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"

_DTYPES: dict[str, np.dtype[Any]] = {
    f"torch.{name}Storage": np.dtype(dtype)
    for name, dtype in {
        "Double": "<f8",
        "Float": "<f4",
        "Half": "<f2",
        "BFloat16": ml_dtypes.bfloat16,
        "Long": "<i8",
        "Int": "<i4",
        "Short": "<i2",
        "Char": "i1",
        "Byte": "u1",
        "Bool": "?",
    }.items()
}


class Damaged(Exception):
    """The file contradicts itself."""


@dataclass(frozen=True, slots=True)
class _Global:
    """Something a pickle names, as "torch.FloatStorage". Only the name: nothing is looked up."""

    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    """`count` elements from element `start` of the stored buffer `key`."""

    key: str
    dtype: np.dtype[Any]
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A view of a storage; offset, sizes and strides are in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Mark:
    """Opens a group of items on the stack."""


def read_torch_zip(path: Path) -> dict[str, np.ndarray]:
    """Read what torch has written since version 1.6: a zip of a pickle and raw buffers."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if sum(entry.file_size for entry in entries.values()) > path.stat().st_size:
            raise Damaged("its zip entries claim more bytes than the file has")
        program = next(name for name in entries if is_torch_program(name))
        root = program.removesuffix("data.pkl")
        if entries.get(f"{root}byteorder") and archive.read(f"{root}byteorder") != b"little":
            raise Damaged("its byte order is not little-endian")
        tree = _unpickle(io.BytesIO(archive.read(program)), path)
        return _arrays(tree, lambda key: archive.read(f"{root}data/{key}"))


def is_torch_program(name: str) -> bool:
    """Return whether a zip entry of this name is the pickle of a torch checkpoint."""
    return name.rpartition("/")[2] == "data.pkl"


def read_torch_legacy(path: Path) -> dict[str, np.ndarray]:
    """Read what torch wrote before: magic, version, system, the tree, buffer keys, buffers."""
    data = path.read_bytes()
    file = io.BytesIO(data)
    for _ in ("magic", "version"):
        _unpickle(file, path)
    system = _unpickle(file, path)
    if not (isinstance(system, dict) and system.get("little_endian") is True):
        raise Damaged("its byte order is not little-endian")
    storages: dict[str, _Storage] = {}
    tree = _unpickle(file, path, storages)
    keys = _unpickle(file, path)
    buffers: dict[str, memoryview] = {}
    for key in keys if isinstance(keys, list) else []:
        count = int.from_bytes(file.read(8), "little")
        size = count * storages[key].dtype.itemsize
        buffers[key] = memoryview(data)[file.tell() : file.tell() + size]
        file.seek(size, io.SEEK_CUR)
    return _arrays(tree, buffers.__getitem__)


def _arrays(tree: object, read: Callable[[str], bytes | memoryview]) -> dict[str, np.ndarray]:
    """Materialise the tensors of a state dict, each buffer read once."""
    buffers: dict[str, bytes | memoryview] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in _state_dict(tree).items():
        key = tensor.storage.key
        if key not in buffers:
            buffers[key] = read(key)
        arrays[name] = _array(name, tensor, buffers[key])
    return arrays


def _state_dict(tree: object) -> dict[str, _Tensor]:
    """Find the tensors by name: the tree itself, or what a training script wrapped them in."""
    candidates = [tree]
    if isinstance(tree, dict):
        # Averaged weights first: they are what such a script evaluates; timm does the same.
        wrappers = ("state_dict_ema", "model_ema", "state_dict", "model")
        candidates = [*(tree[key] for key in wrappers if key in tree), tree]
    for candidate in candidates:
        if isinstance(candidate, dict):
            tensors = {
                name: value
                for name, value in candidate.items()
                if isinstance(name, str) and isinstance(value, _Tensor)
            }
            if tensors:
                return tensors
    raise Damaged("it holds no tensors by name")


def _array(name: str, tensor: _Tensor, buffer: bytes | memoryview) -> np.ndarray:
    """View a buffer as the tensor says, once that is known to lie inside it."""
    storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
    numbers = (tensor.offset, storage.start, storage.count, *shape, *strides)
    if len(shape) != len(strides) or min(numbers) < 0:
        raise Damaged(f"tensor {name!r} has an impossible shape")
    itemsize = storage.dtype.itemsize
    if (storage.start + storage.count) * itemsize > len(buffer):
        raise Damaged(f"the data of tensor {name!r} is shorter than claimed")
    if 0 in shape:
        return np.empty(shape, storage.dtype)
    last = tensor.offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if last >= storage.count or math.prod(shape) > storage.count:
        raise Damaged(f"tensor {name!r} reaches outside its data")
    flat = np.frombuffer(buffer, storage.dtype, storage.count, storage.start * itemsize)
    return np.lib.stride_tricks.as_strided(
        flat[tensor.offset :], shape, [step * itemsize for step in strides], writeable=False
    )


def _rebuild_tensor(
    storage: object, offset: object, shape: object, strides: object, *options: object
) -> _Tensor:
    """Stand in for `torch._utils._rebuild_tensor` and its `_v2`."""
    if not (isinstance(storage, _Storage) and isinstance(offset, int)):
        raise Damaged("a tensor without a storage")
    if len(options) > 2 and options[2]:  # conjugate or negative bit: the values are not the data
        raise Damaged("a lazily negated or conjugated tensor")
    return _Tensor(storage, offset, _integers(shape), _integers(strides))


def _rebuild_parameter(tensor: object, *options: object) -> object:
    return tensor


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    items = {}
    for key, value in pairs:
        items[_key(key)] = value
    return items


def _integers(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or not all(isinstance(n, int) for n in values):
        raise Damaged("a shape that is not made of integers")
    return tuple(values)


def _key(value: object) -> object:
    """Allow flat keys only: to hash a deeply nested one would overflow the C stack."""
    if not isinstance(value, str | bytes | int | float | None):
        raise Damaged(f"a dictionary key of type {type(value).__name__}")
    return value


_CALLS: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _integers,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
}


def _named(name: str, path: Path) -> _Global:
    if name not in _DTYPES and name not in _CALLS:
        raise WeightsError(
            "A checkpoint may hold tensors and plain containers only. "
            f"Received: path={str(path)!r}, whose pickle names {name!r}. If you trust it, load it "
            "with torch and save its state dict with safetensors.torch.save_file."
        )
    return _Global(name)


def _persistent(identity: object, storages: dict[str, _Storage]) -> _Storage:
    """Read `("storage", type, key, device, count[, (view key, offset, count)])`."""
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise Damaged("an unknown reference")
    kind, key, count = identity[1], identity[2], identity[4]
    known = isinstance(kind, _Global) and kind.name in _DTYPES
    if not (known and isinstance(key, str) and isinstance(count, int)):
        raise Damaged("an unknown reference")
    storages[key] = storage = _Storage(key, _DTYPES[kind.name], 0, count)
    view = identity[5] if len(identity) == 6 else None
    if view is None:
        return storage
    _, start, length = view
    return _Storage(key, storage.dtype, *_integers((start, length)))


def _unpickle(file: BinaryIO, path: Path, storages: dict[str, _Storage] | None = None) -> object:
    """Run one pickle, from the current position of `file` to its STOP.

    Args:
        file: Where the pickle is; left right behind it.
        path: For the message of an error.
        storages: Filled with every stored buffer the pickle refers to, by key.

    Raises:
        WeightsError: It names something that is not allowed.
        Damaged: It does something no state dict needs.
    """
    storages = {} if storages is None else storages
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def group() -> list[Any]:
        items: list[Any] = []
        while not isinstance(item := stack.pop(), _Mark):
            items.append(item)
        return items[::-1]

    argument: Any
    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                stack.append(_Mark())
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case name if name in _LITERALS:
                stack.append(argument)
            case name if name in _EMPTY:
                stack.append(_EMPTY[name]())
            case "TUPLE":
                stack.append(tuple(group()))
            case "LIST":
                stack.append(group())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND" | "APPENDS":
                items = group() if opcode.name == "APPENDS" else [stack.pop()]
                _expect(stack[-1], list).extend(items)
            case "SETITEM" | "SETITEMS" | "DICT":
                items = [stack.pop(-2), stack.pop()] if opcode.name == "SETITEM" else group()
                if opcode.name == "DICT":
                    stack.append({})
                pairs = zip(items[::2], items[1::2], strict=True)
                _expect(stack[-1], dict).update(_ordered_dict(pairs))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_named(argument.replace(" ", ".", 1), path))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_named(f"{module}.{name}", path))
            case "BINPERSID":
                stack.append(_persistent(stack.pop(), storages))
            case "REDUCE":
                arguments = _expect(stack.pop(), tuple)
                stack.append(_CALLS[_expect(stack.pop(), _Global).name](*arguments))
            case "BUILD":
                stack.pop()  # attributes, such as a state dict's _metadata: not needed
            case _:
                raise Damaged(f"pickle instruction {opcode.name}")
    raise Damaged("a pickle without an end")


_LITERALS = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    )
)
_EMPTY: dict[str, Callable[[], object]] = {
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise Damaged(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value
