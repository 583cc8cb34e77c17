"""Contact sheets: many images on one, each with a line of text below it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kresnet.data.pipeline import TrainingData
from kresnet.zoo.cards import Preprocessing

_MARGIN: Final = 8  # pixels
_LINE: Final = 18  # height of a caption in pixels
_INK: Final = (30, 30, 30)


def batches_sheet(
    data: TrainingData, classes: Sequence[str], preprocessing: Preprocessing, *, images: int
) -> Image.Image:
    """Show what a training sees: the first images of its stream, with their labels and weights.

    Args:
        data: The stream.
        classes: Names of the classes.
        preprocessing: How the stream was normalised.
        images: How many to show.
    """
    shown: list[np.ndarray] = []
    captions: list[str] = []
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    stream = data.batches()
    while len(shown) < images:
        batch = next(stream)
        levels = np.clip((np.asarray(batch[0]) * std + mean) * 255, 0, 255)
        shown += list(levels.round().astype(np.uint8))
        captions += [
            _caption(target, weight, classes, data.augmentation.smoothing)
            for target, weight in zip(np.asarray(batch[1]), np.asarray(batch[2]), strict=True)
        ]
    return contact_sheet(shown[:images], captions[:images], columns=min(8, images))


def _caption(target: np.ndarray, weight: float, classes: Sequence[str], smoothing: float) -> str:
    """Return the class, or what was mixed, and the weight where it is not 1."""
    first, second = np.argsort(-target, kind="stable")[:2]
    text = classes[first]
    if target[second] - smoothing / len(classes) > 0.005:
        text = f"{target[first]:.0%} {text}, {target[second]:.0%} {classes[second]}"
    return text if abs(weight - 1) < 0.005 else f"{text} x{weight:.2f}"


def contact_sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    *,
    columns: int,
    side: int = 160,
) -> Image.Image:
    """Put images in rows and columns on a white sheet.

    Args:
        images: Each uint8 `(h, w, 3)`; shown whole, as large as fits into a square.
        captions: A line for each; what is too long for its image is cut.
        columns: Images a row.
        side: Of the square, in pixels.

    Returns:
        The sheet, RGB.
    """
    rows = math.ceil(len(images) / columns)
    cell = side + _MARGIN, side + _MARGIN + _LINE
    size = columns * cell[0] + _MARGIN, rows * cell[1] + _MARGIN
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for k, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = _MARGIN + k % columns * cell[0], _MARGIN + k // columns * cell[1]
        image = Image.fromarray(pixels)
        scale = side / max(image.size)
        shown = image.resize([max(round(length * scale), 1) for length in image.size])
        sheet.paste(shown, (left + (side - shown.width) // 2, top + (side - shown.height) // 2))
        draw.text((left, top + side + 2), _fitted(caption, font, side), _INK, font)
    return sheet


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
