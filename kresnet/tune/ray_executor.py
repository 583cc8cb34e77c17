"""Trials on the machines of a Ray cluster: Ray finds the place, the same worker does the job.

Each trial is one Ray task with its cores and GPUs, which starts the worker as a process of its own
and waits for it. Ray never repeats a task: a machine or a Ray worker that is lost is an `Outcome`,
and what becomes of the trial is the search's decision, as for everything else that can fail.

The machines must see the images, the study and its runs at the same paths, and have the same
kresnet: trials go on from the files of others.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from kresnet.cluster import connect, import_ray, line_of
from kresnet.errors import ConfigError
from kresnet.tune.executors import Job, Outcome
from kresnet.tune.local import CORES_EACH, Local

_LOOK_S: Final = 0.2  # between two looks at a worker
_GRACE_S: Final = 30.0  # for workers that are asked to save and end
_WORKER: Final = (sys.executable, "-m", "kresnet.tune.worker")


class Ray:
    """An executor on a Ray cluster.

    Args:
        address: Of a cluster, as "auto" or "10.0.0.1:6379"; None starts one of this machine, which
            ends with the executor.
        jobs: Trials side by side at most; None is as many as there is room for.
        cpus: Cores of a trial, and threads; None is four, or as many as the largest machine has.
        gpus: GPUs of a trial, where a part of one lets trials share it; None is one if there are
            any.
        memory_bytes: Resident memory above which a trial is ended; None is no limit.
        command: What starts a worker on a machine of the cluster; the path of a job's file is put
            behind it.

    Raises:
        ResourceError: Ray is not installed, or there is no cluster at `address`.
        ConfigError: No machine of it is large enough for a trial.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        jobs: int | None = None,
        cpus: int | None = None,
        gpus: float | None = None,
        memory_bytes: int | None = None,
        command: Sequence[str] = _WORKER,
    ) -> None:
        if (jobs is not None and jobs < 1) or (cpus is not None and cpus < 1) or (gpus or 0) < 0:
            raise ConfigError(
                "There is 1 trial or more at a time, of 1 core or more, and no GPU, a part of one "
                f"or some. Received: jobs={jobs}, cpus={cpus}, gpus={gpus}."
            )
        self._ray = import_ray()
        self._own = not self._ray.is_initialized()
        if self._own:
            connect(self._ray, address)
        self._most = jobs
        if cpus is None:
            cpus = int(max(min(CORES_EACH, self._largest("CPU")), 1))
        if gpus is None:
            gpus = min(self._largest("GPU"), 1.0)
        self._needs = {"CPU": float(cpus), "GPU": float(gpus)}
        self._check_room()
        threads = {"TF_NUM_INTRAOP_THREADS": str(cpus), "OMP_NUM_THREADS": str(cpus)}
        self._task = self._ray.remote(
            num_cpus=cpus,
            num_gpus=gpus,
            max_retries=0,
            runtime_env={"env_vars": threads},
        )(_do)
        self._memory_bytes, self._command = memory_bytes, tuple(command)
        self._running: list[_Task] = []

    @property
    def slots(self) -> int:
        """How many trials the machines that are there now have room for; 1 if there are none."""
        room = max(sum(map(self._room, self._machines())), 1)
        return room if self._most is None else min(room, self._most)

    def start(self, job: Job) -> _Task:
        """Start a job on whichever machine has room for it, now or later."""
        Path(job.directory).parent.mkdir(parents=True, exist_ok=True)
        reference = self._task.remote(job.as_dict(), self._memory_bytes, self._command)
        task = _Task(self._ray, reference)
        self._running = [one for one in self._running if one.poll() is None] + [task]
        return task

    def close(self) -> None:
        """Ask what is under way to save and end, and end what does not."""
        left = [task for task in self._running if task.poll() is None]
        for task in left:
            task.ask_to_end()
        until = time.monotonic() + _GRACE_S
        while any(task.poll() is None for task in left) and time.monotonic() < until:
            time.sleep(_LOOK_S)
        for task in left:
            task.kill()
        if self._own:
            self._ray.shutdown()

    def _machines(self) -> list[Mapping[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def _largest(self, kind: str) -> float:
        return max((machine.get(kind, 0.0) for machine in self._machines()), default=0.0)

    def _room(self, machine: Mapping[str, float]) -> int:
        return min(int(machine.get(kind, 0) // n) for kind, n in self._needs.items() if n)

    def _check_room(self) -> None:
        machines = self._machines()
        if any(self._room(machine) for machine in machines):
            return
        have = "; ".join(f"{m.get('CPU', 0):g} CPU, {m.get('GPU', 0):g} GPU" for m in machines)
        needs = ", ".join(f"{n:g} {kind}" for kind, n in self._needs.items() if n)
        if self._own:
            self._ray.shutdown()
        raise ConfigError(
            f"A machine of the cluster must have room for a trial. Received: {needs} a trial, and "
            f"machines of {have}. Ask for less."
        )


class _Task:
    """A job under way."""

    def __init__(self, ray: ModuleType, reference: Any) -> None:
        self._ray, self._reference = ray, reference
        self._started = time.monotonic()
        self._outcome: Outcome | None = None

    def poll(self) -> Outcome | None:
        """Return what became of it; None while it waits for a machine or is under way."""
        if self._outcome is None:
            done, _ = self._ray.wait([self._reference], timeout=0)
            if done:
                self._outcome = self._result()
        return self._outcome

    def ask_to_end(self) -> None:
        """Let it save its state and end; one that waits for a machine does not begin."""
        self._ray.cancel(self._reference, force=False)

    def kill(self) -> None:
        """End it at once."""
        if self.poll() is None:
            self._ray.cancel(self._reference, force=True)
            self._ray.wait([self._reference], timeout=_GRACE_S)
        if self.poll() is None:
            self._outcome = Outcome(ok=False, error="Ended by the search.", kind="killed")

    def _result(self) -> Outcome:
        errors = self._ray.exceptions
        try:
            return Outcome(**self._ray.get(self._reference))
        except errors.TaskCancelledError:
            return self._failed("Ended by the search.", kind="killed")
        except errors.RayTaskError as error:
            why = line_of(error.cause if error.cause is not None else error)
            return self._failed(
                f"A machine of the cluster could not do the job ({why}). Install the same kresnet "
                "on all of them.",
                kind="crash",
            )
        except errors.OutOfMemoryError:
            return self._failed("Its machine ran out of memory, and Ray ended it.", kind="memory")
        except errors.RayError as error:  # the machine, its Ray or the way to it
            return self._failed(f"Its machine was lost ({type(error).__name__}).", kind="lost")

    def _failed(self, why: str, *, kind: Any) -> Outcome:
        seconds = round(time.monotonic() - self._started, 3)
        return Outcome(ok=False, error=why, kind=kind, seconds=seconds)


def _do(
    fields: dict[str, Any], memory_bytes: int | None, command: tuple[str, ...]
) -> dict[str, Any]:
    """Do a job on the machine that Ray has chosen; return its outcome as JSON types.

    The worker ends with this process, whatever this ends by.
    """
    job = Job(**fields)
    hidden = [path for path in _needed(job) if not Path(path).exists()]
    if hidden:
        why = (
            f"The machines must see the study at the same path. Received: {socket.gethostname()}, "
            f"which has no {hidden[0]}. Put the study on a disk that all of them share."
        )
        return Outcome(ok=False, error=why, kind="crash").as_dict()
    local = Local(jobs=1, memory_bytes=memory_bytes, command=command)
    handle = local.start(job)
    try:
        while (outcome := handle.poll()) is None:
            time.sleep(_LOOK_S)
    except KeyboardInterrupt:  # how Ray asks for the end
        local.close()
        raise
    return outcome.as_dict()


def _needed(job: Job) -> list[str]:
    return [job.index, str(Path(job.directory).parent)]
