"""A process that answers for parts: python -m kresnet.batch.worker SETTINGS, in JSON.

Requests come on standard input and replies go to standard output, each a letter, a length and so
many bytes. It ends with its standard input, so nothing is left running of a job that was killed.
"""

from __future__ import annotations

import json
import os
import queue
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from kresnet.errors import Interrupted, KresnetError
from kresnet.machine import stay_on_cores

if TYPE_CHECKING:
    from kresnet.data.items import Item
    from kresnet.serve.answer import Answer, Answering

READY: Final = b"r"
AT: Final = b"@"
"""The reply before an image that is answered for alone: its place in the part."""
ROWS: Final = b"="
FAILED: Final = b"!"

_HEAD: Final = struct.Struct("<cQ")
_AT_ONCE: Final = 32  # images in memory, and so many more that are being read
_READERS: Final = 16  # threads, which mostly wait for a disk or a network


@dataclass(frozen=True, slots=True)
class Settings:
    """What all parts of a job are answered with.

    Attributes:
        export: Directory of one version.
        runtime: As in `serve.quick.open_export`.
        mirror: Whether scores are averaged with those of the mirror images.
        top: Classes a row; 0 is all.
    """

    export: str
    runtime: str = "auto"
    mirror: bool = False
    top: int = 5

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types; `Settings(**fields)` reads them."""
        return asdict(self)


def send(stream: IO[bytes], kind: bytes, content: bytes = b"") -> None:
    """Write one message."""
    stream.write(_HEAD.pack(kind, len(content)) + content)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[bytes, bytes] | None:
    """Read one message: its letter and its content; None at the end."""
    head = stream.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    kind, length = _HEAD.unpack(head)
    content = stream.read(length)
    return (kind, content) if len(content) == length else None


def answers(
    engine: Answering, images: Sequence[Item], *, mirror: bool = False
) -> Iterator[Answer | str]:
    """Answer for images in order, or say why there is no answer; the next ones are read ahead."""
    for contents in _read_ahead(images):
        read = [one for one in contents if isinstance(one, bytes)]
        given = iter(engine.answer(read, mirror=mirror) if read else ())
        for one in contents:
            yield (next(given) or "cannot be decoded") if isinstance(one, bytes) else one


def _read_ahead(images: Sequence[Item]) -> Iterator[list[bytes | str]]:
    with ThreadPoolExecutor(_READERS) as pool:
        waiting: list[Future[bytes | str]] = []
        for start in range(0, len(images), _AT_ONCE):
            ahead = [pool.submit(_contents, one) for one in images[start : start + _AT_ONCE]]
            if waiting:
                yield [one.result() for one in waiting]
            waiting = ahead
        yield [one.result() for one in waiting]


def _contents(image: Item) -> bytes | str:
    try:
        return image.read()
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"


class _Worker:
    """Answers requests until there are no more."""

    def __init__(self, settings: Settings, out: IO[bytes]) -> None:
        from kresnet.serve.quick import open_export

        self._settings, self._out = settings, out
        self._engine = open_export(Path(settings.export), settings.runtime)

    def do(self, request: dict[str, Any]) -> None:
        """Answer for a part; one that ended a process before is done image by image."""
        from kresnet.batch.rows import as_parquet
        from kresnet.data.items import Item

        images = [
            Item(path, "", offset=offset, size=size, member=member)
            for path, offset, size, member in request["images"]
        ]
        settings = self._settings
        if request["singly"]:
            found = list(self._singly(images, frozenset(request["fatal"])))
        else:
            found = list(answers(self._engine, images, mirror=settings.mirror))
        rows = as_parquet([image.name for image in images], found, settings.top)
        send(self._out, ROWS, rows)

    def _singly(self, images: Sequence[Item], fatal: frozenset[int]) -> Iterator[Answer | str]:
        for place, image in enumerate(images):
            if place in fatal:
                yield "ended the process that was to answer for it"
                continue
            send(self._out, AT, str(place).encode())
            yield from answers(self._engine, [image], mirror=self._settings.mirror)


def main(arguments: list[str]) -> int:
    """Answer the requests of standard input, and return the exit code."""
    stay_on_cores()  # before anything counts them
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what others print is no reply
    requests = _requests()
    try:
        worker = _Worker(Settings(**json.loads(arguments[0])), out)
        send(out, READY)
        while True:
            worker.do(requests.get())
    except KresnetError as error:
        said = {"error": type(error).__name__, "message": str(error)}
        send(out, FAILED, json.dumps(said).encode())
        return error.exit_code


def _requests() -> queue.SimpleQueue[dict[str, Any]]:
    """Read requests in a thread of its own, so that their end is seen while a part is done."""
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    stream = os.fdopen(os.dup(0), "rb")

    def read() -> None:
        while message := receive(stream):
            waiting.put(json.loads(message[1]))
        os._exit(Interrupted.exit_code)

    threading.Thread(target=read, daemon=True).start()
    return waiting


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
