"""What changes over a training: the learning rate, as a share of its peak, and the image size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Schedule = Literal["cosine", "one-cycle", "steps"]

_CYCLE_START = 25.0  # fastai's divisors of the peak at the start and at the end
_CYCLE_END = 1e5

_SMALLEST = 0.6  # of the image size, at the start of a progressive training
_GRAIN = 32  # pixels; the stride of a ResNet, so that no feature map has a ragged border


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


def size_at(progress: float, image_size: int, *, growing: float) -> int:
    """Return the side of the training images at a point of the training, in pixels.

    Small images first, as Howard's DAWNBench entry (fast.ai 2018) and Tan & Le 2021,
    arXiv:2104.00298, section 4.2: the first epochs are cheap, and the last ones see what is
    validated.

    Args:
        progress: Share of the training that is done, in [0, 1].
        image_size: Side of the last epochs' images.
        growing: Share of the training in which images grow; 0 is none of it.

    Returns:
        A multiple of 32 from 0.6 of `image_size` on, or `image_size`.
    """
    if progress >= growing:
        return image_size
    side = image_size * (_SMALLEST + (1.0 - _SMALLEST) * progress / growing)
    return min(max(int(side) // _GRAIN, 1) * _GRAIN, image_size)


def test_sizes(image_size: int) -> tuple[int, ...]:
    """Return larger sides at which a network trained at `image_size` may do better, in pixels.

    About 1.15 and 1.28 times as large (Touvron et al. 2019, arXiv:1906.06423, table 2), of whole
    strides: 256 and 288 for 224.
    """
    sides = (round(image_size * factor / _GRAIN) * _GRAIN for factor in (1.15, 1.28))
    return tuple(sorted({side for side in sides if side > image_size}))


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
