"""`pixels.decode` without TensorFlow, for programs that must answer before it is loaded.

It promises the same pixels, bit for bit, or says nothing: whatever a file holds that Pillow and
TensorFlow might see in different ways, as 16 bits, animations or damage, is left to `pixels`. One
thing no one can see from outside: where the compressed data of a JPEG are damaged in a way that
leaves its markers whole, Pillow may show what TensorFlow refuses.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from typing import Final, Literal

import numpy as np

_MAX_PIXELS: Final = 100_000_000  # as in `pixels`
_MAX_PARTS: Final = 256  # of a file, as in `headers`
_HEAD: Final = 2**17  # bytes of a JPEG in which `pixels` looks for EXIF
_EXIF: Final = b"Exif\0\0"
_ORDERS: Final[dict[bytes, Literal["little", "big"]]] = {b"II*\0": "little", b"MM\0*": "big"}
"""Of the bytes of numbers, by what a TIFF begins with."""

_IN_SCANS: Final = (0x00, 0xC4, *range(0xD0, 0xD8), 0xD9, 0xDA, 0xDB, 0xDD, 0xFE)
"""What may follow 0xFF in the scans of a JPEG: stuffing, restarts, tables, comments, the end."""


def decode(contents: bytes) -> np.ndarray | None:
    """Decode an image file into upright RGB pixels, as `pixels.decode` does.

    Args:
        contents: The bytes of the file.

    Returns:
        uint8 `(h, w, 3)`; None where `pixels.decode` may see something else, or refuse.
    """
    kinds: tuple[tuple[bytes, Callable[[bytes], np.ndarray | None]], ...] = (
        (b"\xff\xd8\xff", _jpeg),
        (b"\x89PNG\r\n\x1a\n", _png),
        (b"BM", _bmp),
        (b"GIF8", _gif),
        (b"RIFF", _webp),
    )
    for start, decoder in kinds:
        if contents.startswith(start):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    return decoder(contents)
            except Exception:  # whatever Pillow says: TensorFlow has the last word
                return None
    return None


def _opened(contents: bytes, kind: str) -> tuple[np.ndarray, str] | None:
    """Return the stored pixels as Pillow gives them, and their mode."""
    from PIL import Image

    with Image.open(io.BytesIO(contents), formats=(kind,)) as image:
        if image.width * image.height > _MAX_PIXELS:
            return None
        image.load()
        mode = image.mode
        if mode in ("1", "L", "P", "RGB"):
            if mode == "P" and np.asarray(image).max() >= len(image.getpalette() or ()) // 3:
                return None
            return np.asarray(image.convert("RGB")), mode
        return np.asarray(image), mode


# ---------------------------------------------------------------- formats


def _jpeg(contents: bytes) -> np.ndarray | None:
    frame = _jpeg_frame(contents)
    if frame is None or not _is_whole_jpeg(contents, frame):
        return None
    if contents[frame + 4] != 8 or contents[frame + 9] not in (1, 3):  # bits, channels
        return None
    found = _opened(contents, "JPEG")
    if found is None or found[1] not in ("L", "RGB"):
        return None
    return _turned(found[0], _orientation(contents, _exif_in_jpeg(contents)))


def _png(contents: bytes) -> np.ndarray | None:
    bits, colour = contents[24], contents[25]
    names = _png_chunks(contents)
    if bits > 8 or names is None or b"acTL" in names:
        return None
    has_alpha = colour in (4, 6) or b"tRNS" in names
    if not has_alpha:
        found = _opened(contents, "PNG")
        pixels = found and found[0]
    else:
        pixels = _png_with_alpha(contents, bits, colour)
    if pixels is None:
        return None
    exif = names.get(b"eXIf", -1)
    return _turned(pixels, _orientation(contents, exif + 8 if exif >= 0 else -1))


def _png_with_alpha(contents: bytes, bits: int, colour: int) -> np.ndarray | None:
    from PIL import Image

    if bits != 8:
        return None
    with Image.open(io.BytesIO(contents), formats=("PNG",)) as image:
        if image.width * image.height > _MAX_PIXELS:
            return None
        return _over_white(np.asarray(image.convert("RGBA")))


def _bmp(contents: bytes) -> np.ndarray | None:
    start, header, width, height = struct.unpack_from("<IIii", contents, 10)
    if header != 40 or contents[28:34] != b"\x18\0\0\0\0\0":  # 24 bits, not compressed
        return None
    if len(contents) != start + (3 * width + 3) // 4 * 4 * abs(height):
        return None
    found = _opened(contents, "BMP")
    return found and found[0]


def _gif(contents: bytes) -> np.ndarray | None:
    """Decode a GIF of one whole, opaque frame."""
    flags = contents[10]
    position = 13 + (3 * 2 ** (flags % 8 + 1) if flags & 0x80 else 0)
    frames = 0
    while contents[position] != 0x3B:
        if contents[position] == 0x2C:
            frames += 1
            frame = contents[position + 1 : position + 10]
            if frames > 1 or any(frame[:4]) or frame[4:8] != contents[6:10]:
                return None
            flags = frame[8]
            position += 11 + (3 * 2 ** (flags % 8 + 1) if flags & 0x80 else 0)
        elif contents[position] == 0x21:
            if contents[position + 1] == 0xF9 and contents[position + 3] % 2:  # transparency
                return None
            position += 2
        else:
            return None
        while contents[position]:
            position += 1 + contents[position]
        position += 1
    if not frames:
        return None
    found = _opened(contents, "GIF")
    return found and found[0]


def _webp(contents: bytes) -> np.ndarray | None:
    if contents[8:12] != b"WEBP" or 8 + _number(contents[4:8], "little") > len(contents):
        return None
    is_extended = contents[12:16] == b"VP8X"
    if is_extended and contents[20] & 0x12:  # alpha, animation
        return None
    found = _opened(contents, "WEBP")
    if found is None or found[1] != "RGB":
        return None
    return _turned(found[0], _orientation(contents, _exif_in_webp(contents)))


# ---------------------------------------------------------------- headers, as in `headers`


def _jpeg_frame(contents: bytes) -> int | None:
    """Return where the first frame header of a JPEG starts, after its metadata and tables."""
    position = 2
    while position + 10 < len(contents) and contents[position] == 0xFF:
        marker = contents[position + 1]
        if marker & 0xF0 == 0xC0 and marker not in (0xC4, 0xC8, 0xCC):
            return position
        if marker in (0xDA, 0xFF):
            return None
        position += 2 + _number(contents[position + 2 : position + 4])
    return None


def _is_whole_jpeg(contents: bytes, frame: int) -> bool:
    """Tell whether the scans of a JPEG have the markers that belong there, up to its end."""
    start = contents.find(b"\xff\xda", frame)
    end = contents.find(b"\xff\xd9", start)
    if min(start, end) < 0:
        return False
    behind = contents[end + 2 :].lstrip(b"\0\r\n ")
    if behind and not behind.startswith(b"\xff\xd8"):  # a second image, as of a preview
        return False
    data = np.frombuffer(contents, np.uint8)[start : end + 2]
    markers = data[1:][data[:-1] == 0xFF]
    return bool(np.isin(markers, _IN_SCANS).all())


def _exif_in_jpeg(contents: bytes) -> int:
    if _EXIF not in contents[:_HEAD]:
        return -1
    position = 2
    for _ in range(_MAX_PARTS):
        marker = contents[position + 1]
        if contents[position] != 0xFF or not (marker & 0xF0 == 0xE0 or marker == 0xFE):
            return -1
        if marker == 0xE1 and contents[position + 4 : position + 10] == _EXIF:
            return position + 10
        position += 2 + _number(contents[position + 2 : position + 4])
    return -1


def _png_chunks(contents: bytes) -> dict[bytes, int] | None:
    """Return where the first chunk of each name ahead of the pixels starts; None if it is cut."""
    found: dict[bytes, int] = {}
    position, has_pixels, parts = 8, False, 0
    while position + 12 <= len(contents):
        name = contents[position + 4 : position + 8]
        if name == b"IEND":
            is_end = contents[position : position + 12] == b"\0\0\0\0IEND\xaeB`\x82"
            return found if has_pixels and is_end else None
        has_pixels = has_pixels or name == b"IDAT"
        if not has_pixels:
            found.setdefault(name, position)
            parts += 1
            if parts == _MAX_PARTS:
                return None
        position += 12 + _number(contents[position : position + 4])
    return None


def _exif_in_webp(contents: bytes) -> int:
    position = 12
    for _ in range(_MAX_PARTS):
        if position >= len(contents):
            return -1
        length = _number(contents[position + 4 : position + 8], "little")
        if contents[position : position + 4] == b"EXIF":
            return position + (14 if contents[position + 8 : position + 14] == _EXIF else 8)
        position += 8 + length + length % 2
    return -1


def _orientation(contents: bytes, start: int) -> int:
    """Return the EXIF orientation 1..8 in the TIFF at `start`; 1 where there is none."""
    if start < 0 or contents[start : start + 4] not in _ORDERS:
        return 1
    order = _ORDERS[contents[start : start + 4]]

    def number(place: int, count: int) -> int:
        return _number(contents[place : place + count].ljust(count, b"\0"), order)

    directory = start + number(start + 4, 4)
    value = 0
    for entry in range(min(number(directory, 2), 64)):
        place = directory + 2 + 12 * entry
        if (number(place, 2), number(place + 2, 2), number(place + 4, 4)) == (0x0112, 3, 1):
            value = max(value, number(place + 8, 2))
    return value if 1 <= value <= 8 else 1


def _number(contents: bytes, order: Literal["little", "big"] = "big") -> int:
    return int.from_bytes(contents, order)


# ---------------------------------------------------------------- pixels


def _turned(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Undo EXIF orientation `turn`: orientations 5 to 8 swap the axes, then come the mirrors."""
    if turn >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _over_white(rgba: np.ndarray) -> np.ndarray:
    """Composite uint8 `(h, w, 4)` over white, rounded to the nearest level."""
    darkness = (255 - rgba[..., :3]).astype(np.uint16) * rgba[..., 3:].astype(np.uint16)
    return 255 - ((darkness + 127) // 255).astype(np.uint8)
