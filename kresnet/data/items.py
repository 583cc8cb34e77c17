"""One image of a source, wherever its bytes are: a file of its own, or a part of a larger one."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Final, Literal, Protocol

import numpy as np

from kresnet.data import remote
from kresnet.data.remote import is_url as is_url

if TYPE_CHECKING:
    import tensorflow as tf

Split = Literal["train", "val", "test"]

SPLITS: Final[dict[str, Split]] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""What people call the splits, in lower case."""

_IMAGE_NAME: Final = re.compile(
    r"\.(jpe?g|jpe|jfif|png|bmp|dib|gif|webp|tiff?|hei[cf]|avif|jxl|jp2|psd|svg)", re.IGNORECASE
)

WHOLE: Final = -1
"""The size of a part that ends with its file."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a source before it is read.

    Attributes:
        path: Absolute path of the file that holds the bytes, or a URL, see `kresnet.data.remote`.
        label: Name of its class.
        split: What the source says the image is for, if it does.
        offset: Where the image starts in the file, in bytes.
        size: Length in bytes; -1 is up to the end of the file.
        member: Its name inside an archive or a shard; "" for a file of its own.
        group: Images of a group belong into one split; "" is no group.
        weight: How much the image counts in training, 1 for most.
    """

    path: str
    label: str
    split: Split | None = None
    offset: int = 0
    size: int = WHOLE
    member: str = ""
    group: str = ""
    weight: float = 1.0

    @property
    def name(self) -> str:
        """The path, and inside of what has members `path::member`: for messages."""
        return full_name(self)

    def read(self, limit: int | None = None) -> bytes:
        """Return the bytes of the image, at most the first `limit`.

        Raises:
            OSError: They cannot be read.
        """
        return read_bytes(self, limit)


@dataclass(frozen=True, slots=True)
class Problem:
    """A file or folder that is left out, by its absolute path, and why, in a few words."""

    path: str
    reason: str


class Place(Protocol):
    """Where the bytes of an image are; an `Item` or a `Row`."""

    @property
    def path(self) -> str: ...  # noqa: D102 - as in Item

    @property
    def offset(self) -> int: ...  # noqa: D102 - as in Item

    @property
    def size(self) -> int: ...  # noqa: D102 - as in Item

    @property
    def member(self) -> str: ...  # noqa: D102 - as in Item


def full_name(place: Place) -> str:
    """Return the path of an image, with `::member` behind it where it is a part of a file."""
    return f"{place.path}::{place.member}" if place.member else place.path


def is_named_image(path: PurePath) -> bool:
    """Return whether the extension is that of an image, of a format we can decode or not."""
    return _IMAGE_NAME.fullmatch(path.suffix) is not None


def read_bytes(place: Place, limit: int | None = None) -> bytes:
    """Return the bytes of an image, at most the first `limit`.

    Raises:
        OSError: They cannot be read, or the file is shorter than they are.
    """
    size = place.size if limit is None else min(place.size % 2**63, limit)
    if is_url(place.path):
        contents = remote.read(place.path, place.offset, size)
    else:
        with open(place.path, "rb") as file:
            file.seek(place.offset)
            contents = file.read(size)
    if limit is None and len(contents) < size:
        raise _cut(place.path)
    return contents


def read(path: tf.Tensor, offset: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Read an image inside of `tf.data`.

    Args:
        path: Scalar string.
        offset: int64 scalar, where the image starts in the file.
        size: int64 scalar, its length; negative is the whole file, which Python takes no part in
            unless it is behind a URL.

    Returns:
        Scalar string, the bytes.

    Raises:
        tf.errors.OpError: They cannot be read.
    """
    import tensorflow as tf

    is_file = (size < 0) & ~tf.strings.regex_full_match(path, "(?s)[a-z][a-z0-9+.-]*://.*")
    contents = tf.cond(
        is_file,
        lambda: tf.io.read_file(path),
        lambda: tf.numpy_function(_read_part, [path, offset, size], tf.string),
    )
    return tf.ensure_shape(contents, ())


def read_natively(
    path: tf.Tensor, offset: tf.Tensor, size: tf.Tensor, behind: tf.Tensor
) -> tf.Tensor:
    """Read an image inside of `tf.data`, in TensorFlow alone: in any process, and from disks.

    Args:
        path: Scalar string.
        offset: int64 scalar, where the image starts in the file.
        size: int64 scalar, its length; negative is the whole file.
        behind: int64 scalar, the bytes of the file behind it, see `bytes_behind`.

    Returns:
        Scalar string, the bytes.

    Raises:
        tf.errors.OpError: They cannot be read, or the file is not as long as it was.
    """
    import tensorflow as tf

    def part() -> tf.Tensor:
        (contents,) = tf.raw_ops.DatasetToSingleElement(
            dataset=tf.raw_ops.FixedLengthRecordDatasetV2(
                filenames=path,
                header_bytes=offset,
                record_bytes=size,
                footer_bytes=behind,
                buffer_size=size,
                compression_type="",
            ),
            output_types=[tf.string],
            output_shapes=[()],
        )
        return contents

    return tf.ensure_shape(tf.cond(size < 0, lambda: tf.io.read_file(path), part), ())


def exists(path: str) -> bool:
    """Return whether there is a file, behind a URL, too."""
    if not is_url(path):
        return os.path.exists(path)
    try:
        return remote.size_of(path) >= 0
    except OSError:
        return False


def places(images: Sequence[Place]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return paths (bytes), offsets and sizes (int64) of images, `(n,)` each, as `read` takes."""
    paths = np.array([os.fsencode(image.path) for image in images], dtype=object)
    offsets = np.array([image.offset for image in images], dtype=np.int64)
    return paths, offsets, np.array([image.size for image in images], dtype=np.int64)


def bytes_behind(images: Sequence[Place]) -> np.ndarray:
    """Return the bytes behind each image in its file, int64 `(n,)`; 0 where it is the whole."""
    parts = [image for image in images if image.size != WHOLE]
    length = {path: _length(path) for path in {image.path for image in parts}}
    behind = (
        0 if image.size == WHOLE else length[image.path] - image.offset - image.size
        for image in images
    )
    return np.fromiter(behind, np.int64, len(images))


def _length(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:  # whoever reads it says so
        return 0


def as_files(images: Sequence[Place], folder: Path) -> list[str]:
    """Return a path for each image, for readers that know nothing of parts of files.

    Args:
        images: Rows or items.
        folder: Where copies of the images go that are parts of files or behind URLs.
    """
    paths = []
    for number, image in enumerate(images):
        path = image.path
        if image.size != WHOLE or is_url(path):
            copy = folder / f"{number}"
            copy.write_bytes(read_bytes(image))
            path = str(copy)
        paths.append(path)
    return paths


def _read_part(path: bytes, offset: np.int64, size: np.int64) -> bytes:
    name = os.fsdecode(path)
    if is_url(name):
        contents = remote.read(name, int(offset), int(size))
    else:
        file = os.open(path, os.O_RDONLY)
        try:
            contents = os.pread(file, int(size), int(offset))
        finally:
            os.close(file)
    if len(contents) < size:
        raise _cut(name)
    return contents


def _cut(path: str) -> OSError:
    return OSError(errno.EIO, "its file ends inside of the image", path)
