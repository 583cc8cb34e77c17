"""Lines of a file, one for each contender, data set and seed, and the tables made of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from kresnet.errors import ResourceError
from kresnet.evaluate.calibrate import expected_calibration_error
from kresnet.evaluate.metrics import wilson_interval
from kresnet.evaluate.runs import paired_interval

GUIDE = "keras.io guide"


@dataclass(frozen=True, slots=True)
class Line:
    """What one contender did on one split of one data set.

    Attributes:
        data: What the table calls the images.
        method: What the table calls the contender.
        seed: Of the split and of the training.
        budget_s: Seconds that it was given.
        weights: SHA-256 of the file of weights, its first 12 hexadecimal digits.
        right: For each test image, whether its best score was that of its class; empty where it
            failed.
        best: The best scores, in the same order.
        seconds: From the start of the process to its end.
        failed: Why there is no result; None where there is one.
        facts: See `Answer`.
        versions: Of the packages that it used.
    """

    data: str
    method: str
    seed: int
    budget_s: float
    weights: str
    right: tuple[bool, ...]
    best: tuple[float, ...]
    seconds: float
    failed: str | None
    facts: dict[str, Any]
    versions: dict[str, str]

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from other lines."""
        return self.data, self.method, self.seed, self.budget_s, self.weights

    @property
    def accuracy(self) -> float:
        """Share of the test images that it had right."""
        return fmean(self.right)

    @property
    def ece(self) -> float:
        """Expected calibration error; some hundredths are chance where images are few."""
        return expected_calibration_error(np.array(self.best), np.array(self.right))


def append(path: Path, line: Line) -> None:
    """Add a line to the file, on the disk when this returns.

    Raises:
        ResourceError: It cannot be written.
    """
    fields = asdict(line) | {"right": "".join("01"[one] for one in line.right)}
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(fields) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ResourceError(
            f"Results must be written. Received: {path}: {error.strerror}. Make room."
        ) from None


def load(path: Path) -> list[Line]:
    """Read the lines of a file; none if there is no file, and not the one that was cut off."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    lines = []
    for one in text.split("\n")[:-1]:
        fields = json.loads(one)
        fields |= {"right": tuple(c == "1" for c in fields["right"]), "best": tuple(fields["best"])}
        lines.append(Line(**fields))
    return lines


def summaries(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """Take the seeds of each contender on each data set together, in the order of the lines.

    Returns:
        For each: the mean, least and greatest accuracy of the seeds; the 95 % Wilson interval of
        all their answers; how far it is above the guide on the same images, with the interval;
        the calibration error, mean of the seeds and of all answers together, where chance is less
        but errors to both sides may cancel; means of seconds and images a second. An image that is
        in the test sets of several seeds counts as often, so intervals are a little narrow.
    """
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line.data, line.method), []).append(line)
    return [_summary(found, groups.get((data, GUIDE), [])) for (data, _), found in groups.items()]


def _summary(lines: Sequence[Line], guide: Sequence[Line]) -> dict[str, Any]:
    told = [line for line in lines if not line.failed]
    summary: dict[str, Any] = {
        "data": lines[0].data,
        "method": lines[0].method,
        "budget_s": lines[0].budget_s,
        "seeds": len(told),
        "failed": next((line.failed for line in lines if line.failed), None),
    }
    if not told:
        return summary
    right = np.concatenate([line.right for line in told])
    best = np.concatenate([line.best for line in told])
    accuracies = [line.accuracy for line in told]
    rates = [line.facts["images_per_s"] for line in told if line.facts.get("images_per_s")]
    return summary | {
        "accuracy": fmean(accuracies),
        "least": min(accuracies),
        "most": max(accuracies),
        "n": len(right),
        "interval": wilson_interval(int(right.sum()), len(right)),
        "above_guide": _above(told, guide),
        "ece": fmean(line.ece for line in told),
        "ece_together": expected_calibration_error(best, right),
        "seconds": fmean(line.seconds for line in told),
        "images_per_s": fmean(rates) if rates else None,
        "epochs": [line.facts.get("epochs") for line in told],
        "versions": told[0].versions,
    }


def _above(lines: Sequence[Line], guide: Sequence[Line]) -> dict[str, Any] | None:
    """Compare with the guide on the seeds that both have."""
    others = {line.seed: line for line in guide if not line.failed}
    pairs = [(others[line.seed], line) for line in lines if line.seed in others]
    if not pairs or lines[0].method == GUIDE:
        return None
    theirs, ours = (np.concatenate([pair[k].right for pair in pairs]) for k in (0, 1))
    only_theirs, only_ours = int((theirs & ~ours).sum()), int((ours & ~theirs).sum())
    n = len(ours)
    return {
        "difference": (only_ours - only_theirs) / n,
        "interval": paired_interval(only_theirs, only_ours, n),
        "seeds": len(pairs),
    }


def table(found: Iterable[dict[str, Any]]) -> str:
    """Return summaries as Markdown."""
    rows = [
        "| images | method | accuracy, mean (least-most) | all seeds, 95 % "
        "| above the guide, points | calibration error (all together) "
        "| seconds | images/s | epochs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in found:
        if not one["seeds"]:
            rows.append(f"| {one['data']} | {one['method']} | {one['failed']} |||||||")
            continue
        low, high = one["interval"]
        above = one["above_guide"]
        rows.append(
            f"| {one['data']} | {one['method']} "
            f"| {100 * one['accuracy']:.1f} % ({100 * one['least']:.1f}-{100 * one['most']:.1f}) "
            f"| {100 * low:.1f}-{100 * high:.1f} (n={one['n']}) | {_points(above)} "
            f"| {one['ece']:.3f} ({one['ece_together']:.3f}) | {one['seconds']:.0f} "
            f"| {'-' if one['images_per_s'] is None else format(one['images_per_s'], '.0f')} "
            f"| {', '.join(map(str, one['epochs']))} |"
        )
    return "\n".join(rows)


def _points(above: dict[str, Any] | None) -> str:
    if above is None:
        return "-"
    low, high = above["interval"]
    return f"{100 * above['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
