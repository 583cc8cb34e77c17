"""HTTP on a connection: uvicorn's, with the bounds that it lacks."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MAX_HEAD: Final = 64 * 2**10
_MAX_CONNECTIONS: Final = 2048


class BoundedProtocol(HttpToolsProtocol):
    """Closes connections that send endless or slow headers or bodies, and those beyond a number.

    A request that is being worked on is no concern of it: the application has a time limit.
    """

    receive_s = 60.0
    """Longest time from the first byte of a request to its last."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, if there is room."""
        self._timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        super().connection_made(transport)
        if len(self.connections) > _MAX_CONNECTIONS:
            transport.close()
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, and count those of the headers."""
        if self._timer is None:
            self._start_timer()
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > _MAX_HEAD:
            self.transport.close()

    def on_headers_complete(self) -> None:
        """Go on to the body, whose length the application limits."""
        self._head_bytes = -sys.maxsize
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Wait for the next request, for which uvicorn has a timer of its own."""
        self._head_bytes = 0
        self._stop_timer()
        super().on_message_complete()

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.receive_s, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()


def bounded(receive_s: float) -> type[Any]:
    """Return the protocol with a time limit for receiving a request."""
    return type("Protocol", (BoundedProtocol,), {"receive_s": receive_s})
