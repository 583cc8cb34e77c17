"""From a source of images to an index: one row an image, and every problem named.

The source is only ever read.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from threadpoolctl import threadpool_limits

from kresnet.data import arrays
from kresnet.data.examine import Facts
from kresnet.data.items import WHOLE, Item, full_name, is_url, read_bytes
from kresnet.data.items import Problem as Problem
from kresnet.data.items import Split as Split
from kresnet.data.scan_cache import examine_all
from kresnet.data.sources import Listing, listing
from kresnet.errors import DataError
from kresnet.machine import cores

_MAX_THREADS: Final = 16  # each may hold a whole array
_CHUNK: Final = 1024
_SPLITS: Final[dict[str, Split | None]] = {"train": "train", "val": "val", "test": "test", "": None}


@dataclass(frozen=True, slots=True)
class Row:
    """One usable image.

    Attributes:
        path: Absolute path.
        label: Position of its class in the classes of the `Index`.
        split: What the image is for; None while that is undecided.
        height: Of the upright image, in pixels.
        width: Of the upright image, in pixels.
        digest: SHA-256 of the image's bytes, hexadecimal.
        offset: Where the image starts in its file, in bytes.
        size: Length in bytes; -1 is up to the end of the file.
        member: Its name inside an archive or a shard; "" for a file of its own.
        group: Images of a group belong into one split; "" is no group.
        weight: How much the image counts in training, 1 for most.
        traits: What is special about it, in words with spaces between, as "exif-6 grey".
        look: A perceptual descriptor; known after a scan, and not saved.
    """

    path: str
    label: int
    split: Split | None
    height: int
    width: int
    digest: str
    offset: int = 0
    size: int = WHOLE
    member: str = ""
    group: str = ""
    weight: float = 1.0
    traits: str = ""
    look: bytes = field(default=b"", compare=False, repr=False)

    @property
    def name(self) -> str:
        """The path, and inside of what has members `path::member`: for messages."""
        return full_name(self)

    def read(self, limit: int | None = None) -> bytes:
        """Return the bytes of the image, at most the first `limit`.

        Raises:
            OSError: They cannot be read.
        """
        return read_bytes(self, limit)


@dataclass(frozen=True)
class Index:
    """The images of a source, what they show and what they are for.

    Attributes:
        root: Absolute path of the folder that they are mostly below.
        classes: Names of the classes; a label is a position in it.
        rows: The usable images, ordered by class and path.
        problems: What is left out.
    """

    root: str
    classes: tuple[str, ...]
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...]

    def select(self, split: Split | None) -> tuple[Row, ...]:
        """Return the rows of one split, in order."""
        return tuple(row for row in self.rows if row.split == split)

    def name_of(self, row: Row) -> str:
        """Return the name of a row, relative to the root where it is below it."""
        return _below(self.root, row.name)

    def without(self, names: Collection[str], reason: str) -> Index:
        """Return the index without some rows, which become problems.

        Args:
            names: Of the rows, as `name_of` gives them, or absolute.
            reason: Why, in a few words.

        Raises:
            DataError: A name is of no row, or a class is left without images.
        """
        wanted = {_below(self.root, name) for name in names}
        unknown = sorted(wanted - {self.name_of(row) for row in self.rows})
        if unknown:
            more = f" and {len(unknown) - 1} others" if unknown[1:] else ""
            raise DataError(
                f"What is left out must be images of the source. Received: {unknown[0]!r}{more}, "
                f"which {self.root!r} does not have. Correct or delete the line."
            )
        rows = tuple(row for row in self.rows if self.name_of(row) not in wanted)
        empty = set(range(len(self.classes))) - {row.label for row in rows}
        if empty:
            raise DataError(
                "A class must keep images. Received: every image of "
                f"class={self.classes[min(empty)]!r} is to be left out. Leave fewer out."
            )
        left_out = (Problem(row.name, reason) for row in self.rows if self.name_of(row) in wanted)
        return replace(self, rows=rows, problems=(*self.problems, *left_out))

    def counts(self) -> dict[Split | None, dict[str, int]]:
        """Count the images of each class in each split that has any."""
        counts: dict[Split | None, dict[str, int]] = {}
        for split in _SPLITS.values():
            if rows := self.select(split):
                counts[split] = dict.fromkeys(self.classes, 0)
                for row in rows:
                    counts[split][self.classes[row.label]] += 1
        return counts

    def save(self, directory: str | Path) -> None:
        """Write `index.csv`, `problems.csv` and `classes.json` into a folder, in UTF-8.

        A column that has a default is left out where every row has it.
        """
        directory = Path(directory)
        columns = [
            name
            for name, default in _COLUMNS.items()
            if default is MISSING or any(getattr(row, name) != default for row in self.rows)
        ]
        texts = ([self._text(row, name) for name in columns] for row in self.rows)
        _write_table(directory / "index.csv", columns, texts)
        problems = ((_below(self.root, problem.path), problem.reason) for problem in self.problems)
        _write_table(directory / "problems.csv", ("path", "reason"), problems)
        names = {"root": self.root, "classes": self.classes}
        (directory / "classes.json").write_text(json.dumps(names, indent=2) + "\n", "utf-8")

    def _text(self, row: Row, name: str) -> object:
        if name == "path":
            return _below(self.root, row.path)
        return self.classes[row.label] if name == "label" else getattr(row, name) or ""

    @classmethod
    def load(cls, directory: str | Path) -> Index:
        """Read what `save` wrote, exactly."""
        directory = Path(directory)
        names = json.loads((directory / "classes.json").read_text("utf-8"))
        root, classes = names["root"], tuple(names["classes"])
        read: dict[str, Callable[[str], Any]] = {
            "path": lambda text: _above(root, text),
            "label": {name: label for label, name in enumerate(classes)}.__getitem__,
            "split": _SPLITS.__getitem__,
            "weight": lambda text: float(text or 0),
            **dict.fromkeys(("height", "width", "offset", "size"), lambda text: int(text or 0)),
        }
        columns, *lines = _read_table(directory / "index.csv")
        rows = tuple(
            Row(**{n: read.get(n, str)(text) for n, text in zip(columns, line, strict=True)})
            for line in lines
        )
        problems = tuple(
            Problem(_above(root, path), reason)
            for path, reason in _read_table(directory / "problems.csv")[1:]
        )
        return cls(root, classes, rows, problems)


_COLUMNS: Final = {column.name: column.default for column in fields(Row) if column.name != "look"}


def scan(
    source: str | Path,
    *,
    max_bad: float = 0.05,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Read every image of a source once and list those that can be used.

    Hidden files, and files that are neither images nor named like images, are passed over in
    silence. Where there is no photo at all, NumPy files and TIFF are the images.

    Args:
        source: What `kresnet.data.sources.listing` takes, as a folder of class folders.
        max_bad: Largest share of the images that may be unusable, 0..1.
        progress: Called after each file with the number of files read and of all files.

    Returns:
        The index. Its classes are those with a usable image, "9" before "10"; its rows have the
        split that the source gives them, or None.

    Raises:
        DataError: There is no such source, its images have no classes, there are fewer than two
            classes, a class has no training images, or more images are unusable than `max_bad`
            allows.
    """
    listed = listing(source)
    known = listed.facts or examine_all(listed.items, progress)
    images, bad = _sorted_out(listed.items, known)
    if not images:  # no photos, so they may be what only scientists have
        found, wrong = _sorted_out(listed.items, _arrays_examined(listed.items, progress))
        seen = {item.name for item, _ in found} | {problem.path for problem in wrong}
        images, others = arrays.same_channels(found)
        bad = [problem for problem in bad if problem.path not in seen]
        bad += wrong + [Problem(item.name, reason) for item, reason in others]
    _check_bad(bad, len(images), max_bad)
    classes = _checked_classes(listed, source, [item for item, _ in images])

    labels = {name: label for label, name in enumerate(classes)}
    rows = [_row(item, labels[item.label], facts) for item, facts in images]
    rows.sort(key=lambda row: (row.label, _natural(row.name)))
    used = {(item.split, item.label) for item, _ in images}
    empty = [
        Problem(path, "a folder without a usable image, so not a class")
        for split, name, path in listed.folders
        if (split, name) not in used
    ]
    return Index(listed.root, classes, tuple(rows), (*bad, *listed.problems, *empty))


def _row(item: Item, label: int, facts: Facts) -> Row:
    return Row(
        item.path,
        label,
        item.split,
        facts.height,
        facts.width,
        facts.digest,
        item.offset,
        item.size,
        item.member,
        item.group,
        item.weight,
        facts.traits,
        facts.look,
    )


def _check_bad(bad: Sequence[Problem], good: int, max_bad: float) -> None:
    if len(bad) > max_bad * (len(bad) + good):
        first = ", ".join(f"{problem.path!r} ({problem.reason})" for problem in bad[:3])
        raise DataError(
            f"At most {max_bad:.0%} of the images may be unusable. Received: {len(bad)} of "
            f"{len(bad) + good}: {first}{', ...' if len(bad) > 3 else ''}. Mend or remove them, or "
            "allow more with max_bad."
        )


def _checked_classes(
    listed: Listing, source: str | Path, images: Sequence[Item]
) -> tuple[str, ...]:
    if not images:
        raise DataError(
            f"The {listed.description} must hold images. Received: source={str(source)!r}, with "
            f"none. {listed.advice}".rstrip()
        )
    classes = tuple(sorted({item.label for item in images}, key=_natural))
    if len(classes) < 2:
        raise DataError(
            f"There must be images of at least two classes. Received: classes={list(classes)}. "
            f"Add images of every other class to {str(source)!r}."
        )
    trained = {item.label for item in images if item.split in ("train", None)}
    missing = [name for name in classes if name not in trained]
    if trained and missing:
        raise DataError(
            f"Every class must have training images. Received: class={missing[0]!r}, which only "
            "other splits have. Add it to the training images, or remove it from them."
        )
    return classes


def _natural(name: str) -> tuple[list[str | int], str]:
    """Return a sort key by which "9" comes before "10"."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if k % 2 else part.casefold() for k, part in enumerate(parts)], name


def _sorted_out(
    items: Sequence[Item], results: Iterable[Facts | str | None]
) -> tuple[list[tuple[Item, Facts]], list[Problem]]:
    """Return the usable images, and what is wrong with the others."""
    images: list[tuple[Item, Facts]] = []
    bad: list[Problem] = []
    for item, result in zip(items, results, strict=True):
        if isinstance(result, Facts):
            images.append((item, result))
        elif result:
            bad.append(Problem(item.name, result))
    return images, bad


def _arrays_examined(
    items: Sequence[Item], progress: Callable[[int, int], None] | None
) -> Iterator[Facts | str | None]:
    """Examine arrays in parallel."""
    threads = min(cores(), _MAX_THREADS)
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(items), _CHUNK):  # a million waiting tasks would take gigabytes
            chunk = items[start : start + _CHUNK]
            for done, result in enumerate(pool.map(arrays.examine, chunk), start=start + 1):
                yield result
                if progress:
                    progress(done, len(items))


def _below(root: str, path: str) -> str:
    """Return a path as it is written: relative to the root where it is below it."""
    inside = os.path.join(root, "")
    return path.removeprefix(inside).replace(os.sep, "/") if path.startswith(inside) else path


def _above(root: str, path: str) -> str:
    """Return the path that `_below` has made shorter."""
    return path if is_url(path) else os.path.join(root, path)


# A file name may be bytes that are not UTF-8: surrogateescape keeps them.


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def _read_table(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.reader(file))
