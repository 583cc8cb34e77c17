"""Parts answered for on the machines of a Ray cluster; the rows come back to who asked.

Each machine must see the images and the export at the same paths, and have the same kresnet. A part
whose machine is lost is given to another one: as its rows are written by one process, here, an
image is never in the table twice.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from kresnet.batch.hand import Hand
from kresnet.batch.worker import Settings
from kresnet.cluster import connect, import_ray, line_of
from kresnet.data.items import Item
from kresnet.errors import KresnetError, ResourceError

_CORES: Final = 4  # of a process that answers, or as many as the largest machine has
_LOOK_S: Final = 1.0  # between two looks at a cluster in which nothing happens
_LOSSES: Final = 20  # of workers in a row, after which none is asked for any more
_LOST: Final = object()

_Part = tuple[int, Sequence[Item]]


@contextmanager
def on_ray(settings: Settings, address: str | None, count: int | None) -> Iterator[_OnRay]:
    """Give workers on a cluster, and end them.

    Args:
        settings: What to answer with.
        address: Of the cluster; None starts one of this machine.
        count: Workers side by side; None is as many as there is room for.

    Raises:
        ResourceError: Ray is not installed, or there is no cluster.
    """
    ray = import_ray()
    own = not ray.is_initialized()
    if own:
        connect(ray, address)
    workers = _OnRay(ray, settings, count)
    try:
        yield workers
    finally:
        workers.close()
        if own:
            ray.shutdown()


class _Answerer:
    """On a machine of the cluster: a process that answers, started again when it dies."""

    def __init__(self, fields: Mapping[str, Any], cores: int) -> None:
        self._settings = Settings(**fields)
        threads = {"OMP_NUM_THREADS": str(cores), "TF_NUM_INTRAOP_THREADS": str(cores)}
        self._hand = Hand(self._settings, dict(os.environ) | threads)

    def ready(self) -> None:
        """Return when there is a place for it.

        Raises:
            ResourceError: The machine does not see the export.
        """
        if not Path(self._settings.export).is_dir():
            raise ResourceError(
                "The machines must see the export at the same path. Received: "
                f"{socket.gethostname()}, which has no {self._settings.export}. Put it on a disk "
                "that all of them share."
            )

    def do(self, images: Sequence[Item]) -> bytes:
        """See `Hand`."""
        return self._hand.do(images)


class _OnRay:
    """Workers on a cluster; one that is lost is replaced."""

    def __init__(self, ray: ModuleType, settings: Settings, count: int | None) -> None:
        self._ray, self._settings, self._count = ray, settings, count
        machines = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
        self._cores = int(max(min(_CORES, max(machines, default=1)), 1))
        self._actor = ray.remote(num_cpus=self._cores, max_restarts=0)(_Answerer)
        self._room = max(sum(int(cpus // self._cores) for cpus in machines), 1)
        self._busy: dict[Any, tuple[Any, _Part | None]] = {}  # by what they are to return
        self._idle: list[Any] = []
        self._losses = 0  # in a row

    def answer(self, parts: Sequence[_Part]) -> Iterator[tuple[int, bytes]]:
        """See `predict.Workers`."""
        todo, left = list(reversed(parts)), len(parts)
        for _ in range(min(self._count or self._room, len(parts))):
            self._start()
        while left:
            while todo and self._idle:
                actor, part = self._idle.pop(), todo.pop()
                self._busy[actor.do.remote(part[1])] = actor, part
            for reference in self._ray.wait(list(self._busy), timeout=_LOOK_S)[0]:
                actor, done = self._busy.pop(reference)
                rows = self._result(reference)
                if rows is _LOST:
                    todo += [done] if done else []
                    self._start()
                    continue
                self._idle.append(actor)
                if done:
                    left -= 1
                    yield done[0], rows

    def close(self) -> None:
        """End the workers."""
        for actor in (*self._idle, *(actor for actor, _ in self._busy.values())):
            self._ray.kill(actor)

    def _start(self) -> None:
        """Ask for a worker, which is given a part when there is a place for it, and not before."""
        actor = self._actor.remote(self._settings.as_dict(), self._cores)
        self._busy[actor.ready.remote()] = actor, None

    def _result(self, reference: Any) -> Any:
        """Return rows, or `_LOST`.

        Raises:
            KresnetError: What the worker told.
            ResourceError: The machine cannot do it.
        """
        errors = self._ray.exceptions
        try:
            rows = self._ray.get(reference)
        except errors.RayTaskError as error:
            cause = error.cause if error.cause is not None else error
            if isinstance(cause, KresnetError):
                raise cause from None
            raise _unable(cause) from None
        except errors.RayError as error:  # the machine, its Ray or the way to it
            self._losses += 1
            if self._losses > _LOSSES:
                raise _unable(error) from None
            return _LOST
        self._losses = 0
        return rows


def _unable(error: BaseException) -> ResourceError:
    return ResourceError(
        f"A machine of the cluster could not answer. Received: {line_of(error)}. Install the same "
        "kresnet on all of them."
    )
