"""Tell what a file is: a usable image, an unusable one and why, or something else."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Final

import numpy as np
import tensorflow as tf

from kresnet.data import headers, pixels
from kresnet.data.items import Item, is_named_image, is_url
from kresnet.data.look import look
from kresnet.data.traits import Measure, is_renamed, measure

MAX_BYTES: Final = 4 * pixels.MAX_PIXELS
"""Longer files are refused unread: an image of `MAX_PIXELS` fits, whatever its format."""

_DECODABLE: Final = {"JPEG", "PNG", "BMP", "GIF", "WebP"}
_SIGNATURES: Final = (
    ("JPEG", rb"\xff\xd8\xff"),
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("GIF", rb"GIF8[79]a"),
    ("WebP", rb"RIFF....WEBP"),
    ("BMP", rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"),  # "BM" alone may begin a text
    ("TIFF", rb"II[*+]\0|MM\0[*+]"),
    ("HEIC", rb"....ftyp(hei|hev|mif1|msf1)"),
    ("AVIF", rb"....ftypavi"),
    ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("JPEG 2000", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    ("PSD", rb"8BPS"),
    ("SVG", rb"\s*(<\?xml[^>]*>\s*)?<svg"),
)
_OTHERS: Final = (  # what is often found under the name of an image
    ("HTML page", rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)"),
    ("PDF", rb"%PDF-"),
    ("ZIP archive", rb"PK\x03\x04"),
    ("video", rb"....ftyp"),
    ("XML file", rb"(\xef\xbb\xbf)?\s*<\?xml"),
    ("macOS metadata file", rb"\0\x05\x16\x07"),
    ("Git LFS pointer", rb"version https://git-lfs"),
)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a usable image.

    Attributes:
        height: Of the upright image, in pixels.
        width: Of the upright image, in pixels.
        digest: SHA-256 of the file, hexadecimal.
        traits: What is special about it, in words with spaces between: "exif-2" to "exif-8" for a
            turned or mirrored photo, "grey", "cmyk", "palette", "alpha", "16-bit", "animated",
            "renamed" for an extension of another format, "appended" for bytes behind the image.
        look: See `kresnet.data.look`.
    """

    height: int
    width: int
    digest: str
    traits: str = ""
    look: bytes = field(default=b"", repr=False)


def examine(item: Item) -> Facts | str | None:
    """Read and decode an image.

    However many threads examine, large images are decoded one after the other, so that the memory
    of a few of them is enough.

    Args:
        item: Its content decides what it is; its name, whether it ought to be an image.

    Returns:
        The facts of a usable image; the reason, in a few words, if the file is an unusable image
        or only named like one; None if it is anything else.
    """
    name = PurePath(item.member or item.path)
    try:
        if not is_url(item.path) and not stat.S_ISREG(os.stat(item.path).st_mode):
            return "not a file" if is_named_image(name) else None  # a pipe may never end
        contents = item.read(256)
        kind = _kind(contents)
        if kind in _DECODABLE:
            if _size(item) > MAX_BYTES:
                return f"larger than {MAX_BYTES // 10**6} MB"
            contents = item.read()
    except OSError as error:
        return f"cannot be read: {error.strerror}" if is_named_image(name) else None
    if kind is None:
        return _not_an_image(contents, name) if is_named_image(name) else None
    if kind not in _DECODABLE:
        return f"{kind} is not supported: convert to PNG or JPEG"
    measured = measure(kind, contents)
    if measured.area > pixels.MAX_PIXELS:
        return f"more than {pixels.MAX_PIXELS // 10**6} megapixels"
    try:
        with _ROOM.of(len(contents) + _bytes_per_pixel(contents, measured) * measured.area):
            return _facts(kind, contents, name, measured)
    except tf.errors.OpError as error:
        return _reason(kind, contents, error.message)


def _bytes_per_pixel(contents: bytes, measured: Measure) -> int:
    """Return what decoding takes at its peak, as measured; laying over white takes the most."""
    if "alpha" in measured.traits:
        return 17
    return 9 if b"Exif" in contents[: 2**17] else 3  # turning makes copies


def _facts(kind: str, contents: bytes, name: PurePath, measured: Measure) -> Facts:
    image = np.asarray(memoryview(_decoder()(contents)))  # .numpy() would copy
    traits = list(measured.traits)
    # No search where the decoder does not look, either.
    if any(mark in contents[: 2**17] for mark in (b"Exif\0\0", b"eXIf")) or (
        kind != "JPEG" and (b"eXIf" in contents or b"EXIF" in contents)
    ):
        turn = int(_orientation()(contents))
        traits += [f"exif-{turn}"] if turn != 1 else []
    traits += ["renamed"] if is_renamed(kind, name) else []
    height, width, _ = image.shape
    digest = hashlib.sha256(contents).hexdigest()
    return Facts(height, width, digest, " ".join(traits), look(image))


class _Room:
    """Lets threads use so many bytes together; one alone may use more."""

    def __init__(self, size: int) -> None:
        self._size, self._used = size, 0
        self._changed = threading.Condition()

    @contextmanager
    def of(self, size: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + size <= self._size)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


_ROOM: Final = _Room(200_000_000)


def _size(item: Item) -> int:
    if item.size >= 0:
        return item.size
    # A URL tells its length only when it is read.
    return 0 if is_url(item.path) else os.path.getsize(item.path) - item.offset


def _kind(head: bytes) -> str | None:
    matches = (kind for kind, pattern in _SIGNATURES if re.match(pattern, head, re.DOTALL))
    return next(matches, None)


def _not_an_image(head: bytes, name: PurePath) -> str:
    if not head:
        return "empty file"
    for what, pattern in _OTHERS:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            return f"{what} named {name.suffix}"
    if not head.strip(b"\0"):
        return "nothing but zero bytes at the start"
    return f"not an image TensorFlow can decode: it starts with {head[:8]!r}"


@functools.cache  # traced once, when it is first needed
def _decoder() -> Callable[[bytes], tf.Tensor]:
    signature = [tf.TensorSpec((), tf.string)]
    traced: Callable[[bytes], tf.Tensor] = tf.function(pixels.decode, signature, autograph=False)
    return traced


@functools.cache
def _orientation() -> Callable[[bytes], tf.Tensor]:
    signature = [tf.TensorSpec((), tf.string)]
    traced: Callable[[bytes], tf.Tensor] = tf.function(
        headers.orientation, signature, autograph=False
    )
    return traced


def _reason(kind: str, contents: bytes, message: str) -> str:
    if "megapixels" in message:
        return f"more than {pixels.MAX_PIXELS // 10**6} megapixels"
    ends = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}
    if kind in ends:
        is_truncated = not contents.rstrip(b"\0").endswith(ends[kind])
    else:
        stated = {"WebP": contents[4:8], "BMP": contents[2:6]}[kind]
        is_truncated = len(contents) < int.from_bytes(stated, "little")
    if is_truncated:
        return f"truncated {kind}"
    # A stack trace, the message of the op, and then the places it went through in the graph.
    told = message.split("\n\t [[")[0].splitlines()[-1]
    return f"not an image TensorFlow can decode: {re.sub(r'{{.*?}} ', '', told)}"
