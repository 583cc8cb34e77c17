"""Images that cannot be read where they are, unpacked once into one file of kresnet's cache.

All parts of a source go one after the other into a single file, so no name in the source ever
becomes a path on the disk.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from kresnet.errors import DataError, ResourceError
from kresnet.zoo.download import kresnet_home

_FREE: Final = 2**30  # bytes that are left on the disk
_NO_ROOM: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}
_INDEX: Final = "parts.json"


class Part(NamedTuple):
    """One part of an unpacked source: its bytes in the file, or why there are none."""

    name: str
    offset: int
    size: int
    problem: str = ""


Pieces = Callable[[], Iterable[tuple[str, Iterator[bytes] | str]]]
"""Gives name and bytes, in pieces, of every part, or its name and what is wrong with it."""


def most_bytes(source: Path) -> int:
    """Return what a source may unpack to: images hardly shrink, so much more is a bomb."""
    return 100 * source.stat().st_size + 2**30


def bomb(source: Path) -> DataError:
    """Return the error for a source that would unpack to more than that."""
    return DataError(
        f"An archive may unpack to at most 100 times its size and 1 GiB. Received: {str(source)!r} "
        f"of {source.stat().st_size} bytes, which unpacks to more. Unpack it yourself if you "
        "trust it."
    )


def unpacked(source: Path, pieces: Pieces) -> tuple[Path, list[Part]]:
    """Unpack a source, or find what was unpacked of the same bytes before.

    Args:
        source: The file, which is only read.
        pieces: Its parts; asked for only if they are not in the cache.

    Returns:
        The file in the cache, which has the name of the source, and the parts in it.

    Raises:
        DataError: It unpacks to more than images can.
        OSError: It cannot be read.
        ResourceError: The cache cannot be written, or the disk is full.
    """
    with source.open("rb") as file:
        key = hashlib.file_digest(file, "sha256").hexdigest()
    home = kresnet_home() / "unpacked" / key[:32]
    if (parts := _cached(home, source.name)) is not None:
        return home / source.name, parts
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=home.parent) as partial:
            parts = _write(Path(partial), source, pieces)
            _place(Path(partial), home)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise  # the source cannot be read
        raise ResourceError(
            f"There must be room to unpack {str(source)!r}. Received: {error}. Make room, or set "
            "KRESNET_HOME to a larger disk."
        ) from None
    return home / source.name, parts


def _write(folder: Path, source: Path, pieces: Pieces) -> list[Part]:
    most = min(most_bytes(source), shutil.disk_usage(folder).free - _FREE)
    parts: list[Part] = []
    written = 0
    with (folder / source.name).open("wb") as file:
        for name, contents in pieces():
            if isinstance(contents, str):
                parts.append(Part(name, written, 0, contents))
                continue
            start = written
            for piece in contents:
                written += len(piece)
                if written > most_bytes(source):
                    raise bomb(source)
                if written > most:
                    raise OSError(errno.ENOSPC, "it needs more than is free", str(folder))
                file.write(piece)
            parts.append(Part(name, start, written - start))
    (folder / _INDEX).write_text(json.dumps(parts), "ascii")  # escapes bytes that are not UTF-8
    return parts


def _place(partial: Path, home: Path) -> None:
    """Move what was unpacked to its place; somebody else may have been faster, or it is damaged."""
    if home.exists():
        shutil.rmtree(home, ignore_errors=True)
    try:
        os.rename(partial, home)
    except OSError:
        if not home.exists():
            raise
        return
    partial.mkdir()  # for the context manager to remove


def _cached(home: Path, name: str) -> list[Part] | None:
    try:
        parts = [Part(*part) for part in json.loads((home / _INDEX).read_text("ascii"))]
        whole = (home / name).stat().st_size == sum(part.size for part in parts)
    except (OSError, ValueError, TypeError):
        return None
    return parts if whole else None
