"""What every HTTP endpoint shares: limits on the way in, errors and the log on the way out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from kresnet.serve import json_tensors, log
from kresnet.serve.limits import Room, check_token, is_safe_host
from kresnet.serve.service import Service, Trace
from kresnet.serve.status import RequestError, Status, invalid, overloaded

_JSON = "application/json"
_LARGE = 2**18


@dataclass(slots=True)
class Call:
    """One request that was let in.

    Attributes:
        request: As Starlette has it.
        body: All of it.
        deadline: When the answer is due, by the event loop's clock.
        trace: Filled for the log.
    """

    request: Request
    body: bytes
    deadline: float
    trace: Trace = field(default_factory=Trace)

    @property
    def content_type(self) -> str:
        """The type of the body, without parameters, in lower case."""
        return self.request.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def model(self) -> tuple[str, int | None]:
        """Name and version that the path names."""
        parameters = self.request.path_params
        if "label" in parameters:
            raise invalid(f"Unrecognized servable version label: {parameters['label'][:100]}")
        version = parameters.get("version")
        if version is None:
            return parameters["name"], None
        if not (version.isascii() and version.isdigit()) or int(version[:30]) >= 2**63:
            raise invalid(f"Failed to convert version: {version[:30]} to numeric.")
        return parameters["name"], int(version)

    async def json(self) -> dict[str, object]:
        """Parse the body as a JSON object."""
        if self.content_type not in ("", _JSON, "text/plain", "application/x-www-form-urlencoded"):
            raise RequestError(Status.UNSUPPORTED_MEDIA, f"The body must be {_JSON}.")
        if len(self.body) < _LARGE:
            return json_tensors.parse(self.body)
        return await asyncio.to_thread(json_tensors.parse, self.body)


Handler = Callable[[Call], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]


class Desk:
    """Makes endpoints of handlers.

    Args:
        service: Gives limits and metrics.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def endpoint(self, api: str, handler: Handler, *, is_open: bool = False) -> Endpoint:
        """Return a handler with everything around it.

        Args:
            api: Name for the log and the metrics.
            handler: Answers, or raises `RequestError`.
            is_open: Whether it answers without a token, a free place or being ready.
        """

        async def respond(request: Request) -> Response:
            start = time.perf_counter()
            trace = Trace()
            try:
                response = await self._admitted(request, handler, trace, is_open)
            except RequestError as error:
                response = error_response(error)
            except Exception:
                log.error("request_failed", api=api)
                response = error_response(
                    RequestError(Status.INTERNAL, "The server has a fault; see its log.")
                )
            if self._service.is_draining:
                response.headers["connection"] = "close"
            self._tell(api, response, trace, time.perf_counter() - start, is_open)
            return response

        return respond

    async def _admitted(
        self, request: Request, handler: Handler, trace: Trace, is_open: bool
    ) -> Response:
        settings = self._service.settings
        is_exposed = settings.token is None and settings.is_local
        if is_exposed and not is_safe_host(request.headers.get("host")):
            raise RequestError(
                Status.PERMISSION_DENIED,
                "Without a token this server answers only to localhost and to addresses.",
            )
        deadline = asyncio.get_running_loop().time() + settings.timeout_s
        if is_open:
            return await handler(Call(request, b"", deadline, trace))
        check_token(settings.token, request.headers.get("authorization"))
        if self._service.is_closed:
            raise overloaded("The server is stopping.")
        with self._service.gate.request(), self._service.gate.room() as room:
            body = await self._body(request, room, deadline)
            return await _unless_gone(request, handler(Call(request, body, deadline, trace)))

    async def _body(self, request: Request, room: Room, deadline: float) -> bytes:
        if request.method == "GET":
            return b""
        most = self._service.settings.max_body_bytes
        too_large = RequestError(Status.TOO_LARGE, f"A body may have at most {most} bytes.")
        announced = request.headers.get("content-length", "0")
        if announced.isascii() and announced.isdigit():
            if int(announced[:20]) > most:
                raise too_large
            room.hold(int(announced))
        body = bytearray()
        try:
            async with asyncio.timeout_at(deadline):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > most:
                        raise too_large
                    room.hold(len(body))
        except TimeoutError:
            raise RequestError(Status.SLOW_BODY, "The body came too slowly.") from None
        except ClientDisconnect:
            raise RequestError(Status.CANCELLED, "The client has gone.") from None
        return bytes(body)

    def _tell(
        self, api: str, response: Response, trace: Trace, seconds: float, is_open: bool
    ) -> None:
        metrics = self._service.metrics
        metrics.requests.labels(api, str(response.status_code)).inc()
        metrics.seconds.labels(api).observe(seconds)
        if self._service.settings.log_requests and not is_open:
            log.event(
                "request",
                api=api,
                status=response.status_code,
                milliseconds=round(1e3 * seconds, 1),
                images=trace.rows,
                version=trace.version,
            )


async def _unless_gone(request: Request, answer: Awaitable[Response]) -> Response:
    """Wait for the answer, and give it up when the client hangs up."""
    work = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_hangs_up(request))
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise RequestError(Status.CANCELLED, "The client has gone.")
        return work.result()
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait((work,))


async def _hangs_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def json_response(value: object, status: int = 200) -> Response:
    """Answer with JSON."""
    return Response(json_tensors.dump(value), status, media_type=_JSON)


def json_bytes_response(body: bytes) -> Response:
    """Answer with JSON that is already written."""
    return Response(body, media_type=_JSON)


def error_response(error: RequestError) -> Response:
    """Answer with the reason of a refusal, in the form that both REST protocols use."""
    response = json_response({"error": error.message}, error.status.http)
    if error.retry_after_s is not None:
        response.headers["retry-after"] = str(error.retry_after_s)
    if error.status is Status.UNAUTHENTICATED:
        response.headers["www-authenticate"] = "Bearer"
    return response
