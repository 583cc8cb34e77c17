"""Time the ways to compute a kernel's gradient, shape by shape, and check the table of the zoo.

    python -m kresnet.bench.gradients

The ways take turns, so that whatever else the machine does hits all of them. Printed are medians in
milliseconds, the fastest way, and the one that `kresnet.zoo.gradients` takes for the shape. Where
they differ, the machine is another than the one of the table, or busy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import tensorflow as tf

from kresnet.machine import cores, processor
from kresnet.zoo.gradients import MEASURED, Padding, Way, fastest_way, kernel_gradient

Shape = tuple[int, int, int, int, int]

_BETWEEN: tuple[Shape, ...] = (
    # Beside those of the table, what images of 160, 256 and 320 pixels have in the last stages.
    (3, 1, 5, 512, 512),
    (3, 1, 8, 512, 512),
    (3, 1, 10, 512, 512),
    (3, 2, 20, 512, 512),
    (1, 2, 20, 1024, 2048),
)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch-size", type=int, default=32, help="images")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of x")
    parser.add_argument("--turns", type=int, default=9, help="turns of every way")
    options = parser.parse_args()
    print(f"{processor()}, {cores()} cores, TensorFlow {tf.__version__}")
    print(f"{options.batch_size} images, {options.dtype}\n")
    print("| kernel | stride | map | channels | convolution | others | fastest | taken |")
    print("|---|---|---|---|---|---|---|---|")
    for shape in (*(row[:5] for row in MEASURED["bfloat16"]), *_BETWEEN):
        times = timed(shape, options.batch_size, options.dtype, options.turns)
        print(line(shape, times, options.dtype))


def timed(shape: Shape, batch_size: int, dtype: str, turns: int) -> dict[Way, float]:
    """Return the median milliseconds of each way.

    Args:
        shape: Kernel, stride, side of the input, channels in, channels out.
        batch_size: Images.
        dtype: Of input and gradients.
        turns: Timed calls of each way, after two to warm up.
    """
    size, strides, side, channels, filters = shape
    kernel = (size, size, channels, filters)
    # Strided convolutions of the zoo pad the image themselves.
    margin = size - 1 if strides > 1 else 0
    after = -(-side // strides)
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(batch_size, side + margin, side + margin, channels)), dtype)
    dy = tf.constant(rng.normal(size=(batch_size, after, after, filters)), dtype)
    padding: Padding = "VALID" if margin else "SAME"

    def compiled(way: Way) -> Any:
        return tf.function(
            lambda x, dy: kernel_gradient(x, dy, kernel, strides, padding, way), autograph=False
        )

    others: Sequence[Way] = ("matmul",) if size == 1 else ("shifts", "patches")
    runs = {way: compiled(way) for way in ("convolution", *others)}
    taken: dict[Way, list[float]] = {way: [] for way in runs}
    for turn in range(-2, turns):
        for way, run in runs.items():
            started = time.perf_counter()
            run(x, dy).numpy()
            if turn >= 0:
                taken[way].append(1000 * (time.perf_counter() - started))
    return {way: median(times) for way, times in taken.items()}


def line(shape: Shape, times: dict[Way, float], dtype: str) -> str:
    """Return a row of the table."""
    size, strides, side, channels, filters = shape
    chosen = fastest_way((size, size, channels, filters), strides, (side, side), dtype)
    others = ", ".join(f"{way} {ms:.1f}" for way, ms in times.items() if way != "convolution")
    fastest = min(times, key=lambda way: times[way])
    return (
        f"| {size}x{size} | {strides} | {side}x{side} | {channels} -> {filters} | "
        f"{times['convolution']:.1f} | {others} | {fastest} | {chosen} |"
    )


if __name__ == "__main__":
    main()
