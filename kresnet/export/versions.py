"""Versions of an export: `NAME/1`, `NAME/2` and so on, each there as a whole or not at all.

TensorFlow Serving polls these folders and serves the highest number. A version is written under a
hidden name, brought to the disk and renamed, so no reader ever sees half of one. Going back to an
older version publishes it again under a new number: nothing is deleted, and a server that polls
follows without being told.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from kresnet.errors import ExportError, ResourceError
from kresnet.export.contract import CONTRACT_FILE, Contract

if sys.platform != "win32":
    import fcntl

_PARTIAL: Final = ".partial-"


@dataclass(frozen=True, slots=True)
class Version:
    """One published version of an export.

    Attributes:
        path: Its directory, NAME/VERSION.
        contract: What it promises.
    """

    path: Path
    contract: Contract

    @property
    def number(self) -> int:
        """The version."""
        return int(self.path.name)

    @property
    def created(self) -> str:
        """When it was made, ISO 8601 in UTC."""
        made = datetime.fromtimestamp(self.path.stat().st_mtime, UTC)
        return self.contract.created or made.isoformat(timespec="seconds")

    @property
    def origin(self) -> int:
        """The version that it is, or is a copy of."""
        return self.contract.copy_of or self.number

    def __str__(self) -> str:
        contract = self.contract
        copy = f", again version {contract.copy_of}" if contract.copy_of else ""
        return (
            f"{self.path.parent.name} {self.number}{copy}  {self.created}  {contract.variant}, "
            f"{len(contract.classes)} classes"
            + ("" if contract.precision == "float32" else f", {contract.precision}")
        )

    def table(self) -> str:
        """Return the files and what was compared, as text."""
        lines = ["file                     MB  max |dp|   top-1  accuracy   Keras  images"]
        for name, check in self.contract.formats.items():
            accuracy, of_keras = (
                "-" if share is None else f"{share:.1%}"
                for share in (check.accuracy, check.reference_accuracy)
            )
            lines.append(
                f"{name:<19}{check.bytes / 1e6:>8.1f}{check.max_difference:>10.1e}"
                f"{check.top1_agreement:>8.1%}{accuracy:>10}{of_keras:>8}{check.images:>8}"
            )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        contract = self.contract
        return {
            "name": self.path.parent.name,
            "version": self.number,
            "path": str(self.path),
            "created": self.created,
            "copy_of": contract.copy_of,
            "variant": contract.variant,
            "classes": list(contract.classes),
            "bytes": sum(file.stat().st_size for file in _files(self.path)),
            "formats": {
                name: check.model_dump(mode="json") for name, check in contract.formats.items()
            },
        }


def latest_version(path: Path) -> Path:
    """Return the newest version of an export, or `path` itself if it is a version.

    Raises:
        ExportError: There is no SavedModel at or below `path`.
    """
    if (path / "saved_model.pb").is_file():
        return path
    versions = _numbers(path)
    if not versions:
        raise ExportError(
            "An export is a folder NAME or NAME/VERSION with a SavedModel. "
            f"Received: {str(path)!r}. `kresnet train` writes one under saved_models/."
        )
    return path / str(versions[-1])


def list_versions(root: Path, name: str | None = None) -> list[Version]:
    """Return the versions of one export, or of all below `root`, by name and number.

    Folders with a number that hold no kresnet export are passed over.

    Raises:
        ExportError: There is no export `name`.
    """
    homes = [root / name] if name else sorted(p for p in root.glob("[!.]*") if p.is_dir())
    found = []
    for home in homes:
        for number in _numbers(home):
            with suppress(ExportError):
                path = home / str(number)
                found.append(Version(path, Contract.load(path)))
    if name and not found:
        known = ", ".join(sorted({v.path.parent.name for v in list_versions(root)})) or "none"
        raise ExportError(
            f"The export must be one of those in {root}: {known}. Received: {name!r}. "
            "`kresnet exports` lists them."
        )
    return found


def roll_back(root: Path, name: str, version: int | None = None) -> Version:
    """Publish an older version again, under the next number.

    Args:
        root: Folder of all exports.
        name: The export.
        version: Which one; None is the one before the newest. A version that is itself a copy
            counts as what it copies, so going back twice goes back two versions.

    Returns:
        The new version. It shares the files of the old one where the file system can.

    Raises:
        ExportError: There is no such version.
        ResourceError: The folder cannot be written.
    """
    versions = list_versions(root, name)
    older = [v for v in versions if v.number < versions[-1].origin and v.contract.copy_of is None]
    chosen = [v for v in versions if v.number == version] if version is not None else older[-1:]
    if not chosen:
        raise ExportError(
            "Going back needs an older version. "
            f"Received: {name!r} with {', '.join(str(v.number) for v in versions)}"
            f"{'' if version is None else f', asked for {version}'}."
        )
    old = chosen[0]
    with new_version(root / name) as publication:
        for file in _files(old.path):
            copy = publication.directory / file.relative_to(old.path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if file.relative_to(old.path) == CONTRACT_FILE:
                continue
            try:
                os.link(file, copy)
            except OSError:  # another file system, or one without links
                shutil.copy2(file, copy)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        contract = old.contract.model_copy(update={"copy_of": old.origin, "created": now})
        contract.save(publication.directory)
    return Version(publication.path, contract)


class Publication:
    """A version in the making.

    Attributes:
        directory: Where to write it.
        path: Where it has been published; not to be asked before.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory


@contextmanager
def new_version(home: Path) -> Iterator[Publication]:
    """Give a directory to write to that becomes the next version at the end of the block.

    An error inside the block leaves nothing behind. What a killed process leaves is hidden, and
    removed by the next publication.

    Args:
        home: Folder of the export, `root/NAME`.

    Raises:
        ResourceError: The folder cannot be written.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        _remove_stale(home)
        with _locked_directory(home) as directory:
            publication = Publication(directory)
            yield publication
            for file in (*_files(directory), *_folders(directory)):
                _sync(file)
            publication.path = _rename(directory, home)
            _sync(home)
    except OSError as error:
        raise ResourceError(
            f"The export folder must be writable. Received: {error}. Choose another, or make room."
        ) from error


def _rename(directory: Path, home: Path) -> Path:
    version = (_numbers(home) or [0])[-1] + 1
    while True:
        target = home / str(version)
        try:
            if not target.exists():
                directory.rename(target)  # onto a folder with files in it, it fails
                return target
        except OSError:
            if not target.exists():
                raise
        version += 1  # another process has just published this one


@contextmanager
def _locked_directory(home: Path) -> Iterator[Path]:
    """Make a hidden directory that is locked while its process lives, and removed at the end."""
    while True:
        directory = home / f"{_PARTIAL}{secrets.token_hex(4)}"
        directory.mkdir()
        with ExitStack() as locked:
            with suppress(FileNotFoundError):
                locked.enter_context(_lock(directory, wait=True))
            if not directory.exists():
                continue  # another publisher came between and took it for a stale one
            try:
                yield directory
            finally:
                shutil.rmtree(directory, ignore_errors=True)  # nothing, after the renaming
            return


def _remove_stale(home: Path) -> None:
    """Remove what killed processes have left; the system released their locks."""
    if sys.platform == "win32":
        return  # without locks, who knows
    for directory in home.glob(f"{_PARTIAL}*"):
        with suppress(OSError), _lock(directory, wait=False):
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _lock(directory: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of a directory.

    Raises:
        OSError: Another process holds it and we do not wait.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _numbers(home: Path) -> list[int]:
    if not home.is_dir():
        return []
    return sorted(
        int(path.name)
        for path in home.iterdir()
        if re.fullmatch("[1-9][0-9]*", path.name) and path.is_dir()
    )


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _folders(directory: Path) -> list[Path]:
    return [directory, *sorted(path for path in directory.rglob("*") if path.is_dir())]
