"""One training on the machines of a Ray cluster: a worker on each, started again when one is lost.

Ray finds the places; each worker is a process of the same `kresnet train` or `kresnet resume` that
one would start by hand, with a TF_CONFIG that names them all. Where a machine is lost, the others
end with the last state saved, and as many as there is room for go on from it: the batch stays the
same. The machines must see images, runs and exports at the same paths, and have the same kresnet.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import ModuleType
from typing import IO, Any, Final

from kresnet.cluster import connect, import_ray, line_of
from kresnet.errors import ConfigError, Interrupted, ResourceError
from kresnet.machine import leashed
from kresnet.train.signals import stoppable

_PLACE_S: Final = 600.0  # for the first worker to be given a place
_OTHERS_S: Final = 120.0  # for the others, after it
_GRACE_S: Final = 180.0  # for the others to end by themselves when one has
_LOOK_S: Final = 0.5
_VARIABLE: Final = "TF_CONFIG"

Say = Callable[[int, str, str], None]
"""Called with the number of a worker, "stdout" or "stderr", and a line that it has written."""


def run_on_ray(
    command: Sequence[str],
    address: str | None,
    *,
    workers: int,
    cpus: int = 1,
    gpus: int = 0,
    restarts: int = 3,
    say: Say,
    tell: Callable[[str, str], None],
) -> int:
    """Run a kresnet command with workers on a cluster, and return its exit code.

    Args:
        command: What follows `kresnet`: train or resume, with its arguments.
        address: Of the cluster, as "auto" or "10.0.0.1:6379"; None starts one of this machine.
        workers: Processes that train together, at most; a restart takes what there is room for.
        cpus: Cores of each.
        gpus: GPUs of each.
        restarts: How often it is gone on with after a worker was lost.
        say: What the workers write.
        tell: Called with a topic and what happened.

    Raises:
        ConfigError: No machine has room for a worker.
        ResourceError: Ray is not installed, there is no cluster, or workers were lost too often.
        Interrupted: It was stopped, and can be gone on with.
    """
    ray = import_ray()
    own = not ray.is_initialized()
    if own:
        connect(ray, address)
    try:
        for lost in range(restarts + 1):
            team = _Team(ray, workers, {"CPU": cpus, "GPU": gpus}, say)
            code = team.run(command, tell)
            if code is not None:
                return code
            if lost < restarts:
                tell("restart", f"a worker was lost; {lost + 1} of {restarts} restarts")
        raise ResourceError(
            "The machines must stay. Received: a worker that was lost after "
            f"{restarts} restarts. The same command goes on from the last saved state."
        )
    finally:
        if own:
            ray.shutdown()


def result_of(codes: Sequence[int | None], *, stopped: bool) -> int | None:
    """Return the exit code of a training; None if it is to be gone on with.

    Args:
        codes: Exit codes of its workers, the chief's first; minus the number of a signal that has
            ended one, and None for one that was lost with its machine.
        stopped: Whether it was asked to end.

    Raises:
        Interrupted: It was asked to, and did.
    """
    if codes[0] == 0:  # the chief is the last to have something to do
        return 0
    mistakes = [code for code in codes if code and code > 0 and code != Interrupted.exit_code]
    if mistakes:
        return mistakes[0]
    if stopped:
        raise Interrupted("Stopped. The same command goes on from the last saved state.")
    return None


class _Worker:
    """On a machine of the cluster: one process of the training."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._said: list[tuple[str, str]] = []

    def place(self) -> tuple[str, int]:
        """Return the address of this machine, and a port of it that is free."""
        import ray

        address = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((address, 0))
            return address, free.getsockname()[1]

    def run(
        self, command: Sequence[str], folder: str, variables: Mapping[str, str]
    ) -> tuple[int, str]:
        """Run the command to its end; return its exit code, and what the machine lacks for it."""
        if not os.path.isdir(folder):
            return ConfigError.exit_code, f"{socket.gethostname()} has no {folder}"
        process = self._process = subprocess.Popen(
            leashed(command),
            cwd=folder,
            env=os.environ | dict(variables),
            stdin=subprocess.PIPE,  # which ends with this process, and the worker with it
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        readers = [
            threading.Thread(target=self._read, args=(name, stream))
            for name, stream in (("stdout", process.stdout), ("stderr", process.stderr))
        ]
        for reader in readers:
            reader.start()
        code = process.wait()
        for reader in readers:
            reader.join()
        return code, ""

    def said(self, start: int) -> list[tuple[str, str]]:
        """Return the lines from number `start` on, each with the name of its stream."""
        return self._said[start:]

    def ask_to_end(self) -> None:
        """Let it save its state and end."""
        if self._process is not None:
            self._process.terminate()

    def _read(self, name: str, stream: IO[bytes] | None) -> None:
        for line in stream or ():
            self._said.append((name, line.decode("utf-8", errors="replace").rstrip("\n")))


class _Team:
    """The workers of one try."""

    def __init__(self, ray: ModuleType, workers: int, needs: Mapping[str, float], say: Say) -> None:
        self._ray, self._say = ray, say
        threads = str(int(needs["CPU"]))
        self._threads = {"TF_NUM_INTRAOP_THREADS": threads, "OMP_NUM_THREADS": threads}
        count = min(workers, self._room(needs))
        if not count:
            needed = ", ".join(f"{n:g} {kind}" for kind, n in needs.items() if n)
            raise ConfigError(
                f"A machine of the cluster must have room for a worker. Received: {needed} each, "
                "and no machine with that. Ask for less."
            )
        actor = ray.remote(
            num_cpus=needs["CPU"],
            num_gpus=needs["GPU"],
            max_restarts=0,
            max_concurrency=4,  # it is asked while it runs
            scheduling_strategy="SPREAD",
        )(_Worker)
        self._actors = self._placed([actor.remote() for _ in range(count)])
        self._heard = [0] * len(self._actors)
        self._stopped = False

    def run(self, command: Sequence[str], tell: Callable[[str, str], None]) -> int | None:
        """Return the exit code of the training; None if a worker was lost.

        Raises:
            Interrupted: It was stopped.
            ResourceError: A machine cannot do it.
        """
        addresses = [f"{host}:{port}" for _, (host, port) in self._actors]
        tell("workers", ", ".join(addresses))
        running = []
        for rank, (actor, _) in enumerate(self._actors):
            cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
            variables = {_VARIABLE: json.dumps(cluster), "PYTHONUNBUFFERED": "1"} | self._threads
            running.append(actor.run.remote(list(command), os.getcwd(), variables))
        with stoppable(self._stop):
            codes = self._wait(running)
        for actor, _ in self._actors:
            self._ray.kill(actor)
        return result_of(codes, stopped=self._stopped)

    def _wait(self, running: Sequence[Any]) -> list[int | None]:
        """Wait for the end of all, or for a while once one has failed; return the exit codes."""
        codes: dict[int, int | None] = {}
        failed_at: float | None = None
        while len(codes) < len(running):
            waiting = [one for rank, one in enumerate(running) if rank not in codes]
            done, _ = self._ray.wait(waiting, timeout=_LOOK_S)
            self._listen(codes)
            for one in done:
                rank = running.index(one)
                codes[rank] = self._code(one)
                if codes[rank] != 0 and failed_at is None:
                    failed_at = time.monotonic()
            if failed_at is not None and time.monotonic() - failed_at > _GRACE_S:
                for rank in range(len(running)):
                    codes.setdefault(rank, None)
        self._listen({})
        return [codes[rank] for rank in range(len(running))]

    def _code(self, reference: Any) -> int | None:
        errors = self._ray.exceptions
        try:
            code, lacks = self._ray.get(reference)
        except errors.RayTaskError as error:
            raise ResourceError(
                f"A machine of the cluster could not train. Received: {line_of(error)[:300]}. "
                "Install the same kresnet on all of them."
            ) from None
        except errors.RayError:  # the machine, its Ray or the way to it
            return None
        if lacks:
            raise ResourceError(
                f"The machines must see the same folders. Received: {lacks}. Start it from a disk "
                "that all of them share."
            )
        return int(code)

    def _listen(self, ended: Mapping[int, int | None]) -> None:
        """Pass on what the workers have written since."""
        asked = {
            actor.said.remote(self._heard[rank]): rank
            for rank, (actor, _) in enumerate(self._actors)
            if ended.get(rank, 0) is not None
        }
        done, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=_LOOK_S)
        for one in done:
            with suppress(self._ray.exceptions.RayError):
                lines = self._ray.get(one)
                for stream, line in lines:
                    self._say(asked[one], stream, line)
                self._heard[asked[one]] += len(lines)

    def _stop(self) -> None:
        self._stopped = True
        for actor, _ in self._actors:
            actor.ask_to_end.remote()

    def _placed(self, actors: Sequence[Any]) -> list[tuple[Any, tuple[str, int]]]:
        """Return the workers that have a place, each with its address, the chief first.

        The chief is on this machine if one is: whoever reads along does not go away.
        """
        asked = {actor.place.remote(): actor for actor in actors}
        done, late = self._ray.wait(list(asked), timeout=_PLACE_S)
        if done and late:
            more, late = self._ray.wait(late, num_returns=len(late), timeout=_OTHERS_S)
            done = [*done, *more]
        placed = []
        for one in done:
            with suppress(self._ray.exceptions.RayError):
                placed.append((asked[one], self._ray.get(one)))
        for one in late:
            self._ray.kill(asked[one])
        if not placed:
            raise ResourceError(
                f"A worker must be given a place within {_PLACE_S:.0f} s. Received: none that was. "
                "See `ray status`."
            )
        here = self._ray.util.get_node_ip_address()
        return sorted(placed, key=lambda one: one[1][0] != here)

    def _room(self, needs: Mapping[str, float]) -> int:
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return sum(
            min(int(machine.get(kind, 0) // n) for kind, n in needs.items() if n)
            for machine in machines
        )
