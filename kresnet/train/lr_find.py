"""Find a learning rate: train a hundred steps at growing rates, and see where the loss falls.

The learning rate range test of Smith 2015 (arXiv:1506.01186, section 3.3), with the exponential
growth, the smoothing and the end of fastai. Model, stage, optimizer and batches are those of the
training, the head is the probe's, and nothing is kept of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np

from kresnet.console import Console
from kresnet.data.scan import Index
from kresnet.errors import DataError, ResourceError
from kresnet.train.optimizer import optimizer_of
from kresnet.train.probe import fit_probe
from kresnet.train.recipe import Recipe
from kresnet.train.stages import build_for, prepare_layers, preprocessing_for, training_data
from kresnet.train.step import train_step
from kresnet.zoo import Preprocessing

LOWEST: Final = 1e-7
HIGHEST: Final = 1.0
STEPS: Final = 100

_SMOOTHING: Final = 0.98  # share of the running mean that stays, as fastai's
_DIVERGED: Final = 4.0  # smoothed loss by the lowest so far, at which it ends, as fastai's
_FIRST: Final = 10  # share of the steps, one in so many, in which the running mean is of few losses
_LAST: Final = 5  # steps before the end, which are already diverging
_FALL: Final = 0.02  # share of the loss; what falls by less is noise


@dataclass(frozen=True, slots=True)
class RateTest:
    """What became of the loss while the learning rate grew.

    Attributes:
        rates: Learning rate of the head and the last stage at each step, growing.
        losses: Smoothed training loss after each step, finite.
        planned: The recipe's rate.
        diverged: Whether it ended because the loss grew too large.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    planned: float
    diverged: bool

    @property
    def valley(self) -> float | None:
        """The rate two thirds down the longest fall of the loss; None where it does not fall."""
        rates, losses = self._useful()
        if not _falls(losses) or (place := longest_valley(losses)) is None:
            return None
        return rates[place]

    @property
    def steep(self) -> float | None:
        """The rate at which the loss falls fastest, over its logarithm; None where it does not."""
        rates, losses = self._useful()
        if not _falls(losses):
            return None
        return rates[int((np.diff(losses) / np.diff(np.log(rates))).argmin())]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {"valley": self.valley, "steep": self.steep} | asdict(self)

    def __str__(self) -> str:
        if self.valley is None:
            return f"no rate lowered the loss; the plan's {self.planned:g} is as good as any"
        end = f"the loss diverged at {self.rates[-1]:.2g}" if self.diverged else "no divergence"
        steep = f", steepest at {self.steep:.2g}" if self.steep else ""
        return f"valley {self.valley:.2g}{steep}; {end}; the plan has {self.planned:g}"

    def save_picture(self, path: str | Path) -> None:
        """Draw the losses over the rates; the suffix of the file is its format.

        Raises:
            ResourceError: It cannot be written, or there is no such format.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.0, 4.4), layout="constrained")
        FigureCanvasAgg(figure)  # no display, no global state
        axes = figure.subplots()
        axes.plot(self.rates, self.losses, color="#2b6cb0")
        axes.set_xscale("log")
        axes.set_xlabel("learning rate of the head and the last stage")
        axes.set_ylabel("training loss, smoothed")
        marks = ((self.valley, "valley", "#c05621", "-"), (self.steep, "steepest", "#2f855a", "--"))
        for rate, name, colour, style in (*marks, (self.planned, "planned", "#718096", ":")):
            if rate is not None:
                axes.axvline(rate, color=colour, linestyle=style, label=f"{name} {rate:.2g}")
        axes.legend()
        axes.grid(alpha=0.3)
        try:
            figure.savefig(path, dpi=120)
        except (OSError, ValueError) as error:  # the latter for a suffix that is not known
            raise ResourceError(
                f"The plot must be a picture that can be written, as lr.png. Received: {error}."
            ) from None

    def _useful(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Leave out the first steps and, where it diverged, the last, as fastai does."""
        first = STEPS // _FIRST
        last = len(self.rates) - (_LAST if self.diverged else 0)
        return self.rates[first:last], self.losses[first:last]


def range_test(recipe: Recipe, index: Index, console: Console) -> RateTest:
    """Train at rates that grow from step to step, until the loss diverges.

    Args:
        recipe: What the training would be; its rate and schedule are of no account.
        index: The images and their split.
        console: Where to report.

    Raises:
        DataError: There are no training images.
        WeightsError: The recipe's weights do not fit the variant.
    """
    rows = index.select("train")
    if not rows:
        raise DataError("A rate is found on training images. Received: none. Add some.")
    console.status("building the model")
    keras.utils.set_random_seed(recipe.seed)
    model, preprocessing = _begun(recipe, index, console)
    optimizer = optimizer_of(recipe, model)
    step = train_step(model, optimizer, loss=recipe.loss, parts=recipe.accumulate)
    batches = training_data(recipe, rows, preprocessing, num_classes=len(index.classes)).batches()
    losses = _Smoothed()
    for number, batch in enumerate(islice(batches, STEPS)):
        rate = rate_of(number)
        optimizer.learning_rate = rate
        if not losses.add(rate, float(step(*batch))):
            break
        console.status(f"step {number + 1} of up to {STEPS}  rate {rate:.1e}")
    return RateTest(tuple(losses.rates), tuple(losses.values), recipe.lr, losses.diverged)


def rate_of(step: int) -> float:
    """Return the learning rate of a step, from 0 to `STEPS` - 1: each is larger by one factor."""
    return float(LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1)))


def longest_valley(losses: Sequence[float]) -> int | None:
    """Return a place half way through the middle third of the longest fall, as fastai's `valley`.

    The fall is the longest subsequence in which each loss is lower than the one before it, so
    small rises between do not end it.

    Args:
        losses: Smoothed losses in the order of the rates.

    Returns:
        A position in `losses`; None where nothing is lower than what came before.
    """
    lengths = [1] * len(losses)
    for k, loss in enumerate(losses):
        lengths[k] = 1 + max(
            (length for length, one in zip(lengths[:k], losses[:k], strict=True) if loss < one),
            default=0,
        )
    longest = max(lengths, default=0)
    if longest < 2:
        return None
    end = lengths.index(longest)
    start = max(end - longest, 0)
    third = (end - start) / 3
    return start + int(third) + int(third / 2)


def _falls(losses: Sequence[float]) -> bool:
    return len(losses) > 1 and min(losses) < (1.0 - _FALL) * losses[0]


class _Smoothed:
    """A running mean of losses without the pull of its start, and its lowest value."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.values: list[float] = []
        self.diverged = False
        self._sum = 0.0

    def add(self, rate: float, loss: float) -> bool:
        """Take in the loss of a step; tell whether it is worth going on."""
        if not math.isfinite(loss):
            self.diverged = True
            return False
        self._sum = _SMOOTHING * self._sum + (1.0 - _SMOOTHING) * loss
        self.rates.append(rate)
        self.values.append(self._sum / (1.0 - _SMOOTHING ** len(self.rates)))
        settled = self.values[STEPS // _FIRST :]  # the mean of a few losses may be low by chance
        self.diverged = bool(settled) and settled[-1] > _DIVERGED * min(settled)
        return not self.diverged


def _begun(recipe: Recipe, index: Index, console: Console) -> tuple[keras.Model, Preprocessing]:
    """Return the model as its training would find it: with the probe's head, and what is frozen."""
    model = build_for(recipe, index, size=recipe.image_size, weights=recipe.weights)
    preprocessing = preprocessing_for(recipe, index, model)
    if recipe.weights is not None:
        head = fit_probe(
            model,
            recipe,
            index.select("train"),
            preprocessing,
            progress=lambda done, of: console.progress("probe", done, of),
        )
        model.get_layer("head").set_weights(list(head))
    prepare_layers(model, recipe)
    return model, preprocessing
