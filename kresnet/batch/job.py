"""A batch job on the disk: what it is to do, and which parts are done.

PARTS is a folder beside the output, called as it with `.parts` behind, until the output is whole:

job.json          what is asked, so that nothing else is gone on with
images.parquet    the images as they were listed when the job began
00000.parquet     the rows of the first part, and so on; each whole or not there
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kresnet.batch.rows import arrow, schema
from kresnet.data.items import Item
from kresnet.errors import ConfigError, ResourceError
from kresnet.files import whole_file

_JOB: Final = "job.json"
_IMAGES: Final = "images.parquet"
_KEY: Final = b"kresnet"
_PART: Final = 256  # images, which a worker that is killed does again
_MOST_PARTS: Final = 4096


@dataclass(frozen=True, slots=True)
class Job:
    """A job that has begun.

    Attributes:
        output: The table to be made.
        asked: What is asked, as JSON types.
        images: Those to answer for.
        part_images: How many of them are a part.
    """

    output: Path
    asked: Mapping[str, Any]
    images: Sequence[Item]
    part_images: int

    @classmethod
    def begin(cls, output: Path, asked: Mapping[str, Any], images: Sequence[Item]) -> Job:
        """Begin a job; the images are listed once and for all.

        Raises:
            ResourceError: The folder of the output cannot be written.
        """
        pa, parquet = arrow()
        folder = parts_of(output)
        part_images = max(_PART, -(-len(images) // _MOST_PARTS))
        columns = {
            "path": pa.array([os.fsencode(image.path) for image in images], pa.binary()),
            "offset": pa.array([image.offset for image in images], pa.int64()),
            "size": pa.array([image.size for image in images], pa.int64()),
            "member": pa.array([os.fsencode(image.member) for image in images], pa.binary()),
        }
        said = {"asked": asked, "part_images": part_images}
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with whole_file(folder / _IMAGES) as partial:
                parquet.write_table(pa.table(columns), partial)
            # Last: what has this file is complete.
            with whole_file(folder / _JOB) as partial:
                partial.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
        return cls(output, asked, images, part_images)

    @classmethod
    def open(cls, output: Path) -> Job | None:
        """Open the job of an output; None if it has not begun, or is complete."""
        _, parquet = arrow()
        folder = parts_of(output)
        try:
            said = json.loads((folder / _JOB).read_text(encoding="utf-8"))
            rows = parquet.read_table(folder / _IMAGES).to_pylist()
        except OSError:
            return None
        images = [
            Item(
                os.fsdecode(row["path"]),
                "",
                offset=row["offset"],
                size=row["size"],
                member=os.fsdecode(row["member"]),
            )
            for row in rows
        ]
        return cls(output, said["asked"], images, said["part_images"])

    @property
    def count(self) -> int:
        """How many parts there are."""
        return -(-len(self.images) // self.part_images)

    def part(self, number: int) -> Sequence[Item]:
        """Return the images of a part."""
        return self.images[number * self.part_images : (number + 1) * self.part_images]

    def missing(self) -> list[int]:
        """Return the parts that are not done, after opening each that is there."""
        return [number for number in range(self.count) if not self._is_done(number)]

    def keep(self, number: int, rows: bytes) -> None:
        """Write the rows of a part.

        Raises:
            ResourceError: They cannot be written.
        """
        with writing(self._file(number)), whole_file(self._file(number)) as partial:
            partial.write_bytes(rows)

    def join(self) -> dict[str, int]:
        """Write the output, remove the parts, and return what `count_rows` does.

        Raises:
            ResourceError: It cannot be written.
        """
        _, parquet = arrow()
        said = json.dumps({"asked": self.asked, "images": len(self.images)}).encode()
        columns = schema().with_metadata({_KEY: said})
        with (
            writing(self.output),
            whole_file(self.output) as partial,
            parquet.ParquetWriter(partial, columns) as writer,
        ):
            for number in range(self.count):
                writer.write_table(parquet.read_table(self._file(number)).cast(columns))
        forget(self.output)
        return count_rows(self.output)

    def _file(self, number: int) -> Path:
        return parts_of(self.output) / f"{number:05d}.parquet"

    def _is_done(self, number: int) -> bool:
        pa, parquet = arrow()
        try:
            with parquet.ParquetFile(self._file(number)) as file:
                done: bool = file.metadata.num_rows == len(self.part(number))
                return done and file.schema_arrow.equals(schema())
        except (OSError, pa.ArrowException):  # a power cut may leave half of a file
            return False


def parts_of(output: Path) -> Path:
    """Return the folder of the parts of an output."""
    return output.with_name(f"{output.name}.parts")


def asked_of(output: Path) -> Mapping[str, Any] | None:
    """Return what a complete output was asked for; None if there is no file.

    Raises:
        ConfigError: The file is no output of a batch job.
    """
    pa, parquet = arrow()
    if not output.exists():
        return None
    try:
        said = json.loads((parquet.read_schema(output).metadata or {})[_KEY])
        asked: Mapping[str, Any] = said["asked"]
    except (OSError, KeyError, ValueError, pa.ArrowException):
        raise ConfigError(
            f"`--output` must be a new file. Received: {str(output)!r}, which is there and was not "
            "written by this command. Choose another."
        ) from None
    return asked


def count_rows(output: Path) -> dict[str, int]:
    """Count the rows of an output: images, answered, abstained, failed."""
    _, parquet = arrow()
    table = parquet.read_table(output, columns=["ok", "abstain"])
    ok = table["ok"].to_numpy(zero_copy_only=False)
    abstain = table["abstain"].to_numpy(zero_copy_only=False)
    return {
        "images": len(ok),
        "answered": int(ok.sum()),
        "abstained": int((ok & abstain).sum()),
        "failed": int((~ok).sum()),
    }


def forget(output: Path) -> None:
    """Remove the parts of an output that is whole."""
    with suppress(FileNotFoundError):
        shutil.rmtree(parts_of(output))


def digest_of(export: Path) -> str:
    """Return what changes with anything that an export answers with, hexadecimal."""
    whole = hashlib.sha256()
    for file in sorted(path for path in export.rglob("*") if path.is_file()):
        with file.open("rb") as stream:
            own = hashlib.file_digest(stream, "sha256").hexdigest()
        whole.update(f"{file.relative_to(export).as_posix()} {own}\n".encode())
    return whole.hexdigest()


@contextmanager
def alone(output: Path) -> Iterator[None]:
    """Keep other processes from the same output, by a lock on the folder of its parts.

    Raises:
        ConfigError: One is at it.
        ResourceError: The folder cannot be written.
    """
    descriptor = _locked(parts_of(output))
    try:
        yield
    finally:
        with suppress(OSError):
            os.rmdir(parts_of(output))  # if nothing was begun
        os.close(descriptor)


def _locked(folder: Path) -> int:
    while True:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ConfigError(
                f"One process at a time writes an output. Received: {str(folder)!r}, which another "
                "is writing. Wait for it, or choose another --output."
            ) from None
        with suppress(OSError):
            if os.fstat(descriptor).st_ino == os.stat(folder).st_ino:
                return descriptor
        os.close(descriptor)  # of a folder that another has just removed


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Turn what goes wrong while a file is written into one line.

    Raises:
        ResourceError: It cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"The output and its parts must be writable. Received: {file} "
            f"({error.strerror or error}). Make room, or choose another, and run again: what is "
            "done is kept."
        ) from None


def check_same(known: Mapping[str, Any], asked: Mapping[str, Any], where: Path) -> None:
    """Refuse to go on with a job that is another one.

    Raises:
        ConfigError: It is.
    """
    changed = [name for name in asked if known.get(name) != asked[name]]
    if changed:
        name = changed[0]
        raise ConfigError(
            "A job is gone on with as it was begun. Received: "
            f"{name}={asked[name]!r}, and {where} has {name}={known.get(name)!r}. Give the same, "
            "or choose another --output."
        )
