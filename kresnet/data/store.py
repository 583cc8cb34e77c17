"""Decoded images of one training, kept in memory or in a file, so that each is decoded once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import numpy as np
import tensorflow as tf

from kresnet.errors import ResourceError
from kresnet.machine import memory as _memory

Cache = Literal["auto", "memory", "disk", "none"]

_ALIGNMENT: Final = 64  # bytes; TensorFlow asks for it
_SHARE: Final = 0.25  # of the machine's memory that "auto" takes at most


class Store:
    """Room for the pixels of each of n images; empty at first, filled by whoever comes first.

    Images are read from it by TensorFlow ops alone; only putting one in is a call into Python. In
    a file, they are the system's page cache and go to the disk when memory is short. The file is
    of one process: it has no name any more once it is open, so it cannot be left behind or stale.

    Args:
        shapes: int `(n, 2)`, height and width of each image.
        folder: Of the file; None keeps the images in memory.

    Raises:
        ResourceError: There is no room.
    """

    def __init__(self, shapes: np.ndarray, folder: Path | None = None) -> None:
        self._shapes = shapes.astype(np.int32)
        sizes = 3 * shapes.astype(np.int64).prod(axis=1)
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        total = int(self._starts[-1])
        self._pixels = _room(total) if folder is None else _room_in_file(total, folder)
        self._filled = _room(len(shapes))
        # Both tensors are the arrays' own memory, so they show what is put in.
        self._pixel_tensor, self._filled_tensor = map(_as_tensor, (self._pixels, self._filled))

    def load(self, which: tf.Tensor, make: Callable[[], tf.Tensor]) -> tf.Tensor:
        """Return image `which`, from the store or else from `make`, which is then put in.

        Args:
            which: int64 scalar.
            make: Gives uint8 `(h, w, 3)` of the image's shape.

        Returns:
            uint8 `(h, w, 3)`.
        """
        starts = tf.constant(self._starts)

        def stored() -> tf.Tensor:
            flat = self._pixel_tensor[starts[which] : starts[which + 1]]
            shape = tf.concat([tf.constant(self._shapes)[which], [3]], axis=0)
            return tf.reshape(flat, shape)

        def made() -> tf.Tensor:
            image = make()
            done = tf.numpy_function(self._put, [which, image], tf.bool)
            with tf.control_dependencies([done]):
                return tf.identity(image)

        image = tf.cond(self._filled_tensor[which] > 0, stored, made)
        return tf.ensure_shape(image, (None, None, 3))

    def _put(self, which: np.int64, image: np.ndarray) -> np.bool_:
        self._pixels[self._starts[which] : self._starts[which + 1]] = image.reshape(-1)
        self._filled[which] = 1  # last, because from now on it is read
        return np.True_


def store_for(shapes: np.ndarray, cache: Cache, folder: Path | None) -> Store | None:
    """Make the store that a training asks for.

    Args:
        shapes: int `(n, 2)`, height and width of each image.
        cache: "auto" takes memory where the images need at most a quarter of the machine's.
        folder: Of the file of "disk".

    Returns:
        The store, or None where every image is decoded each time.

    Raises:
        ResourceError: The images are too many for memory or disk.
    """
    size, memory = pixel_bytes(shapes), _memory()
    if cache == "disk" and folder is not None:
        return Store(shapes, folder)
    if cache == "memory" and size > memory:
        raise ResourceError(
            f"The decoded images must fit into memory. Received: cache='memory', {size / 1e9:.1f} "
            f"GB of images and {memory / 1e9:.1f} GB of memory. Use --cache disk, or none."
        )
    return Store(shapes) if cache != "disk" and keeps(shapes, cache) else None


def keeps(shapes: np.ndarray, cache: Cache) -> bool:
    """Tell whether images of these shapes are decoded once, and not each time they are shown."""
    return cache in ("memory", "disk") or (
        cache == "auto" and pixel_bytes(shapes) <= _SHARE * _memory()
    )


def pixel_bytes(shapes: np.ndarray) -> int:
    """Return the bytes of decoded images; `shapes` is int `(n, 2)`, height and width."""
    return 3 * int(shapes.astype(np.int64).prod(axis=1).sum())


def _room(size: int) -> np.ndarray:
    """Return uint8 zeros `(size,)`, aligned; what is not written takes no memory."""
    try:
        room = np.zeros(size + _ALIGNMENT, np.uint8)
    except MemoryError:
        raise ResourceError(
            f"The decoded images must fit into memory. Received: {size / 1e9:.1f} GB of images. "
            "Use --cache disk, or none."
        ) from None
    return room[-room.ctypes.data % _ALIGNMENT :][:size]


def _room_in_file(size: int, folder: Path) -> np.ndarray:
    path = folder / f".pixels-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("w+b") as file:
            path.unlink()
            # Taken now: a disk that is full when a mapped page is written kills the process.
            os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, np.uint8, "r+", shape=(size,))
    except OSError as error:
        raise ResourceError(
            f"The cache needs {size / 1e9:.1f} GB in {folder}. Received: {error}. Make room, or "
            "use --cache none."
        ) from None


def _as_tensor(array: np.ndarray) -> tf.Tensor:
    with tf.device("/CPU:0"):
        return tf.experimental.dlpack.from_dlpack(array.__dlpack__())
