"""What an export can be asked: its signatures, read from the SavedModel's own definition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from kresnet.errors import ExportError
from kresnet.serve.status import invalid

CLASSIFY = "tensorflow/serving/classify"

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Spec:
    """One named tensor.

    Attributes:
        name: As clients call it.
        dtype: TensorFlow's type.
        shape: None for what varies; the first is the batch.
    """

    name: str
    dtype: tf.DType
    shape: tuple[int | None, ...]

    @property
    def is_text(self) -> bool:
        """Whether it holds strings, which NumPy keeps as objects."""
        return bool(self.dtype == tf.string)


@dataclass(frozen=True, slots=True)
class Signature:
    """One function of the export.

    Attributes:
        name: As "serving_default".
        method: As "tensorflow/serving/predict".
        inputs: By name, in the order of the names.
        outputs: By name, in the order of the names.
    """

    name: str
    method: str
    inputs: Mapping[str, Spec]
    outputs: Mapping[str, Spec]

    def check(self, arrays: Arrays) -> int:
        """Check that arrays fit the inputs, and return how many rows they have.

        Raises:
            RequestError: They do not.
        """
        if set(arrays) != set(self.inputs):
            raise invalid(
                f'The inputs of "{self.name}" are {_listed(self.inputs)}. '
                f"Received: {_listed(arrays)}."
            )
        rows = {len(array) if array.ndim else -1 for array in arrays.values()}
        if len(rows) != 1 or rows & {-1, 0}:
            raise invalid("The first dimension of every input is the batch, of at least one.")
        for name, array in arrays.items():
            expected = self.inputs[name].shape
            fits = array.ndim == len(expected) and all(
                size == want if want is not None else size > 0
                for size, want in zip(array.shape, expected, strict=True)
            )
            if not fits:
                shape = [-1 if size is None else size for size in expected]
                raise invalid(f'The shape of "{name}" is {shape}. Received: {list(array.shape)}.')
        return rows.pop()


def read_signatures(directory: Path) -> dict[str, Any]:
    """Read the SignatureDefs of a SavedModel, without loading it.

    Raises:
        ExportError: There is no readable SavedModel.
    """
    try:
        model = saved_model_pb2.SavedModel.FromString((directory / "saved_model.pb").read_bytes())
        graph = next(graph for graph in model.meta_graphs if "serve" in graph.meta_info_def.tags)
    except (OSError, DecodeError, StopIteration) as error:
        raise ExportError(
            f"The export must be readable. Received: {directory} ({error!r}). Export again."
        ) from None
    return {name: graph.signature_def[name] for name in sorted(graph.signature_def)}


def callable_signatures(definitions: Mapping[str, Any]) -> dict[str, Signature]:
    """Turn SignatureDefs into signatures; those without inputs only initialise."""
    return {
        name: Signature(
            name,
            definition.method_name,
            _specs(definition.inputs),
            _specs(definition.outputs),
        )
        for name, definition in definitions.items()
        if definition.inputs
    }


def _specs(infos: Mapping[str, Any]) -> dict[str, Spec]:
    return {
        name: Spec(
            name,
            tf.dtypes.as_dtype(infos[name].dtype),
            tuple(dim.size if dim.size >= 0 else None for dim in infos[name].tensor_shape.dim),
        )
        for name in sorted(infos)
    }


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(repr(name[:60]) for name in sorted(names)[:10]) or "none"
