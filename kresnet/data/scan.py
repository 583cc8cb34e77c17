"""From a folder of images to an index: one row an image, and every problem named.

The folder is only ever read.
"""

from __future__ import annotations

import csv
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from kresnet.data.examine import Facts, examine, is_named_image
from kresnet.errors import DataError

Split = Literal["train", "val", "test"]

_SPLITS: Final[dict[str, Split | None]] = {"train": "train", "val": "val", "test": "test", "": None}
_SPLIT_FOLDERS: Final[dict[str, Split]] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_IGNORED: Final = {"__macosx", "thumbs.db", "desktop.ini"}
_LAYOUT: Final = (
    "Put them in <class>/ folders, or in train/<class>/ and val/<class>/ folders, one for each "
    "class."
)
_MAX_THREADS: Final = 16  # each may hold a whole decoded photo
_CHUNK: Final = 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One usable image.

    Attributes:
        path: Absolute path.
        label: Position of its class in the classes of the `Index`.
        split: What the image is for; None while that is undecided.
        height: Of the upright image, in pixels.
        width: Of the upright image, in pixels.
        digest: SHA-256 of the file, hexadecimal.
    """

    path: str
    label: int
    split: Split | None
    height: int
    width: int
    digest: str


@dataclass(frozen=True, slots=True)
class Problem:
    """A file or folder that is left out, by its absolute path, and why, in a few words."""

    path: str
    reason: str


@dataclass(frozen=True)
class Index:
    """The images of a folder, what they show and what they are for.

    Attributes:
        root: Absolute path of the folder.
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
        """Write `index.csv`, `problems.csv` and `classes.json` into a folder, in UTF-8."""
        directory = Path(directory)
        columns = ("path", "label", "split", "height", "width", "digest")
        rows = (
            (
                _below(self.root, row.path),
                self.classes[row.label],
                row.split or "",
                row.height,
                row.width,
                row.digest,
            )
            for row in self.rows
        )
        _write_table(directory / "index.csv", columns, rows)
        problems = ((_below(self.root, problem.path), problem.reason) for problem in self.problems)
        _write_table(directory / "problems.csv", ("path", "reason"), problems)
        names = {"root": self.root, "classes": self.classes}
        (directory / "classes.json").write_text(json.dumps(names, indent=2) + "\n", "utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> Index:
        """Read what `save` wrote, exactly."""
        directory = Path(directory)
        names = json.loads((directory / "classes.json").read_text("utf-8"))
        root, classes = names["root"], tuple(names["classes"])
        labels = {name: label for label, name in enumerate(classes)}
        rows = tuple(
            Row(str(Path(root, path)), labels[name], _SPLITS[split], int(h), int(w), digest)
            for path, name, split, h, w, digest in _read_table(directory / "index.csv")
        )
        problems = tuple(
            Problem(str(Path(root, path)), reason)
            for path, reason in _read_table(directory / "problems.csv")
        )
        return cls(root, classes, rows, problems)


def scan(
    source: str | Path,
    *,
    max_bad: float = 0.05,
    progress: Callable[[int, int], None] | None = None,
) -> Index:
    """Read every file below a folder once and list the images that can be used.

    The layout is `source/<class>/...`, or `source/<split>/<class>/...` with splits `train`, `val`
    (or `valid`, `validation`) and `test`. It has splits if all its folders are named so, or if
    `train` and another one are among them. Folders inside a class belong to the class. Hidden
    files, and files that are neither images nor named like images, are passed over in silence.

    Args:
        source: The folder.
        max_bad: Largest share of the images that may be unusable, 0..1.
        progress: Called after each file with the number of files read and of all files.

    Returns:
        The index. Its classes are those with a usable image, "9" before "10"; its rows have the
        split of their folder, or None.

    Raises:
        DataError: There is no such folder, its images are not in class folders, there are fewer
            than two classes, a class has no training images, or more images are unusable than
            `max_bad` allows.
    """
    root = Path(os.path.abspath(source))  # not resolved: a linked folder keeps its name
    if not root.is_dir():
        raise DataError(
            f"The images must be in a folder. Received: source={str(source)!r}, which is "
            f"{'not a folder' if root.exists() else 'not there'}. Give the path of a folder that "
            "has a folder for each class."
        )
    folders, outside = _class_folders(root)
    found = [(split, name, path) for split, name, folder in folders for path in _files(folder)]
    results = zip(found, _examined([path for _, _, path in found], progress), strict=True)

    images: list[tuple[Split | None, str, Path, Facts]] = []
    bad: list[Problem] = []
    for (split, name, path), result in results:
        if isinstance(result, Facts):
            images.append((split, name, path, result))
        elif result:
            bad.append(Problem(str(path), result))
    _check_bad(bad, len(images), max_bad)
    classes = _checked_classes(root, [(split, name) for split, name, _, _ in images])

    labels = {name: label for label, name in enumerate(classes)}
    rows = [
        Row(str(path), labels[name], split, facts.height, facts.width, facts.digest)
        for split, name, path, facts in images
    ]
    rows.sort(key=lambda row: (row.label, _natural(row.path)))
    used = {(split, name) for split, name, _, _ in images}
    empty = [
        Problem(str(folder), "a folder without a usable image, so not a class")
        for split, name, folder in folders
        if (split, name) not in used
    ]
    return Index(str(root), classes, tuple(rows), tuple(bad + outside + empty))


def _check_bad(bad: Sequence[Problem], good: int, max_bad: float) -> None:
    if len(bad) > max_bad * (len(bad) + good):
        first = ", ".join(f"{problem.path!r} ({problem.reason})" for problem in bad[:3])
        raise DataError(
            f"At most {max_bad:.0%} of the images may be unusable. Received: {len(bad)} of "
            f"{len(bad) + good}: {first}{', ...' if len(bad) > 3 else ''}. Mend or remove them, or "
            "allow more with max_bad."
        )


def _checked_classes(root: Path, images: Sequence[tuple[Split | None, str]]) -> tuple[str, ...]:
    if not images:
        raise DataError(
            f"The folder must hold images. Received: source={str(root)!r}, with none. {_LAYOUT}"
        )
    classes = tuple(sorted({name for _, name in images}, key=_natural))
    if len(classes) < 2:
        raise DataError(
            f"There must be images of at least two classes. Received: classes={list(classes)}. "
            f"Add a folder of images for every other class to {str(root)!r}."
        )
    trained = {name for split, name in images if split in ("train", None)}
    missing = [name for name in classes if name not in trained]
    if trained and missing:
        raise DataError(
            f"Every class must have training images. Received: class={missing[0]!r}, which only "
            "other splits have. Add it to the train folder, or remove it from them."
        )
    return classes


def _class_folders(root: Path) -> tuple[list[tuple[Split | None, str, Path]], list[Problem]]:
    """Return split, name and path of every class folder, and the images that are in none."""
    splits = {path: _SPLIT_FOLDERS.get(path.name.lower()) for path in _folders(root)}
    named = set(splits.values()) - {None}
    tops: dict[Path, Split | None] = {root: None}
    if named and (named == set(splits.values()) or ("train" in named and len(named) > 1)):
        tops = {path: split for path, split in splits.items() if split}

    outside = [
        Problem(str(path), "beside the folders of the splits, so not one of them")
        for path, split in splits.items()
        if root not in tops and not split
    ]
    for top in dict.fromkeys((root, *tops)):
        images = [path for path in _entries(top) if is_named_image(path) and path.is_file()]
        if images and not _folders(top):
            raise DataError(
                f"Images must be in a folder for each class. Received: source={str(top)!r}, "
                f"which has {len(images)} images and no folder. {_LAYOUT}"
            )
        outside += [Problem(str(path), "not in a class folder") for path in images]
    folders = [
        # One name may be composed in several ways, by another system: it is one class.
        (split, unicodedata.normalize("NFC", path.name), path)
        for top, split in tops.items()
        for path in _folders(top)
    ]
    return folders, outside


def _folders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir()]


def _files(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield the files below a folder; links are followed, but not in circles."""
    above = (*above, os.path.realpath(folder))
    for path in _entries(folder):
        if path.is_dir():
            if os.path.realpath(path) not in above:
                yield from _files(path, above)
        elif path.is_file() or path.is_symlink():  # not a pipe, which may never end
            yield path


def _entries(folder: Path) -> list[Path]:
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    return [folder / name for name in names if name.lower() not in _IGNORED]


def _natural(name: str) -> tuple[list[str | int], str]:
    """Return a sort key by which "9" comes before "10"."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if k % 2 else part.casefold() for k, part in enumerate(parts)], name


def _examined(
    paths: Sequence[Path], progress: Callable[[int, int], None] | None
) -> list[Facts | str | None]:
    """Examine files in parallel; most of it happens in TensorFlow, where threads run freely."""
    results: list[Facts | str | None] = []
    with ThreadPoolExecutor(min(os.cpu_count() or 1, _MAX_THREADS)) as pool:
        for start in range(0, len(paths), _CHUNK):  # a million waiting tasks would take gigabytes
            for result in pool.map(examine, paths[start : start + _CHUNK]):
                results.append(result)
                if progress:
                    progress(len(results), len(paths))
    return results


def _below(root: str, path: str) -> str:
    return Path(path).relative_to(root).as_posix()


# A file name may be bytes that are not UTF-8: surrogateescape keeps them.


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def _read_table(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.reader(file))[1:]
