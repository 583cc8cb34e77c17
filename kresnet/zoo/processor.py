"""What is computed another way where TensorFlow runs on processors: it is faster there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, get_args

import keras

Part = Literal["gradients", "norms"]

_as_written: ContextVar[tuple[Part, ...]] = ContextVar("as_written", default=())


@contextmanager
def as_written(*parts: Part) -> Iterator[None]:
    """Trace some parts, or all, as on every other backend and device, to compare with."""
    token = _as_written.set(parts or get_args(Part))
    try:
        yield
    finally:
        _as_written.reset(token)


def on_processor(part: Part) -> bool:
    """Return whether a part is traced now for TensorFlow that has no device but the processor.

    On GPUs cuDNN has no gaps of this kind, and is left alone.
    """
    if keras.backend.backend() != "tensorflow" or part in _as_written.get():
        return False
    import tensorflow as tf

    return {device.device_type for device in tf.config.list_logical_devices()} <= {"CPU"}


def normalize(x: Any, scale: Any, offset: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """Normalise by the batch's statistics, in TensorFlow's one operation for it.

    It reads and writes activations in their own dtype, computes in float32, takes the variance from
    the mean in a second pass, and the ReLU behind it is fused. Written out, each of these steps and
    of their gradients is a pass over activations in float32.

    Sums are taken one by one, as PyTorch's are, to the same digits. In float32 they are off by two
    to three times as much as the formulas': by 1e-5 of the variance of 100,000 pixels, by 4e-6.

    Args:
        x: `(b, h, w, c)`, float32 or bfloat16.
        scale: gamma `(c,)`, float32.
        offset: beta `(c,)`, float32.
        epsilon: Added to the variance.

    Returns:
        The result, like `x`, and mean and (biased) variance `(c,)`, float32.
    """
    import tensorflow as tf

    none = tf.zeros((0,))
    result = tf.raw_ops.FusedBatchNormV3(
        x=x, scale=scale, offset=offset, mean=none, variance=none, epsilon=epsilon
    )
    # `batch_variance` is the unbiased one; on processors this is what the gradient is taken with.
    return result.y, result.batch_mean, result.reserve_space_2
