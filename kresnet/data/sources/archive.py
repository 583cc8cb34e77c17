"""Class folders in a zip or tar file.

What lies in the archive as it is, is read there; what is compressed is unpacked once into the
cache. Nothing is ever written under a name that an archive chose.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, Final, NamedTuple

from kresnet.data.items import Item, Problem, is_named_image
from kresnet.data.sources import Listing
from kresnet.data.sources.layout import LAYOUT, Parts, arrange, is_hidden, split_folders
from kresnet.data.sources.unpacked import bomb, most_bytes, unpacked
from kresnet.errors import DataError, KresnetError

TAR_SUFFIXES: Final = (
    ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz",
)  # fmt: skip
_COMPRESSED: Final = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open))
_PIECE: Final = 2**20
_MOST_IMAGE: Final = 2**30  # bytes of a file that may be an image
_MOST_OTHER: Final = 2**26  # and that is not even named like one
_MOST_HEADER: Final = 2**24  # bytes of a tar header, which comes into memory
_DAMAGED: Final = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, struct.error,
    gzip.BadGzipFile, NotImplementedError, UnicodeDecodeError, OverflowError, ValueError,
)  # fmt: skip


class _Member(NamedTuple):
    """A file or folder of an archive; without a place its bytes are only had by unpacking."""

    name: str
    path: str = ""
    offset: int = 0
    size: int = 0
    is_folder: bool = False
    problem: str = ""


def is_archive(file: Path) -> bool:
    """Return whether a file is named like a zip or tar file."""
    return file.name.lower().endswith((".zip", *TAR_SUFFIXES))


def listing(file: Path) -> Listing:
    """List the images of an archive.

    The layout is that of a folder, see `kresnet.data.sources.folder`, or lies in one folder.

    Args:
        file: Absolute path of a zip or tar file.

    Raises:
        DataError: It is damaged, has names that lead out of it, unpacks to more than images can,
            or its images are beside no folder at all.
        ResourceError: There is no room to unpack it.
    """
    try:
        members = _zip(file) if file.name.lower().endswith(".zip") else _tar(file)
    except KresnetError:
        raise
    except (*_DAMAGED, OSError) as error:
        raise DataError(
            f"An archive must be a readable zip or tar file. Received: {str(file)!r} "
            f"({error or type(error).__name__}). Pack or download it again."
        ) from None
    return _arranged(file, members)


def _arranged(file: Path, members: Sequence[_Member]) -> Listing:
    """Find the classes in the names; of members of one name the last counts, as in unpacking."""
    named: dict[Parts, _Member] = {}
    problems: list[Problem] = []
    folders: dict[Parts, None] = {}
    for member in members:
        parts = _checked(file, member.name)
        if not parts or any(is_hidden(part) for part in parts):
            continue
        above = parts if member.is_folder else parts[:-1]
        folders |= {above[:depth]: None for depth in range(1, len(above) + 1)}
        if member.problem:
            if is_named_image(PurePosixPath(parts[-1])):
                problems.append(Problem(f"{file}::{member.name}", member.problem))
        elif not member.is_folder:
            if parts in named:
                problems.append(Problem(f"{file}::{member.name}", "in the archive more than once"))
            named[parts] = member
    top = _top(folders, named)
    depth = len(top)
    files = {parts[depth:]: m for parts, m in named.items() if parts[:depth] == top}
    inner = sorted(p[depth:] for p in folders if p[:depth] == top and depth < len(p) <= depth + 2)
    layout = arrange(inner, sorted(files), "/".join((str(file), *top)))

    def path(parts: Parts) -> str:
        return f"{file}::{'/'.join((*top, *parts))}"

    return Listing(
        str(file.parent),
        tuple(
            Item(
                files[parts].path,
                layout.classes[place].label,
                layout.classes[place].split,
                files[parts].offset,
                files[parts].size,
                files[parts].name,
            )
            for parts, place in layout.files
        ),
        (*problems, *(Problem(path(parts), reason) for parts, reason in layout.outside)),
        "archive",
        tuple((c.split, c.label, path(c.parts)) for c in layout.classes),
        LAYOUT,
    )


def _checked(file: Path, name: str) -> Parts:
    """Return the names on the way to a member, of which none may lead out of the archive."""
    windows = PureWindowsPath(name)
    if name.startswith("/") or windows.anchor or ".." in windows.parts:
        raise DataError(
            "The names in an archive must not lead out of it. Received: "
            f"{name!r} in {str(file)!r}. Do not unpack it; get it from somebody you trust."
        )
    return PurePosixPath(name).parts


def _top(folders: dict[Parts, None], files: dict[Parts, _Member]) -> Parts:
    """Return the way to the folder that holds everything, if there is one around the classes."""
    top: Parts = ()
    while True:
        depth = len(top) + 1
        inner = [parts for parts in folders if len(parts) == depth]
        if len(inner) != 1 or split_folders([inner[0][-1]]):
            return top
        # Images beside it, or in it: then it is a class.
        if any(
            len(p) in (depth, depth + 1) and is_named_image(PurePosixPath(p[-1])) for p in files
        ):
            return top
        if not any(parts[:depth] == inner[0] and len(parts) > depth for parts in folders):
            return top  # the only class, and not a folder around classes
        top = inner[0]


def _zip(file: Path) -> list[_Member]:
    with zipfile.ZipFile(file) as archive, file.open("rb") as stream:
        members, compressed = [], []
        for info in archive.infolist():
            name = info.filename.replace("\\", "/")
            if info.is_dir():
                members.append(_Member(name, is_folder=True))
            elif problem := _zip_problem(info):
                members.append(_Member(name, problem=problem))
            elif info.compress_type == zipfile.ZIP_STORED:
                members.append(_stored(stream, file, info, name))
            else:
                compressed.append(info)
        if sum(info.file_size for info in compressed) > most_bytes(file):
            raise bomb(file)

        def pieces() -> Iterator[tuple[str, Iterator[bytes] | str]]:
            for info in compressed:
                yield info.filename.replace("\\", "/"), _zip_pieces(archive, info)

        for info in compressed:
            _checked(file, info.filename)
        return members + (_unpacked(file, pieces) if compressed else [])


def _zip_problem(info: zipfile.ZipInfo) -> str:
    mode = info.external_attr >> 16
    if info.flag_bits & 1:
        return "encrypted"
    if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
        return "a link or a device, which is not followed"
    return _too_large(info.filename, info.file_size)


def _too_large(name: str, size: int) -> str:
    is_named = is_named_image(PurePosixPath(name))
    return "larger than 1 GiB" if size > (_MOST_IMAGE if is_named else _MOST_OTHER) else ""


def _stored(stream: IO[bytes], file: Path, info: zipfile.ZipInfo, name: str) -> _Member:
    """Return where a member is that is stored as it is; its own header tells how long that is."""
    stream.seek(info.header_offset)
    signature, *_, name_size, extra_size = struct.unpack("<4s22xHH", stream.read(30))
    start = info.header_offset + 30 + name_size + extra_size
    is_inside = start + info.file_size <= file.stat().st_size
    if signature != b"PK\3\4" or info.compress_size != info.file_size or not is_inside:
        return _Member(name, problem="damaged in the archive")
    return _Member(name, str(file), start, info.file_size)


def _zip_pieces(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    with archive.open(info) as member:
        while piece := member.read(_PIECE):
            yield piece


def _tar(file: Path) -> list[_Member]:
    with file.open("rb") as raw:
        head = raw.read(6)
        raw.seek(0)
        opened = next((op for magic, op in _COMPRESSED if head.startswith(magic)), None)
        if opened is None:
            _, infos = _tar_members(_Stream(raw))
            return [
                _Member(i.name, str(file), i.offset_data, i.size, i.isdir(), _tar_problem(i))
                for i in infos
            ]

        def pieces() -> Iterator[tuple[str, Iterator[bytes] | str]]:
            with opened(raw, "rb") as stream:
                archive, infos = _tar_members(_Unpacking(stream, file))
                for info in infos:
                    _checked(file, info.name)
                    if info.isdir():
                        yield f"{info.name}/", iter(())
                    elif problem := _tar_problem(info):
                        yield info.name, problem
                    else:
                        yield info.name, _tar_pieces(archive, info)

        return _unpacked(file, pieces)


def _tar_members(stream: Any) -> tuple[tarfile.TarFile, Iterator[tarfile.TarInfo]]:
    archive: Any = tarfile.TarFile(fileobj=stream)

    def members() -> Iterator[tarfile.TarInfo]:
        while (info := archive.next()) is not None:
            archive.members.clear()  # else it keeps them all
            yield info
        if stream.block.strip(b"\0"):  # where tarfile takes it for the end
            raise tarfile.ReadError("there is no header where one should be")

    return archive, members()


def _tar_problem(info: tarfile.TarInfo) -> str:
    if info.isdir():
        return ""
    if not info.isreg():
        return "a link or a device, which is not followed"
    if info.issparse():
        return "sparse in the archive"
    return _too_large(info.name, info.size)


def _tar_pieces(archive: tarfile.TarFile, info: tarfile.TarInfo) -> Iterator[bytes]:
    member = archive.extractfile(info)
    left = info.size
    while member and left:
        piece = member.read(min(_PIECE, left))
        if not piece:
            raise EOFError("it ends inside of a file")
        left -= len(piece)
        yield piece


def _unpacked(file: Path, pieces: Any) -> list[_Member]:
    path, parts = unpacked(file, pieces)
    return [
        _Member(p.name, str(path), p.offset, p.size, p.name.endswith("/"), p.problem) for p in parts
    ]


class _Stream:
    """A file for tarfile, which believes every header: no way back, and no endless header.

    Attributes:
        block: What was read last.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.block = b""

    def tell(self) -> int:
        return int(self._stream.tell())

    def seek(self, position: int) -> int:
        if position < self.tell() - 1:  # before each header tarfile goes back by one
            raise tarfile.ReadError("a header leads back")
        return int(self._stream.seek(position))

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        self.block = self._stream.read(size)
        return self.block


class _Unpacking(_Stream):
    """The same for a decompressor, which would begin again to go back by one byte."""

    def __init__(self, stream: Any, file: Path) -> None:
        super().__init__(stream)
        self._file, self._most = file, most_bytes(file)
        self._position, self._last = 0, b""
        self._is_back = False

    def tell(self) -> int:
        return self._position - self._is_back

    def seek(self, position: int) -> int:
        if position < self._position - 1:
            raise tarfile.ReadError("a header leads back")
        self._is_back = position == self._position - 1
        while self._position < position and self._take(position - self._position):
            pass
        return self.tell()

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        parts = [self._last] if self._is_back and size else []
        left = size - len(parts)
        self._is_back = self._is_back and not size
        while left and (piece := self._take(left)):
            parts.append(piece)
            left -= len(piece)
        self.block = b"".join(parts)
        return self.block

    def _take(self, size: int) -> bytes:
        piece: bytes = self._stream.read(min(size, _PIECE))
        self._position += len(piece)
        self._last = piece[-1:] or self._last
        if self._position > self._most:
            raise bomb(self._file)
        return piece
