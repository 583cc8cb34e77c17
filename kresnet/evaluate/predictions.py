"""What a run's model said of every held-out image: `predictions.csv` in the run.

Neither TensorFlow nor the images are needed to read it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kresnet.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from kresnet.data.items import Split
    from kresnet.data.scan import Index

FILE: Final = "predictions.csv"
_COLUMNS: Final = ("path", "digest", "split", "label", "predicted", "score")
_SCORE_OF: Final = "score of "
_MOST_CLASSES: Final = 100  # that get a column each


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one image.

    Attributes:
        name: Path of the image, relative to the folder of the data where it is below it.
        digest: SHA-256 of its bytes, hexadecimal.
        split: "val" or "test".
        label: Its class.
        predicted: The class of the best score.
        score: The best score, calibrated, 0..1.
        scores: Of every class by name; empty where there are more than 100 classes.
    """

    name: str
    digest: str
    split: Split
    label: str
    predicted: str
    score: float
    scores: dict[str, float]

    @property
    def is_right(self) -> bool:
        """Whether the best class is the right one."""
        return self.predicted == self.label


def predictions(index: Index, split: Split, scores: np.ndarray) -> Iterator[Prediction]:
    """Return what was said of the images of a split; `scores` are `(n, classes)`, in order."""
    names = index.classes
    for row, values in zip(index.select(split), scores, strict=True):
        best = int(values.argmax())
        yield Prediction(
            index.name_of(row),
            row.digest,
            split,
            names[row.label],
            names[best],
            float(values[best]),
            dict(zip(names, map(float, values), strict=True))
            if len(names) <= _MOST_CLASSES
            else {},
        )


def table(found: Iterable[Prediction], classes: Sequence[str]) -> Iterator[Sequence[object]]:
    """Return the lines of `predictions.csv`, the names of the columns first."""
    shown = classes if len(classes) <= _MOST_CLASSES else ()
    yield (*_COLUMNS, *(f"{_SCORE_OF}{name}" for name in shown))
    for one in found:
        yield (
            one.name,
            one.digest,
            one.split,
            one.label,
            one.predicted,
            f"{one.score:.6f}",
            *(f"{one.scores[name]:.6f}" for name in shown),
        )


def load_predictions(run: str | Path) -> list[Prediction]:
    """Read the predictions of a run, in the order of its index.

    Raises:
        ConfigError: There are none, or they cannot be read.
    """
    path = Path(run) / FILE
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            return [_read(line) for line in csv.DictReader(file)]
    except FileNotFoundError:
        raise ConfigError(
            f"A finished run holds {FILE}. Received: {str(run)!r}, which has none. "
            f"Finish it with: kresnet resume {run}"
        ) from None
    except (KeyError, ValueError, csv.Error) as error:
        raise ConfigError(
            f"{FILE} must be as kresnet wrote it. Received: {path}, with {error!r}. "
            f"Write it again with: kresnet resume {run}"
        ) from None


def _read(line: dict[str, str]) -> Prediction:
    split = line["split"]
    if split not in ("val", "test"):
        raise ValueError(f"split={split!r}")
    return Prediction(
        line["path"],
        line["digest"],
        "val" if split == "val" else "test",
        line["label"],
        line["predicted"],
        float(line["score"]),
        {
            column.removeprefix(_SCORE_OF): float(text)
            for column, text in line.items()
            if column.startswith(_SCORE_OF)
        },
    )
