"""Time a training step as it runs here, as it is written, and in float32, in turns in one process.

    python -m kresnet.bench.step --norms frozen
    python -m kresnet.bench.step --norms trainable

The first two are in bfloat16 and differ in what `kresnet.zoo` does another way on processors, which
is in bfloat16 alone. Printed are the medians and quartiles of images a second, and the ratio of the
times of neighbouring steps.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from statistics import median, quantiles
from typing import Literal, get_args

import numpy as np
import tensorflow as tf

from kresnet.machine import cores, processor
from kresnet.train.hardware import policy_name
from kresnet.train.optimizer import optimizer_for
from kresnet.train.step import Step, train_step
from kresnet.zoo import build, freeze_norms
from kresnet.zoo.processor import Part, as_written

_CLASSES = 10


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--variant", default="resnet50", help="network")
    parser.add_argument("--norms", choices=("frozen", "trainable"), default="frozen", help="state")
    parser.add_argument("--image-size", type=int, default=224, help="side of the images")
    parser.add_argument("--batch-size", type=int, default=32, help="images a step")
    parser.add_argument("--turns", type=int, default=9, help="timed steps of each")
    parser.add_argument(
        "--part", choices=get_args(Part), action="append", help="compare this part alone"
    )
    options = parser.parse_args()
    print(f"{processor()}, {cores()} cores, TensorFlow {tf.__version__}")
    print(
        f"{options.variant}, norms {options.norms}, {options.image_size} px, "
        f"{options.batch_size} images\n"
    )
    batch = drawn(options.batch_size, options.image_size)
    steps = {}
    for name in ("as written", "as run", "float32"):
        steps[name] = training_step(
            options.variant,
            options.norms,
            options.image_size,
            "float32" if name == "float32" else "bfloat16",
        )
        with as_written(*options.part or ()) if name == "as written" else nullcontext():
            steps[name](*batch)  # traces
    print(table(timed(steps, batch, options.turns), options.batch_size))


def training_step(
    variant: str, norms: str, image_size: int, precision: Literal["float32", "bfloat16"]
) -> Step:
    """Return a step of a new network, with `norms` "frozen" or "trainable", and AdamW."""
    model = build(
        variant,
        num_classes=_CLASSES,
        input_shape=(image_size, image_size),
        dtype=policy_name(precision),
    )
    if norms == "frozen":
        freeze_norms(model)
    optimizer = optimizer_for(model, "adamw", weight_decay=1e-2, layer_decay=1.0, clip_norm=1.0)
    optimizer.learning_rate = 1e-5
    return train_step(model, optimizer)


def drawn(size: int, side: int) -> tuple[tf.Tensor, ...]:
    """Return images of normal values, targets and weights, the same each time."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(size, side, side, 3))
    targets = np.eye(_CLASSES)[rng.integers(0, _CLASSES, size)]
    return tuple(tf.constant(a, tf.float32) for a in (images, targets, np.ones(size)))


def timed(
    steps: dict[str, Step], batch: tuple[tf.Tensor, ...], turns: int
) -> dict[str, list[float]]:
    """Return the seconds of each step, turn by turn, after two turns to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(-2, turns):
        for name, step in steps.items():
            started = time.perf_counter()
            float(step(*batch))
            if turn >= 0:
                taken[name].append(time.perf_counter() - started)
    return taken


def table(taken: dict[str, list[float]], batch_size: int) -> str:
    """Return medians, quartiles and ratios as Markdown; the first is what others compare with."""
    first = np.array(next(iter(taken.values())))
    lines = ["| step | images/s | quartiles | ratio | lowest-highest |", "|---|---|---|---|---|"]
    for name, times in taken.items():
        low, _, high = quantiles((batch_size / t for t in times), n=4)
        ratios = first / np.array(times)
        lines.append(
            f"| {name} | {batch_size / median(times):.1f} | {low:.1f}-{high:.1f} | "
            f"{np.median(ratios):.2f} | {ratios.min():.2f}-{ratios.max():.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
