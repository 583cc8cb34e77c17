"""Training steps of kresnet's zoo on JAX beside timm's on PyTorch, on the same GPU, in turns.

    python -m kresnet.bench.cuda --batches 64,128,256,512

It takes keras, jax with CUDA, torch, torchvision and timm, and no TensorFlow. Both train every
weight with AdamW on one drawn batch of 1000 classes that lies in the GPU's memory, in bfloat16:
kresnet as one function compiled by XLA, timm channels last with the faster of autocast alone and
autocast with torch.compile. "Frozen" norms keep their statistics; gamma and beta are trained all
the same. Printed are images a second, medians and quartiles, and the ratios of neighbouring turns.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from kresnet.bench.speed.results import spread
from kresnet.bench.speed.rotation import Contender, Outcome, rotate

_STEPS = "kresnet.bench.cuda_steps"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--variant", default="resnet50", help="network")
    parser.add_argument("--image-size", type=int, default=224, help="side of the images")
    parser.add_argument("--batches", default="64,128,256,512", help="images a step, rising")
    parser.add_argument("--norms", default="frozen,learning", help="their states")
    parser.add_argument("--turns", type=int, default=5, help="of each contender")
    parser.add_argument("--steps", type=int, default=10, help="timed in a turn")
    parser.add_argument("--precision", default="bfloat16", help="or float16, or float32")
    options = parser.parse_args(arguments)
    headed = False
    with tempfile.TemporaryDirectory() as folder:
        for norms in options.norms.split(","):
            for batch in map(int, options.batches.split(",")):
                print(f"{norms} norms, {batch} images", file=sys.stderr)
                found = rotate(
                    *contenders(options, frozen=norms == "frozen", batch=batch),
                    rounds=options.turns,
                    logs=Path(folder),
                )
                if not headed:
                    print("\n".join([*heading(options, found), *HEADS]))
                    headed = True
                print("\n".join(rows(norms, batch, found)), flush=True)


def contenders(
    options: argparse.Namespace, *, frozen: bool, batch: int
) -> tuple[Contender, tuple[Contender]]:
    """Return kresnet, and what it is compared with."""
    common = {
        "variant": options.variant,
        "image_size": options.image_size,
        "batch": batch,
        "frozen": frozen,
        "steps": options.steps,
    }
    precision = options.precision
    policy = "float32" if precision == "float32" else f"mixed_{precision}"
    typed = common | {"dtype": precision}
    ours = Contender("kresnet", f"{_STEPS}:kresnet", {policy: common | {"policy": policy}})
    theirs = Contender(
        "timm",
        f"{_STEPS}:timm",
        {
            f"{precision}, torch.compile": typed | {"compiled": True},
            precision: typed | {"compiled": False},
        },
        ("torch", "timm"),
    )
    return ours, (theirs,)


HEADS = (
    "| norms | batch | kresnet, images/s | timm, images/s | its setting | kresnet is faster by |",
    "|---|---|---|---|---|---|",
)


def heading(options: argparse.Namespace, found: Sequence[Outcome]) -> Iterator[str]:
    """Say what was measured on what."""
    facts = {name: said for one in found for name, said in one.facts.items() if name != "device"}
    versions = ", ".join(f"{k} {v}" for k, v in facts.items() if k != "first loss")
    device = found[0].facts["device"]
    yield (
        f"{options.variant}, {options.image_size} px, {options.precision}; {device}, {versions}; "
        f"{datetime.now(UTC).date()}; {options.turns} turns, medians and quartiles.\n"
    )


def rows(norms: str, batch: int, found: Sequence[Outcome]) -> Iterator[str]:
    """Return a line of the table."""
    ours, theirs = found
    cells = [norms, str(batch), _rate(batch, ours.seconds)]
    if theirs.failed:
        cells += [theirs.failed.replace("|", "/"), "-", "-"]
    else:
        ratios = [b / a for a, b in zip(theirs.before, theirs.seconds, strict=True)]
        low, middle, high = spread(ratios)
        cells += [_rate(batch, theirs.seconds), theirs.setting]
        cells.append(f"{middle:.2f} ({low:.2f}-{high:.2f})")
    yield f"| {' | '.join(cells)} |"


def _rate(batch: int, seconds: Sequence[float]) -> str:
    low, middle, high = spread([batch / one for one in seconds])
    return f"{middle:.0f} ({low:.0f}-{high:.0f})"


if __name__ == "__main__":
    main()
