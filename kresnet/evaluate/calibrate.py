"""Probabilities that mean what they say, and when to give no answer.

Everything is chosen on validation images, and told of test images too. Legend of shapes: n images,
k classes, b bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from kresnet.errors import DataError
from kresnet.evaluate.metrics import wilson_interval

BINS: Final = 15  # as in Guo et al. 2017
_COLDEST, _HOTTEST = 0.1, 10.0
_GRID: Final = np.linspace(math.log(_COLDEST), math.log(_HOTTEST), 93)  # steps of 5 %
_PRIOR: Final = 1.0  # standard deviation of the log of a temperature before any image is seen
_RESAMPLES: Final = 1000
_SIMULATIONS: Final = 500
_Z95_ONE_SIDED: Final = 1.6448536269514722  # 95 % quantile of the normal distribution
_CHUNK: Final = 2_000_000  # numbers in memory at a time


@dataclass(frozen=True, slots=True)
class Temperature:
    """What logits are divided by, so that their softmax is as sure as it may be.

    Attributes:
        value: The temperature, 0.1 to 10; above 1 where the model was too sure.
        interval: 95 % of it, by a bootstrap over the images; wide where these are few.
        images: How many it was fitted on.
    """

    value: float
    interval: tuple[float, float]
    images: int

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.2f} (95 % {low:.2f}-{high:.2f}, n={self.images})"


@dataclass(frozen=True, slots=True)
class Bin:
    """The images whose best score is within a range.

    Attributes:
        low: Lowest score.
        high: Highest score.
        n: How many images.
        confidence: Their mean best score; None without images.
        accuracy: Share of them that is right; None without images.
        interval: 95 % Wilson interval of the accuracy; None without images.
    """

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well scores agree with how often they are right.

    Attributes:
        n: Number of images.
        loss: Mean negative log-likelihood of the right class, in nats.
        ece: Expected calibration error, 15 bins of equal width, 0..1.
        ece_equal_mass: The same with 15 bins of equally many images.
        ece_by_chance: What 95 % of models with these very scores and no error at all would stay
            below on so few images: an `ece` under it is no sign of anything wrong.
        bins: Of equal width, for a reliability diagram.
    """

    n: int
    loss: float
    ece: float
    ece_equal_mass: float
    ece_by_chance: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class Abstention:
    """When to give no answer, so that the answers given are right often enough.

    Attributes:
        target: Precision that was asked for: the share of given answers that is right.
        threshold: Lowest best score that is answered; 0 answers always; None where no threshold
            reaches the target.
        basis: What reaches the target on the validation images: the "lower bound" of the precision
            (95 % one-sided, Wilson), or, where they are too few for that, its "estimate".
        coverage: Share of validation images that is answered.
        precision: Share of the answered ones that is right.
        interval: 95 % Wilson interval of the precision.
        n: How many are answered.
    """

    target: float
    threshold: float | None = None
    basis: Literal["lower bound", "estimate"] | None = None
    coverage: float = 0.0
    precision: float | None = None
    interval: tuple[float, float] | None = None
    n: int = 0

    def __str__(self) -> str:
        if self.threshold is None or self.interval is None:
            return f"no threshold reaches a precision of {self.target:.1%}: it always answers"
        low, high = self.interval
        unsure = "" if self.basis == "lower bound" else "; too few images to be sure of it"
        return (
            f"below {self.threshold:.3f} it abstains: answers {self.coverage:.1%}, of which "
            f"{self.precision:.1%} are right (95 % {low:.3f}-{high:.3f}, n={self.n}){unsure}"
        )


def fit_temperature(logits: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> Temperature:
    """Find the temperature of the best likelihood (Guo et al. 2017, arXiv:1706.04599, sec. 4.2).

    A normal prior on its logarithm, with mean 0 and standard deviation 1, weighs as much as a few
    images. It matters where every image is right: the likelihood alone would then make the model
    infinitely sure. The likelihood is never below that of temperature 1, where the prior has its
    peak.

    Args:
        logits: float `(n, k)`.
        labels: int `(n,)`.
        seed: Of the bootstrap.

    Raises:
        DataError: There are no images, the shapes do not agree, or a logit is not finite.
    """
    logits = _checked(logits, labels)
    losses = np.stack([_losses(logits, labels, t) for t in np.exp(_GRID)], axis=1)  # (n, grid)
    value = min(max(math.exp(_refined(logits, labels, losses.sum(axis=0))), _COLDEST), _HOTTEST)
    rng, n = np.random.default_rng(seed), len(labels)
    found: list[np.ndarray] = []
    size = max(1, min(_RESAMPLES, _CHUNK // n))
    for start in range(0, _RESAMPLES, size):
        times = rng.multinomial(n, np.full(n, 1 / n), min(size, _RESAMPLES - start))
        found.append(_lowest(times @ losses + _penalty(_GRID)))
    low, high = np.exp(np.quantile(np.concatenate(found), (0.025, 0.975)))
    return Temperature(value, (min(float(low), value), max(float(high), value)), n)


def probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return `softmax(logits / temperature)`, float64 `(n, k)`."""
    scores: np.ndarray = softmax(logits.astype(np.float64) / temperature, axis=1)
    return scores


def calibration(scores: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> Calibration:
    """Compare scores with how often they are right.

    Args:
        scores: Probabilities `(n, k)`.
        labels: int `(n,)`.
        seed: Of the simulation behind `ece_by_chance`.

    Raises:
        DataError: There are no images, the shapes do not agree, or a score is not finite.
    """
    scores = _checked(scores, labels)
    best, right = scores.max(axis=1), scores.argmax(axis=1) == labels
    likelihood = np.clip(scores[np.arange(len(labels)), labels], 1e-12, None)
    return Calibration(
        n=len(labels),
        loss=float(-np.log(likelihood).mean()),
        ece=expected_calibration_error(best, right),
        ece_equal_mass=expected_calibration_error(best, right, equal_mass=True),
        ece_by_chance=_error_by_chance(best, seed),
        bins=reliability(best, right),
    )


def expected_calibration_error(
    best: np.ndarray, right: np.ndarray, *, bins: int = BINS, equal_mass: bool = False
) -> float:
    """Return the mean gap between score and accuracy, bins weighed by their images.

    Source: Naeini et al. 2015; Guo et al. 2017, eq. 3. Bins of equal mass: Nixon et al. 2019,
    arXiv:1904.01685, section 3. With few images it is above zero for a perfect model, too.

    Args:
        best: Best score of each image `(n,)`, 0..1.
        right: Whether it is of the right class, bool `(n,)`.
        bins: Number of bins.
        equal_mass: Put equally many images into each bin; else the same range of scores.
    """
    if equal_mass:
        order = np.argsort(best, kind="stable")
        place = np.empty(len(best), np.int64)
        place[order] = np.arange(len(best)) * bins // len(best)
    else:
        place = _bin_of(best, bins)
    gap = np.bincount(place, weights=right - best, minlength=bins)
    return float(np.abs(gap).sum() / len(best))


def reliability(best: np.ndarray, right: np.ndarray, *, bins: int = BINS) -> tuple[Bin, ...]:
    """Group images by their best score, in ranges of equal width; arguments as above."""
    place = _bin_of(best, bins)
    groups = []
    for k in range(bins):
        inside = place == k
        n, hits = int(inside.sum()), int(right[inside].sum())
        groups.append(
            Bin(
                low=k / bins,
                high=(k + 1) / bins,
                n=n,
                confidence=float(best[inside].mean()) if n else None,
                accuracy=hits / n if n else None,
                interval=wilson_interval(hits, n) if n else None,
            )
        )
    return tuple(groups)


def abstention(scores: np.ndarray, labels: np.ndarray, target: float) -> Abstention:
    """Find the lowest threshold from which on answers are right often enough.

    A threshold lies halfway between two scores that occur, so that errors of rounding change no
    answer.

    Args:
        scores: Calibrated probabilities of the validation images `(n, k)`.
        labels: int `(n,)`.
        target: Wanted precision, above 0 and below 1.
    """
    scores = _checked(scores, labels)
    best, right = scores.max(axis=1), scores.argmax(axis=1) == labels
    order = np.argsort(-best, kind="stable")
    best, hits = best[order], np.cumsum(right[order])
    ends = np.flatnonzero(np.append(best[:-1] > best[1:], True))  # equal scores go together
    for basis in ("lower bound", "estimate"):
        for k in ends[::-1]:
            n, good = int(k) + 1, int(hits[k])
            reached = _one_sided_bound(good, n) if basis == "lower bound" else good / n
            if reached >= target:
                return Abstention(
                    target=target,
                    threshold=float((best[k] + best[k + 1]) / 2) if n < len(best) else 0.0,
                    basis=basis,
                    coverage=n / len(best),
                    precision=good / n,
                    interval=wilson_interval(good, n),
                    n=n,
                )
    return Abstention(target=target)


def answered(scores: np.ndarray, labels: np.ndarray, threshold: float) -> dict[str, Any]:
    """Return how much is answered at a threshold, and how often that is right, as JSON types."""
    said = scores.max(axis=1) >= threshold
    n, right = int(said.sum()), int((scores.argmax(axis=1) == labels)[said].sum())
    return {
        "threshold": threshold,
        "n": n,
        "coverage": n / len(labels),
        "precision": right / n if n else None,
        "interval": list(wilson_interval(right, n)) if n else None,
    }


def _checked(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return logits or scores in double precision, if there are any."""
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or len(values) != len(labels) or not len(labels):
        raise DataError(
            "Calibration needs one row of values for each of at least one image. "
            f"Received: values {values.shape}, labels {np.shape(labels)}."
        )
    if not np.isfinite(values).all():
        raise DataError(
            "Calibration needs finite values. Received: "
            f"{int((~np.isfinite(values)).any(axis=1).sum())} of {len(values)} images with others. "
            "The model is broken: train again at a lower learning rate."
        )
    return values


def _losses(logits: np.ndarray, labels: np.ndarray, temperature: float) -> np.ndarray:
    """Return the negative log-likelihood of each image `(n,)`, in nats."""
    size = max(1, _CHUNK // logits.shape[1])
    return np.concatenate(
        [
            -np.take_along_axis(
                log_softmax(logits[k : k + size] / temperature, axis=1),
                labels[k : k + size, np.newaxis],
                axis=1,
            )[:, 0]
            for k in range(0, len(labels), size)
        ]
    )


def _penalty(log_temperature: np.ndarray | float) -> Any:
    return np.square(log_temperature) / (2 * _PRIOR**2)


def _refined(logits: np.ndarray, labels: np.ndarray, totals: np.ndarray) -> float:
    """Return the best log-temperature, from the summed losses on the grid."""

    def cost(place: float) -> float:
        return float(_losses(logits, labels, math.exp(place)).sum() + _penalty(place))

    near = int((totals + _penalty(_GRID)).argmin())
    bounds = _GRID[max(near - 1, 0)], _GRID[min(near + 1, len(_GRID) - 1)]
    found = minimize_scalar(cost, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return min((float(found.x), float(_GRID[near]), 0.0), key=cost)


def _lowest(costs: np.ndarray) -> np.ndarray:
    """Return where costs `(m, grid)` are lowest, by a parabola through the three best places."""
    near = costs.argmin(axis=1).clip(1, len(_GRID) - 2)[:, np.newaxis]
    before, at, after = (np.take_along_axis(costs, near + k, axis=1)[:, 0] for k in (-1, 0, 1))
    bend = before - 2 * at + after
    shift = np.divide(before - after, 2 * bend, out=np.zeros_like(at), where=bend > 0)
    places: np.ndarray = _GRID[near[:, 0]] + shift.clip(-1, 1) * (_GRID[1] - _GRID[0])
    return places


def _bin_of(best: np.ndarray, bins: int) -> np.ndarray:
    place: np.ndarray = np.clip((best * bins).astype(np.int64), 0, bins - 1)
    return place


def _error_by_chance(best: np.ndarray, seed: int) -> float:
    """Return the 95 % quantile of the error of a perfect model.

    Broecker & Smith 2007 (Weather and Forecasting 22, 651-661) resample the truth in this way.
    """
    member = np.eye(BINS)[_bin_of(best, BINS)]  # (n, b)
    rng, errors = np.random.default_rng(seed), []
    size = max(1, min(_SIMULATIONS, _CHUNK // len(best)))
    for start in range(0, _SIMULATIONS, size):
        drawn = rng.random((min(size, _SIMULATIONS - start), len(best))) < best
        errors.append(np.abs((drawn - best) @ member).sum(axis=1) / len(best))
    return float(np.quantile(np.concatenate(errors), 0.95))


def _one_sided_bound(right: int, n: int) -> float:
    """Return the lower end of the 95 % one-sided Wilson interval."""
    return wilson_interval(right, n, z=_Z95_ONE_SIDED)[0]
