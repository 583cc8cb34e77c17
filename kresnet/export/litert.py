"""Write LiteRT, once called TensorFlow Lite: for phones, one image at a time.

Dynamic shapes keep LiteRT from its fast paths, and an app crops and scales with the camera's own
means, so the input is the square that the model looks at, already resized.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kresnet.errors import ExportError
from kresnet.export.contract import Contract


def write_litert(
    folded: keras.Model,
    contract: Contract,
    path: Path,
    *,
    calibration: Sequence[np.ndarray] | None = None,
) -> None:
    """Convert and write.

    The file has the signature "serving_default": `images` uint8 `(1, s, s, 3)`, RGB, to `scores`
    float32 `(1, k)`.

    Args:
        folded: Gives logits, in float32 with its norms folded.
        contract: Preprocessing and temperature.
        path: The file.
        calibration: Training images as uint8 `(s, s, 3)`; with them, weights and activations have
            8 bits.

    Raises:
        ExportError: The converter has lost the weights.
    """
    size = contract.preprocessing.image_size
    mean, std = (
        255 * np.array(values, np.float32)
        for values in (contract.preprocessing.mean, contract.preprocessing.std)
    )
    # In 8 bits the input is quantized by the converter; else it comes as whole numbers.
    dtype = tf.uint8 if calibration is None else tf.float32

    def answer(images: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = folded((tf.cast(images, tf.float32) - mean) / std, training=False)
        return {"scores": tf.nn.softmax(logits / contract.temperature)}

    spec = tf.TensorSpec((1, size, size, 3), dtype, "images")
    module = tf.Module()
    module.weights = [variable.value for variable in folded.variables]
    traced = tf.function(answer, input_signature=[spec], autograph=False)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        # By way of a SavedModel: a converter given functions drops the weights (keras#18430), and
        # names the input and output as it likes.
        tf.saved_model.save(module, folder, signatures={"serving_default": traced})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if calibration is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = tf.uint8
            converter.representative_dataset = lambda: (
                {"images": image[np.newaxis].astype(np.float32)} for image in calibration
            )
        content = converter.convert()
    weights = sum(int(np.prod(variable.shape)) for variable in folded.variables)
    if len(content) < weights * (1 if calibration is not None else 4):
        raise ExportError(
            f"A LiteRT file holds all weights. Received: {len(content)} bytes for {weights} of "
            "them. Report this."
        )
    path.write_bytes(content)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the converter's notices, which heed no log level, off the standard error."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tf.lite is to move; the converter has not yet
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
