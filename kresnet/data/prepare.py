"""From a source to what a training needs: scanned, cleaned, grouped and divided."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from kresnet.data import duplicates
from kresnet.data.duplicates import Pair
from kresnet.data.grouping import check_pattern, grouped
from kresnet.data.scan import Index, scan
from kresnet.data.sources import is_tfds, manifest
from kresnet.data.split import read_split, split
from kresnet.errors import DataError

_GROUP: Final = 5  # images that may be alike, however few there are
_GROUP_SHARE: Final = 0.05  # of all images
_YES: Final = ("yes", "y", "true", "1", "x")


def prepare(
    source: str | Path,
    *,
    val: float = 0.15,
    test: float | None = None,
    seed: int = 0,
    group_by: str | None = None,
    keep_split: str | Path | None = None,
    exclude: str | Path | None = None,
    max_bad: float = 0.05,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    tell: Callable[[str], None] = lambda text: None,
) -> Index:
    """Scan a source and divide it; images that are alike stay together.

    Args:
        source: As in `kresnet.data.sources.listing`.
        val: As in `split`.
        test: As in `split`.
        seed: As in `split`.
        group_by: A column of a manifest, or a regular expression, see `grouped`.
        keep_split: A file that `save_split` wrote; its images keep their places.
        exclude: A CSV of images to leave out, see `read_exclusions`.
        max_bad: As in `scan`.
        progress: Called with what is going on, how much of it is done, and how much there is.
        tell: Called with what a user should know.

    Raises:
        ConfigError: `group_by` is neither a column nor a regular expression.
        DataError: The images cannot be used so.
    """
    column = None
    if group_by is not None and not is_tfds(source):
        column = manifest.column(source, group_by)
    if group_by is not None and column is None:
        check_pattern(group_by)
    kept = read_split(keep_split) if keep_split is not None else None
    unwanted = read_exclusions(exclude) if exclude is not None else frozenset()

    index = scan(
        source, max_bad=max_bad, progress=lambda done, total: progress("reading", done, total)
    )
    if exclude is not None:
        index = index.without(unwanted, f"left out by {Path(exclude).name}")
        tell(f"{len(unwanted)} images left out by {exclude}")
    if group_by is not None:
        index = grouped(index, group_by, column)
        tell(f"{len({row.group or row.path for row in index.rows})} groups by {group_by}")
    pairs = duplicates.find(
        index.rows, progress=lambda done, total: progress("comparing", done, total)
    )
    together = _meaningful(pairs, len(index.rows))
    if together:
        tell(f"{len(together)} pairs of alike images are kept together; `kresnet check` names them")
    if len(together) < len(pairs):
        tell(
            f"{len(pairs) - len(together)} pairs of images are too alike to tell what belongs "
            "together, and are divided; --group-by can say it"
        )
    return split(
        index,
        val=val,
        test=test,
        seed=seed,
        alike=((pair.first, pair.second) for pair in together),
        keep=kept,
    )


def _meaningful(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """Leave out near duplicates where everything resembles everything, as in scans of one form.

    A copy, or a burst of shots, makes a small group; a group of a large part of the images is the
    way such images look.
    """
    groups = duplicates.groups(count, pairs)
    sizes = Counter(groups)
    most = max(_GROUP, _GROUP_SHARE * count)
    return [pair for pair in pairs if pair.kind != "near" or sizes[groups[pair.first]] <= most]


def read_exclusions(path: str | Path) -> frozenset[str]:
    """Read the paths that a CSV says to leave out.

    Args:
        path: A CSV with a column `path`; where it has a column `exclude`, only lines that say
            "yes" there count.

    Raises:
        DataError: It cannot be read, or has no such column.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = list(csv.DictReader(file))
            columns = lines[0].keys() if lines else ("path",)
    except (OSError, csv.Error) as error:
        raise DataError(
            f"What to leave out must be a readable CSV. Received: {path}: {error}."
        ) from None
    if "path" not in columns:
        raise DataError(
            "What to leave out must be a CSV with a column `path`. "
            f"Received: {path} with the columns {list(columns)}."
        )
    wanted = [line for line in lines if line.get("exclude", "yes").strip().lower() in _YES]
    return frozenset(line["path"] for line in wanted)
