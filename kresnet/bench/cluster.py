"""Predict what more workers bring: the time of a step beside the time of summing its gradients.

    python -m kresnet.bench.cluster
    python -m kresnet.bench.cluster --images-per-second 1000 --batch 128 --gbit 100

Each worker computes its share of a batch, and then all sum their gradients in a ring: each sends
`2 (n - 1) / n` times the bytes of all gradients, and receives as many, in `2 (n - 1)` turns, one
after the other (Patarasso and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002; Thakur et al. 2005,
doi:10.1177/1094342005051521). The sum begins when the last gradient is there, so the times add up.
What is not in the model: input, stragglers, evaluation, and other traffic.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kresnet.zoo.size import measure
from kresnet.zoo.variants import variant_config

WORKERS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
GBIT: Final = (10.0, 25.0, 100.0)
VARIANTS: Final = ("resnet50", "resnet152")
_BYTES: Final = 4  # of a gradient: float32, whatever the step computes in


@dataclass(frozen=True, slots=True)
class Network:
    """What connects the workers.

    Attributes:
        gbit: Rate of each worker's link, in both directions at once, in 1e9 bits a second.
        reached: Share of it that transfers reach, 0 to 1.
        turn_s: Seconds that a turn of the ring takes besides its bytes.
    """

    gbit: float
    reached: float = 0.8
    turn_s: float = 50e-6

    def sum_s(self, size: int, workers: int) -> float:
        """Return the seconds in which some workers sum `size` bytes that each of them has."""
        rate = self.gbit * 1e9 / 8 * self.reached  # bytes a second
        return 2 * (workers - 1) * (size / workers / rate + self.turn_s)


def efficiency(step_s: float, sum_s: float) -> float:
    """Return the share of a step in which a worker computes, 0 to 1."""
    return step_s / (step_s + sum_s)


def gradient_bytes(variant: str) -> int:
    """Return the bytes of all gradients of a variant: what each step sums."""
    return _BYTES * measure(variant_config(variant)).params


def step_s(variant: str, *, like: str, images_per_second: float, batch: int) -> float:
    """Return the seconds of a worker's step, from the speed of another variant.

    Args:
        variant: The variant that trains.
        like: The variant that was measured; times are in proportion to multiplications.
        images_per_second: Of the measured one, at its own image size.
        batch: Images of a worker in a step.
    """
    share = measure(variant_config(variant)).macs / measure(variant_config(like)).macs
    return batch / images_per_second * share


def table(
    variants: Sequence[str],
    networks: Sequence[Network],
    workers: Sequence[int],
    *,
    images_per_second: float,
    batch: int,
) -> str:
    """Return as Markdown what part of their speed workers keep.

    The speed is that of the first variant.
    """
    lines = [
        f"A worker makes {images_per_second:g} images/s of {variants[0]}, {batch} in a step.",
        "",
        "| variant | gradients, MB | step, ms | Gbit/s | sum of two, ms | "
        + " | ".join(f"{n:,}" for n in workers)
        + " |",
        "|---|---|---|---|---|" + "---|" * len(workers),
    ]
    for variant in variants:
        size = gradient_bytes(variant)
        step = step_s(variant, like=variants[0], images_per_second=images_per_second, batch=batch)
        for network in networks:
            shares = (efficiency(step, network.sum_s(size, n)) for n in workers)
            lines.append(
                f"| {variant} | {size / 1e6:.0f} | {1e3 * step:.0f} | {network.gbit:g} | "
                f"{1e3 * network.sum_s(size, 2):.0f} | "
                + " | ".join(f"{share:.0%}" for share in shares)
                + " |"
            )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--variants", nargs="+", default=VARIANTS, help="the first was measured")
    parser.add_argument("--images-per-second", type=float, default=20.3, help="of one worker")
    parser.add_argument("--batch", type=int, default=32, help="images of a worker in a step")
    parser.add_argument("--gbit", type=float, nargs="+", default=GBIT, help="of each link")
    parser.add_argument("--reached", type=float, default=0.8, help="share of it that is reached")
    parser.add_argument("--turn-us", type=float, default=50.0, help="of a turn besides its bytes")
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS, help="how many")
    options = parser.parse_args()
    networks = [Network(gbit, options.reached, options.turn_us * 1e-6) for gbit in options.gbit]
    print(
        table(
            options.variants,
            networks,
            options.workers,
            images_per_second=options.images_per_second,
            batch=options.batch,
        )
    )


if __name__ == "__main__":
    main()
