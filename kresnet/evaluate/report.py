"""A run's report as one HTML file: no script, no other file, no network."""

from __future__ import annotations

import base64
import csv
import json
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf
from markupsafe import Markup

from kresnet.data.arrays import channels
from kresnet.data.findings import printable
from kresnet.data.scan import Index, Row
from kresnet.data.templates import template
from kresnet.errors import ConfigError
from kresnet.evaluate import pictures
from kresnet.evaluate.drawing import line_chart, reliability_chart
from kresnet.evaluate.metrics import wilson_interval
from kresnet.evaluate.predictions import Prediction, load_predictions
from kresnet.train.run import Run
from kresnet.zoo.cards import card_for
from kresnet.zoo.download import TAGS

FILE: Final = "report.html"
_WORST: Final = 12  # mistakes shown
_PAIRS: Final = 4  # confused pairs shown, with up to three images each
_OF_A_PAIR: Final = 3
_MATRIX: Final = 24  # classes; more are shown as a picture
_PROBLEMS: Final = 200  # files listed
_SURE: Final = 0.9  # a score from which on a mistake is worth a look at its label
_SUSPECTS: Final = 3  # files of a batch whose loss was not finite
_FEW: Final = 20  # training images of a class

_CURVES: Final[Sequence[tuple[str, Mapping[str, str], Callable[[float], str]]]] = (
    (
        "Loss",
        {"training": "loss", "validation": "val_loss", "average": "average_val_loss"},
        lambda v: f"{v:.3g}",
    ),
    (
        "Validation accuracy",
        {"weights": "val_accuracy", "their average": "average_val_accuracy"},
        lambda v: f"{v:.1%}",
    ),
    ("Learning rate", {"head": "lr"}, lambda v: f"{v:.2g}".replace("e-0", "e-")),
)
"""Charts: caption, columns of metrics.csv by the name of the line, and how a value is written."""

Heatmaps = Callable[[Sequence[bytes], Sequence[str]], list[np.ndarray | None]]
"""From images and a class for each to the evidence `(g, g)` in 0..1, None for a broken image."""


@dataclass(frozen=True, slots=True)
class Published:
    """What the report says of the run's export.

    Attributes:
        path: Where it is.
        checks: Each file and what was compared, in words.
        heatmaps: Grad-CAM by the export.
    """

    path: str
    checks: Mapping[str, str]
    heatmaps: Heatmaps


@dataclass(frozen=True, slots=True)
class Photo:
    """A picture with a text for those who do not see it; no address where it cannot be read."""

    text: str
    address: str | None


@dataclass(frozen=True, slots=True)
class Mistake:
    """An image that was taken for another class.

    Attributes:
        said: What the model said of it.
        views: The image, and where it sees the wrong and the right class.
    """

    said: Prediction
    views: tuple[Photo, ...]


def write_report(run: Run, published: Published | None) -> Path:
    """Write `report.html` into a run.

    Args:
        run: A run that was evaluated.
        published: Its export; None for images that cannot be exported.

    Returns:
        The file.

    Raises:
        ConfigError: The run was not evaluated.
    """
    page = template("kresnet.evaluate", "report.html.j2").render(_content(run, published))
    run.write_text(FILE, page)
    return run.path / FILE


def _content(run: Run, published: Published | None) -> dict[str, Any]:
    """Return all that the page shows."""
    said = load_predictions(run.path)
    evaluations, scores = (_read(run, f"{name}.json") for name in ("evaluation", "calibration"))
    split = "test" if "test" in evaluations else "val"
    index, info, recipe = run.index, run.info, run.recipe
    final = evaluations[split]
    held_out = [one for one in said if one.split == split]
    mistakes = sorted((one for one in held_out if not one.is_right), key=lambda one: -one.score)
    pairs = Counter((one.label, one.predicted) for one in mistakes).most_common(_PAIRS)
    look = _Gallery(run, index, published)
    epochs = _epochs(run)
    seconds = info.get("result", {}).get("seconds")
    plan = _read(run, "plan.json") if (run.path / "plan.json").exists() else {}
    return {
        "name": info.get("name", run.path.name),
        "split": "test" if split == "test" else "validation",
        "final": final,
        "evaluations": evaluations,
        "rows": _per_class(final),
        "verdict": _verdict(final, split, info, evaluations),
        "warnings": _warnings(final, scores["splits"][split], index, mistakes, evaluations),
        "counts": index.counts(),
        "classes": index.classes,
        "problems": [(_name(index, p.path), p.reason) for p in index.problems[:_PROBLEMS]],
        "problem_count": len(index.problems),
        "recipe": recipe.model_dump(),
        "reasons": plan.get("reasons", {}),
        "expected": None if info.get("resumed") else _expected(plan.get("estimate"), seconds),
        "epochs": epochs,
        "curves": _curves(epochs),
        "troubles": [_trouble(one) for one in info.get("troubles", [])],
        "refined": _refined(info.get("refined", {})),
        "probe": info.get("probe"),
        "kept": _kept(info),
        "scores": scores,
        "calibrated": scores["splits"][split],
        "reliability": {
            when: reliability_chart(
                f"Reliability {when} calibration: how often answers are right, by their score",
                scores["splits"][split][when]["bins"],
            )
            for when in ("before", "after")
        },
        "show_matrix": len(index.classes) <= _MATRIX,
        "confusion": None if len(index.classes) <= _MATRIX else _file_uri(run, "confusion.png"),
        "mistake_count": len(mistakes),
        "worst": [look.at(one) for one in mistakes[:_WORST]],
        "pairs": [
            (
                label,
                predicted,
                count,
                [
                    look.at(one)
                    for one in mistakes
                    if (one.label, one.predicted) == (label, predicted)
                ][:_OF_A_PAIR],
            )
            for (label, predicted), count in pairs
        ],
        "published": published,
        "card": _card(run),
        "environment": _read(run, "environment.json"),
        "command": _command(_read(run, "environment.json").get("command", [])),
        "run_path": str(run.path),
        "data_digest": sha256("\n".join(sorted(row.digest for row in index.rows)).encode())
        .hexdigest(),
        "time": None if seconds is None else str(timedelta(seconds=round(seconds))),
    }  # fmt: skip


def _read(run: Run, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads((run.path / name).read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"A report needs a finished run, with {name}. Received: {error}. "
            f"Finish it with: kresnet resume {run.path}"
        ) from None


# ---------------------------------------------------------------- in words


def _verdict(
    final: dict[str, Any], split: str, info: Mapping[str, Any], evaluations: dict[str, Any]
) -> list[str]:
    """Return what a reader in a hurry should know, the most important first."""
    n, (low, high) = final["n"], final["interval"]
    right = round(final["accuracy"] * n)
    classes, matrix = final["classes"], np.array(final["confusion"])
    common = int(matrix.sum(axis=1).argmax())
    guess = matrix[common].sum() / n
    lines = [
        f"Right on {right} of {n} {'test' if split == 'test' else 'validation'} images: "
        f"{final['accuracy']:.1%}. On other images like these expect {low:.1%} to {high:.1%} "
        "(95 % interval)."
    ]
    if low <= guess:
        lines.append(
            f"That is not surely better than always saying {classes[common]!r}, which is right on "
            f"{guess:.1%}: do not use it yet."
        )
    else:
        lines.append(f"Always saying {classes[common]!r} would be right on {guess:.1%}.")
    if split == "val":
        lines.append(
            "There are no test images: the model was chosen by these very images, so the truth is "
            "probably a little lower."
        )
    worst = min(final["per_class"], key=lambda row: (row["recall"] is None, row["recall"]))
    if worst["recall"] is not None and worst["recall"] < 1:
        k = classes.index(worst["class"])
        others = matrix[k].copy()
        others[k] = 0
        lines.append(
            f"Its weakest class is {worst['class']!r}: {matrix[k, k]} of {worst['n']} found, "
            f"the others taken mostly for {classes[int(others.argmax())]!r}."
        )
    if probe := info.get("probe"):
        kept = evaluations["val"]["accuracy"]
        lines.append(
            f"Fine-tuning was worth it: {kept:.1%} on the validation images, after "
            f"{probe['accuracy']:.1%} of a linear probe."
            if info.get("kept") != "probe"
            else "A linear probe on the pretrained features is kept: fine-tuning did not validate "
            "better."
        )
    return lines


def _warnings(
    final: dict[str, Any],
    scores: dict[str, Any],
    index: Index,
    mistakes: Sequence[Prediction],
    evaluations: dict[str, Any],
) -> list[str]:
    """Return what a careful reader should look at."""
    found = []
    low, high = final["interval"]
    if high - low > 0.1:
        found.append(
            f"Only {final['n']} images judge this model, so its accuracy is uncertain by "
            f"{100 * (high - low) / 2:.0f} points up or down. More held-out images make it surer."
        )
    val = evaluations["val"]["accuracy"]
    if "test" in evaluations and val > high:
        found.append(
            f"Validation ({val:.1%}) flatters: it is above what the test images allow "
            f"({high:.1%} at most). Trust the test."
        )
    weak = [
        row["class"]
        for row in final["per_class"]
        if row["n"] and wilson_interval(round(row["recall"] * row["n"]), row["n"])[1] < low
    ]
    if weak:
        found.append(f"Clearly worse than the rest: {', '.join(map(repr, weak[:8]))}.")
    after = scores["after"]
    if after["ece"] > after["ece_by_chance"]:
        found.append(
            f"Scores are off by {100 * after['ece']:.1f} points on average, more than chance "
            f"explains ({100 * after['ece_by_chance']:.1f}): do not take them for probabilities."
        )
    sure = sum(one.score >= _SURE for one in mistakes)
    if sure:
        found.append(
            f"{sure} mistake{'s were' if sure > 1 else ' was'} made with a score of "
            f"{_SURE:.0%} or more. Look below whether the label or the model is wrong; "
            "kresnet check DATA --labels looks through all images."
        )
    train = index.counts().get("train", {})
    few = [name for name, count in train.items() if count < _FEW]
    if few:
        found.append(
            f"Fewer than {_FEW} training images: {', '.join(map(repr, few[:8]))}"
            f"{' and others' if len(few) > 8 else ''}."
        )
    if count := len(index.problems):
        left_out = "file was" if count == 1 else "files or folders were"
        found.append(f"{count} {left_out} left out; see Data.")
    return found


def _expected(estimate: Mapping[str, Any] | None, seconds: float | None) -> str | None:
    """Say how far off the estimate was; both are of what came after the plan."""
    if not estimate or seconds is None or not estimate["seconds"]:
        return None
    expected, took = estimate["seconds"], seconds - estimate["spent_s"]
    off = took / expected - 1
    return (
        f"after the plan {timedelta(seconds=round(took))}, "
        f"{timedelta(seconds=round(expected))} were estimated ({off:+.0%})"
    )


def _kept(info: Mapping[str, Any]) -> str:
    """Return what the model's weights are."""
    if info.get("kept") == "probe":
        return "the probe"
    average = {"weights": "", "average": "the average of the weights after "}
    if info.get("kept_weights") == "soup":
        return "a mean of the weights of several epochs"
    if "kept_epoch" not in info or info.get("kept_weights") not in average:
        return str(info.get("kept", ""))
    return f"{average[info['kept_weights']]}epoch {info['kept_epoch']}"


def _refined(found: Mapping[str, Any]) -> list[str]:
    """Return what was tried after the last epoch, and what it brought, in words."""
    said = []
    if soup := found.get("soup"):
        what = f"A mean of {', '.join(soup['of'])}" if len(soup["of"]) > 1 else "No mean of weights"
        better = "is better" if len(soup["of"]) < 2 else _verdict_on(soup)
        said.append(f"{what} {better}.")
    if norms := found.get("statistics"):
        said.append(
            f"With statistics of the norms from {norms['images']} images it {_verdict_on(norms)}."
        )
    if size := found.get("size"):
        tried = ", ".join(f"{px} px {one['accuracy']:.1%}" for px, one in size["tried"].items())
        said.append(f"Validated on larger images: {tried}; {size['image_size']} px is kept.")
    return said


def _verdict_on(tried: Mapping[str, Any]) -> str:
    verdict = "and is kept" if tried["kept"] else "which is not better"
    return f"validates at {tried['validation']['accuracy']:.1%}, {verdict}"


def _trouble(one: Mapping[str, Any]) -> str:
    """Return a trouble of the training, and what came of it, in words."""
    if one["kind"] == "out of memory":
        return "Out of memory: from then on each batch was computed in twice as many parts."
    files = list(one.get("files", ()))[:_SUSPECTS]
    named = f" The batch held {', '.join(files)} and others; run.json has all." if files else ""
    what = str(one.get("what", "a loss that was not finite"))
    return f"{what[:1].upper()}{what[1:]}: from then on at a third of the learning rate.{named}"


def _command(argv: Sequence[str]) -> str:
    """Return the command as it was typed, or could have been."""
    if not argv:
        return ""
    first = Path(argv[0])
    program = ["python", "-m", "kresnet"] if first.name == "__main__.py" else [first.name]
    return shlex.join([*program, *argv[1:]])


def _card(run: Run) -> dict[str, str]:
    """Return the facts of a model card (Mitchell et al. 2019, arXiv:1810.03993)."""
    recipe, index = run.recipe, run.index
    weights = "none: trained from scratch"
    licence = "that of its training images"
    if recipe.weights in TAGS:
        card = card_for(recipe.variant, recipe.weights)
        weights, licence = card.name, f"{card.license} for the pretrained weights"
    elif recipe.weights is not None:
        weights = recipe.weights
        licence = "that of the pretrained weights and of the training images"
    preprocessing = run.preprocessing
    return {
        "Model": f"{recipe.variant}, {preprocessing.image_size} px, an image classifier",
        "Says": f"one of {len(index.classes)} classes, always, with a score for each; it cannot "
        "know that an image shows something else",
        "Pretrained weights": weights,
        "Trained on": f"{len(index.select('train'))} images of {index.root}",
        "Looks at": f"the centred square, {preprocessing.crop_pct:.1%} of the shorter side",
        "Meant for": "images like those it was trained on: same kind of camera, place and choice",
        "Not meant for": "decisions about people without a person who checks them, and images of "
        "other kinds, on which nothing was measured",
        "Licence": licence,
    }


# ---------------------------------------------------------------- tables and curves


def _per_class(final: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the per-class table with 95 % intervals of recall and precision."""
    matrix = np.array(final["confusion"])
    rows = []
    for k, row in enumerate(final["per_class"]):
        hits, said, true = int(matrix[k, k]), int(matrix[:, k].sum()), int(matrix[k].sum())
        rows.append(
            row
            | {
                "recall_interval": wilson_interval(hits, true) if true else None,
                "precision_interval": wilson_interval(hits, said) if said else None,
            }
        )
    return rows


def _epochs(run: Run) -> list[dict[str, str]]:
    """Return the rows of metrics.csv."""
    path = run.path / "metrics.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _curves(epochs: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str], Markup]]:
    """Return charts of the epochs: caption, names of the lines, drawing."""
    charts = []
    for caption, columns, form in _CURVES:
        series = [
            (name, [_number(row.get(column)) for row in epochs])
            for name, column in columns.items()
            if epochs and column in epochs[0]
        ]
        drawn = line_chart(f"{caption} by epoch", series, form=form) if series else Markup()
        if drawn:
            charts.append((caption, [name for name, _ in series], drawn))
    return charts


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


# ---------------------------------------------------------------- pictures


class _Gallery:
    """Pictures of mistakes, each made once."""

    def __init__(self, run: Run, index: Index, published: Published | None) -> None:
        self._published = published if channels(index.rows) is None else None
        self._preprocessing = run.preprocessing
        self._rows: dict[tuple[str, str], Row] = {
            (index.name_of(row), row.digest): row for row in index.rows
        }
        self._made: dict[tuple[str, str], Mistake] = {}

    def at(self, one: Prediction) -> Mistake:
        """Return an image with where the evidence for its two classes is."""
        key = (one.name, one.digest)
        if key not in self._made:
            self._made[key] = Mistake(one, self._views(one, self._rows[key]))
        return self._made[key]

    def _views(self, one: Prediction, row: Row) -> tuple[Photo, ...]:
        text = f"{printable(one.label)} taken for {printable(one.predicted)}"
        if self._published is None:
            return (Photo(text, None),)
        try:
            contents = row.read()
            square = pictures.seen(contents, self._preprocessing)
        except (OSError, tf.errors.OpError):  # it has gone since
            return (Photo(text, None),)
        named = (one.predicted, one.label)
        views = [Photo(text, pictures.data_uri(square))]
        maps = self._published.heatmaps([contents, contents], named)
        for label, heat in zip(named, maps, strict=True):
            if heat is not None:
                place = f"Evidence for {printable(label)}: {pictures.where(heat)}"
                views.append(Photo(place, pictures.data_uri(pictures.overlaid(square, heat))))
        return tuple(views)


def _file_uri(run: Run, name: str) -> str:
    return f"data:image/png;base64,{base64.b64encode((run.path / name).read_bytes()).decode()}"


def _name(index: Index, path: str) -> str:
    return path.removeprefix(f"{index.root}/")
