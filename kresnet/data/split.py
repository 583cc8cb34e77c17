"""Decide which images train, validate and test a model."""

from __future__ import annotations

import csv
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, cast

from kresnet.data.scan import Index, Row, Split
from kresnet.errors import DataError

_TEST_SHARE: Final = 0.15
_TEST_FROM: Final = 300  # images; with fewer, a test set is too small to tell anything
_COLUMNS: Final = ("path", "label", "split", "group", "digest")
_HELD_OUT: Final[tuple[Split, ...]] = ("val", "test")
_SPLITS: Final[tuple[Split, ...]] = (
    "test",
    "val",
    "train",
)  # what is like a test image must not be trained on


def split(
    index: Index,
    *,
    val: float = 0.15,
    test: float | None = None,
    seed: int = 0,
    alike: Iterable[tuple[int, int]] = (),
    keep: Mapping[str, Split] | None = None,
) -> Index:
    """Assign every row to a split, stratified by class.

    Rows stay in the split of their folder, except that splits which are wanted and have no folder
    are taken out of the training images. Where a file lands depends on the contents of the files
    and on `seed`, not on names or order. What belongs together stays together and is not divided:
    identical files, which count once, images of one group, and images that are alike.

    A new image takes a place that its content decides, so it moves at most about one other; with
    `keep` it moves none.

    Args:
        index: From `scan`.
        val: Share of the images to validate on, in (0, 1), if no folder has them.
        test: Share of the images to test on, in [0, 1), if no folder has them. None takes 0.15 of
            300 or more images that have no splits at all, and else none.
        seed: Of the choice.
        alike: Pairs of positions of rows that show the same, as `duplicates.find` gives them.
            Where all images of a class are alike, those are divided all the same.
        keep: Splits of images by their digest, from an earlier split; others fill what is left.

    Returns:
        The index with a split in every row. A class with images in the validation share has at
        least one there and at least one to train on.

    Raises:
        DataError: A share is out of range, there are no training images, or a class has fewer
            than two different images, or groups, to divide.
    """
    given = {row.split for row in index.rows}
    if test is None:
        test = _TEST_SHARE if given == {None} and len(index.rows) >= _TEST_FROM else 0.0
    if not (0 < val < 1 and test >= 0 and val + test < 1):
        raise DataError(
            "The shares must be 0 < val < 1, test >= 0 and val + test < 1. Received: "
            f"val={val}, test={test}. Take smaller ones."
        )
    if not given & {"train", None}:
        raise DataError(
            f"There must be images to train on. Received: source={index.root!r}, whose images are "
            "all in other splits. Add a train folder."
        )
    free = [k for k, row in enumerate(index.rows) if row.split in ("train", None)]
    rows = [index.rows[k] for k in free]
    place = {k: position for position, k in enumerate(free)}
    pairs = [(place[a], place[b]) for a, b in alike if a in place and b in place]
    shares = {
        "val": 0.0 if "val" in given else val,
        "test": 0.0 if "test" in given else test,
    }
    bundles = _bundles(rows, pairs, seed)
    if any(shares.values()):
        bundles = _divisible(index, rows, bundles, seed)
    _divide(bundles, shares, keep or {})
    made = list(index.rows)
    for bundle in bundles:
        for position in bundle.rows:
            row = rows[position]
            made[free[position]] = replace(row, split=(keep or {}).get(row.digest, bundle.split))
    return replace(index, rows=tuple(made))


def save_split(index: Index, path: str | Path) -> None:
    """Write a CSV with the split of every image; nothing is copied."""
    with Path(path).open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for row in index.rows:
            label = index.classes[row.label]
            writer.writerow((index.name_of(row), label, row.split or "", row.group, row.digest))


def read_split(path: str | Path) -> dict[str, Split]:
    """Read the splits that `save_split`, or a run's `index.csv`, gives to images, by digest.

    Raises:
        DataError: It cannot be read or is something else.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = list(csv.DictReader(file))
    except (OSError, csv.Error) as error:
        raise DataError(f"A split must be a readable CSV. Received: {path}: {error}.") from None
    found: dict[str, Split] = {}
    for number, line in enumerate(lines, start=2):
        digest, name = line.get("digest"), line.get("split")
        if not digest or name not in _SPLITS:
            raise DataError(
                "A split must have the columns digest and split, which says train, val or test. "
                f"Received: {path}, line {number}, with digest={digest!r} and split={name!r}. "
                "Write it with `kresnet data split`."
            )
        found[digest] = cast(Split, name)
    return found


@dataclass(slots=True)
class _Bundle:
    """Rows that must not be divided.

    Attributes:
        rows: Their positions.
        digests: Of the different images of each class.
        key: Decides its turn, by content alone.
        split: Where it goes.
    """

    rows: list[int]
    digests: dict[int, set[str]]
    key: bytes
    split: Split = "train"

    def counts(self) -> dict[int, int]:
        """Return how many different images it has of each class."""
        return {label: len(digests) for label, digests in self.digests.items()}


def _bundles(rows: Sequence[Row], pairs: Sequence[tuple[int, int]], seed: int) -> list[_Bundle]:
    """Join rows of one content, one group or one pair, in the order of their keys."""
    parents = list(range(len(rows)))

    def top(k: int) -> int:
        while parents[k] != k:
            parents[k] = parents[parents[k]]
            k = parents[k]
        return k

    first: dict[tuple[str, str], int] = {}
    for k, row in enumerate(rows):
        for mark in (("digest", row.digest), ("group", row.group)):
            if mark[1]:
                parents[top(k)] = top(first.setdefault(mark, k))
    for a, b in pairs:
        parents[top(a)] = top(b)

    together: dict[int, list[int]] = {}
    for k in range(len(rows)):
        together.setdefault(top(k), []).append(k)
    bundles = []
    for positions in together.values():
        digests: dict[int, set[str]] = {}
        for k in positions:
            digests.setdefault(rows[k].label, set()).add(rows[k].digest)
        key = min(_shuffled(rows[k].digest, seed) for k in positions)
        bundles.append(_Bundle(positions, digests, key))
    return sorted(bundles, key=lambda bundle: bundle.key)


def _shuffled(digest: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {digest}".encode()).digest()


def _divisible(
    index: Index, rows: Sequence[Row], bundles: list[_Bundle], seed: int
) -> list[_Bundle]:
    """Take apart the classes whose images are all alike; refuse what still cannot be divided."""

    def whole(bundles: Sequence[_Bundle]) -> list[int]:
        pieces = Counter(label for bundle in bundles for label in bundle.digests)
        return [label for label in sorted(pieces) if pieces[label] < 2]

    if stuck := whole(bundles):
        kept = [b for b in bundles if not set(stuck) & b.digests.keys()]
        loose = [k for b in bundles if set(stuck) & b.digests.keys() for k in b.rows]
        apart = _bundles([rows[k] for k in loose], (), seed)
        for bundle in apart:
            bundle.rows = [loose[k] for k in bundle.rows]
        bundles = sorted(kept + apart, key=lambda bundle: bundle.key)
    if not (stuck := whole(bundles)):
        return bundles
    name = index.classes[stuck[0]]
    if any(row.group for row in rows if row.label == stuck[0]):
        raise DataError(
            "Every class needs images of at least 2 groups, one to train and one to validate on. "
            f"Received: class={name!r} with 1. Add images of another group, or group by less."
        )
    raise DataError(
        "Every class needs at least 2 different images, one to train and one to validate on. "
        f"Received: class={name!r} with 1. Add images or remove the class."
    )


def _divide(
    bundles: Sequence[_Bundle], shares: Mapping[str, float], keep: Mapping[str, Split]
) -> None:
    """Give every bundle its split: in the order of the keys, until each class has its share."""
    sizes: Counter[int] = Counter()
    for bundle in bundles:
        sizes.update(bundle.counts())
    # Classes are met in the order of the keys, so equal remainders are ordered by content, too.
    labels = list(dict.fromkeys(label for bundle in bundles for label in sorted(bundle.digests)))
    wanted = _wanted([sizes[label] for label in labels], shares)
    need = {name: dict(zip(labels, counts, strict=True)) for name, counts in wanted.items()}

    free = []
    for bundle in bundles:
        known = [
            (label, keep[digest])
            for label, digests in bundle.digests.items()
            for digest in digests
            if digest in keep
        ]
        for label, name in known:
            if name != "train":
                need[name][label] -= 1
        if known:
            bundle.split = min((name for _, name in known), key=_SPLITS.index)
        else:
            free.append(bundle)
    for bundle in free:
        counts = bundle.counts()
        for name in _HELD_OUT:
            fits = sum(min(count, max(need[name][label], 0)) for label, count in counts.items())
            if 2 * fits > sum(counts.values()) or (fits == 1 == sum(counts.values())):
                bundle.split = name
                for label, count in counts.items():
                    need[name][label] -= count
                break
    for label in labels:
        _ensure(free, bundles, label, is_validated=bool(shares["val"]))


def _wanted(sizes: Sequence[int], shares: Mapping[str, float]) -> dict[str, list[int]]:
    """Return how many images of each class validate and test."""
    vals, tests = _shared_out(sizes, shares["val"]), _shared_out(sizes, shares["test"])
    wanted: dict[str, list[int]] = {"val": [], "test": []}
    for size, val, test in zip(sizes, vals, tests, strict=True):
        room = size - 1  # one stays for training
        val = min(max(val, 1 if shares["val"] else 0), room)
        wanted["val"].append(val)
        wanted["test"].append(min(test, room - val))
    return wanted


def _ensure(
    free: Sequence[_Bundle], bundles: Sequence[_Bundle], label: int, *, is_validated: bool
) -> None:
    """Leave every class something to train on, and to validate on, however large its groups."""

    def of(name: str, among: Sequence[_Bundle]) -> list[_Bundle]:
        return [bundle for bundle in among if bundle.split == name and label in bundle.digests]

    if not of("train", bundles) and (other := of("test", free) or of("val", free)[1:]):
        min(other, key=_size).split = "train"
    if is_validated and not of("val", bundles) and len(of("train", bundles)) > 1:
        spare = of("train", free)
        if spare:
            min(spare, key=_size).split = "val"


def _size(bundle: _Bundle) -> tuple[int, bytes]:
    return sum(bundle.counts().values()), bundle.key


def _shared_out(sizes: Sequence[int], share: float) -> list[int]:
    """Round `share` of each size to whole numbers whose sum is right (largest remainder)."""
    exact = [share * size for size in sizes]
    counts = [math.floor(amount) for amount in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda k: counts[k] - exact[k])
    for k in by_remainder[: round(sum(exact)) - sum(counts)]:
        counts[k] += 1
    return counts
