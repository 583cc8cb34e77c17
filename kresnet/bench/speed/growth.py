"""How time and memory grow: with the rows of an index, the side of the input, that of the photos.

Rows are made up, with random digests and looks; where images are read, all rows name one real file.
Each size has a process of its own, so its peak memory is that of this size alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from kresnet.bench.speed.rotation import Contender
from kresnet.bench.speed.topics import Group, Options
from kresnet.bench.speed.train import kresnet

PHOTO_SIDES: Final = (256, 512, 1024, 2048, 4096)
_STEPS: Final = "kresnet.bench.speed.growth_steps"


def groups(options: Options, work: Path) -> Iterator[Group]:
    """Measure what is done for each row, a step for each side, and a photo for each of its own."""
    folder = {"folder": str(work)}
    for title, make, more in (
        ("Split, write and read an index", "index", folder),
        ("Find near duplicates among random looks", "duplicates", {}),
        ("Set up a training stream, first 4 batches", "stream", folder),
    ):
        yield _group(title, "rows", options.sizes, _maker(make, "rows", more))
    yield _group(
        f"Prepare a JPEG for {options.image_size} px",
        "px",
        PHOTO_SIDES,
        _maker("photo", "side", folder | {"image_size": options.image_size}),
    )
    yield _group(
        f"Training step of {options.variant}, norms frozen, batches of {options.batch}",
        "px",
        options.sides,
        lambda side: kresnet(options, frozen=True, image_size=side),
    )


def _group(title: str, unit: str, sizes: Sequence[int], make: Callable[[int], Contender]) -> Group:
    contenders = []
    for size in sizes:
        one = make(size)
        contenders.append(Contender(f"{size:,} {unit}", one.make, one.settings, one.packages))
    return Group(title, "ms", contenders[0], tuple(contenders[1:]), sizes=tuple(sizes))


def _maker(make: str, name: str, more: dict[str, Any]) -> Callable[[int], Contender]:
    return lambda size: Contender(f"{size}", f"{_STEPS}:{make}", {"": more | {name: size}})
