"""How much each field matters in a search: shares of a random forest's variance (fANOVA)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from kresnet.tune.space import Entry, Space
from kresnet.tune.trials import Trial

LEAST: Final = 10
"""Finished trials below which nothing is said."""

EPOCHS: Final = "epochs trained"
"""Name of how long a trial was trained, where trials differ in it and the space does not say it."""

_FORESTS: Final = 5
_TREES: Final = 100
_PLACES: Final = 24  # values of a field that are looked at
_OTHERS: Final = 96  # values of all other fields that each is looked at with


@dataclass(frozen=True, slots=True)
class Importance:
    """What the scores of a search depend on, as far as a forest can tell from its trials.

    Attributes:
        shares: For each field, the share of the score's variance over the space that it explains by
            itself: the mean of several forests, the lowest and the highest. The largest is first.
            What is left to 1 is of fields together.
        explained: R2 of the forests on trials that they have not seen; from 0 down, the shares say
            nothing.
        trials: Number of trials that they have learned from.
    """

    shares: Mapping[str, tuple[float, float, float]]
    explained: float
    trials: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)


def importance(trials: Sequence[Trial], space: Space, *, seed: int = 0) -> Importance | None:
    """Tell how much each field of a space explains of the scores.

    The variance of a field's mean score, over all values of the others, is compared with that of
    the score (Hutter, Hoos, Leyton-Brown 2014, "An Efficient Approach for Assessing Hyperparameter
    Importance"), both of forests on resampled trials and values drawn evenly from the space.

    Args:
        trials: Of one search; those that are not done are passed over.
        space: What was searched.
        seed: Of the forests and the values.

    Returns:
        None where there are fewer than `LEAST` trials, or no differences between their scores.
    """
    from sklearn.ensemble import RandomForestRegressor

    done = [trial for trial in trials if trial.score is not None and trial.values]
    scores = np.array([trial.score for trial in done])
    if len(done) < LEAST or np.ptp(scores) == 0:
        return None
    names = list(space.entries)
    rows = _encoded_rows(done, space)
    if "epochs" not in names and len({trial.epochs for trial in done}) > 1:
        names.append(EPOCHS)
        rows = np.column_stack([rows, [trial.epochs for trial in done]])
    rng = np.random.default_rng(seed)
    shares, explained = [], []
    for _ in range(_FORESTS):
        number = int(rng.integers(2**31))
        forest = RandomForestRegressor(_TREES, oob_score=True, random_state=number, n_jobs=1)
        forest.fit(rows, scores)
        explained.append(float(forest.oob_score_))
        shares.append(_shares(forest, _drawn(space, rows, rng), len(names)))
    found = {
        name: (float(part.mean()), float(part.min()), float(part.max()))
        for name, part in zip(names, np.transpose(shares), strict=True)
    }
    order = sorted(found, key=lambda name: -found[name][0])
    return Importance({n: found[n] for n in order}, float(np.mean(explained)), len(done))


def place(entry: Entry, value: Any) -> float:
    """Return where a value lies in its range, from 0 to 1, evenly in the logarithm if it is so.

    Args:
        entry: Of the space.
        value: As the recipe has it.
    """
    if entry.choice is not None:
        known = list(entry.choice)
        return known.index(value) / max(len(known) - 1, 1) if value in known else math.nan
    low, high = entry.range or (0.0, 1.0)
    if entry.log:
        return math.log(value / low) / math.log(high / low) if value > 0 else math.nan
    return float((value - low) / (high - low))


def _encoded_rows(trials: Sequence[Trial], space: Space) -> np.ndarray:
    """Return places `(trials, fields)`; nan where a field is not set."""
    return np.array(
        [
            [
                place(entry, trial.fields[name]) if name in trial.fields else math.nan
                for name, entry in space.entries.items()
            ]
            for trial in trials
        ]
    )


def _drawn(space: Space, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return places drawn evenly from a space, and epochs from the trials if they are in `rows`."""
    count = _PLACES * _OTHERS
    places: dict[str, np.ndarray] = {}
    for name, entry in space.entries.items():
        column = rng.random(count)
        if entry.choice is not None:
            steps = max(len(entry.choice) - 1, 1)
            column = np.floor(column * len(entry.choice)) / steps
        for parent, values in entry.when.items():
            among = space.entries[parent]
            known = [place(among, value) for value in values]
            column = np.where(np.isin(np.round(places[parent], 9), np.round(known, 9)), column,
                              math.nan)  # fmt: skip
        places[name] = column
    drawn = np.column_stack(list(places.values()))
    if rows.shape[1] > drawn.shape[1]:
        drawn = np.column_stack([drawn, rng.choice(rows[:, -1], count)])
    return drawn


def _shares(forest: Any, drawn: np.ndarray, fields: int) -> np.ndarray:
    """Return the share of the variance that each field explains by itself."""
    total = forest.predict(drawn).var()
    if not total:
        return np.zeros(fields)
    found = []
    for k in range(fields):
        active = np.flatnonzero(~np.isnan(drawn[:, k]))
        if len(active) < _PLACES:
            found.append(0.0)
            continue
        values = np.sort(drawn[active, k])[:: len(active) // _PLACES][:_PLACES]
        others = drawn[active[:_OTHERS]]
        looked = np.repeat(others, len(values), axis=0)
        looked[:, k] = np.tile(values, len(others))
        means = forest.predict(looked).reshape(len(others), len(values)).mean(axis=0)
        found.append(min(means.var() * len(active) / len(drawn) / total, 1.0))
    return np.array(found)
