"""Answer requests, wherever they come from: the one path behind REST, KServe, uploads and gRPC."""

from __future__ import annotations

import asyncio
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from kresnet.machine import cores
from kresnet.serve.batching import Batcher
from kresnet.serve.limits import Gate, image_area, is_image
from kresnet.serve.metrics import Metrics
from kresnet.serve.models import Loaded, Models
from kresnet.serve.runtime import PREPARED, Runtime, example_of_image, image_of_example
from kresnet.serve.settings import Settings
from kresnet.serve.signatures import CLASSIFY, Arrays, Signature
from kresnet.serve.status import RequestError, Status, invalid

_BATCH_PIXELS = 100_000_000
_QUEUE_BATCHES = 32

# A grey BMP of one pixel.
_STAND_IN = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 58, 0, 54, 40, 1, 1, 1, 24, 0, 4, 0, 0, 0, 0)
_STAND_IN += bytes([128, 128, 128, 0])


@dataclass(slots=True)
class Trace:
    """What the log says of a request beyond its status.

    Attributes:
        rows: Images in it.
        version: That answered.
    """

    rows: int = 0
    version: int | None = None


class Service:
    """Validates, prepares, batches and computes.

    Attributes:
        is_draining: Whether the server is about to stop, and says so.
        is_closed: Whether it takes no new requests any more, and finishes those it has.

    Args:
        settings: The limits.
        models: The versions.
        metrics: Where to count.
    """

    def __init__(self, settings: Settings, models: Models, metrics: Metrics) -> None:
        self.settings = settings
        self.models = models
        self.metrics = metrics
        self.gate = Gate(settings)
        self.is_draining = False
        self.is_closed = False
        self._batcher = Batcher(
            max_rows=settings.max_batch,
            max_pixels=_BATCH_PIXELS,
            max_waiting_rows=max(_QUEUE_BATCHES * settings.max_batch, settings.max_concurrency),
            wait_s=settings.batch_timeout_ms / 1e3,
            on_batch=self._count_batch,
        )
        self._threads = ThreadPoolExecutor(cores(), thread_name_prefix="prepare")
        metrics.gauge("kresnet_waiting_images", "Images that wait for a batch.", self._waiting)
        metrics.gauge("kresnet_requests_under_way", "Requests.", lambda: self.gate.requests)
        metrics.gauge("kresnet_body_bytes", "Memory of bodies.", lambda: self.gate.bytes)
        metrics.gauge("kresnet_version", "The newest version that is served.", self._version)

    @property
    def is_ready(self) -> bool:
        """Whether new requests are welcome."""
        return self.models.newest is not None and not self.is_draining

    def start(self) -> None:
        """Begin to compute; needs a running event loop."""
        self._batcher.start()

    async def stop(self) -> None:
        """Stop to compute."""
        await self._batcher.stop()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.models.stop()

    async def predict(
        self,
        loaded: Loaded,
        signature: Signature,
        inputs: Arrays,
        deadline: float,
        trace: Trace,
    ) -> Arrays:
        """Answer one request.

        Args:
            loaded: The version, held by `Models.use`.
            signature: Of that version.
            inputs: By name.
            deadline: By the event loop's clock.
            trace: Filled for the log.

        Returns:
            Every output of the signature.

        Raises:
            RequestError: The inputs do not fit, or the server cannot answer now.
        """
        rows = signature.check(inputs)
        trace.rows, trace.version = rows, loaded.version
        if rows > self.settings.max_batch:
            raise invalid(
                f"A request may have at most {self.settings.max_batch} images. Received: {rows}."
            )
        inputs, refused, pixels = self._within_limits(signature, inputs)
        runtime = loaded.runtime
        function, prepared = signature.name, inputs
        if runtime.prepares:
            function, prepared = await self._prepare(loaded, signature, inputs, deadline)
        if function == PREPARED:
            pixels = 0  # what is left is small and of one size
        shapes = tuple(array.shape[1:] for array in prepared.values())
        outputs = await self._batcher.submit(
            (loaded, function, shapes),
            partial(self._timed_run, runtime, function),
            prepared,
            rows=rows,
            pixels=pixels,
            deadline=deadline,
        )
        outputs = runtime.finish(signature.name, outputs)
        if refused is not None:
            outputs = _refuse(outputs, refused)
        self.metrics.images.inc(rows)
        if "ok" in outputs:
            self.metrics.refused_images.inc(rows - int(np.count_nonzero(outputs["ok"])))
        return outputs

    def _within_limits(
        self, signature: Signature, inputs: Arrays
    ) -> tuple[Arrays, np.ndarray | None, int]:
        """Put a stand-in in the place of what is no image or announces too many pixels.

        The graph would refuse the first by itself, but TensorFlow 2.21 keeps about a kilobyte for
        each that it refuses.

        Returns:
            The inputs; bool `(n,)`, which of them are refused, or None; and the pixels in all.
        """
        most = self.settings.max_pixels
        if "images" in inputs:
            count, height, width = inputs["images"].shape[:3]
            if height * width > most:
                raise invalid(
                    f"An image may have at most {most} pixels. Received: {height} x {width}."
                )
            return inputs, None, int(count * height * width)
        name, images, stand_in = "image_bytes", inputs.get("image_bytes"), _STAND_IN
        if signature.method == CLASSIFY and "inputs" in inputs:
            name, stand_in = "inputs", example_of_image(_STAND_IN)
            images = np.array([*map(image_of_example, inputs["inputs"]), b""], object)[:-1]
        if images is None:
            return inputs, None, 0
        areas = [image_area(image) or 0 for image in images]
        refused = np.array(
            [not is_image(image) or area > most for image, area in zip(images, areas, strict=True)]
        )
        if not refused.any():
            return inputs, None, sum(areas)
        kept = inputs[name].copy()
        kept[refused] = stand_in
        return inputs | {name: kept}, refused, sum(area for area in areas if area <= most)

    async def _prepare(
        self, loaded: Loaded, signature: Signature, inputs: Arrays, deadline: float
    ) -> tuple[str, Arrays]:
        loop = asyncio.get_running_loop()
        prepare = partial(loaded.runtime.prepare, signature.name, inputs)
        try:
            async with asyncio.timeout_at(deadline):
                return await loop.run_in_executor(self._threads, prepare)
        except TimeoutError:
            raise RequestError(
                Status.DEADLINE_EXCEEDED, "The time for this request is up."
            ) from None

    def _timed_run(self, runtime: Runtime, function: str, inputs: Arrays) -> Arrays:
        start = time.perf_counter()
        outputs = runtime.run(function, inputs)
        self.metrics.compute_seconds.observe(time.perf_counter() - start)
        return outputs

    def _count_batch(self, rows: int, requests: int) -> None:
        self.metrics.batch_images.observe(rows)
        self.metrics.batch_requests.observe(requests)

    def _waiting(self) -> float:
        return self._batcher.waiting_rows

    def _version(self) -> float:
        return self.models.newest.version if self.models.newest else 0


def _refuse(outputs: Arrays, refused: np.ndarray) -> Arrays:
    """Write what the graph answers for a bad image over the answers of the stand-ins."""
    written = {}
    for name, array in outputs.items():
        written[name] = array.copy()
        if name not in ("labels", "classes"):
            written[name][refused] = {"label": b"", "abstain": True}.get(name, 0)
    return written
