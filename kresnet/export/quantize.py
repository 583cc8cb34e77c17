"""int8 for ONNX: weights and activations in 8 bits, with ranges taken from real images.

Activations are unsigned and weights signed, the pair that x86's VNNI multiplies; signed
activations are no faster there than float32 (onnxruntime#12072).
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

CALIBRATIONS: Final = ("Percentile", "MinMax", "Entropy")
"""Ways to find the range of an activation, in the order to try; see `quantized`."""

# All that a ResNet has but the softmax, whose scores 8 bits are too few for. With "Relu" here, it
# becomes a part of the convolution before it, and nothing in between is in float.
_OPERATIONS: Final = [
    *("Conv", "MatMul", "Gemm", "Add", "Mul", "Relu"),
    *("MaxPool", "AveragePool", "GlobalAveragePool"),
    *("Transpose", "Squeeze", "Reshape", "Pad", "Concat"),
]

_STRIDE: Final = 8  # images whose activations are in memory together


def quantized(network: Any, images: Sequence[np.ndarray], calibration: str) -> Any:
    """Return an ONNX network in 8 bits.

    Args:
        network: From `onnx.network`: `prepared` to `scores`, an onnx.ModelProto.
        images: Prepared training images, float32 `(s, s, 3)` each.
        calibration: "Percentile" keeps all but 0.001 % of the values within the range, "MinMax"
            every one, "Entropy" loses the least information.
    """
    import onnx
    from onnxruntime import quantization

    logging.getLogger().addFilter(_is_about_preprocessing)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),  # it prints how far it has come
        ):
            warnings.simplefilter("ignore")  # of NumPy, about how onnxruntime uses it
            plain, inferred, result = (str(Path(folder) / f"{k}.onnx") for k in range(3))
            onnx.save(network, plain)
            quantization.quant_pre_process(plain, inferred, skip_symbolic_shape=True)
            quantization.quantize_static(
                inferred,
                result,
                _Reader(images),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=getattr(quantization.CalibrationMethod, calibration),
                op_types_to_quantize=_OPERATIONS,
                extra_options={"CalibStridedMinMax": min(_STRIDE, len(images))},
            )
            return onnx.load(result)
    finally:
        logging.getLogger().removeFilter(_is_about_preprocessing)


class _Reader:
    """Gives calibration images a stride at a time, as onnxruntime's CalibrationDataReader does."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        whole = max(len(images) // _STRIDE * _STRIDE, min(len(images), _STRIDE))
        self._images = images[:whole]  # onnxruntime wants whole strides
        self._rest: Iterator[np.ndarray] = iter(self._images)

    def __len__(self) -> int:
        return len(self._images)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Give the images from `start_index` to `end_index` next."""
        self._rest = iter(self._images[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next feed, or None."""
        image = next(self._rest, None)
        return None if image is None else {"prepared": image[np.newaxis]}


def _is_about_preprocessing(record: logging.LogRecord) -> bool:
    """Filter: onnxruntime's advice to do what has been done (the root logger is its own)."""
    return "pre-processing before quantization" not in record.getMessage()
