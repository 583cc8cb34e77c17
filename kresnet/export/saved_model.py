"""Write the SavedModel that TensorFlow Serving loads: bytes in, labels and scores out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import keras
import tensorflow as tf

from kresnet.errors import ExportError
from kresnet.export.contract import Contract
from kresnet.export.integers import Integers
from kresnet.export.servable import Servable
from kresnet.zoo import fold

GRAPHS_BYTES: Final = 8_000_000
"""What a version may take besides its weights: four graphs, golden images, warm-up requests."""


def write_saved_model(
    model: keras.Model,
    contract: Contract,
    directory: Path,
    *,
    network: keras.Model | None = None,
) -> None:
    """Write graph, weights and labels.

    Args:
        model: Gives logits; from `kresnet.build`.
        contract: Labels, preprocessing, temperature, threshold, precision.
        directory: An existing directory; the files go right into it.
        network: What is written of the model; None folds it. In int8, from `integers.in_integers`.

    Raises:
        ExportError: A label has line breaks, or the model is not of kresnet's form.
    """
    check_labels(contract.classes)
    labels = directory / "labels.txt"
    labels.write_text("\n".join(contract.classes) + "\n", encoding="utf-8")
    network = network or fold(model, dtype=contract.precision, portable=False)
    servable = Servable(network, contract, labels)
    tf.saved_model.save(
        servable,
        str(directory),
        signatures={
            "serving_default": servable.serve_images,
            "serving_bytes": servable.serve_bytes,
            "explain": servable.explain,
            "classify": servable.classify,
        },
    )
    # Without this method name, TensorFlow Serving's Classify would refuse it.
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(directory))
    updater.replace_method_name("classify", "tensorflow/serving/classify")
    updater.save()
    labels.unlink()  # the copy under assets/ stays
    _check_size(directory, network)


def check_labels(classes: Sequence[str]) -> None:
    """Make sure that a file can hold the labels, one a line.

    Raises:
        ExportError: One has line breaks.
    """
    names = [name for name in classes if "\n" in name or "\r" in name]
    if names:
        raise ExportError(f"A label must be one line. Received: {names[0]!r}. Rename that class.")


def size_of_saved_model(directory: Path) -> int:
    """Return the bytes of what `write_saved_model` and its neighbours wrote, other formats not."""
    parts = ("saved_model.pb", "fingerprint.pb", "variables/*", "assets/*", "assets.extra/**/*")
    found = {file for part in parts for file in directory.glob(part) if file.is_file()}
    return sum(file.stat().st_size for file in found)


def _check_size(directory: Path, model: keras.Model) -> None:
    stored = size_of_saved_model(directory)
    needed = sum(
        tf.as_dtype(variable.dtype).size * math.prod(variable.shape) for variable in model.variables
    ) + sum(layer.constants for layer in model.layers if isinstance(layer, Integers))
    if stored > 1.1 * needed + GRAPHS_BYTES:
        raise ExportError(
            f"An export stores each weight once. Received: {stored} bytes for {needed} bytes of "
            "weights. Report this."
        )
