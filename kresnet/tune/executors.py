"""Where trials run: each is a process of its own, here or on another machine.

A trial that hangs, crashes, is killed or takes too much memory ends as an `Outcome` like any
other; nothing of it reaches the process that searches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

Kind = Literal["", "config", "data", "nan", "memory", "hang", "crash", "killed", "lost"]
"""Of a failure: "" is none. "config", "data" and "nan" would only happen again; "lost" is a machine
that went away, which is no fault of the trial's."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is to do, as JSON types: train one recipe in one run directory.

    Attributes:
        trial: Number of the trial.
        recipe: All fields of the recipe; its epochs are those that the schedule is for.
        directory: Absolute path of the run; what is there already is gone on with.
        index: Absolute path of the folder with the images and their split, without test images.
        stop_after: Epochs after which the training stops with its state kept; None is its end.
        go_on_from: Absolute path of the run whose state it starts from, if it is there; None begins
            anew.
        deadline_s: Seconds after which it is ended; None is never.
        options: What else a kind of study needs.
    """

    trial: int
    recipe: Mapping[str, Any]
    directory: str
    index: str
    stop_after: int | None = None
    go_on_from: str | None = None
    deadline_s: float | None = None
    options: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types; `Job(**fields)` reads them."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job.

    Attributes:
        ok: Whether it came to its end.
        score: Validation accuracy in 0..1, of the best epoch; None if it failed.
        loss: Validation loss of the same, in nats.
        epochs: Epochs trained, those of the run that it went on from included.
        seconds: How long it took.
        error: Why it failed, in one line.
        kind: Of the failure; see `Kind`.
    """

    ok: bool
    score: float | None = None
    loss: float | None = None
    epochs: int = 0
    seconds: float = 0.0
    error: str | None = None
    kind: Kind = ""

    @property
    def again(self) -> bool:
        """Whether another try may do better."""
        return not self.ok and self.kind not in ("config", "data", "nan")

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types; `Outcome(**fields)` reads them."""
        return asdict(self)


class Handle(Protocol):
    """A job under way."""

    def poll(self) -> Outcome | None:
        """Return what became of it; None while it is under way. It never waits."""

    def kill(self) -> None:
        """End it at once, with everything it has started, and return when it has ended."""


class Executor(Protocol):
    """Runs jobs side by side."""

    @property
    def slots(self) -> int:
        """How many jobs may be under way; it may change while the search goes on."""

    def start(self, job: Job) -> Handle:
        """Start a job; at most `slots` are under way."""

    def close(self) -> None:
        """End what is under way, letting it save its state, and give back what is held."""
