"""`POST /predict`: an image file as it is, or a form with several; a short answer for people.

One of:

    curl -F image=@a.jpg -F image=@b.jpg localhost:8501/predict
    curl --data-binary @a.jpg -H 'Content-Type: image/jpeg' localhost:8501/predict
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Final

import numpy as np
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import Response
from starlette.routing import Route

from kresnet.serve.http import Call, Desk, json_response
from kresnet.serve.json_tensors import texts
from kresnet.serve.service import Service
from kresnet.serve.signatures import Arrays
from kresnet.serve.status import RequestError, Status, invalid

FIELD: Final = "image"
_SIGNATURE: Final = "serving_bytes"
_TOP: Final = 5


def routes(service: Service, desk: Desk) -> list[Route]:
    """Return the route."""
    upload = _Upload(service)
    return [Route("/predict", desk.endpoint("upload", upload.predict), methods=["POST"])]


class _InMemory(MultiPartParser):
    """The body is in memory already; a copy on disk would outlive the limits and the privacy."""

    spool_max_size = 2**62


class _Upload:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def predict(self, call: Call) -> Response:
        images = np.array([*await self._images(call), b""], object)[:-1]
        top = _top(call)
        models = self._service.models
        with models.use(models.name) as loaded:
            outputs = await self._service.predict(
                loaded,
                loaded.runtime.signatures[_SIGNATURE],
                {"image_bytes": images},
                call.deadline,
                call.trace,
            )
        return json_response(_answers(outputs, top))

    async def _images(self, call: Call) -> list[bytes]:
        if call.content_type == "multipart/form-data":
            return await self._form(call)
        is_image = call.content_type.startswith("image/")
        if not is_image and call.content_type != "application/octet-stream":
            raise RequestError(
                Status.UNSUPPORTED_MEDIA,
                f"Send multipart/form-data with files named {FIELD!r}, or one image as image/*.",
            )
        if not call.body:
            raise invalid("The body must be an image; it is empty.")
        return [call.body]

    async def _form(self, call: Call) -> list[bytes]:
        async def stream() -> AsyncGenerator[bytes, None]:
            yield call.body
            yield b""

        most = self._service.settings.max_batch
        parser = _InMemory(
            call.request.headers,
            stream(),
            max_files=most,
            max_fields=most,
            max_part_size=self._service.settings.max_body_bytes,
        )
        try:
            form = await parser.parse()
        except (MultiPartException, KeyError, ValueError) as error:
            raise invalid(f"The form cannot be read: {str(error)[:200]}") from None
        try:
            files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            if not files or any(name != FIELD for name, _ in form.multi_items()):
                raise invalid(f"The form must have one or more files, each named {FIELD!r}.")
            return [await file.read() for file in files]
        finally:
            await form.close()


def _top(call: Call) -> int:
    text = call.request.query_params.get("top", str(_TOP))
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:6]) <= 10_000:
        raise invalid(f"`top` must be a number of labels from 1. Received: {text[:20]!r}.")
    return int(text)


def _answers(outputs: Arrays, top: int) -> list[dict[str, Any]]:
    count = len(outputs["scores"])
    ok = outputs.get("ok", np.ones(count, bool))
    abstain = outputs.get("abstain", ~ok)
    best = np.argsort(-outputs["scores"], axis=1, kind="stable")[:, :top]
    names = texts(np.take_along_axis(outputs["labels"], best, axis=1))
    scores = np.take_along_axis(outputs["scores"], best, axis=1)
    return [
        {
            "label": label,
            "score": outputs["score"][k],
            "top": [
                {"label": name, "score": score}
                for name, score in zip(names[k], scores[k], strict=True)
                if ok[k]
            ],
            "ok": ok[k],
            "abstain": abstain[k],
        }
        for k, label in enumerate(texts(outputs["label"]))
    ]
