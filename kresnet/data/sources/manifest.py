"""A table with a line for each image: CSV, JSON lines or Parquet.

The columns are `path` and `label`, and on request `split`, `group` and `weight`; others are of no
account. A folder with such a table called `metadata`, whose path column is `file_name`, is the
layout of Hugging Face's ImageFolder (https://huggingface.co/docs/datasets/image_dataset).
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from kresnet.data.items import SPLITS, Item, Problem, Split, is_url
from kresnet.data.sources import Listing
from kresnet.data.sources.layout import is_hidden
from kresnet.errors import DataError, ResourceError

SUFFIXES: Final = (".csv", ".jsonl", ".parquet")
_PATHS: Final = ("path", "file_name")
_ADVICE: Final = (
    "Give a manifest the columns path and label, and as you like split, group and weight."
)


class _Line(NamedTuple):
    """One line of a table; its number counts from 1, a header included."""

    number: int
    values: Mapping[str, Any]


def listing(file: Path, *, labelled: bool = True) -> Listing:
    """List the images of a manifest; relative paths are from the folder that it is in.

    Args:
        file: Absolute path of a `.csv`, `.jsonl` or `.parquet` file.
        labelled: Whether each line must have a label; else the column is of no account.

    Raises:
        DataError: The table cannot be read, lacks a column, or a line is wrong; the message tells
            the line.
        ResourceError: It is Parquet and pyarrow is not installed.
    """
    items, problems = _items(file, None, labelled)
    return Listing(str(file.parent), tuple(items), tuple(problems), "manifest", (), _ADVICE)


def metadata_files(folder: Path) -> list[tuple[Path, Split | None]]:
    """Return the files called `metadata` of a folder, or of its split folders.

    One without labels beside other folders is somebody else's, and the folders are the classes.
    """
    if own := _metadata(folder):
        return [(own, None)]
    found: list[tuple[Path, Split | None]] = []
    for data in (folder, folder / "data"):
        for inner in sorted(data.iterdir()) if data.is_dir() else ():
            split = SPLITS.get(inner.name.lower())
            if split and not is_hidden(inner.name) and (file := _metadata(inner)):
                found.append((file, split))
    return found


def folder_listing(folder: Path, files: Sequence[tuple[Path, Split | None]]) -> Listing:
    """List a folder by what its `metadata_files` say.

    Raises:
        DataError: As `listing`.
        ResourceError: As `listing`.
    """
    items: list[Item] = []
    problems: list[Problem] = []
    for file, split in files:
        some, wrong = _items(file, split)
        items += some
        problems += wrong
    return Listing(str(folder), tuple(items), tuple(problems), "folder", (), _ADVICE)


def column(source: str | Path, name: str) -> dict[str, str] | None:
    """Return a column of a manifest, or of the metadata of a folder, by the path of the image.

    Returns:
        None if the source has no table, or its table no such column.
    """
    root = Path(os.path.abspath(source))
    is_table = root.is_file() and root.suffix.lower() in SUFFIXES
    files = [root] if is_table else [f for f, _ in metadata_files(root)] if root.is_dir() else []
    values = {
        _item(file, line, None).path: str(line.values[name])
        for file in files
        for line in _lines(file)
        if line.values.get(name) not in (None, "")
    }
    return values or None


def _metadata(folder: Path) -> Path | None:
    found = (folder / f"metadata{suffix}" for suffix in SUFFIXES)
    file = next((file for file in found if file.is_file()), None)
    if file is None or _has_labels(file) or not any(inner.is_dir() for inner in folder.iterdir()):
        return file
    return None


def _has_labels(file: Path) -> bool:
    try:
        next(_lines(file), None)
    except DataError:
        return False
    return True


def _items(
    file: Path, split: Split | None, labelled: bool = True
) -> tuple[list[Item], list[Problem]]:
    """Read a table; an image that comes twice counts once if its labels agree."""
    seen: dict[str, tuple[str, int]] = {}
    items: list[Item] = []
    problems: list[Problem] = []
    for line in _lines(file, labelled):
        item = _item(file, line, split, labelled)
        label, before = seen.setdefault(item.path, (item.label, line.number))
        if label != item.label:
            raise _wrong(
                file, line, f"label={item.label!r}", "An image must have one label",
                f"Remove it, or line {before}, which says {label!r}.",
            )  # fmt: skip
        if before == line.number:
            items.append(item)
        else:
            problems.append(
                Problem(item.path, f"listed twice, in lines {before} and {line.number}")
            )
    return items, problems


def _item(file: Path, line: _Line, split: Split | None, labelled: bool = True) -> Item:
    values = line.values
    path = next((str(values[name]) for name in _PATHS if values.get(name) not in (None, "")), "")
    if not path:
        raise _wrong(file, line, "none", "Every line must have a path", "Fill it in.")
    if not labelled:
        return Item(_absolute(file, line, path), "")
    label = values.get("label")
    if label is None or label != label or str(label) == "":
        raise _wrong(file, line, "none", "Every line must have a label", "Fill it in.")
    if isinstance(label, bool | list | dict):
        raise _wrong(file, line, f"label={label!r}", "A label must be a name", "Write one.")
    return Item(
        _absolute(file, line, path),
        str(label),
        _split(file, line, values.get("split")) or split,
        group="" if values.get("group") is None else str(values["group"]),
        weight=_weight(file, line, values.get("weight")),
    )


def _absolute(file: Path, line: _Line, path: str) -> str:
    if is_url(path) or os.path.isabs(path):
        return path
    inside = os.path.normpath(path)
    if inside.split(os.sep)[0] == "..":
        raise _wrong(
            file, line, f"path={path!r}", "A relative path must stay in the manifest's folder",
            "Write the absolute path.",
        )  # fmt: skip
    return os.path.join(file.parent, inside)


def _split(file: Path, line: _Line, value: object) -> Split | None:
    if value is None or value == "":
        return None
    if (split := SPLITS.get(str(value).strip().lower())) is None:
        raise _wrong(
            file, line, f"split={value!r}", "A split must be train, val or test, or empty",
            "Write one of them.",
        )  # fmt: skip
    return split


def _weight(file: Path, line: _Line, value: Any) -> float:
    if value is None or value == "":
        return 1.0
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise _wrong(
            file, line, f"weight={value!r}", "A weight must be a number from 0 on", "Write one."
        )
    return weight


def _wrong(file: Path, line: _Line, received: str, expected: str, fix: str) -> DataError:
    return DataError(f"{expected}. Received: {received}, in line {line.number} of {file}. {fix}")


def _lines(file: Path, labelled: bool = True) -> Iterator[_Line]:
    """Yield the lines of a table after checking that it has the columns that are needed."""
    read = {".csv": _csv, ".jsonl": _json_lines, ".parquet": _parquet}[file.suffix.lower()]
    try:
        yield from read(file, labelled)
    except UnicodeDecodeError as error:
        raise DataError(
            f"A manifest must be text in UTF-8. Received: {file} ({error.reason} at byte "
            f"{error.start}). Save it as UTF-8."
        ) from None
    except OSError as error:
        raise DataError(
            f"A manifest must be readable. Received: {file} ({error.strerror}). Mend it."
        ) from None


def _csv(file: Path, labelled: bool) -> Iterator[_Line]:
    # Python's limit of 128 KiB a field keeps a missing quote from swallowing a large file.
    with file.open(encoding="utf-8-sig", errors="strict", newline="") as stream:
        head = stream.readline()
        stream.seek(0)
        reader = csv.reader(stream, delimiter=max(",;\t", key=head.count), strict=True)
        try:
            columns = [name.strip() for name in next(reader, [])]
            _check_columns(file, columns, labelled)
            for row in reader:
                line = _Line(reader.line_num, dict(zip(columns, row, strict=False)))
                if len(row) > len(columns):
                    raise _wrong(
                        file, line, f"{len(row)} values", f"There are {len(columns)} columns",
                        "Put quotes around values with commas in them.",
                    )  # fmt: skip
                if row:
                    yield line
        except csv.Error as error:
            raise DataError(
                f"A manifest must be correct CSV. Received: {file}, which is wrong near line "
                f"{reader.line_num} ({error}). Mend it."
            ) from None


def _json_lines(file: Path, labelled: bool) -> Iterator[_Line]:
    with file.open(encoding="utf-8-sig") as stream:
        for number, text in enumerate(stream, 1):
            if not text.strip():
                continue
            try:
                values = json.loads(text)
            except (ValueError, RecursionError):
                values = None
            line = _Line(number, values if isinstance(values, dict) else {})
            if not isinstance(values, dict):
                raise _wrong(
                    file, line, repr(text.strip()[:40]), "Every line must be a JSON object",
                    'Write it as {"path": "a.jpg", "label": "ant"}.',
                )  # fmt: skip
            _check_columns(file, tuple(values), labelled, number)
            yield line


def _parquet(file: Path, labelled: bool) -> Iterator[_Line]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ResourceError(
            "Parquet is read by pyarrow, which is not installed. "
            f"Received: {file}. Install it: pip install 'kresnet[parquet]'"
        ) from None
    try:
        with parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            _check_columns(file, names, labelled)
            wanted = [n for n in names if n in (*_PATHS, "label", "split", "group", "weight")]
            number = 0
            for batch in table.iter_batches(columns=wanted):
                for values in batch.to_pylist():
                    number += 1
                    yield _Line(number, values)
    except ArrowException as error:
        raise DataError(
            f"A manifest must be a readable Parquet file. Received: {file} "
            f"({str(error).splitlines()[0]}). Write it again."
        ) from None


def _check_columns(
    file: Path, columns: Sequence[str], labelled: bool, line: int | None = None
) -> None:
    if not any(name in columns for name in _PATHS) or (labelled and "label" not in columns):
        where = f"line {line} of {file}" if line else f"{file}"
        needed = "columns path (or file_name) and label" if labelled else "column path or file_name"
        raise DataError(
            f"A manifest must have the {needed}. Received: "
            f"{', '.join(columns) or 'none'} in {where}. Name them so."
        )
