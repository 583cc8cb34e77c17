"""The runs of a folder, and whether one is better than another.

Only their small files are read, so this works without TensorFlow, weights and images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from kresnet.errors import ConfigError, DataError
from kresnet.evaluate.metrics import wilson_interval
from kresnet.evaluate.predictions import Prediction, load_predictions

_Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True, slots=True)
class Summary:
    """One run in a list.

    Attributes:
        path: Directory of the run.
        status: "created" while it is under way or stopped, "complete" at its end.
        time: When it was started, ISO 8601 in UTC; "" where unknown.
        variant: The network.
        data: Its images.
        epochs: How many were done.
        kept: "probe" or "fine-tune"; "" before there is anything to keep.
        validation: Accuracy, n and interval on the validation images; None before the end.
        test: The same on images that nothing was chosen by; None if there are none.
        export: Where its first export is; None without.
    """

    path: str
    status: str
    time: str
    variant: str
    data: str
    epochs: int
    kept: str
    validation: dict[str, Any] | None
    test: dict[str, Any] | None
    export: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)


def list_runs(folder: str | Path) -> list[Summary]:
    """Return the runs in a folder, the oldest first; folders that are no runs are passed over.

    Raises:
        ConfigError: There is no such folder, or a file of a run is damaged.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(
            f"The folder of the runs must exist. Received: {str(folder)!r}. Choose it with --out."
        )
    found = [_summary(path.parent) for path in root.glob("*/recipe.yaml")]
    return sorted(found, key=lambda one: (one.time, one.path))


def as_table(runs: Sequence[Summary]) -> str:
    """Return runs as text, a line each."""
    width = max(len(one.path) for one in runs)
    lines = [f"{'run':<{width}}  started           variant             epochs  validation  test"]
    for one in runs:
        validation, test = (
            f"{part['accuracy']:.1%}" if part else "-" for part in (one.validation, one.test)
        )
        interval = (
            " ({:.1%}-{:.1%}, n={})".format(*one.test["interval"], one.test["n"])
            if one.test
            else ""
        )
        state = "" if one.status == "complete" else f"  unfinished: kresnet resume {one.path}"
        lines.append(
            f"{one.path:<{width}}  {one.time[:16].replace('T', ' '):<16}  {one.variant:<18}  "
            f"{one.epochs:>6}  {validation:>10}  {test}{interval}{state}"
        )
    return "\n".join(lines)


def _summary(path: Path) -> Summary:
    recipe, info = _recipe(path), _json(path / "run.json")
    result = info.get("result", {})
    metrics = path / "metrics.csv"
    return Summary(
        path=str(path),
        status=info.get("status", "created"),
        time=_json(path / "environment.json").get("time", ""),
        variant=str(recipe.get("variant", "")),
        data=str(recipe.get("data", "")),
        epochs=max(len(metrics.read_text("utf-8").splitlines()) - 1, 0) if metrics.exists() else 0,
        kept=info.get("kept", ""),
        validation=result.get("validation"),
        test=result.get("test"),
        export=result.get("export"),
    )


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs on the images that neither learned from.

    Attributes:
        first: Directory of one run.
        second: Directory of the other.
        split: "test" where both kept these images from every choice; "held-out" where some of them
            validated, so that a run's own choices may flatter it.
        n: Number of shared images.
        first_right: How many the first got right.
        second_right: How many the second got right.
        only_first: How many only the first got right.
        only_second: How many only the second got right.
        p_value: Of McNemar's exact test, two-sided: how often chance alone parts two equally good
            models at least as far.
        interval: 95 % interval of second minus first accuracy (Bonett & Price 2012, J. Educ. Behav.
            Stat. 37, 479-488).
        left_out: Shared images that the runs label differently.
        settings: Fields of the recipes that differ, with both values.
    """

    first: str
    second: str
    split: str
    n: int
    first_right: int
    second_right: int
    only_first: int
    only_second: int
    p_value: float
    interval: tuple[float, float]
    left_out: int
    settings: dict[str, tuple[Any, Any]]

    @property
    def verdict(self) -> str:
        """The result in words."""
        apart = self.only_first + self.only_second
        if not apart:
            return "Both are right and wrong on the same images: no difference."
        if self.only_first == self.only_second:
            return f"Of the {apart} images on which they part, each has half: no difference."
        better, more = max((self.only_first, self.first), (self.only_second, self.second))[::-1]
        parting = (
            f"They part on {apart} image{'s' if apart > 1 else ''}, of which {better} has {more} "
            f"right; chance alone does that in {self.p_value:.1%} of cases"
        )
        if self.p_value < 0.05:
            return f"{better} is better. {parting}."
        return f"No difference is proven. {parting}. More test images would tell."

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self) | {"verdict": self.verdict}

    def __str__(self) -> str:
        low, high = self.interval
        width = max(len(self.first), len(self.second))
        lines = [
            f"{self.n} shared {self.split} images",
            *(
                f"{name:<{width}}  {accuracy}"
                for name, accuracy in (
                    (self.first, _accuracy(self.first_right, self.n)),
                    (self.second, _accuracy(self.second_right, self.n)),
                )
            ),
            f"{'second - first':<{width}}  {(self.second_right - self.first_right) / self.n:+.1%} "
            f"(95 % {low:+.1%} to {high:+.1%})",
            "",
            self.verdict,
        ]
        if self.split != "test":
            lines.append("Some of these images validated a run, so its own choices may flatter it.")
        if self.left_out:
            lines.append(f"{self.left_out} images that the runs label differently are left out.")
        if self.settings:
            lines += ["", "What is set differently:"]
            lines += [f"  {name}: {a} -> {b}" for name, (a, b) in self.settings.items()]
        return "\n".join(lines)


def compare(first: str | Path, second: str | Path) -> Comparison:
    """Compare two finished runs on the held-out images that they share, by their contents.

    Raises:
        ConfigError: One of them is no finished run.
        DataError: They share no held-out images.
    """
    one, other = (load_predictions(path) for path in (first, second))
    split = "test"
    pairs = _pairs(_of_test(one), _of_test(other))
    if not pairs:
        split, pairs = "held-out", _pairs(one, other)
    same = [(a, b) for a, b in pairs if a.label == b.label]
    if not same:
        raise DataError(
            "Two runs must share held-out images with the same labels. "
            f"Received: {first} and {second}, which share {len(pairs)} images and no label. Train "
            f"the second with --keep-split {Path(first) / 'index.csv'}."
        )
    marks = [(a.is_right, b.is_right) for a, b in same]
    only_first, only_second = marks.count((True, False)), marks.count((False, True))
    settings, others = _recipe(Path(first)), _recipe(Path(second))
    return Comparison(
        first=str(first),
        second=str(second),
        split=split,
        n=len(same),
        first_right=sum(a for a, _ in marks),
        second_right=sum(b for _, b in marks),
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar(only_first, only_second),
        interval=paired_interval(only_first, only_second, len(same)),
        left_out=len(pairs) - len(same),
        settings={
            name: (settings.get(name), others.get(name))
            for name in {**settings, **others}
            if settings.get(name) != others.get(name)
        },
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the p-value of McNemar's exact test, two-sided, in 0..1.

    Args:
        only_first: Number of images that only the first model has right.
        only_second: Number of images that only the second has right.
    """
    n, least = only_first + only_second, min(only_first, only_second)
    ways = total = 1
    for k in range(least):  # binomial coefficients, exactly
        ways = ways * (n - k) // (k + 1)
        total += ways
    return min(2 * total / 2**n, 1.0)


def paired_interval(only_first: int, only_second: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of second minus first accuracy on the same `n` images.

    Bonett & Price 2012: Wald's interval after one image is added to each kind of disagreement.
    """
    a, b = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    half = _Z95 * math.sqrt((a + b - (a - b) ** 2) / (n + 2))
    return max(b - a - half, -1.0), min(b - a + half, 1.0)


def _accuracy(right: int, n: int) -> str:
    low, high = wilson_interval(right, n)
    return f"{right / n:.1%} (95 % {low:.1%} to {high:.1%})"


def _of_test(found: Sequence[Prediction]) -> list[Prediction]:
    return [one for one in found if one.split == "test"]


def _pairs(
    first: Sequence[Prediction], second: Sequence[Prediction]
) -> list[tuple[Prediction, Prediction]]:
    """Return what both said of each image that both have; copies of an image count once."""
    others = {one.digest: one for one in second}
    return [(one, others[d]) for d, one in {a.digest: a for a in first}.items() if d in others]


def _recipe(path: Path) -> dict[str, Any]:
    file = path / "recipe.yaml"
    try:
        fields = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"A run holds a readable recipe. Received: {error}.") from None
    return fields if isinstance(fields, dict) else {}


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} must be readable. Received: {error}. Remove the run.") from None
