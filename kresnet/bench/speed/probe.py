"""Frozen stages computed once: the probe beside epochs of a frozen backbone, the cut beside none.

Ours is the whole thing, from JPEG files to the fitted head. The other's is the time of some steps,
times as many as 30 epochs have, with the decoded images kept in memory and without the first epoch
that decodes them: all of it would take a quarter of an hour a turn. The steps of the last stage are
ours, with what the stages before it said kept in memory, and with it computed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kresnet.bench.speed.input import HEIGHT, WIDTH, photos
from kresnet.bench.speed.rotation import Contender
from kresnet.bench.speed.topics import Demand, Group, Options

EPOCHS: Final = 30
_STEPS: Final = "kresnet.bench.speed.probe_steps"


def groups(options: Options, work: Path) -> Iterator[Group]:
    """Compare the probe with Keras, and the last stage with the cut with that without."""
    from kresnet.zoo import measure
    from kresnet.zoo.variants import variant_config

    size = measure(variant_config(options.variant), image_size=options.image_size)
    common = {
        "folder": photos(options, work),
        "variant": options.variant,
        "image_size": options.image_size,
        "batch": options.batch,
    }
    keras = Contender(
        f"Keras, {EPOCHS} epochs of a frozen backbone, from {options.steps} steps a turn",
        f"{_STEPS}:keras",
        {
            policy: common | {"policy": policy, "epochs": EPOCHS, "steps": options.steps}
            for policy in ("mixed_bfloat16", "float32")
        },
        ("keras", "tensorflow"),
    )
    ours = Contender(
        "kresnet probe, JPEGs to fitted head",
        f"{_STEPS}:kresnet",
        {"": common | {"weights": options.weights}},
        ("keras", "tensorflow"),
    )
    yield Group(
        f"Probe of {options.images} photos of {WIDTH}x{HEIGHT} px",
        "s",
        ours,
        options.chosen({"keras": (keras,)}),
        images=options.images,
        demand=Demand(flop=2.0 * size.macs * options.images),
        notes=(
            f"{options.variant}, {options.image_size} px, batches of {options.batch}. The limit is "
            "that of one forward pass.",
        ),
    )
    kept, again = (_last_stage(options, cut=cut) for cut in (True, False))
    yield Group(
        "Training step of the last stage and the head",
        "images/s",
        kept,
        (again,),
        images=options.batch,
        notes=(f"{options.variant}, {options.image_size} px, batches of {options.batch}.",),
    )


def _last_stage(options: Options, *, cut: bool) -> Contender:
    arguments = {
        "variant": options.variant,
        "image_size": options.image_size,
        "batch": options.batch,
        "steps": options.steps,
        "cut": cut,
    }
    return Contender(
        f"kresnet, what frozen stages say {'kept' if cut else 'computed again'}",
        "kresnet.bench.speed.keras_steps:last_stage",
        {"": arguments},
        ("keras", "tensorflow"),
    )
