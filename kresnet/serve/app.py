"""The HTTP application: every route, and what is around them."""

from __future__ import annotations

from typing import Final

from starlette.applications import Starlette
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kresnet.serve import kserve, openapi, page, rest, upload
from kresnet.serve.http import Call, Desk, error_response, json_response
from kresnet.serve.service import Service
from kresnet.serve.status import RequestError, Status

_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(self), microphone=(), geolocation=()"),
    # Labels and names of files come from users: even if one got into markup, nothing would run.
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        b"connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; "
        b"require-trusted-types-for 'script'; trusted-types 'none'",
    ),
)


class _Plain(StringConvertor):
    """A part of a path that no verb follows: TensorFlow Serving writes `NAME:predict`."""

    regex = "[^/:]+"


def build_app(service: Service) -> ASGIApp:
    """Return the application.

    Args:
        service: Answers.
    """
    register_url_convertor("plain", _Plain())
    desk = Desk(service)
    site = _Site(service)
    metrics = desk.endpoint("metrics", site.metrics)
    routes = [
        *rest.routes(service, desk),
        *kserve.routes(service, desk),
        *upload.routes(service, desk),
        Route("/healthz", desk.endpoint("healthz", site.health, is_open=True)),
        Route("/readyz", desk.endpoint("readyz", site.ready, is_open=True)),
        Route("/metrics", metrics),
        Route("/monitoring/prometheus/metrics", metrics),
        Route("/openapi.json", desk.endpoint("openapi", site.openapi, is_open=True)),
        Route("/", desk.endpoint("page", site.asset, is_open=True)),
        Route("/static/{file}", desk.endpoint("page", site.asset, is_open=True)),
        Route("/v1/page.json", desk.endpoint("page", site.facts)),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _not_routed})
    return _WithHeaders(app)


class _Site:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._assets = page.load_assets()

    async def health(self, call: Call) -> Response:
        return json_response({"status": "ok"})

    async def ready(self, call: Call) -> Response:
        newest = self._service.models.newest
        if self._service.is_ready and newest is not None:
            return json_response({"status": "ready", "version": newest.version})
        status = "stopping" if self._service.is_draining else "loading"
        return json_response({"status": status}, 503)

    async def metrics(self, call: Call) -> Response:
        return Response(
            self._service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    async def openapi(self, call: Call) -> Response:
        has_token = self._service.settings.token is not None
        return json_response(openapi.document(self._service.models.name, has_token=has_token))

    async def asset(self, call: Call) -> Response:
        name = call.request.path_params.get("file", "index.html")
        if name not in self._assets:
            raise RequestError(Status.NOT_FOUND, "There is nothing at this path.")
        content, media_type = self._assets[name]
        return Response(content, media_type=media_type, headers={"cache-control": "no-cache"})

    async def facts(self, call: Call) -> Response:
        models, settings = self._service.models, self._service.settings
        with models.use(models.name) as loaded:
            runtime = loaded.runtime
            return json_response(
                page.facts(
                    runtime.contract,
                    name=models.name,
                    version=loaded.version,
                    runtime=runtime.name,
                    signatures=loaded.definitions,
                    max_body_bytes=settings.max_body_bytes,
                    max_pixels=settings.max_pixels,
                )
            )


async def _not_routed(request: Request, error: Exception) -> Response:
    """Answer where no route fits, in the form of all other errors."""
    assert isinstance(error, HTTPException)  # noqa: S101 - what Starlette promises
    if error.status_code == 405:
        status, message = Status.METHOD_NOT_ALLOWED, "This path has another method."
    else:
        status, message = Status.NOT_FOUND, "There is nothing at this path."
    response = error_response(RequestError(status, message))
    response.headers.update(error.headers or {})
    return response


class _WithHeaders:
    """Adds the security headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await self._app(scope, receive, with_headers)
