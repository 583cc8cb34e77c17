"""Decide which images train, validate and test a model."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

from kresnet.data.scan import Index, Split
from kresnet.errors import DataError

_TEST_SHARE = 0.15
_TEST_FROM = 300  # images; with fewer, a test set is too small to tell anything


def split(index: Index, *, val: float = 0.15, test: float | None = None, seed: int = 0) -> Index:
    """Assign every row to a split, stratified by class.

    Rows stay in the split of their folder, except that splits which are wanted and have no folder
    are taken out of the training images. Where a file lands depends on the contents of the files
    and on `seed`, not on names or order. Identical files of a class stay together and count once.

    Args:
        index: From `scan`.
        val: Share of the images to validate on, in (0, 1), if no folder has them.
        test: Share of the images to test on, in [0, 1), if no folder has them. None takes 0.15 of
            300 or more images that have no splits at all, and else none.
        seed: Of the choice.

    Returns:
        The index with a split in every row. A class with images in the validation share has at
        least one there and at least one to train on.

    Raises:
        DataError: A share is out of range, there are no training images, or a class has fewer
            than two different images to divide.
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
    assigned = _divided(
        index, val=0.0 if "val" in given else val, test=0.0 if "test" in given else test, seed=seed
    )
    rows = (
        replace(row, split=assigned[row.label, row.digest]) if row.split in ("train", None) else row
        for row in index.rows
    )
    return replace(index, rows=tuple(rows))


def _divided(index: Index, *, val: float, test: float, seed: int) -> dict[tuple[int, str], Split]:
    """Return the split of each class's different training images, by label and digest."""

    def shuffled(digest: str) -> bytes:
        return hashlib.sha256(f"{seed} {digest}".encode()).digest()

    by_class: dict[int, set[str]] = {}
    for row in index.rows:
        if row.split in ("train", None):
            by_class.setdefault(row.label, set()).add(row.digest)
    digests = {label: sorted(different, key=shuffled) for label, different in by_class.items()}
    # Equal remainders are ordered by content, too.
    digests = dict(sorted(digests.items(), key=lambda item: shuffled(item[1][0])))
    few = [label for label, different in digests.items() if len(different) < 2]
    if few and val + test > 0:
        raise DataError(
            "Every class needs at least 2 different images, one to train and one to validate on. "
            f"Received: class={index.classes[few[0]]!r} with {len(digests[few[0]])}. Add images or "
            "remove the class."
        )
    assigned: dict[tuple[int, str], Split] = {}
    sizes = [len(different) for different in digests.values()]
    quotas = zip(digests.items(), _shared_out(sizes, val), _shared_out(sizes, test), strict=True)
    for (label, different), val_count, test_count in quotas:
        room = len(different) - 1  # one stays for training
        val_count = min(max(val_count, 1 if val else 0), room)
        test_count = min(test_count, room - val_count)
        for place, digest in enumerate(different):
            in_val, in_test = place < val_count, place < val_count + test_count
            assigned[label, digest] = "val" if in_val else "test" if in_test else "train"
    return assigned


def _shared_out(sizes: Sequence[int], share: float) -> list[int]:
    """Round `share` of each size to whole numbers whose sum is right (largest remainder)."""
    exact = [share * size for size in sizes]
    counts = [math.floor(amount) for amount in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda k: counts[k] - exact[k])
    for k in by_remainder[: round(sum(exact)) - sum(counts)]:
        counts[k] += 1
    return counts
