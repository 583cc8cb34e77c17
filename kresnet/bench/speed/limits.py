"""What the machine could do at best: products, convolutions and copies."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from kresnet.machine import cores

_TIMES: Final = 6
_COPIED: Final = 1 << 28  # bytes, beyond what caches hold


def measure(
    *, side: int = 4096, image: int = 28, channels: int = 256, copied: int = _COPIED
) -> dict[str, float]:
    """Return the best rates of some calls, the first one passed over, by name with unit.

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
    return rates | {"copy GB/s": _copy_rate(copied)}


def convolution(
    dtype: str, image: int = 28, channels: int = 256
) -> tuple[Callable[[], object], float]:
    """Return the 3x3 convolution of `measure`, and its floating-point operations."""
    import tensorflow as tf

    images = tf.cast(tf.random.normal((16, image, image, channels)), dtype)
    kernel = tf.cast(tf.random.normal((3, 3, channels, channels)), dtype)
    compute = tf.function(lambda x, k: tf.nn.conv2d(x, k, 1, "SAME"))
    return partial(compute, images, kernel), 2.0 * 16 * image**2 * 9 * channels**2


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
