"""What is computed another way where TensorFlow runs on processors: it is faster there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, get_args

import keras

Part = Literal["gradients"]

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
