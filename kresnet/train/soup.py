"""A soup: the mean of the best weights of a training (Wortsman et al. 2022, arXiv:2203.05482).

Weights of late epochs lie in one valley of the loss, and their mean is nearer to its middle than
each of them. It answers as fast as one network.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import keras
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from kresnet.errors import ResourceError
from kresnet.train.average import moving_variables
from kresnet.train.score import Score

Kind = Literal["weights", "average"]
Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class Ingredient:
    """Weights of the end of an epoch, and how good they are.

    Attributes:
        epoch: From 1.
        kind: The weights themselves, or their running average.
        score: On the validation images.
    """

    epoch: int
    kind: Kind
    score: Score

    def __str__(self) -> str:
        return f"{'average of ' if self.kind == 'average' else ''}epoch {self.epoch}"

    @property
    def file(self) -> str:
        """Name of the file that holds it."""
        return f"{self.kind}-{self.epoch:05d}.safetensors"


class Ingredients:
    """The best weights of the epochs so far, and the best average, in files beside the states.

    A file goes only when no saved state names it any more, so that a resumed training finds all
    that it had.

    Args:
        folder: Where the files are.
        model: Its weights and moving statistics are kept.
        most: How many epochs' weights; the best average is one more.
    """

    def __init__(self, folder: Path, model: keras.Model, *, most: int) -> None:
        self._folder, self._most = folder, most
        self._variables = moving_variables(model)
        self.best: tuple[Ingredient, ...] = ()
        self._saved: list[set[str]] = []  # the files that each of the newest two states names

    def offer(self, one: Ingredient) -> None:
        """Keep what the model holds now, if it is among the best.

        Raises:
            ResourceError: The disk is full or not writable.
        """
        alike = [other for other in self.best if other.kind == one.kind]
        most = self._most if one.kind == "weights" else 1
        kept = ranked([*alike, one])[:most]
        if one in kept:
            self._write(one.file)
            others = [other for other in self.best if other.kind != one.kind]
            self.best = ranked([*others, *kept])

    def meta(self) -> list[dict[str, Any]]:
        """Return what a saved state remembers."""
        return [asdict(one) for one in self.best]

    def tidy(self) -> None:
        """Remove files that none of the newest two states names; call it once a state is saved."""
        self._saved = [*self._saved[-1:], {one.file for one in self.best}]
        for path in self._folder.glob("*-[0-9]*.safetensors"):
            if path.name not in set().union(*self._saved):
                path.unlink(missing_ok=True)

    def restore(self, meta: Iterable[dict[str, Any]]) -> None:
        """Go back to what a saved state remembers."""
        self.best = from_meta(meta)
        self._saved = [{one.file for one in self.best}]

    def _write(self, name: str) -> None:
        partial = self._folder / f".{name}.partial"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_file({f"{k:05d}": v.numpy() for k, v in enumerate(self._variables)}, partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(self._folder / name)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise ResourceError(
                f"The weights of an epoch must be writable. Received: {error}. "
                f"Make room or rights in {self._folder} and resume."
            ) from error


def from_meta(meta: Iterable[dict[str, Any]]) -> tuple[Ingredient, ...]:
    """Return the ingredients that `Ingredients.meta` gave."""
    return tuple(Ingredient(**one | {"score": Score(**one["score"])}) for one in meta)


def ranked(ingredients: Iterable[Ingredient]) -> tuple[Ingredient, ...]:
    """Return ingredients, the best first; of equals the earliest."""
    return tuple(
        sorted(ingredients, key=lambda one: (-one.score.accuracy, one.score.loss, one.epoch))
    )


def read(folder: Path, ingredient: Ingredient) -> list[np.ndarray] | None:
    """Return an ingredient, in the order of `moving_variables`; None if it is unreadable."""
    try:
        arrays = load_file(folder / ingredient.file)
    except (OSError, SafetensorError):
        return None
    return [arrays[key] for key in sorted(arrays)]


def greedy(
    parts: Sequence[Part], score_of: Callable[[Sequence[Part]], Score]
) -> tuple[list[Part], Score]:
    """Choose parts whose mixture scores best: each is added that makes it better than without.

    Algorithm 1 of the paper.

    Args:
        parts: At least one, the best first.
        score_of: Scores a mixture.

    Returns:
        The chosen ones, in order, and their score.
    """
    chosen = [parts[0]]
    best = score_of(chosen)
    for part in parts[1:]:
        score = score_of([*chosen, part])
        if score.beats(best):
            chosen, best = [*chosen, part], score
    return chosen, best


def pour(model: keras.Model, values: Sequence[Sequence[np.ndarray]]) -> None:
    """Give a model the mean of several values of what moves in it.

    Args:
        model: As the ingredients were taken from.
        values: For each ingredient what `read` returned.
    """
    for variable, several in zip(moving_variables(model), zip(*values, strict=True), strict=True):
        mean = np.mean([np.asarray(value, np.float64) for value in several], axis=0)
        variable.assign(mean.astype(np.float32))
