"""Reload an export in a fresh process and compare it with the Keras model on real images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kresnet.data import pixels
from kresnet.errors import ExportError
from kresnet.export import replay
from kresnet.export.contract import Contract

TOLERANCE = 1e-4
"""Largest difference of a probability that still counts as agreement.

Folding and other kernels move a float32 probability by about 1e-6; a wrong mean, channel order or
resize moves it by 1e-2 and more.
"""


@dataclass(frozen=True, slots=True)
class Check:
    """What was compared, and how well it agreed.

    Attributes:
        images: Number of real images.
        signatures: The signatures that answered.
        max_difference: Largest difference of any probability between export and Keras model.
        top1_agreement: Share of images with the same best class.
    """

    images: int
    signatures: tuple[str, ...]
    max_difference: float
    top1_agreement: float

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self) | {"signatures": list(self.signatures)}

    def __str__(self) -> str:
        return (
            f"{self.images} real images, {' and '.join(self.signatures)}, in a fresh process: "
            f"max |dp| {self.max_difference:.1e}, top-1 agreement {self.top1_agreement:.0%}"
        )


def verify(
    directory: Path, model: keras.Model, contract: Contract, samples: Sequence[str]
) -> Check:
    """Compare an export with the model it was made from.

    Args:
        directory: The SavedModel.
        model: The float32 model, not folded, giving logits.
        contract: Labels and preprocessing.
        samples: Paths of real images.

    Raises:
        ExportError: The export does not load, or its probabilities or labels differ.
    """
    decoded = [pixels.decode(tf.io.read_file(path)).numpy() for path in samples]
    images = tf.stack(
        [pixels.prepare_pixels(d[np.newaxis], contract.preprocessing)[0] for d in decoded]
    )
    expected = tf.nn.softmax(model(images, training=False) / contract.temperature).numpy()
    with tempfile.TemporaryDirectory() as folder:
        answer = _replay(directory, samples, decoded, Path(folder))
    names = np.array([name.encode() for name in contract.classes])
    difference = max(
        float(np.abs(answer[key] - expected).max()) for key in ("bytes_scores", "images_scores")
    )
    check = Check(
        images=len(samples),
        signatures=("serving_bytes", "serving_default"),
        max_difference=difference,
        top1_agreement=float(
            (answer["bytes_scores"].argmax(axis=1) == expected.argmax(axis=1)).mean()
        ),
    )
    labels_agree = np.array_equal(answer["labels"], names[answer["bytes_scores"].argmax(axis=1)])
    if not difference <= TOLERANCE or not labels_agree:
        raise ExportError(
            f"An export must answer as the Keras model does, within {TOLERANCE:g}. Received: "
            f"{check}, labels {'right' if labels_agree else 'wrong'}. It was not published."
        )
    return check


def _replay(
    directory: Path, samples: Sequence[str], decoded: Sequence[np.ndarray], folder: Path
) -> dict[str, np.ndarray]:
    arrays = [folder / f"{k}.npy" for k in range(len(decoded))]
    for path, array in zip(arrays, decoded, strict=True):
        np.save(path, array)
    request, answer = folder / "request.json", folder / "answer.npz"
    request.write_text(
        json.dumps({"paths": list(samples), "pixels": [str(path) for path in arrays]}),
        encoding="utf-8",
    )
    process = subprocess.run(  # -I: neither the current folder nor PYTHONPATH can help it
        [sys.executable, "-I", str(replay.__file__), str(directory), str(request), str(answer)],
        capture_output=True,
        text=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        check=False,
    )
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise ExportError(
            "An export must load and answer in a fresh process. "
            f"Received: exit code {process.returncode}, {reason}. It was not published."
        )
    with np.load(answer) as arrays_out:
        return dict(arrays_out)
