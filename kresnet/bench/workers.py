"""Time the training step of two workers on this machine beside that of one.

    python -m kresnet.bench.workers
    python -m kresnet.bench.workers --norms trainable --json

Each turn starts the processes anew, every worker on cores of its own: one on all cores, one on as
many as each of the two has, and two. All compute the same batch, in the precision that is planned
here; two have half of it each and sum the gradient over loopback. Printed are medians over the
turns of the median step, and how much of twice the speed of one worker on its share of the cores
the two have.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median

from kresnet.machine import free_addresses, own_cores, processor, shares, staying_on

_CLASSES = 10
_LIMIT_S = 1800.0


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--variant", default="resnet50", help="network")
    parser.add_argument("--norms", choices=("frozen", "trainable"), default="frozen", help="state")
    parser.add_argument("--image-size", type=int, default=224, help="side of the images")
    parser.add_argument("--batch-size", type=int, default=32, help="images a step, of all workers")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of a process")
    parser.add_argument("--turns", type=int, default=3, help="how often each is started")
    parser.add_argument("--json", action="store_true", help="print the seconds a step, too")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_timed(options)))
        return
    cores = own_cores()
    half = shares(cores, 2)[0]
    cases: dict[str, Sequence[Sequence[int]]] = {
        f"1 worker, {len(cores)} cores": [cores],
        f"1 worker, {len(half)} of them": [half],
        f"2 workers, {len(half)} each": shares(cores, 2),
    }
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(options.turns):
        for name, places in cases.items():
            taken[name].append(_together(places))
    from kresnet.train.hardware import resolve_precision

    print(f"{processor()}, {len(cores)} cores")
    print(
        f"{options.variant}, norms {options.norms}, {options.image_size} px, "
        f"{options.batch_size} images a step, {resolve_precision('auto')}, {options.turns} turns\n"
    )
    print(table(taken, options.batch_size))
    if options.json:
        print(json.dumps(taken))


def table(taken: dict[str, list[float]], batch_size: int) -> str:
    """Return speeds as Markdown.

    Args:
        taken: For one worker on all cores, one on its share, and two: seconds a step, by turns.
        batch_size: Images a step.
    """
    lines = ["| workers | images/s | lowest-highest |", "|---|---|---|"]
    for name, times in taken.items():
        speeds = sorted(batch_size / one for one in times)
        lines.append(f"| {name} | {median(speeds):.1f} | {speeds[0]:.1f}-{speeds[-1]:.1f} |")
    _, one, two = (median(times) for times in taken.values())
    lines.append(f"\n2 workers: {one / two:.2f} x one of them ({one / two / 2:.0%} of twice)")
    return "\n".join(lines)


def _together(places: Sequence[Sequence[int]]) -> float:
    """Return the seconds of a step of as many workers as there are places."""
    addresses = free_addresses(len(places))
    started = []
    for rank, cores in enumerate(places):
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
        own = {
            "TF_CONFIG": json.dumps(cluster),
            "TF_NUM_INTRAOP_THREADS": str(len(cores)),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        command = [sys.executable, "-m", "kresnet.bench.workers", *sys.argv[1:], "--child"]
        with staying_on(cores):
            started.append(
                subprocess.Popen(
                    command,
                    env=os.environ | own,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )
    said = [one.communicate(timeout=_LIMIT_S)[0] for one in started]
    if any(one.returncode for one in started):
        raise SystemExit(f"A worker has failed: {[one.returncode for one in started]}")
    return max(float(json.loads(text.splitlines()[-1])) for text in said)


def _timed(options: argparse.Namespace) -> float:
    """Return the median seconds of a step of this worker's."""
    from kresnet.train.distribute import assembled

    team = assembled()

    import numpy as np
    import tensorflow as tf

    from kresnet.train.hardware import policy_name, resolve_precision
    from kresnet.train.optimizer import optimizer_for
    from kresnet.train.step import train_step
    from kresnet.zoo import build, freeze_norms

    side, size = options.image_size, options.batch_size // team.size
    with team.scope():
        model = build(
            options.variant,
            num_classes=_CLASSES,
            input_shape=(side, side),
            dtype=policy_name(resolve_precision("auto")),
        )
        if options.norms == "frozen":
            freeze_norms(model)
        optimizer = optimizer_for(
            model,
            "adamw",
            weight_decay=1e-2,
            layer_decay=1.0,
            clip_norm=1.0,
            summed=team.replicas > 1,
        )
        optimizer.learning_rate = 1e-5
        team.share(model.variables)
        step = train_step(model, optimizer, team=team)
        rng = np.random.default_rng(team.rank)
        images = rng.normal(size=(size, side, side, 3))
        targets = np.eye(_CLASSES)[rng.integers(0, _CLASSES, size)]
        batch = [tf.constant(a, tf.float32) for a in (images, targets, np.ones(size))]
        taken = []
        for turn in range(-2, options.steps):
            started = time.perf_counter()
            float(step(*batch))
            if turn >= 0:
                taken.append(time.perf_counter() - started)
    team.leave()
    return median(taken)


if __name__ == "__main__":
    main()
