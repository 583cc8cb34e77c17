"""What the server lets in: how much at a time, from whom, and images of what size."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
import struct
from collections.abc import Iterator

from kresnet.serve.settings import Settings
from kresnet.serve.status import RequestError, Status, overloaded

_BODIES_IN_MEMORY = 4
"""So many bodies of the longest kind may be in memory at once; it bounds the server's memory."""


class Gate:
    """Counts what is under way and refuses what would be too much.

    Args:
        settings: The limits.
    """

    def __init__(self, settings: Settings) -> None:
        self.requests = 0
        self.bytes = 0
        self._max_requests = settings.max_concurrency
        self._max_bytes = _BODIES_IN_MEMORY * settings.max_body_bytes

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Hold a place for a request.

        Raises:
            RequestError: All places are taken.
        """
        if self.requests >= self._max_requests:
            raise overloaded(f"{self.requests} requests are under way, which is the limit.")
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    @contextlib.contextmanager
    def room(self) -> Iterator[Room]:
        """Hold memory for one body."""
        room = Room(self)
        try:
            yield room
        finally:
            self.bytes -= room.bytes

    def take(self, count: int) -> None:
        """Count bytes that come into memory.

        Raises:
            RequestError: There is no room for them.
        """
        if self.bytes + count > self._max_bytes:
            raise overloaded("The bodies of other requests take the memory for bodies.")
        self.bytes += count


class Room:
    """The memory of one body, given back when the `Gate.room` it came from ends."""

    def __init__(self, gate: Gate) -> None:
        self.bytes = 0
        self._gate = gate

    def hold(self, total: int) -> None:
        """Make the room at least `total` bytes large."""
        if total > self.bytes:
            self._gate.take(total - self.bytes)
            self.bytes = total


def check_token(expected: str | None, authorization: str | None) -> None:
    """Compare a bearer token in constant time.

    Args:
        expected: The server's token; None lets everybody in.
        authorization: The Authorization header or metadata.

    Raises:
        RequestError: The token is missing or wrong.
    """
    if expected is None:
        return
    scheme, _, given = (authorization or "").partition(" ")
    # Digests are of one length, so that not even the length of the token shows.
    digests = [hashlib.sha256(text.strip().encode()).digest() for text in (expected, given)]
    if not hmac.compare_digest(*digests) or scheme.lower() != "bearer":
        raise RequestError(
            Status.UNAUTHENTICATED, "This server needs the header `Authorization: Bearer TOKEN`."
        )


def is_safe_host(host: str | None) -> bool:
    """Tell whether a Host header cannot come from a DNS name rebound to this machine.

    A page in a browser can point a name of its own at 127.0.0.1 and then read from a server that
    listens there; it cannot do so with an address or with `localhost`.
    """
    if not host:  # HTTP/1.0; a browser always sends one
        return True
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    name = name.strip("[]").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_image(contents: bytes) -> bool:
    """Tell whether a file starts as one of the formats that the graph decodes."""
    is_webp = contents.startswith(b"RIFF") and contents[8:12] == b"WEBP"
    return is_webp or contents.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM"))


def image_area(contents: bytes) -> int | None:
    """Read the number of pixels that an image file announces, without decoding it.

    Args:
        contents: A file; only JPEG, PNG, BMP, GIF and WebP are known.

    Returns:
        Width times height in pixels; None where the header is damaged or of another format, which
        the graph refuses by itself.
    """
    with contextlib.suppress(struct.error, IndexError):
        if contents.startswith(b"\xff\xd8\xff"):
            return _jpeg_area(contents)
        if contents.startswith(b"\x89PNG\r\n\x1a\n"):
            width, height = struct.unpack_from(">II", contents, 16)
        elif contents.startswith(b"GIF8"):
            width, height = struct.unpack_from("<HH", contents, 6)
        elif contents.startswith(b"BM"):
            width, height = struct.unpack_from("<ii", contents, 18)
        elif contents.startswith(b"RIFF") and contents[8:12] == b"WEBP":
            return _webp_area(contents)
        else:
            return None
        return abs(width) * abs(height)
    return None


def _jpeg_area(contents: bytes) -> int | None:
    position = 2
    for _ in range(256):  # segments; the header of a real photo has a dozen
        while contents[position] == 0xFF and contents[position + 1] == 0xFF:
            position += 1  # fill bytes
        marker, length = struct.unpack_from(">xBH", contents, position)
        if contents[position] != 0xFF or length < 2:
            return None
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", contents, position + 5)
            return int(height * width)
        position += 2 + length
    return None


def _webp_area(contents: bytes) -> int | None:
    kind = contents[12:16]
    if kind == b"VP8X":
        width = 1 + int.from_bytes(contents[24:27], "little")
        return width * (1 + int.from_bytes(contents[27:30], "little"))
    if kind == b"VP8L":
        packed = int.from_bytes(contents[21:25], "little")
        return (1 + packed % 2**14) * (1 + packed // 2**14 % 2**14)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", contents, 26)
        return int(width % 2**14) * int(height % 2**14)
    return None
