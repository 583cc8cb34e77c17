"""The life of a server: bind, load, serve, watch for versions, drain, go."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import uvicorn

from kresnet.errors import ResourceError
from kresnet.serve import log
from kresnet.serve.app import build_app
from kresnet.serve.grpc import GrpcServer
from kresnet.serve.metrics import Metrics
from kresnet.serve.models import Models, open_with
from kresnet.serve.protocol import bounded
from kresnet.serve.service import Service
from kresnet.serve.settings import Settings

_NOTICE_S: Final = 0.5
"""After SIGTERM, so long /readyz says no while requests are still taken."""


def serve(
    home: Path, settings: Settings, announce: Callable[[str], None] = lambda line: None
) -> None:
    """Serve an export until SIGTERM or SIGINT.

    Args:
        home: `NAME` or `NAME/VERSION`.
        settings: How.
        announce: Told one line, when the server is ready.

    Raises:
        ExportError: No version can be served.
        ResourceError: A port is taken, or a package is missing.
    """
    log.start()
    metrics = Metrics()

    def on_swap(result: str) -> None:
        metrics.version_changes.labels(result).inc()

    models = Models(
        home,
        keep=settings.keep,
        open_version=open_with(settings.runtime, settings.tolerance),
        on_swap=on_swap,
    )
    gc.collect()
    gc.freeze()  # what TensorFlow allocates at import need not be walked whenever a version goes
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        is_clean = runner.run(_Server(settings, models, metrics).run(announce))
    sys.stderr.flush()
    if not is_clean:  # a computation still holds a thread, which Python would wait for
        os._exit(1)


class _Server:
    def __init__(self, settings: Settings, models: Models, metrics: Metrics) -> None:
        self._settings = settings
        self._models = models
        self._service = Service(settings, models, metrics)
        self._stop = asyncio.Event()

    async def run(self, announce: Callable[[str], None]) -> bool:
        """Serve; returns whether every accepted request was answered."""
        settings, loop = self._settings, asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        listener = _bind(settings.host, settings.port)
        http = _Uvicorn(
            uvicorn.Config(
                build_app(self._service),
                http=bounded(2 * settings.timeout_s),
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=30,
                backlog=1024,
                timeout_graceful_shutdown=int(settings.drain_s) + 1,
            )
        )
        self._service.start()
        grpc = GrpcServer(self._service) if settings.grpc_port >= 0 else None
        tasks = [loop.create_task(http.serve(sockets=[listener]))]
        try:
            grpc_port = await _start_grpc(grpc, settings) if grpc else None
            loading = loop.create_task(self._models.poll())
            await _first(loading, self._stop)
            if not self._stop.is_set():
                await loading
                tasks.append(loop.create_task(self._models.watch(settings.poll_s)))
                self._announce(announce, listener.getsockname()[1], grpc_port)
                await self._stop.wait()
            return await self._drain(http, tasks[0], grpc)
        finally:
            http.should_exit = http.force_exit = True
            for task in tasks[1:]:
                task.cancel()
            await asyncio.wait(tasks)
            if grpc:
                await grpc.stop(0)
            await self._service.stop()

    def _announce(self, announce: Callable[[str], None], port: int, grpc_port: int | None) -> None:
        newest = self._models.newest
        assert newest is not None  # noqa: S101 - the first poll loads one or raises
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        log.event("ready", http=f"http://{host}:{port}", grpc_port=grpc_port)
        announce(
            f"serving {self._models.name} version {newest.version} at http://{host}:{port}/"
            + (f" and gRPC at {host}:{grpc_port}" if grpc_port else "")
        )

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stop.is_set():
            log.warning("stopped_at_once", signal=number.name)
            os._exit(128 + number)
        log.event("stopping", signal=number.name, under_way=self._service.gate.requests)
        self._service.is_draining = True
        self._stop.set()

    async def _drain(
        self, http: _Uvicorn, serving: asyncio.Task[None], grpc: GrpcServer | None
    ) -> bool:
        """Let load balancers see it, take nothing new, and finish what was accepted."""
        loop, service = asyncio.get_running_loop(), self._service
        deadline = loop.time() + self._settings.drain_s
        if self._models.newest is not None:
            await asyncio.sleep(_NOTICE_S)
        # New requests are still accepted, to be told 503: a closed port would reset those whose
        # connections wait to be accepted.
        service.is_closed = True
        if grpc:
            await grpc.stop(deadline - loop.time())
        while service.gate.requests and loop.time() < deadline:
            await asyncio.sleep(0.02)
        http.should_exit = True
        await asyncio.wait([serving], timeout=max(deadline - loop.time(), 1))
        left = service.gate.requests
        log.event("stopped", unanswered=left)
        return left == 0


class _Uvicorn(uvicorn.Server):
    """Uvicorn without its signal handlers: this module has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture nothing."""
        yield


async def _first(task: asyncio.Task[None], event: asyncio.Event) -> None:
    waiting = asyncio.ensure_future(event.wait())
    await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


async def _start_grpc(grpc: GrpcServer, settings: Settings) -> int:
    try:
        return await grpc.start(settings.host, settings.grpc_port)
    except RuntimeError:
        raise _taken(settings.host, settings.grpc_port, "grpc-port") from None


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError:
        raise _taken(host, port, "port") from None
    return listener


def _taken(host: str, port: int, option: str) -> ResourceError:
    return ResourceError(
        "The server needs a free port of an address of this machine. "
        f"Received: {host}:{port}, which cannot be bound. Choose another with --{option}."
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # as on Windows
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
