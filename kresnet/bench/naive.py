"""What one writes first: a web server that calls the SavedModel once for each request.

python -m kresnet.bench.naive EXPORT PORT
"""

from __future__ import annotations

import base64
import sys

import tensorflow as tf
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


def main(export: str, port: str) -> None:
    """Serve until killed."""
    serve = tf.saved_model.load(export).signatures["serving_bytes"]

    def answer(image: bytes) -> dict[str, object]:
        outputs = serve(image_bytes=tf.constant([image]))
        return {
            "label": outputs["label"][0].numpy().decode(),
            "scores": outputs["scores"][0].numpy().tolist(),
        }

    async def predict(request: Request) -> JSONResponse:
        body = await request.json()
        images = [base64.b64decode(row["image_bytes"]["b64"]) for row in body["instances"]]
        return JSONResponse({"predictions": [await run_in_threadpool(answer, i) for i in images]})

    app = Starlette(routes=[Route("/predict", predict, methods=["POST"])])
    uvicorn.run(app, port=int(port), log_level="warning", access_log=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
