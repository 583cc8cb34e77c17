"""The learning rate over a training, as a share of its peak."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Schedule = Literal["cosine", "one-cycle", "steps"]

_CYCLE_START = 25.0  # fastai's divisors of the peak at the start and at the end
_CYCLE_END = 1e5


def rate_at(
    progress: float, schedule: Schedule, *, warmup: float, drops: Sequence[float] = ()
) -> float:
    """Return the share of the peak learning rate at a point of the training.

    Args:
        progress: Share of the training that is done, in 0..1.
        schedule: "cosine", "one-cycle" or "steps"; see the functions below.
        warmup: Share of the training in which the rate rises, in [0, 1).
        drops: For "steps": shares of the training at which the rate falls to a tenth.
    """
    if schedule == "one-cycle":
        return one_cycle(progress, warmup=warmup)
    if schedule == "steps":
        return warmup_steps(progress, warmup=warmup, drops=drops)
    return warmup_cosine(progress, warmup=warmup)


def warmup_cosine(progress: float, *, warmup: float) -> float:
    """Rise linearly to 1 during the warm-up, then fall along half a cosine to 0.01.

    Loshchilov & Hutter 2016, arXiv:1608.03983; He et al. 2018, arXiv:1812.01187, section 5.1.
    """
    if progress < warmup:
        return progress / warmup
    return 0.01 + 0.99 * _fall(progress, warmup)


def one_cycle(progress: float, *, warmup: float) -> float:
    """Rise along half a cosine from 1/25 to 1, then fall along another to 1/100,000.

    Smith & Topin 2017, arXiv:1708.07120, with the curves of fastai. The momentum stays.
    """
    if progress < warmup:
        start = 1.0 / _CYCLE_START
        return start + (1.0 - start) * 0.5 * (1.0 - math.cos(math.pi * progress / warmup))
    end = 1.0 / _CYCLE_END
    return end + (1.0 - end) * _fall(progress, warmup)


def warmup_steps(progress: float, *, warmup: float, drops: Sequence[float]) -> float:
    """Rise linearly to 1 during the warm-up, then fall to a tenth at each drop.

    He et al. 2015, arXiv:1512.03385, section 4.2.
    """
    risen = progress / warmup if progress < warmup else 1.0
    return risen * 0.1 ** sum(progress > drop for drop in drops)


def _fall(progress: float, warmup: float) -> float:
    """Return half a cosine from 1 at the end of the warm-up to 0 at the end of the training."""
    fallen = min((progress - warmup) / (1.0 - warmup), 1.0)
    return 0.5 * (1.0 + math.cos(math.pi * fallen))
