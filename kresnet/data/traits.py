"""What is special about an image file, from its bytes and without decoding it.

Nothing here raises on damaged bytes: `measure` says what it could read before the damage.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Final

_EXTENSIONS: Final = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "PNG": {".png"},
    "BMP": {".bmp", ".dib"},
    "GIF": {".gif"},
    "WebP": {".webp"},
}
_MARKER: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # not a stuffed byte, not a restart


@dataclass(slots=True)
class Measure:
    """What the parts of a file say.

    Attributes:
        area: Pixels that decoding it makes room for.
        traits: Words as "grey", see `Facts`.
        end: Where the image ends in the file; 0 where that is not known.
    """

    area: int = 0
    traits: list[str] = field(default_factory=list)
    end: int = 0

    def add(self, trait: str, is_so: bool) -> None:
        """Note a trait, once."""
        if is_so and trait not in self.traits:
            self.traits.append(trait)


def measure(kind: str, contents: bytes) -> Measure:
    """Read the parts of a file.

    Args:
        kind: "JPEG", "PNG", "BMP", "GIF" or "WebP", which the file begins like.
        contents: The bytes of the whole file.
    """
    measured = Measure()
    readers: dict[str, Callable[[bytes, Measure], None]] = {
        "JPEG": _jpeg,
        "PNG": _png,
        "BMP": _bmp,
        "GIF": _gif,
        "WebP": _webp,
    }
    try:
        readers[kind](contents, measured)
    except (IndexError, struct.error):  # it ends too early
        measured.end = 0
    measured.add("appended", 0 < measured.end < len(contents.rstrip(b"\0\r\n ")))
    return measured


def is_renamed(kind: str, name: PurePath) -> bool:
    """Return whether the extension, if there is one, is not that of the format."""
    suffix = name.suffix.lower()
    return re.fullmatch(r"\.[a-z][a-z0-9]{1,4}", suffix) is not None and (
        suffix not in _EXTENSIONS[kind]
    )


def _jpeg(contents: bytes, found: Measure) -> None:
    position = 2
    while True:
        match = _MARKER.search(contents, position)
        if match is None:
            return
        position, marker = match.end(), contents[match.end() - 1]
        if marker == 0xD9:
            found.end = position
            return
        if marker in (0x01, 0xD8):  # no length follows
            continue
        if marker & 0xF0 == 0xC0 and marker not in (0xC4, 0xC8, 0xCC) and not found.area:
            height, width, channels = struct.unpack_from(">HHB", contents, position + 3)
            found.area = height * width
            found.add("grey", channels == 1)
            found.add("cmyk", channels == 4)
        position += int.from_bytes(contents[position : position + 2], "big")


def _png(contents: bytes, found: Measure) -> None:
    width, height, bits, colour = struct.unpack_from(">IIBB", contents, 16)
    found.area = width * height
    found.add("grey", colour in (0, 4))
    found.add("palette", colour == 3)
    found.add("alpha", colour in (4, 6))
    found.add("16-bit", bits == 16)
    position = 8
    while True:
        length, name = struct.unpack_from(">I4s", contents, position)
        found.add("alpha", name == b"tRNS")
        found.add("animated", name == b"acTL")
        position += 12 + length
        if name == b"IEND":
            found.end = position
            return


def _bmp(contents: bytes, found: Measure) -> None:
    size = int.from_bytes(contents[2:6], "little")
    width, height, _, bits = struct.unpack_from("<iiHH", contents, 18)
    found.area = abs(width * height)
    found.add("palette", bits <= 8)
    found.end = size


def _gif(contents: bytes, found: Measure) -> None:
    width, height, flags = struct.unpack_from("<HHB", contents, 6)
    found.area = width * height
    found.add("palette", True)
    position = 13 + (3 * 2 ** (flags % 8 + 1) if flags & 0x80 else 0)
    frames = 0
    while contents[position] != 0x3B:
        if contents[position] == 0x2C:
            width, height, flags = struct.unpack_from("<HHB", contents, position + 5)
            if not frames:  # the others are not decoded
                found.area = max(found.area, width * height)
            frames += 1
            found.add("animated", frames > 1)
            position += 11 + (3 * 2 ** (flags % 8 + 1) if flags & 0x80 else 0)
        elif contents[position] == 0x21:
            is_control = contents[position + 1] == 0xF9
            found.add("alpha", is_control and not frames and contents[position + 3] % 2 == 1)
            position += 2
        else:
            return
        while length := contents[position]:
            position += length + 1
        position += 1
    found.end = position + 1


def _webp(contents: bytes, found: Measure) -> None:
    kind, head = contents[12:16], contents[20:30]
    if kind == b"VP8X":
        found.add("alpha", bool(head[0] & 0x10))
        found.add("animated", bool(head[0] & 0x02))
        sides = (int.from_bytes(head[k : k + 3], "little") + 1 for k in (4, 7))
    elif kind == b"VP8L":
        packed = int.from_bytes(head[1:5], "little")
        found.add("alpha", bool(packed >> 28 & 1))
        sides = (1 + (packed >> shift) % 2**14 for shift in (0, 14))
    else:
        sides = (int.from_bytes(head[k : k + 2], "little") % 2**14 for k in (6, 8))
    found.area = next(sides) * next(sides)
    length = int.from_bytes(contents[4:8], "little")
    found.end = 8 + length + length % 2
