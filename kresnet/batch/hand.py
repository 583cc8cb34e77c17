"""One worker process from outside: it is asked for parts, and started again when it dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from kresnet import errors
from kresnet.batch.worker import AT, FAILED, READY, Settings, receive, send
from kresnet.errors import KresnetError, ResourceError

if TYPE_CHECKING:
    from kresnet.data.items import Item

_WORKER: Final = (sys.executable, "-m", "kresnet.batch.worker")
_FATAL: Final = 2  # deaths at one image before it is passed over
_DEATHS: Final = 8  # in one part, after which it is the machine that is at fault
_LOG_END: Final = 4_000  # bytes of what a worker said that are looked at for the reason


class _Died(Exception):
    """A worker has ended without an answer."""


class Hand:
    """Answers for parts of a job in a process of its own.

    A process that dies, as where a decoder crashes or memory is short, is started again, and the
    part is done image by image. An image at which it dies twice is passed over, and its row says
    so.

    Args:
        settings: What to answer with.
        environment: Of the process; None is that of this one.
        command: What starts it; the settings are put behind it.
    """

    def __init__(
        self,
        settings: Settings,
        environment: Mapping[str, str] | None = None,
        command: Sequence[str] = _WORKER,
    ) -> None:
        self._command = [*command, json.dumps(settings.as_dict())]
        self._environment = dict(os.environ if environment is None else environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`

    def do(self, images: Sequence[Item]) -> bytes:
        """Return the rows of a part, as the bytes of a Parquet file.

        Raises:
            KresnetError: The export cannot be used, or the process dies again and again.
        """
        deaths: Counter[int | None] = Counter()
        while True:
            fatal = [place for place, n in deaths.items() if place is not None and n >= _FATAL]
            at: list[int] = []
            try:
                return self._ask(images, fatal, at, singly=bool(deaths))
            except _Died:
                if self._closed or deaths.total() == _DEATHS:
                    raise ResourceError(
                        "A process that answers must live. Received: one that ended "
                        f"{deaths.total() + 1} times ({self._last_line()}). Look at the memory of "
                        "the machine, and run again: what is done is kept."
                    ) from None
                deaths[at[-1] if at else None] += 1

    def close(self) -> None:
        """End the process; a part that is under way fails."""
        self._closed = True
        self._end()
        self._log.close()

    def _ask(
        self, images: Sequence[Item], fatal: Sequence[int], at: list[int], *, singly: bool
    ) -> bytes:
        process = self._running()
        places = [(image.path, image.offset, image.size, image.member) for image in images]
        request = {"images": places, "fatal": list(fatal), "singly": singly}
        if process.stdin is None or process.stdout is None:
            raise _Died
        try:
            send(process.stdin, b"?", json.dumps(request).encode())
        except OSError:
            raise self._died() from None
        while (reply := receive(process.stdout)) is not None:
            kind, content = reply
            if kind == FAILED:
                raise _error(json.loads(content))
            if kind == AT:
                at.append(int(content))
            elif kind != READY:
                return content
        raise self._died()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise _Died
        if self._process is None:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=self._environment,
            )
        return self._process

    def _died(self) -> _Died:
        self._end()
        return _Died()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):  # what was not yet sent
                    stream.close()

    def _last_line(self) -> str:
        if self._log.closed:
            return "it was closed"
        end = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(end - _LOG_END, 0))
        lines = self._log.read().decode("utf-8", errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1][:300] if said else "it said nothing"


def _error(said: Mapping[str, str]) -> KresnetError:
    """Return the error that a worker has told."""
    kind: Any = getattr(errors, said["error"], KresnetError)
    error: KresnetError = kind(said["message"])
    return error
