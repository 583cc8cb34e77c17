"""Photos of one size for contenders to read, in a folder of class folders."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageOps

from kresnet.data.scan import scan

_QUALITY: Final = 90


def photos(data: str, folder: str, count: int, width: int, height: int) -> dict[str, list[str]]:
    """Write photos; see `written`. It is for `rotation.once`."""
    return {"files": written(data, Path(folder), count, size=(width, height))}


def written(data: str | None, folder: Path, count: int, *, size: tuple[int, int]) -> list[str]:
    """Write JPEGs of one size, made of the images of a source, or smooth drawn ones.

    Args:
        data: What `kresnet train` takes, which is only read; None draws pictures of two classes.
        folder: Gets a folder for each class.
        count: How many, at random and of all before any comes again.
        size: Width and height in pixels; what sticks out at the sides is cut off.

    Returns:
        Their paths, classes mixed.
    """
    if data is None:
        rng = np.random.default_rng(0)
        pictures = ((_drawn(rng, size), k % 2) for k in range(count))
    else:
        rows = scan(data).rows
        order = np.random.default_rng(0).permutation(len(rows))
        chosen = [rows[order[k % len(rows)]] for k in range(count)]
        pictures = ((_fitted(row.read(), size), row.label) for row in chosen)
    files = []
    for number, (picture, label) in enumerate(pictures):
        path = folder / f"class-{label}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=_QUALITY)
        files.append(str(path))
    return files


def _fitted(contents: bytes, size: tuple[int, int]) -> Image.Image:
    with Image.open(io.BytesIO(contents)) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    return ImageOps.fit(upright, size, Image.Resampling.LANCZOS)


def _drawn(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    grid = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    return grid.resize(size, Image.Resampling.BICUBIC)
