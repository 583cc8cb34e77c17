"""Let contenders take turns: A, B, A, B, each in a process of its own.

Everyone takes turns with the first, the reference, and with nobody else: so each of its turns has a
turn of the reference right before it, and whatever else the machine does hits both. Two processes
live at a time, three while settings are tried. All but the one whose turn it is are stopped by a
signal, with what they have started, so no thread spins and no stream reads ahead at others' cost.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from kresnet.bench.facts import missing
from kresnet.errors import ResourceError

Tell = Callable[[str, str], None]

_WORKER: Final = "kresnet.bench.speed.worker"
_TRIED: Final = 2  # turns of each setting, where there is more than one
_ENVIRONMENT: Final = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "KERAS_BACKEND": "tensorflow",
    # PyTorch's compiler would otherwise keep processes that count as the contender's memory.
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}


@dataclass(frozen=True, slots=True)
class Contender:
    """What is measured.

    Attributes:
        name: In the table.
        make: "module:function" that its process calls; it returns a `Work`, or facts for `once`.
        settings: Arguments of that function, by the name of the setting. Where there are several,
            each is tried and the fastest takes part.
        packages: Its process imports these.
        integers: It computes in 8 bits, which has a limit of its own.
    """

    name: str
    make: str
    settings: Mapping[str, Mapping[str, Any]]
    packages: tuple[str, ...] = ()
    integers: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was measured of a contender.

    Attributes:
        name: Of the contender.
        setting: That took part; "" where none did.
        seconds: Of each turn; empty where it failed.
        before: Seconds of the reference's turn before each; empty for the reference.
        peak_mb: The most memory of its process and those that it started, in MB.
        processor_s: Median time of all cores that its process alone took in a turn, with the calls
            of the turn that are not timed.
        failed: Why there is no result; None where there is one.
        tried: Median seconds of each setting that was tried, or why it failed.
        facts: What its process told.
    """

    name: str
    setting: str = ""
    seconds: tuple[float, ...] = ()
    before: tuple[float, ...] = ()
    peak_mb: float = 0.0
    processor_s: float = 0.0
    failed: str | None = None
    tried: Mapping[str, float | str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class Failed(Exception):
    """A contender's process ended, or did not answer in time."""


def rotate(
    reference: Contender,
    others: Sequence[Contender],
    *,
    rounds: int,
    logs: Path,
    warm_up: int = 1,
    patience_s: float = 900.0,
    tell: Tell = lambda topic, text: None,
) -> list[Outcome]:
    """Measure contenders in turns.

    Args:
        reference: Takes turns with every other.
        others: What it is compared with. One that is not installed or fails is listed as such.
        rounds: Turns of each other, and of the reference with each.
        logs: Folder for what the processes print.
        warm_up: Turns of each process that do not count.
        patience_s: Seconds after which a process that does not answer is given up.
        tell: Called with a topic of one word and a line about it.

    Returns:
        The reference first, then the others in their order.

    Raises:
        ResourceError: The reference itself fails.
    """

    def start(contender: Contender, setting: str) -> Process:
        arguments = contender.settings[setting]
        return Process(contender.make, arguments, logs, warm_up=warm_up, patience_s=patience_s)

    try:
        with _best(reference, start) as (ours, chosen):
            tell("bench", f"{reference.name} is warm")
            outcomes: list[Outcome] = []
            turns: list[float] = []
            for other in others:
                outcome = _against(ours, other, start, rounds)
                turns += outcome.before
                outcomes.append(outcome)
                said = f"median {median(outcome.seconds):.4g} s" if outcome.seconds else None
                tell("bench", f"{other.name}: {outcome.failed or said}")
            if not turns:
                turns = [ours.turn() for _ in range(rounds)]
    except Failed as error:
        raise ResourceError(
            f"What others are compared with must run. Received: {reference.name}: {error}."
        ) from None
    first = Outcome(
        reference.name,
        chosen.setting,
        tuple(turns),
        peak_mb=ours.peak_mb,
        processor_s=median(ours.processor_s),
        tried=chosen.tried,
        facts=ours.facts,
    )
    return [first, *outcomes]


def once(
    make: str, arguments: Mapping[str, Any], *, logs: Path, patience_s: float = 1800.0
) -> dict[str, Any]:
    """Call a function in a process of its own.

    Args:
        make: "module:function", which returns JSON types.
        arguments: Of the function.
        logs: Folder for what the process prints.
        patience_s: Seconds after which it is given up.

    Raises:
        ResourceError: It failed.
    """
    try:
        with Process(make, arguments, logs, warm_up=0, patience_s=patience_s) as process:
            return dict(process.facts)
    except Failed as error:
        raise ResourceError(f"A bench must be prepared. Received: {make}: {error}.") from None


@dataclass(frozen=True, slots=True)
class _Chosen:
    setting: str
    tried: Mapping[str, float | str]


def _against(
    ours: Process, other: Contender, start: Callable[[Contender, str], Process], rounds: int
) -> Outcome:
    """Let another take turns with the reference."""
    if absent := missing(other.packages):
        return Outcome(other.name, failed=absent)
    tried: Mapping[str, float | str] = {}
    before, seconds = [], []
    try:
        with _best(other, start) as (theirs, chosen):
            tried = chosen.tried
            for _ in range(rounds):
                before.append(ours.turn())
                try:
                    seconds.append(theirs.turn())
                except Failed as error:
                    return Outcome(other.name, chosen.setting, failed=str(error), tried=tried)
            return Outcome(
                other.name,
                chosen.setting,
                tuple(seconds),
                tuple(before),
                theirs.peak_mb,
                median(theirs.processor_s),
                tried=tried,
                facts=theirs.facts,
            )
    except _NoneStarted as error:
        return Outcome(other.name, failed=str(error), tried=error.tried)


class _NoneStarted(Failed):
    """No setting of a contender could be started."""

    def __init__(self, tried: Mapping[str, float | str]) -> None:
        super().__init__("; ".join(dict.fromkeys(str(said) for said in tried.values())))
        self.tried = tried


@contextmanager
def _best(
    contender: Contender, start: Callable[[Contender, str], Process]
) -> Iterator[tuple[Process, _Chosen]]:
    """Try the settings of a contender, and keep the process of the fastest one."""
    several = len(contender.settings) > 1
    tried: dict[str, float | str] = {}
    best, setting, least = None, "", float("inf")
    try:
        for name in contender.settings:
            process = None
            try:
                process = start(contender, name)
                took = median(process.turn() for _ in range(_TRIED)) if several else 0.0
            except Failed as error:
                tried[name] = str(error)
                if process:
                    process.end()
                continue
            tried[name] = took
            if took < least:
                best, process, setting, least = process, best, name, took
            if process:
                process.end()
        if best is None:
            raise _NoneStarted(tried)
        yield best, _Chosen(setting, tried if several else {})
    finally:
        if best:
            best.end()


class Process:
    """A contender's process, stopped whenever it is not asked for anything.

    Args:
        make: "module:function".
        arguments: Of the function.
        logs: Folder for what it prints.
        warm_up: Turns that it does before it answers.
        patience_s: Seconds after which it is given up.

    Attributes:
        facts: What it told when it was warm.
        peak_mb: See `Outcome`.
        processor_s: Of each turn, see `Outcome`.

    Raises:
        Failed: It ended, or did not answer.
    """

    def __init__(
        self,
        make: str,
        arguments: Mapping[str, Any],
        logs: Path,
        *,
        warm_up: int,
        patience_s: float,
    ) -> None:
        self._patience_s = patience_s
        self.processor_s: list[float] = []
        number = len(list(logs.glob("*.log")))
        self._log = logs / f"{number}-{make.rpartition(':')[2]}.log"
        with self._log.open("wb") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", _WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | _ENVIRONMENT,
                # Of its own, so that it can be stopped with all that it starts. It stays in our
                # session: should we be killed, the system wakes and ends it.
                process_group=0,
            )
        try:
            said = self._ask({"make": make, "arguments": dict(arguments), "warm_up": warm_up})
        except BaseException:
            self.end()
            raise
        self.facts: Mapping[str, Any] = said["facts"]

    def turn(self) -> float:
        """Let it do its turn; return the seconds."""
        self._signal(signal.SIGCONT)
        said = self._ask("turn")
        self.processor_s.append(float(said["processor_s"]))
        return float(said["seconds"])

    def end(self) -> None:
        """End it and all that it has started."""
        self._signal(signal.SIGKILL)
        self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe:
                with suppress(OSError):
                    pipe.close()

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def _ask(self, request: object) -> dict[str, Any]:
        stdin, stdout = self._popen.stdin, self._popen.stdout
        if not stdin or not stdout:
            raise Failed("it has no pipes")
        with suppress(BrokenPipeError):  # it has ended, and what follows says why
            stdin.write(json.dumps(request).encode() + b"\n")
            stdin.flush()
        if not select.select([stdout], [], [], self._patience_s)[0]:
            raise Failed(f"no answer in {self._patience_s:.0f} s")
        line = stdout.readline()
        if not line:
            raise Failed(self._last_words())
        self._signal(signal.SIGSTOP)
        said: dict[str, Any] = json.loads(line)
        self.peak_mb = float(said["peak_mb"])
        return said

    def _last_words(self) -> str:
        code = self._popen.wait()
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"exit code {code}: {''.join(lines[-1:])[:200]}"

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, number)
