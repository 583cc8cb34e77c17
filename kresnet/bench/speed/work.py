"""What a contender's process does in its turn, and how a turn is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Work:
    """What a contender is asked to do again and again.

    Attributes:
        turn: Does it and returns the seconds that count.
        facts: What else is to be told, as JSON types.
    """

    turn: Callable[[], float]
    facts: Mapping[str, Any] = field(default_factory=dict)


def seconds_of(step: Callable[[], object]) -> float:
    """Return how long one call takes."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def timed(step: Callable[[], object], times: int) -> Callable[[], float]:
    """Return a turn: a call that is not timed, since others have used the caches, then the median.

    Args:
        step: What is timed; it returns when all is computed.
        times: Calls that are.
    """

    def turn() -> float:
        step()
        return median(seconds_of(step) for _ in range(times))

    return turn
