"""What the machine could do at best: products, convolutions and copies."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Final

from kresnet.machine import cores

INTEGERS: Final = "convolution int8 GFLOP/s"
"""Name of the rate of 8-bit convolutions, in `measure`."""

_TIMES: Final = 6
_COPIED: Final = 1 << 28  # bytes, beyond what caches hold


def measure(
    *, side: int = 4096, image: int = 28, channels: int = 256, copied: int = _COPIED
) -> dict[str, float]:
    """Return the best rates of some calls, the first one passed over, by name with unit.

    TensorFlow without oneDNN has no convolution in 8 bits, and then there is no rate of one.

    Args:
        side: Of the square matrices that are multiplied.
        image: Side of the images of the 3x3 convolution, 16 at a time.
        channels: Of these, in and out.
        copied: Bytes that are copied; each counts twice, read and written.
    """
    import tensorflow as tf

    rates: dict[str, float] = {}
    for dtype in (tf.float32, tf.bfloat16):
        a, b = (tf.cast(tf.random.normal((side, side)), dtype) for _ in range(2))
        product = tf.function(tf.matmul)
        rates |= {
            f"product {dtype.name} GFLOP/s": _rate(partial(product, a, b), 2 * side**3),
            f"convolution {dtype.name} GFLOP/s": _rate(*convolution(dtype.name, image, channels)),
        }
    with suppress(tf.errors.OpError):
        rates[INTEGERS] = _rate(*convolution("int8", image, channels))
    return rates | {"copy GB/s": _copy_rate(copied)}


def convolution(
    dtype: str, image: int = 28, channels: int = 256
) -> tuple[Callable[[], object], float]:
    """Return the 3x3 convolution of `measure`, and its operations."""
    import tensorflow as tf

    work = 2.0 * 16 * image**2 * 9 * channels**2
    if dtype == "int8":
        return _in_8_bits(image, channels), work
    images = tf.cast(tf.random.normal((16, image, image, channels)), dtype)
    kernel = tf.cast(tf.random.normal((3, 3, channels, channels)), dtype)
    compute = tf.function(lambda x, k: tf.nn.conv2d(x, k, 1, "SAME"))
    return partial(compute, images, kernel), work


def _in_8_bits(image: int, channels: int) -> Callable[[], object]:
    import numpy as np
    import tensorflow as tf

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, image, image, channels)).astype(tf.quint8.as_numpy_dtype)
    kernel = rng.integers(-127, 128, (3, 3, channels, channels)).astype(tf.qint8.as_numpy_dtype)
    compute = tf.function(
        lambda x: (
            tf.raw_ops.QuantizedConv2DWithBiasAndReluAndRequantize(
                input=x,
                filter=tf.constant(kernel, tf.qint8),
                bias=np.zeros(channels, np.float32),
                min_input=0.0,
                max_input=1.0,
                min_filter=-np.ones(channels, np.float32),
                max_filter=np.ones(channels, np.float32),
                min_freezed_output=0.0,
                max_freezed_output=100.0,
                strides=(1, 1, 1, 1),
                padding="SAME",
            ).output
        )
    )
    return partial(compute, tf.constant(images, tf.quint8))


def _copy_rate(size: int) -> float:
    import numpy as np

    part, threads = size // cores(), cores()
    pairs = [(np.ones(part, np.uint8), np.ones(part, np.uint8)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        return _rate(lambda: list(pool.map(lambda pair: np.copyto(*pair), pairs)), 2 * size)


def _rate(call: Callable[[], object], amount: float) -> float:
    """Return 1e9 of `amount` a second, at the best of some calls."""
    call()
    best = float("inf")
    for _ in range(_TIMES):
        started = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - started)
    return amount / best / 1e9
