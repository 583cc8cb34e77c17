"""What a run says while it works: a live line on a terminal, plain lines in a pipe.

Everything goes to standard error, so that standard output holds results only.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console as RichConsole
from rich.status import Status
from rich.text import Text


def duration(seconds: float) -> str:
    """Format seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Console:
    """Prints lines, and on a terminal a status that is rewritten in place.

    Attributes:
        started: When this console was made, in seconds of `time.monotonic`.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._rich = RichConsole(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._live = self._rich.is_terminal and not quiet
        self._status: Status | None = None
        self._said = 0.0
        self._topic, self._topic_started = "", 0.0
        self.started = time.monotonic()

    def line(self, topic: str, text: str) -> None:
        """Print a line that stays, under a topic of one word."""
        self.clear()
        # Not markup: a class or a folder may be called "[red]".
        self._rich.print(Text.assemble((f"{topic:<7} ", "bold"), text))

    def status(self, text: str) -> None:
        """Show what is going on; only on a terminal, and at most five times a second."""
        now = time.monotonic()
        if not self._live or now - self._said < 0.2:
            return
        self._said = now
        if self._status is None:
            self._status = self._rich.status(text)
            self._status.start()
        else:
            self._status.update(text)

    def progress(self, what: str, done: int, total: int) -> None:
        """Show a bar and the time that is left; only on a terminal."""
        now = time.monotonic()
        if self._topic != what:
            self._topic, self._topic_started = what, now
        if not self._live or now - self._said < 0.2:
            return
        share = done / max(total, 1)
        bar = "━" * round(24 * share) + "╌" * (24 - round(24 * share))
        spent = now - self._topic_started
        left = f", {duration(spent / share - spent)} left" if share and spent > 1 else ""
        self.status(f"{what} {bar} {done} / {total}{left}")

    def clear(self) -> None:
        """Remove the status."""
        if self._status is not None:
            self._status.stop()
            self._status = None
            self._said = 0.0

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.clear()
        sys.stderr.flush()
