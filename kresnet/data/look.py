"""What an image looks like, small enough to keep for every image of a data set.

Two files may show the same picture after recompression, resizing, cropping or mirroring.
`duplicates` finds such pairs from what is kept here and never reads a pixel again.
"""

from __future__ import annotations

import functools
import zlib
from typing import Final

import numpy as np

SIDE: Final = 32
"""Side of the thumbnail in pixels."""

_MOST_SAMPLES: Final = 512  # rows or columns that are averaged; sixteen for each of the thumbnail


def look(pixels: np.ndarray) -> bytes:
    """Describe decoded pixels in 1028 bytes.

    Args:
        pixels: uint8 `(h, w, 3)`, upright RGB.

    Returns:
        The CRC-32 of the pixels in 4 bytes, then a grey thumbnail of `SIDE` x `SIDE` bytes, to
        which the whole image is shrunk without keeping its aspect ratio.
    """
    checksum = zlib.crc32(np.ascontiguousarray(pixels).data)
    height, width, _ = pixels.shape
    some = pixels[:: -(-height // _MOST_SAMPLES), :: -(-width // _MOST_SAMPLES)]
    grey = some.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    small = area_weights(grey.shape[0], SIDE) @ grey @ area_weights(grey.shape[1], SIDE).T
    return checksum.to_bytes(4, "big") + np.rint(small).astype(np.uint8).tobytes()


def thumbnails(looks: list[bytes]) -> np.ndarray:
    """Return the thumbnails of `looks`, uint8 `(n, SIDE, SIDE)`."""
    every = np.frombuffer(b"".join(looks), np.uint8).reshape(len(looks), 4 + SIDE * SIDE)
    return every[:, 4:].reshape(-1, SIDE, SIDE)


@functools.lru_cache(maxsize=64)
def area_weights(size: int, made: int, margin: float = 0.0) -> np.ndarray:
    """Return the matrix float32 `(made, size)` that averages `size` samples into `made`.

    Args:
        size: Samples there are.
        made: Samples wanted; more than there are repeats them.
        margin: Share of `size` that is left out at either end.
    """
    inner = size * (1 - 2 * margin)
    edges = size * margin + inner * np.arange(made + 1) / made
    places = np.arange(size)
    covered = np.minimum(edges[1:, np.newaxis], places + 1) - np.maximum(
        edges[:-1, np.newaxis], places
    )
    return (np.clip(covered, 0, None) * (made / inner)).astype(np.float32)
