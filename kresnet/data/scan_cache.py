"""Examine many images, and remember the answers for the next time.

Decoding every image is most of a scan's time, so what it told is kept in one SQLite file below
`KRESNET_HOME`, under the path, size and modification time of each file. It is only ever a cache:
where it cannot be read or written, images are examined again, and a damaged file is made anew.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final

import tensorflow as tf
from threadpoolctl import threadpool_limits

from kresnet.data.examine import Facts, examine
from kresnet.data.items import Item, is_url
from kresnet.machine import cores
from kresnet.zoo.download import kresnet_home

EXAMINER: Final = 1
"""To be counted up whenever `examine` gives another answer: what was kept is then forgotten."""

_MAX_BYTES: Final = 2**30  # of the file, about 800,000 images
_SETTLED_NS: Final = 2 * 10**9  # a file may change again without a change of its time
_MAX_THREADS: Final = 16
_CHUNK: Final = 1024
_HEAD: Final = struct.Struct(">II32sH")

_NOT_DAMAGE: Final = {  # it is locked, may not be written, or there is no room
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}

_Stamp = tuple[bytes, int, int, int, int]
"""Path, offset and size of the image; size and modification time in nanoseconds of its file."""


def examine_all(
    items: Sequence[Item], progress: Callable[[int, int], None] | None = None
) -> list[Facts | str | None]:
    """Examine images in parallel; most of it happens in TensorFlow, where threads run freely.

    Args:
        items: The images.
        progress: Called after each image with the number examined and of all.

    Returns:
        What `examine` says of each. What it said before of files that have not changed since is
        taken from the cache.
    """
    results: list[Facts | str | None] = []
    with (
        ScanCache(kresnet_home() / "scan.sqlite") as cache,
        threadpool_limits(1, "blas"),  # a product of one image shared by threads has them wait
        ThreadPoolExecutor(min(cores(), _MAX_THREADS)) as pool,
    ):
        for start in range(0, len(items), _CHUNK):  # a million waiting tasks would take gigabytes
            chunk = items[start : start + _CHUNK]
            stamps = [_stamp(item) for item in chunk]
            known = cache.get(stamps)
            new = {k: pool.submit(examine, item) for k, item in enumerate(chunk) if k not in known}
            for k in range(len(chunk)):
                results.append(known[k] if k in known else new[k].result())
                if progress:
                    progress(len(results), len(items))
            cache.put((stamps[k], future.result()) for k, future in new.items())
    return results


class ScanCache:
    """What `examine` said of files, on disk; for one thread, beside any number of processes.

    Args:
        path: The file; made when something is first kept. None of its troubles reach the caller.
        max_bytes: Size from which on the oldest quarter is forgotten.
    """

    def __init__(self, path: Path, *, max_bytes: int = _MAX_BYTES) -> None:
        self._path, self._max_bytes = path, max_bytes
        self._database: sqlite3.Connection | None = None
        self._is_usable = True

    def get(self, stamps: Sequence[_Stamp | None]) -> dict[int, Facts | str]:
        """Return what is known, by position in `stamps`."""
        known: dict[int, Facts | str] = {}

        def look_up(database: sqlite3.Connection) -> None:
            query = (
                "SELECT size, mtime, answer, sum FROM images WHERE path=? AND start=? AND length=?"
            )
            for k, stamp in enumerate(stamps):
                row = database.execute(query, stamp[:3]).fetchone() if stamp else None
                if stamp and row and row[:2] == stamp[3:] and row[3] == _sum(stamp, row[2]):
                    known[k] = _unpacked(row[2])

        self._try(look_up)
        return known

    def put(self, answers: Iterable[tuple[_Stamp | None, Facts | str | None]]) -> None:
        """Keep answers, but not those that may change though the file does not."""
        settled = time.time_ns() - _SETTLED_NS
        rows = []
        for stamp, answer in answers:
            lasts = answer and not (isinstance(answer, str) and answer.startswith("cannot be read"))
            if stamp and answer and lasts and stamp[4] < settled:
                packed = _packed(answer)
                rows.append((*stamp, packed, _sum(stamp, packed)))
        if not rows:
            return

        def keep(database: sqlite3.Connection) -> None:
            with database:
                database.executemany("INSERT OR REPLACE INTO images VALUES (?,?,?,?,?,?,?)", rows)
            self._forget(database)

        self._try(keep)

    def _forget(self, database: sqlite3.Connection) -> None:
        """Make room, if the file is too large, by forgetting what has been kept the longest."""
        (pages,), (free,), (size,) = (
            database.execute(f"PRAGMA {name}").fetchone()
            for name in ("page_count", "freelist_count", "page_size")
        )
        if (pages - free) * size > self._max_bytes:
            with database:
                database.execute(
                    "DELETE FROM images WHERE rowid <= "
                    "(SELECT min(rowid) + (max(rowid) - min(rowid)) / 4 FROM images)"
                )

    def _try(self, work: Callable[[sqlite3.Connection], None]) -> None:
        """Do something with the database; if it is damaged, make it anew and try once more."""
        for attempt in range(2):
            if not self._is_usable:
                return
            try:
                if self._database is None:
                    self._database = self._opened()
                return work(self._database)
            except OSError:
                self._is_usable = False
            except (sqlite3.Error, ValueError, struct.error) as error:
                self._close()
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NOT_DAMAGE:
                    self._is_usable = False
                    return
                with contextlib.suppress(OSError):
                    self._path.unlink()
                    Path(f"{self._path}-journal").unlink(missing_ok=True)
                self._is_usable = attempt == 0

    def _opened(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self._path, timeout=30)
        version = zlib.crc32(f"{EXAMINER} {tf.__version__}".encode()) >> 1  # it must be an int32
        try:
            if database.execute("PRAGMA user_version").fetchone() != (version,):
                with database:
                    database.execute("BEGIN IMMEDIATE")
                    database.execute("DROP TABLE IF EXISTS images")
                    database.execute(
                        "CREATE TABLE images (path BLOB, start INTEGER, length INTEGER, "
                        "size INTEGER, mtime INTEGER, answer BLOB, sum INTEGER, "
                        "UNIQUE (path, start, length))"
                    )
                    database.execute(f"PRAGMA user_version = {version}")
            # Nothing is lost with it, so it need not wait for the disk.
            database.execute("PRAGMA synchronous = OFF")
        except BaseException:
            database.close()
            raise
        return database

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def __enter__(self) -> ScanCache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()


def _stamp(item: Item) -> _Stamp | None:
    if is_url(item.path):
        return None
    try:
        status = os.stat(item.path)
    except OSError:
        return None
    path = os.fsencode(os.path.abspath(item.path))
    return path, item.offset, item.size, status.st_size, status.st_mtime_ns


def _sum(stamp: _Stamp, answer: bytes) -> int:
    return zlib.crc32(answer, zlib.crc32(repr(stamp).encode()))


def _packed(answer: Facts | str) -> bytes:
    if isinstance(answer, str):
        return b"-" + answer.encode("utf-8", "surrogateescape")
    traits = answer.traits.encode()
    head = _HEAD.pack(answer.height, answer.width, bytes.fromhex(answer.digest), len(traits))
    return b"+" + head + traits + answer.look


def _unpacked(packed: bytes) -> Facts | str:
    if packed[:1] == b"-":
        return packed[1:].decode("utf-8", "surrogateescape")
    height, width, digest, length = _HEAD.unpack_from(packed, 1)
    start = 1 + _HEAD.size
    traits = packed[start : start + length].decode()
    return Facts(height, width, digest.hex(), traits, packed[start + length :])
