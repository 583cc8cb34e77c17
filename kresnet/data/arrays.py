"""Images that are more than 8-bit RGB: NumPy files, and TIFF of many bits or many pages.

They go through NumPy, one at a time, and come out as float32 with any number of channels, in the
units that they are stored in. What belongs to photos only, as the range 0..255, is not for them.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import tensorflow as tf

from kresnet.data import pixels
from kresnet.data.examine import Facts
from kresnet.data.items import Item, Place, read_bytes
from kresnet.errors import ResourceError
from kresnet.zoo.cards import Preprocessing

_NPY: Final = b"\x93NUMPY"
_TIFF: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MOST_CHANNELS: Final = 512
_TRAIT: Final = "channels-"


def is_array(head: bytes) -> bool:
    """Return whether a file that starts with these bytes is a NumPy file or a TIFF."""
    return head.startswith((_NPY, *_TIFF))


def examine(item: Item) -> Facts | str | None:
    """Read an array, as `kresnet.data.examine.examine` does an image.

    Returns:
        The facts of a usable array, with the trait `channels-N`; a reason in a few words if it
        is not usable; None if it is no array.

    Raises:
        ResourceError: It is a TIFF and tifffile is not installed.
    """
    try:
        if not is_array(item.read(8)):
            return None
        contents = item.read()
        values = decode(contents)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError as error:
        if isinstance(error, ResourceError):
            raise
        return str(error)
    height, width, channels = values.shape
    digest = hashlib.sha256(contents).hexdigest()
    return Facts(height, width, digest, f"{_TRAIT}{channels}")


def decode(contents: bytes) -> np.ndarray:
    """Decode an array.

    Args:
        contents: A NumPy file `(h, w)`, `(h, w, c)` or `(c, h, w)`, of which the shorter of the
            first and the last axis are the channels; or a TIFF, whose pages are channels.

    Returns:
        float32 `(h, w, c)` in the units of the file.

    Raises:
        ValueError: It is damaged, is not numbers, or is too large; the reason in a few words.
        ResourceError: It is a TIFF and tifffile is not installed.
    """
    values = _npy(contents) if contents.startswith(_NPY) else _tiff(contents)
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError("values that are not finite")
    return values


def decoder(rows: Sequence[Any]) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return the TensorFlow function that decodes the images of an index.

    Args:
        rows: All of one kind.

    Returns:
        `pixels.decode`, or for arrays the same in float32 with their number of channels.
    """
    count = channels(rows)
    if count is None:
        return pixels.decode

    def decoded(contents: tf.Tensor) -> tf.Tensor:
        values = tf.numpy_function(decode, [contents], tf.float32)
        return tf.ensure_shape(values, (None, None, count))

    return decoded


def channels(rows: Sequence[Any]) -> int | None:
    """Return the number of channels of rows that are arrays, and None of photos."""
    traits = rows[0].traits.split() if rows else ()
    return next((int(t.removeprefix(_TRAIT)) for t in traits if t.startswith(_TRAIT)), None)


def same_channels(
    images: Iterable[tuple[Item, Facts]],
) -> tuple[list[tuple[Item, Facts]], list[tuple[Item, str]]]:
    """Keep the arrays with the number of channels that most have, and tell of the others."""
    images = list(images)
    counts = Counter(facts.traits for _, facts in images)
    usual = max(counts, key=lambda traits: (counts[traits], traits), default="")
    others = [
        (item, f"{facts.traits.removeprefix(_TRAIT)} channels, not {usual.removeprefix(_TRAIT)}")
        for item, facts in images
        if facts.traits != usual
    ]
    return [(item, facts) for item, facts in images if facts.traits == usual], others


def measured(preprocessing: Preprocessing, rows: Sequence[Place]) -> Preprocessing:
    """Return the preprocessing with mean and std of each channel of the training arrays.

    They are stored divided by 255, as for photos, so that `pixels.normalize` takes values in the
    units of the files. A channel that never changes gets a std of 1 unit.

    Args:
        preprocessing: The rest of it.
        rows: The training arrays; they are read one at a time, and summed in float64.
    """
    count, mean, squares = 0, np.zeros(()), np.zeros(())
    for row in rows:
        values = decode(read_bytes(row)).astype(np.float64)
        values = values.reshape(-1, values.shape[-1])
        # Chan, Golub & LeVeque 1983: sums of squares about the mean do not cancel.
        own = values.mean(axis=0)
        step, total = own - mean, count + len(values)
        squares = squares + ((values - own) ** 2).sum(axis=0)
        squares = squares + step**2 * (count * len(values) / total)
        mean = mean + step * (len(values) / total)
        count = total
    std = np.sqrt(squares / count)
    std[std == 0] = 1.0
    return replace(
        preprocessing,
        interpolation="bilinear",  # the overshoot of the other is clipped to 0..255
        mean=tuple((mean / 255).tolist()),
        std=tuple((std / 255).tolist()),
    )


def _npy(contents: bytes) -> np.ndarray:
    file = io.BytesIO(contents)
    try:
        version = np.lib.format.read_magic(file)
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
        shape, _, dtype = read[version[0]](file)
    except Exception:  # of many kinds: NumPy parses the header as Python
        raise ValueError("damaged NumPy header") from None
    if dtype.hasobject or dtype.kind not in "buif":
        raise ValueError(f"not numbers but {dtype.name}: pickles are never read")
    if len(shape) > 3:
        raise ValueError(f"no image: its shape is {shape}")
    _check_shape(shape)
    if len(contents) - file.tell() < math.prod(shape) * dtype.itemsize:
        raise ValueError("truncated NumPy file")
    file.seek(0)
    values = np.load(file, allow_pickle=False)
    if values.ndim == 2:
        return values[..., np.newaxis]
    return np.moveaxis(values, 0, -1) if values.shape[0] < values.shape[-1] else values


def _tiff(contents: bytes) -> np.ndarray:
    try:
        import tifffile
    except ImportError:
        raise ResourceError(
            "TIFF is read by tifffile, which is not installed. Received: a TIFF. Install it: "
            "pip install 'kresnet[tiff]'"
        ) from None
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong is told by us
    try:
        with tifffile.TiffFile(io.BytesIO(contents)) as file:
            series = file.series[0]
            _check_shape(series.shape)
            if _end(series) > len(contents):  # tifffile would fill up with zeros
                raise ValueError("it is truncated")
            values, axes = series.asarray(), series.axes
    except ResourceError:
        raise
    except Exception as error:  # of many kinds: whatever is wrong with the bytes
        raise ValueError(f"not a TIFF that can be decoded: {error}".splitlines()[0]) from None
    if "Y" not in axes or "X" not in axes or values.dtype.kind not in "buif":
        raise ValueError(f"a TIFF of {values.dtype.name} with axes {axes}")
    values = np.moveaxis(values, (axes.index("Y"), axes.index("X")), (0, 1))
    return values.reshape(*values.shape[:2], -1)


def _end(series: Any) -> int:
    """Return where the last values of a TIFF end, in bytes."""
    if series.dataoffset is not None:  # all in one piece
        return int(series.dataoffset + series.nbytes)
    return max(
        offset + count
        for page in series.pages
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
    )


def _check_shape(shape: Sequence[int]) -> None:
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"no image: its shape is {tuple(shape)}")
    if math.prod(shape) > pixels.MAX_PIXELS:
        raise ValueError(f"more than {pixels.MAX_PIXELS // 10**6} million values")
    if len(shape) == 3 and min(shape[0], shape[-1]) > _MOST_CHANNELS:
        raise ValueError(f"more than {_MOST_CHANNELS} channels")
