"""Load a SavedModel through TensorFlow's C API, without Python's TensorFlow.

It is the loader of TensorFlow's C++ core, the closest to TensorFlow Serving's that the Python
wheel contains. The functions are declared in tensorflow/c/c_api.h and tensorflow/c/tf_tensor.h.
This file imports nothing but NumPy and the standard library.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_STRING = 7
_TYPES = {1: np.float32, 3: np.int32, 4: np.uint8, 9: np.int64, 10: np.bool_}  # of TF_DataType
_STRING_BYTES = 24  # of a TF_TString


class _Output(ctypes.Structure):
    _fields_ = (("operation", ctypes.c_void_p), ("index", ctypes.c_int))


class Session:
    """A SavedModel with the tag "serve", loaded by the C API.

    Args:
        directory: The SavedModel.
        signatures: For each signature, the names of the tensors of its `inputs` and `outputs`.

    Raises:
        RuntimeError: The library says no.
        FileNotFoundError: This TensorFlow has no such library.
    """

    def __init__(
        self, directory: str, signatures: Mapping[str, Mapping[str, Mapping[str, str]]]
    ) -> None:
        self._signatures = signatures
        self._library = _library()
        self._status = self._call("TF_NewStatus")
        self._graph = self._call("TF_NewGraph")
        tags = (ctypes.c_char_p * 1)(b"serve")
        self._session = self._checked(
            "TF_LoadSessionFromSavedModel",
            self._call("TF_NewSessionOptions"),
            None,
            ctypes.c_char_p(directory.encode()),
            tags,
            ctypes.c_int(1),
            self._graph,
            None,
        )

    def run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a signature; arrays of dtype object hold bytes."""
        names = self._signatures[signature]
        fed = self._places([names["inputs"][key] for key in inputs])
        wanted = self._places(list(names["outputs"].values()))
        values = (ctypes.c_void_p * len(fed))(*[self._tensor(inputs[key]) for key in inputs])
        results = (ctypes.c_void_p * len(wanted))()
        self._checked(
            "TF_SessionRun",
            *(self._session, None),
            *(fed, values, ctypes.c_int(len(fed))),
            *(wanted, results, ctypes.c_int(len(wanted))),
            *(None, ctypes.c_int(0), None),
        )
        arrays = {
            key: self._array(ctypes.c_void_p(tensor))
            for key, tensor in zip(names["outputs"], results, strict=True)
        }
        for tensor in (*values, *results):
            self._call("TF_DeleteTensor", ctypes.c_void_p(tensor))
        return arrays

    def _call(self, function: str, *arguments: Any, returns: Any = ctypes.c_void_p) -> Any:
        entry = getattr(self._library, function)
        entry.restype = returns
        result = entry(*arguments)
        return ctypes.c_void_p(result) if returns is ctypes.c_void_p else result

    def _checked(self, function: str, *arguments: Any) -> Any:
        result = self._call(function, *arguments, self._status)
        if self._call("TF_GetCode", self._status, returns=ctypes.c_int):
            message = self._call("TF_Message", self._status, returns=ctypes.c_char_p)
            raise RuntimeError(f"{function}: {message.decode(errors='replace')}")
        return result

    def _places(self, tensors: Sequence[str]) -> Any:
        """Look up tensors by names such as "scores:0"."""
        places = (_Output * len(tensors))()
        for place, tensor in zip(places, tensors, strict=True):
            operation, _, index = tensor.partition(":")
            found = self._call(
                "TF_GraphOperationByName", self._graph, ctypes.c_char_p(operation.encode())
            )
            if not found:
                raise RuntimeError(f"the graph has no operation {operation!r}")
            place.operation, place.index = found, int(index)
        return places

    def _tensor(self, array: np.ndarray) -> int:
        sizes = (ctypes.c_int64 * array.ndim)(*array.shape)
        if array.dtype == object:
            kind, count = _STRING, array.size * _STRING_BYTES
        else:
            array = np.ascontiguousarray(array)
            kind = next(key for key, dtype in _TYPES.items() if dtype == array.dtype)
            count = array.nbytes
        tensor = self._call(
            "TF_AllocateTensor",
            *(ctypes.c_int(kind), sizes, ctypes.c_int(array.ndim), ctypes.c_size_t(count)),
        )
        data = self._call("TF_TensorData", tensor)
        if kind != _STRING:
            ctypes.memmove(data, array.ctypes.data, count)
        else:
            for place, contents in enumerate(array.ravel()):
                string = ctypes.c_void_p((data.value or 0) + place * _STRING_BYTES)
                self._call("TF_StringInit", string, returns=None)
                length = ctypes.c_size_t(len(contents))
                self._call("TF_StringCopy", string, ctypes.c_char_p(contents), length, returns=None)
        return tensor.value or 0

    def _array(self, tensor: ctypes.c_void_p) -> np.ndarray:
        rank = self._call("TF_NumDims", tensor, returns=ctypes.c_int)
        shape = tuple(
            self._call("TF_Dim", tensor, ctypes.c_int(k), returns=ctypes.c_int64)
            for k in range(rank)
        )
        kind = self._call("TF_TensorType", tensor, returns=ctypes.c_int)
        data = self._call("TF_TensorData", tensor)
        if kind != _STRING:
            size = self._call("TF_TensorByteSize", tensor, returns=ctypes.c_size_t)
            return np.frombuffer(ctypes.string_at(data, size), _TYPES[kind]).reshape(shape)
        array = np.empty(shape, object)
        for place in range(array.size):
            string = ctypes.c_void_p((data.value or 0) + place * _STRING_BYTES)
            size = self._call("TF_StringGetSize", string, returns=ctypes.c_size_t)
            start = self._call("TF_StringGetDataPointer", string)
            array.flat[place] = ctypes.string_at(start, size)
        return array


def _library() -> ctypes.CDLL:
    """Load TensorFlow's library from its wheel without importing the package."""
    spec = importlib.util.find_spec("tensorflow")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(folder).glob("libtensorflow_cc.*")):
            return ctypes.CDLL(str(path))
    raise FileNotFoundError("this TensorFlow has no libtensorflow_cc")
