"""What a model looked at, as small pictures that a page holds inside."""

from __future__ import annotations

import base64
import io
from typing import Final

import numpy as np
import tensorflow as tf
from PIL import Image

from kresnet.data import pixels
from kresnet.zoo import Preprocessing

_SIDE: Final = 200  # pixels
_ROWS: Final = ("upper", "middle", "lower")
_COLUMNS: Final = ("left", "centre", "right")


def seen(contents: bytes, preprocessing: Preprocessing) -> np.ndarray:
    """Return the centred square of an image that a model looks at, uint8 `(200, 200, 3)`.

    Raises:
        tf.errors.InvalidArgumentError: `contents` cannot be decoded.
    """
    image = pixels.decode(tf.constant(contents))
    box = pixels.center_box(image.shape[0], image.shape[1], preprocessing.crop_pct)
    square = pixels.resample(image, box, _SIDE, preprocessing.interpolation)
    found: np.ndarray = np.clip(np.round(square.numpy()), 0, 255).astype(np.uint8)
    return found


def overlaid(square: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return a picture with its evidence in colour, from dark where there is none to yellow.

    Args:
        square: uint8 `(s, s, 3)`.
        heat: float `(g, g)`, 0..1.
    """
    from matplotlib import colormaps

    small = Image.fromarray(np.asarray(heat, np.float32))  # mode F: 32-bit floats
    side = square.shape[0]
    large = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)).clip(0, 1)
    colour = colormaps["inferno"](large)[..., :3] * 255
    share = (0.35 + 0.3 * large)[..., np.newaxis]
    return np.round(square * (1 - share) + colour * share).astype(np.uint8)


def where(heat: np.ndarray) -> str:
    """Return where the strongest evidence is, in words, as "upper left"."""
    if not heat.max() > 0:
        return "nowhere"
    places = np.unravel_index(int(heat.argmax()), heat.shape)
    row, column = (int(3 * (k + 0.5) / n) for k, n in zip(places, heat.shape, strict=True))
    return "centre" if row == column == 1 else f"{_ROWS[row]} {_COLUMNS[column]}"


def data_uri(square: np.ndarray) -> str:
    """Return a picture as a JPEG inside of a URI; metadata has no part in it."""
    file = io.BytesIO()
    Image.fromarray(square).save(file, "JPEG", quality=82)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
