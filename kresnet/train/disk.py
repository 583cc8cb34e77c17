"""What a run will take of the disk, so that a disk that is too small is told before training."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kresnet.data.scan import Row
from kresnet.data.shrinking import reduced
from kresnet.data.store import pixel_bytes
from kresnet.errors import ResourceError
from kresnet.train.cut_plan import cut_bytes
from kresnet.train.recipe import Recipe
from kresnet.zoo.size import measure
from kresnet.zoo.variants import variant_config

_STATES: Final = 3  # two that are kept, and the next while it is written
_SLOTS: Final = {"sgd": 1}  # variables of the optimizer for each weight; the others have two
_STATISTICS: Final = 1.02  # what norms keep beside their weights: at most 2 % of any variant
_EXPORT: Final = (1.1, 8_000_000)  # a SavedModel by its weights, and bytes on top


@dataclass(frozen=True, slots=True)
class Disk:
    """What a run takes at most while it is under way, in bytes.

    Attributes:
        run: In its own folder: kept weights, states to resume from, decoded images, features.
        exports: In the folder of the exports.
    """

    run: int
    exports: int

    def __str__(self) -> str:
        return f"{_size(self.run)} for the run, {_size(self.exports)} for the export"


def disk_needed(
    recipe: Recipe, rows: Sequence[Row], *, num_classes: int, exported: bool = True
) -> Disk:
    """Return what a run takes of the disk.

    States are counted as if the whole network were trained, so where it is not, less is taken.

    Args:
        recipe: The settings.
        rows: The training images.
        num_classes: Outputs of the network.
        exported: Whether there will be an export.
    """
    config = variant_config(recipe.variant)
    params = measure(config, image_size=recipe.image_size, num_classes=num_classes).params
    weights = int(4 * _STATISTICS * params)
    copies = 1 + _SLOTS.get(recipe.optimizer, 2) + (recipe.ema > 0)
    states = _STATES * copies * weights if recipe.epochs else 0
    if recipe.soup and recipe.epochs:  # what each of two states names, and the next
        states += (2 * (recipe.soup + (recipe.ema > 0)) + 1) * weights
    images = 0
    if recipe.cache == "disk" and recipe.epochs:
        _, shapes = reduced(rows, recipe.image_size, recipe.min_area)
        images = pixel_bytes(shapes)
    if recipe.cut_cache == "disk" and recipe.epochs:
        images += len(rows) * min(recipe.cut_views, recipe.epochs) * cut_bytes(recipe.model_dump())
    factor, more = _EXPORT
    # Weights that are better replace those that are kept when they are complete, so both are there.
    return Disk(2 * weights + states + images, int(factor * weights) + more if exported else 0)


def check_room(need: Disk, *, out: Path, exports: Path) -> None:
    """Refuse to begin what would fill the disk.

    Args:
        need: What will be taken.
        out: Folder of the runs; it need not exist.
        exports: Folder of the exports; it need not exist.

    Raises:
        ResourceError: A disk has less room than that.
    """
    wanted: dict[int, list[tuple[str, Path, int]]] = {}
    for option, folder, size in (("--out", out, need.run), ("--exports", exports, need.exports)):
        device = _existing(folder).stat().st_dev
        wanted.setdefault(device, []).append((option, folder, size))
    for parts in wanted.values():
        size = sum(size for *_, size in parts)
        free = shutil.disk_usage(_existing(parts[0][1])).free
        if size > free:
            raise ResourceError(
                f"A run of this kind needs {_size(size)} of disk in "
                f"{' and '.join(str(folder) for _, folder, _ in parts)}. Received: {_size(free)} "
                f"free. Make room, or choose another disk with "
                f"{' and '.join(option for option, *_ in parts)}."
            )


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that there is."""
    whole = Path(os.path.abspath(folder))
    return next(path for path in (whole, *whole.parents) if path.exists())


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(count / 1e6, 0.1):.1f} MB"
