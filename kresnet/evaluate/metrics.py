"""Accuracy with its interval, what goes wrong for each class, and which classes are confused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kresnet.errors import DataError
from kresnet.train.score import wilson_interval as wilson_interval


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of scoring every image of a split once.

    Attributes:
        classes: Class names, in the order of the labels.
        matrix: Counts `(classes, classes)`: row is the truth, column the prediction.
        loss: Mean negative log-likelihood of the right class, in nats.
    """

    classes: tuple[str, ...]
    matrix: np.ndarray
    loss: float

    @property
    def n(self) -> int:
        """Number of images."""
        return int(self.matrix.sum())

    @property
    def accuracy(self) -> float:
        """Share of images predicted right."""
        return float(np.trace(self.matrix) / self.n)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson_interval(int(np.trace(self.matrix)), self.n)

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that occur; each class weighs the same."""
        counts = self.matrix.sum(axis=1)
        return float((np.diag(self.matrix)[counts > 0] / counts[counts > 0]).mean())

    def per_class(self) -> list[dict[str, Any]]:
        """Return precision, recall, F1 and number of images for each class.

        A value is None where it is not defined: no prediction, or no image, of that class.
        """
        rows = []
        for k, name in enumerate(self.classes):
            hits, said, true = self.matrix[k, k], self.matrix[:, k].sum(), self.matrix[k].sum()
            rows.append(
                {
                    "class": name,
                    "n": int(true),
                    "precision": float(hits / said) if said else None,
                    "recall": float(hits / true) if true else None,
                    "f1": float(2 * hits / (said + true)) if said + true else None,
                }
            )
        return rows

    def confusions(self, most: int = 5) -> list[tuple[str, str, int]]:
        """Return the commonest mistakes as (truth, prediction, count), worst first."""
        off = self.matrix - np.diag(np.diag(self.matrix))
        order = np.argsort(-off, axis=None, kind="stable")[:most]
        pairs = (np.unravel_index(i, off.shape) for i in order)
        return [
            (self.classes[t], self.classes[p], int(off[t, p])) for t, p in pairs if off[t, p] > 0
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return every number, as JSON types."""
        return {
            "n": self.n,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "balanced_accuracy": self.balanced_accuracy,
            "loss": self.loss,
            "per_class": self.per_class(),
            "confusion": self.matrix.tolist(),
            "classes": list(self.classes),
        }

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.accuracy:.3f} (95 % {low:.3f}-{high:.3f}, n={self.n}), "
            f"balanced {self.balanced_accuracy:.3f}"
        )

    def table(self) -> str:
        """Return the per-class table as text."""
        width = max(len(name) for name in (*self.classes, "class"))

        def cell(value: float | None) -> str:
            return "     -" if value is None else f"{value:6.3f}"

        lines = [f"{'class':<{width}}  precision  recall      f1       n"]
        for row in self.per_class():
            lines.append(
                f"{row['class']:<{width}}     {cell(row['precision'])}  {cell(row['recall'])}  "
                f"{cell(row['f1'])}  {row['n']:6d}"
            )
        return "\n".join(lines)


def evaluation(probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Evaluation:
    """Compare predictions with the truth.

    Args:
        probabilities: float `(n, classes)`, each row summing to 1.
        labels: int `(n,)`.
        classes: Class names.

    Raises:
        DataError: There is nothing to evaluate, or the shapes do not agree.
    """
    n, count = len(labels), len(classes)
    if n == 0 or probabilities.shape != (n, count):
        raise DataError(
            "Evaluation needs one row of probabilities for each of at least one image. "
            f"Received: probabilities {probabilities.shape}, labels {labels.shape}, "
            f"{count} classes."
        )
    matrix = np.zeros((count, count), dtype=np.int64)
    np.add.at(matrix, (labels, probabilities.argmax(axis=1)), 1)
    likelihood = np.clip(probabilities[np.arange(n), labels], 1e-12, None)
    return Evaluation(tuple(classes), matrix, float(-np.log(likelihood).mean()))


def save_confusion_picture(result: Evaluation, path: Path, *, title: str) -> None:
    """Draw the confusion matrix: rows are the truth, shares of each row as shades."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(result.classes)
    side = min(max(3.5, 0.45 * count + 2.0), 24.0)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    FigureCanvasAgg(figure)  # no display, no global state
    axes = figure.subplots()
    totals = np.maximum(result.matrix.sum(axis=1, keepdims=True), 1)
    shares = result.matrix / totals
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    axes.set_title(title)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    step = max(1, count // 40)  # more names than that overlap
    ticks = range(0, count, step)
    axes.set_xticks(ticks, [result.classes[k] for k in ticks], rotation=60, ha="right")
    axes.set_yticks(ticks, [result.classes[k] for k in ticks])
    if count <= 30:
        for true in range(count):
            for said in range(count):
                if result.matrix[true, said]:
                    axes.text(
                        said,
                        true,
                        str(result.matrix[true, said]),
                        ha="center",
                        va="center",
                        color="white" if shares[true, said] > 0.5 else "black",
                    )
    figure.savefig(path, dpi=120)
