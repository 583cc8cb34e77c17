"""What an image file says before its pixels, read with TensorFlow ops.

TensorFlow decodes pixels but tells neither the orientation nor where the palette or transparency
of a file is, so `pixels` looks them up here. Nothing here raises on damaged bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import tensorflow as tf

JPEG: Final = b"\xff\xd8\xff"
PNG: Final = b"\x89PNG\r\n\x1a\n"
BMP: Final = b"BM"
GIF: Final = b"GIF8"

# A walk along the parts of a file ends after so many, which bounds its time on a hostile file.
_MAX_PARTS: Final = 256
_MAX_BLOCKS: Final = 2**16  # of the data of a GIF's frame: up to 16 MiB
_BEYOND: Final = 2**62
_ABSENT: Final = -1

_Visit = Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def orientation(contents: tf.Tensor) -> tf.Tensor:
    """Read how the stored pixels must be turned to stand upright.

    Args:
        contents: Scalar string, the bytes of an image file of any format.

    Returns:
        int32 scalar, the EXIF orientation 1..8; 1 where there is none or it is damaged.
    """
    tiff = tf.case(
        [
            (starts(contents, JPEG), lambda: _exif_in_jpeg(contents)),
            (starts(contents, PNG), lambda: _exif_in_png(contents)),
            (is_webp(contents), lambda: _exif_in_webp(contents)),
        ],
        default=lambda: tf.constant(_ABSENT, tf.int64),
    )
    return tf.cond(tiff < 0, lambda: tf.constant(1), lambda: _orientation_in_tiff(contents, tiff))


def _exif_in_jpeg(contents: tf.Tensor) -> tf.Tensor:
    def visit(position: tf.Tensor, head: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        marker = head[1]
        is_exif = (marker == 0xE1) & tf.reduce_all(head[4:10] == list(b"Exif\0\0"))
        # Only APPn segments and comments come before the tables of the image itself.
        is_metadata = (head[0] == 0xFF) & ((marker // 16 == 0xE) | (marker == 0xFE))
        following = tf.where(is_metadata, position + 2 + big_endian(head[2:4]), _BEYOND)
        return is_metadata & is_exif, following

    segment = walk(contents, 2, visit)
    return tf.where(segment >= 0, segment + 10, _ABSENT)


def _exif_in_png(contents: tf.Tensor) -> tf.Tensor:
    chunk = png_chunk(contents, b"eXIf")
    return tf.where(chunk >= 0, chunk + 8, _ABSENT)


def _exif_in_webp(contents: tf.Tensor) -> tf.Tensor:
    def visit(position: tf.Tensor, head: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        length = little_endian(head[4:8])
        return tf.reduce_all(head[:4] == list(b"EXIF")), position + 8 + length + length % 2

    chunk = walk(contents, 12, visit)
    prefixed = starts(contents, b"Exif\0\0", at=chunk + 8)  # as some writers do
    return tf.where(chunk >= 0, tf.where(prefixed, chunk + 14, chunk + 8), _ABSENT)


def _orientation_in_tiff(contents: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    is_little = starts(contents, b"II*\0", at=start)
    is_tiff = is_little | starts(contents, b"MM\0*", at=start)

    def number(numbers: tf.Tensor) -> tf.Tensor:
        return tf.where(is_little, little_endian(numbers), big_endian(numbers))

    directory = start + number(bytes_at(contents, start + 4, 4))
    count = number(bytes_at(contents, directory, 2))
    # Entries are sorted by tag, so orientation, 0x0112, is never far from the start.
    entries = tf.reshape(bytes_at(contents, directory + 2, 12 * 64), (64, 12))
    is_orientation = (
        is_tiff
        & (tf.range(64, dtype=tf.int64) < count)
        & (number(entries[:, :2]) == 0x0112)
        & (number(entries[:, 2:4]) == 3)  # SHORT
        & (number(entries[:, 4:8]) == 1)  # one of them
    )
    value = tf.reduce_max(tf.where(is_orientation, number(entries[:, 8:10]), 0))
    return tf.cast(tf.where((value >= 1) & (value <= 8), value, 1), tf.int32)


def png_chunk(contents: tf.Tensor, name: bytes) -> tf.Tensor:
    """Return where the first chunk `name` ahead of the pixels starts, int64, or -1."""

    def visit(position: tf.Tensor, head: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        is_pixels = tf.reduce_all(head[4:8] == list(b"IDAT"))
        following = tf.where(is_pixels, _BEYOND, position + 12 + big_endian(head[:4]))
        return tf.reduce_all(head[4:8] == list(name)), following

    return walk(contents, 8, visit)


def gif_control(contents: tf.Tensor) -> tf.Tensor:
    """Return where the graphic control block of the first frame starts, int64, or -1."""

    def visit(position: tf.Tensor, head: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        is_extension = head[0] == 0x21
        # An extension is a chain of blocks of up to 255 bytes that an empty one ends.
        last = walk(contents, position + 2, lambda at, head: (head[0] == 0, at + 1 + head[0]))
        following = tf.where(is_extension & (last >= 0), last + 1, _BEYOND)
        return is_extension & (head[1] == 0xF9), following

    return walk(contents, _gif_blocks(contents), visit)


def gif_still(contents: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return a GIF without what comes after its first frame, and where that frame starts.

    TensorFlow unpacks every frame, also where one is asked for: half a megabyte can become
    gigabytes. A file without a whole frame is returned as it is, with -1 where it has none.
    """

    def visit(position: tf.Tensor, head: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # An extension is a chain of blocks of up to 255 bytes that an empty one ends.
        last = walk(contents, position + 2, lambda at, head: (head[0] == 0, at + 1 + head[0]))
        following = tf.where((head[0] == 0x21) & (last >= 0), last + 1, _BEYOND)
        return head[0] == 0x2C, following

    frame = walk(contents, _gif_blocks(contents), visit)
    data = frame + 11 + _palette_size(bytes_at(contents, frame + 9, 1)[0])
    numbers = tf.io.decode_raw(contents, tf.uint8)
    length = tf.size(numbers, tf.int64)

    def block(position: tf.Tensor) -> tf.Tensor:
        return tf.cast(numbers[position], tf.int64)

    end = tf.while_loop(
        lambda position: (position < length) & (block(tf.minimum(position, length - 1)) > 0),
        lambda position: [position + 1 + block(position)],
        [tf.where(frame >= 0, data, length)],
        parallel_iterations=1,
        maximum_iterations=_MAX_BLOCKS,
    )[0]
    still = tf.strings.join([tf.strings.substr(contents, tf.zeros_like(end), end), b"\0;"])
    return tf.cond(end < length, lambda: still, lambda: contents), frame


def _gif_blocks(contents: tf.Tensor) -> tf.Tensor:
    """Return where the blocks of a GIF begin, behind its palette."""
    return 13 + _palette_size(bytes_at(contents, 10, 1)[0])


def _palette_size(flags: tf.Tensor) -> tf.Tensor:
    return tf.where(flags >= 0x80, 3 * 2 ** (flags % 8 + 1), 0)


def walk(contents: tf.Tensor, start: int | tf.Tensor, visit: _Visit) -> tf.Tensor:
    """Go from part to part of a file and return where the first wanted one starts.

    Args:
        contents: Scalar string, the bytes of the file.
        start: Where the first part starts.
        visit: Gets the position of a part and its first 12 bytes as int64; returns whether this
            is the wanted part, and the position of the next.

    Returns:
        int64 scalar, -1 if no part is wanted.
    """
    length = tf.cast(tf.strings.length(contents), tf.int64)

    def step(position: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        wanted, following = visit(position, bytes_at(contents, position, 12))
        return tf.where(wanted, position, following), wanted

    position, wanted = tf.while_loop(
        lambda position, wanted: ~wanted & (position < length),
        step,
        (tf.cast(start, tf.int64), tf.constant(False)),
        parallel_iterations=1,
        maximum_iterations=_MAX_PARTS,
    )
    return tf.where(wanted, position, _ABSENT)


def starts(contents: tf.Tensor, signature: bytes, at: int | tf.Tensor = 0) -> tf.Tensor:
    """Return whether `signature` stands at byte `at` of the file, a bool scalar."""
    return tf.reduce_all(bytes_at(contents, at, len(signature)) == list(signature))


def is_webp(contents: tf.Tensor) -> tf.Tensor:
    """Return whether the file is WebP, whose signature has a length in the middle."""
    return starts(contents, b"RIFF") & starts(contents, b"WEBP", at=8)


def bytes_at(contents: tf.Tensor, start: int | tf.Tensor, count: int) -> tf.Tensor:
    """Return bytes of the file as int64 `(count,)`, zero where they lie outside of it."""
    length = tf.cast(tf.strings.length(contents), tf.int64)
    start = tf.cast(start, tf.int64)
    start = tf.where(start < 0, length, tf.minimum(start, length))
    piece = tf.strings.substr(contents, start, count)
    return tf.cast(tf.io.decode_raw(piece, tf.uint8, fixed_length=count), tf.int64)


def big_endian(numbers: tf.Tensor) -> tf.Tensor:
    """Read the last axis, int64 bytes and at most four, as one number."""
    weights = [256**power for power in reversed(range(numbers.shape[-1]))]
    return tf.reduce_sum(numbers * tf.constant(weights, tf.int64), -1)


def little_endian(numbers: tf.Tensor) -> tf.Tensor:
    """Read the last axis, int64 bytes and at most four, as one number."""
    return big_endian(tf.reverse(numbers, [-1]))


def replaced(contents: tf.Tensor, start: int | tf.Tensor, numbers: Sequence[object]) -> tf.Tensor:
    """Return the file with the bytes from `start` on, which lie inside it, overwritten."""
    every_byte = tf.constant([bytes([number]) for number in range(256)])
    made = tf.strings.reduce_join(tf.gather(every_byte, tf.stack(numbers)))
    length = tf.cast(tf.strings.length(contents), tf.int64)
    start = tf.minimum(tf.cast(start, tf.int64), length)
    end = tf.minimum(start + len(numbers), length)
    before = tf.strings.substr(contents, tf.zeros_like(start), start)
    return tf.strings.join([before, made, tf.strings.substr(contents, end, length - end)])
