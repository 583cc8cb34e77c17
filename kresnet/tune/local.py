"""Trials as processes on this machine, each on cores or on a GPU of its own."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kresnet.errors import ConfigError
from kresnet.machine import Place, own_cores
from kresnet.tune.executors import Job, Outcome
from kresnet.tune.worker import OUTCOME, outcome_of

LOG: Final = "worker.log"
"""Name of the file with everything that a worker says, in its run."""

CORES_EACH: Final = 4
"""Cores of a trial where nobody says how many; a small network gains little by more."""

_GRACE_S: Final = 20.0  # to save and end, for a worker that is asked to
_IDLE_S: Final = 900.0  # without any computing, after which a worker counts as hanging
_COMPUTING: Final = 0.001  # seconds of a processor a second, below which nothing is computed
_LOG_END: Final = 4_000  # bytes of a log that are looked at for the reason of a crash


class Local:
    """An executor on this machine.

    Args:
        jobs: Trials side by side; None is one for each GPU, or for every four cores.
        gpus: GPUs of this machine; each trial is given one in turn.
        memory_bytes: Resident memory above which a trial is ended; None is no limit.
        idle_s: Seconds in which a worker computes nothing, after which it counts as hanging.
        command: What starts a worker; the path of a job's file is put behind it.
    """

    def __init__(
        self,
        jobs: int | None = None,
        *,
        gpus: int = 0,
        memory_bytes: int | None = None,
        idle_s: float = _IDLE_S,
        command: Sequence[str] = (sys.executable, "-m", "kresnet.tune.worker"),
    ) -> None:
        cores = own_cores()
        if jobs is None:
            jobs = gpus or max(len(cores) // CORES_EACH, 1)
        if jobs < 1:
            raise ConfigError(f"`jobs` must be 1 or more, or auto. Received: jobs={jobs}.")
        self._places = [Place(k, cores, jobs, gpus) for k in range(jobs)]
        self._limits, self._command = _Limits(memory_bytes, idle_s), tuple(command)
        self._running: dict[int, _Process] = {}  # by place

    @property
    def slots(self) -> int:
        """How many jobs may be under way."""
        return len(self._places)

    def start(self, job: Job) -> _Process:
        """Start a job on a place that is free."""
        number = next(
            k
            for k in range(len(self._places))
            if k not in self._running or self._running[k].has_ended
        )
        process = _Process(job, self._command, self._places[number], self._limits)
        self._running[number] = process
        return process

    def close(self) -> None:
        """Ask what is under way to save and end, and end what does not."""
        left = [process for process in self._running.values() if not process.has_ended]
        for process in left:
            process.ask_to_end()
        until = time.monotonic() + _GRACE_S
        while any(not process.has_ended for process in left) and time.monotonic() < until:
            time.sleep(0.05)
        for process in left:
            process.kill()


@dataclass(frozen=True, slots=True)
class _Limits:
    """What a worker may not go beyond."""

    memory_bytes: int | None
    idle_s: float


class _Process:
    """A worker under way, in a process group of its own."""

    def __init__(self, job: Job, command: Sequence[str], place: Place, limits: _Limits) -> None:
        self._job, self._limits = job, limits
        self._started = self._looked = time.monotonic()
        self._computed_s = 0.0  # seconds of a processor, when it was looked at
        self._outcome: Outcome | None = None
        folder = Path(job.directory)
        # Beside the run until there is one, for a run's directory is made by the worker.
        self._log = folder.with_name(f"{folder.name}.{LOG}")
        file = folder.with_name(f"{folder.name}.job.json")
        folder.parent.mkdir(parents=True, exist_ok=True)
        (folder / OUTCOME).unlink(missing_ok=True)
        file.write_text(json.dumps(job.as_dict()), encoding="utf-8")
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, str(file), "--leash"],
                stdin=subprocess.PIPE,  # which ends with this process, and the worker with it
                stdout=log,
                stderr=log,
                env=place.environment(),
                start_new_session=True,
            )

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._outcome is not None or self._process.poll() is not None

    def poll(self) -> Outcome | None:
        """Return what became of it; None while it is under way."""
        if self._outcome is None:
            code = self._process.poll()
            if code is not None:
                self._end(self._result(code))
            elif (beyond := self._beyond()) is not None:
                self._signal(signal.SIGKILL)
                self._process.wait()
                self._end(beyond)
        return self._outcome

    def ask_to_end(self) -> None:
        """Let it save its state and end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, with everything it has started."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._end(self._outcome or self._result(self._process.returncode))

    def _end(self, outcome: Outcome) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._signal(signal.SIGKILL)  # what it may have left behind
        seconds = outcome.seconds or round(time.monotonic() - self._started, 3)
        self._outcome = Outcome(**outcome.as_dict() | {"seconds": seconds})

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            return  # there is nobody left

    def _beyond(self) -> Outcome | None:
        """Return the failure of a worker that is beyond a limit."""
        deadline, memory = self._job.deadline_s, self._limits.memory_bytes
        if deadline is not None and time.monotonic() - self._started > deadline:
            said = f"Not done after {deadline:.0f} s, which was the deadline."
            return Outcome(ok=False, error=said, kind="hang")
        if memory is not None and (used := resident_bytes(self._process.pid)) > memory:
            said = f"It took {used / 1e9:.2f} GB of memory, and {memory / 1e9:.2f} GB are allowed."
            return Outcome(ok=False, error=said, kind="memory")
        if self._is_idle():
            said = f"It computed nothing for {self._limits.idle_s:.0f} s."
            return Outcome(ok=False, error=said, kind="hang")
        return None

    def _is_idle(self) -> bool:
        """Tell whether the worker has not computed for long, as one that waits for ever."""
        since = time.monotonic() - self._looked
        if since < self._limits.idle_s:
            return False
        before, self._computed_s = self._computed_s, processor_seconds(self._process.pid)
        self._looked = time.monotonic()
        return 0 <= self._computed_s - before < _COMPUTING * since

    def _result(self, code: int) -> Outcome:
        """Return what became of a process that ended with `code`."""
        left = outcome_of(self._job.directory)
        if left is not None and left.ok == (code == 0):
            return left
        if code < 0:
            name = signal.Signals(-code).name
            maybe = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
            return Outcome(ok=False, error=f"Ended by {name}{maybe}.", kind="killed")
        return Outcome(
            ok=False, error=f"Ended with exit code {code}: {self._last_line()}", kind="crash"
        )

    def _last_line(self) -> str:
        with self._log.open("rb") as file:
            file.seek(max(self._log.stat().st_size - _LOG_END, 0))
            lines = file.read().decode("utf-8", errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1][:300] if said else "it said nothing"


def resident_bytes(process: int | str = "self") -> int:
    """Return the resident memory of a process in bytes; 0 where that is not known."""
    try:
        pages = Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def processor_seconds(process: int) -> float:
    """Return the seconds that a process has computed, on all cores; infinite if not known."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return math.inf
    user, system = text.rsplit(")", 1)[1].split()[11:13]  # the name before may hold spaces
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
