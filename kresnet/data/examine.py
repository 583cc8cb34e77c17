"""Tell what a file is: a usable image, an unusable one and why, or something else."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final

import tensorflow as tf

from kresnet.data import pixels
from kresnet.data.items import Item

_IMAGE_NAME: Final = re.compile(
    r"\.(jpe?g|jpe|jfif|png|bmp|dib|gif|webp|tiff?|hei[cf]|avif|jxl|jp2|psd|svg)", re.IGNORECASE
)
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
_HTML: Final = re.compile(rb"\s*<(!doctype html|html|head|body)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a usable image: its upright size in pixels and the SHA-256 of its file."""

    height: int
    width: int
    digest: str
    traits: str = ""
    look: bytes = b""


def examine(item: Item) -> Facts | str | None:
    """Read and decode an image.

    Args:
        item: Its content decides what it is; its name, whether it ought to be an image.

    Returns:
        The facts of a usable image; the reason, in a few words, if the file is an unusable image
        or only named like one; None if it is anything else.
    """
    path = Path(item.member or item.path)
    try:
        contents = item.read(256)
        kind = _kind(contents)
        if kind in _DECODABLE:
            contents = item.read()
    except OSError as error:
        return f"cannot be read: {error.strerror}" if is_named_image(path) else None
    if kind is None:
        return _not_an_image(contents, path) if is_named_image(path) else None
    if kind not in _DECODABLE:
        return f"{kind} is not supported: convert to PNG or JPEG"
    try:
        height, width = _upright_size()(contents).numpy()
    except tf.errors.OpError as error:
        return _reason(kind, contents, error.message)
    return Facts(int(height), int(width), hashlib.sha256(contents).hexdigest())


def is_named_image(path: PurePath) -> bool:
    """Return whether the extension is that of an image, of a format we can decode or not."""
    return _IMAGE_NAME.fullmatch(path.suffix) is not None


def _kind(head: bytes) -> str | None:
    matches = (kind for kind, pattern in _SIGNATURES if re.match(pattern, head, re.DOTALL))
    return next(matches, None)


def _not_an_image(head: bytes, path: Path) -> str:
    if not head:
        return "empty file"
    if _HTML.match(head):
        return f"HTML page named {path.suffix}"
    return f"not an image TensorFlow can decode: it starts with {head[:8]!r}"


@functools.cache  # traced once, when it is first needed
def _upright_size() -> Callable[[bytes], tf.Tensor]:
    def upright_size(contents: tf.Tensor) -> tf.Tensor:
        return tf.shape(pixels.decode(contents))[:2]

    signature = [tf.TensorSpec((), tf.string)]
    traced: Callable[[bytes], tf.Tensor] = tf.function(upright_size, signature, autograph=False)
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
