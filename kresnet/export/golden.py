"""A few images stored inside an export with the answers that it must give, for whoever checks it.

They are validation images made small and stripped of metadata, or drawn where no photo may leave
the house. One is turned by its EXIF tag and one is a PNG, so that decoding is checked too.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import tensorflow as tf
from PIL import Image

from kresnet.data import pixels
from kresnet.errors import ExportError

FOLDER: Final = Path("assets.extra") / "golden"
_EXPECTED: Final = "expected.json"
_SIDE: Final = 256  # of the shorter side at most, in pixels
_SIDE_PNG: Final = 128
_ORIENTATION: Final = 0x0112  # the EXIF tag


@dataclass(frozen=True, slots=True)
class Golden:
    """One stored image.

    Attributes:
        name: Of its file, as "0.jpg".
        contents: The bytes of the file.
    """

    name: str
    contents: bytes


def from_photos(paths: Sequence[str]) -> list[Golden]:
    """Make up to four small images without metadata from image files spread over `paths`."""
    chosen = paths[:: max(len(paths) // 4, 1)][:4]
    return _encoded([Image.fromarray(pixels.decode(tf.io.read_file(p)).numpy()) for p in chosen])


def drawn() -> list[Golden]:
    """Make four smooth patterns, the same each time."""
    rng = np.random.default_rng(20)
    grids = (rng.integers(0, 256, (6, 9, 3), dtype=np.uint8) for _ in range(4))
    sizes = ((192, 128), (128, 160), (144, 96), (200, 200))
    return _encoded(
        [
            Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)
            for grid, size in zip(grids, sizes, strict=True)
        ]
    )


def thumbnail(golden: Golden) -> bytes:
    """Return a golden image as a JPEG of a few kilobytes."""
    with Image.open(io.BytesIO(golden.contents)) as image:
        return _jpeg(_shrunk(image.convert("RGB"), 64))


def save(goldens: Sequence[Golden], scores: np.ndarray, directory: Path, tolerance: float) -> None:
    """Store images and answers in an export.

    Args:
        goldens: The images.
        scores: What the Keras model says of them, `(n, k)`.
        directory: The version's directory.
        tolerance: Largest difference of a score that still counts as the same answer.
    """
    folder = directory / FOLDER
    folder.mkdir(parents=True)
    for golden in goldens:
        (folder / golden.name).write_bytes(golden.contents)
    images = [
        {"file": golden.name, "scores": [float(f"{score:.8g}") for score in row]}
        for golden, row in zip(goldens, scores, strict=True)
    ]
    text = json.dumps({"tolerance": tolerance, "images": images})
    (folder / _EXPECTED).write_text(text + "\n", encoding="utf-8")


def load(directory: Path) -> tuple[list[Golden], np.ndarray, float]:
    """Read what `save` stored: images, scores `(n, k)` and tolerance.

    Raises:
        ExportError: There is nothing, or it is damaged.
    """
    folder = directory / FOLDER
    try:
        stored = json.loads((folder / _EXPECTED).read_text(encoding="utf-8"))
        names = [Path(image["file"]).name for image in stored["images"]]
        goldens = [Golden(name, (folder / name).read_bytes()) for name in names]
        scores = np.array([image["scores"] for image in stored["images"]], np.float32)
        return goldens, scores, float(stored["tolerance"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"An export holds images with their answers in {FOLDER}. Received: {directory}, where "
            f"they cannot be read ({error}). Export again."
        ) from None


def _encoded(images: Sequence[Image.Image]) -> list[Golden]:
    goldens = []
    for number, image in enumerate(images):
        if number == 2:
            stream = io.BytesIO()
            _shrunk(image, _SIDE_PNG).save(stream, "PNG")
            goldens.append(Golden(f"{number}.png", stream.getvalue()))
        else:
            goldens.append(Golden(f"{number}.jpg", _jpeg(_shrunk(image, _SIDE), number == 1)))
    return goldens


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    """Return the image with its shorter side at most `side`, the longer one at most four times."""
    factor = min(side / min(image.size), 4 * side / max(image.size), 1)
    width, height = (max(round(factor * n), 1) for n in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _jpeg(image: Image.Image, turned: bool = False) -> bytes:
    """Encode an image, on request lying on its side with a tag that says so."""
    stream, exif = io.BytesIO(), Image.Exif()
    if turned:
        exif[_ORIENTATION] = 6
        image = image.transpose(Image.Transpose.ROTATE_90)
    image.save(stream, "JPEG", quality=90, exif=exif)
    return stream.getvalue()
