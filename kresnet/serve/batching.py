"""Put the rows of different requests into one batch, within a bound of time.

All state lives on the event loop; only `run` leaves it, for one thread of its own. While that
thread computes a batch, the next one gathers. Requests of one key, as of one signature and one
image shape, can share a batch; among keys, the one whose first request waits longest goes first,
so none starves.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from kresnet.serve import log
from kresnet.serve.signatures import Arrays
from kresnet.serve.status import RequestError, Status, overloaded

Run = Callable[[Arrays], Arrays]


@dataclass(eq=False, slots=True)
class _Item:
    """One request in a queue."""

    run: Run
    inputs: Arrays
    rows: int
    pixels: int
    future: asyncio.Future[Arrays]
    arrived: float = field(default_factory=time.monotonic)
    waits: bool = True


class Batcher:
    """Runs batches of rows from several requests.

    Args:
        max_rows: Most rows of a batch.
        max_pixels: Most pixels of a batch that has more than one row; decoded images take memory.
        max_waiting_rows: Most rows that wait; a request above that is told to come back.
        wait_s: How long the first request of a batch waits for others.
        on_batch: Told the rows and the requests of every batch.
    """

    def __init__(
        self,
        *,
        max_rows: int,
        max_pixels: int,
        max_waiting_rows: int,
        wait_s: float,
        on_batch: Callable[[int, int], None] = lambda rows, requests: None,
    ) -> None:
        self.waiting_rows = 0
        self._max_rows = max_rows
        self._max_pixels = max_pixels
        self._max_waiting_rows = max_waiting_rows
        self._wait_s = wait_s
        self._on_batch = on_batch
        self._queues: dict[Hashable, deque[_Item]] = {}
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work; needs a running event loop."""
        self._worker = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """Stop to work; what is still waiting is cancelled."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait([self._worker])
        for queue in self._queues.values():
            for item in queue:
                item.future.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def submit(
        self, key: Hashable, run: Run, inputs: Arrays, *, rows: int, pixels: int, deadline: float
    ) -> Arrays:
        """Compute `run(inputs)`, together with others of the same key.

        Args:
            key: Requests of one key have inputs that can be concatenated, and one `run`.
            run: Called in the thread with the inputs of one or several requests.
            inputs: The first axis of every array is the row.
            rows: How many, at most `max_rows`.
            pixels: Of all images, as a measure of memory.
            deadline: By the event loop's clock.

        Raises:
            RequestError: Too much is waiting, the time is up, or `run` refused the inputs.
        """
        if self.waiting_rows + rows > self._max_waiting_rows:
            raise overloaded(f"{self.waiting_rows} images are waiting, which is the limit.")
        item = _Item(run, inputs, rows, pixels, asyncio.get_running_loop().create_future())
        self._queues.setdefault(key, deque()).append(item)
        self.waiting_rows += rows
        self._arrival.set()
        try:
            async with asyncio.timeout_at(deadline):
                return await item.future
        except TimeoutError:
            raise RequestError(Status.DEADLINE_EXCEEDED, "The time for this request is up.") from (
                None
            )
        finally:
            item.future.cancel()  # a request that has gone takes no room in a batch
            if item.waits:
                self._queues[key].remove(item)
                self._left(key, item)

    def _left(self, key: Hashable, item: _Item) -> None:
        item.waits = False
        self.waiting_rows -= item.rows
        if not self._queues[key]:
            del self._queues[key]

    async def _work(self) -> None:
        while True:
            items = self._take(await self._ready_key())
            self._on_batch(sum(item.rows for item in items), len(items))
            await self._answer(items)

    async def _ready_key(self) -> Hashable:
        """Wait until a batch is full or its first request has waited long enough."""
        while True:
            self._arrival.clear()
            now, pause = time.monotonic(), None
            oldest: tuple[float, Hashable] | None = None
            for key, queue in self._queues.items():
                due = queue[0].arrived + self._wait_s
                if due > now and sum(item.rows for item in queue) < self._max_rows:
                    pause = min(pause or due - now, due - now)
                elif oldest is None or queue[0].arrived < oldest[0]:
                    oldest = (queue[0].arrived, key)
            if oldest is not None:
                return oldest[1]
            try:
                async with asyncio.timeout(pause):
                    await self._arrival.wait()
            except TimeoutError:
                pass

    def _take(self, key: Hashable) -> list[_Item]:
        queue, items = self._queues[key], list[_Item]()
        rows = pixels = 0
        while queue:
            rows, pixels = rows + queue[0].rows, pixels + queue[0].pixels
            if items and (rows > self._max_rows or pixels > self._max_pixels):
                break
            items.append(queue.popleft())
            self._left(key, items[-1])
        return items

    async def _answer(self, items: list[_Item]) -> None:
        try:
            outputs = await self._compute(items)
        except Exception as error:
            if len(items) > 1:  # the fault of one must not cost the others their answer
                for item in items:
                    if not item.future.done():
                        await self._answer([item])
                return
            if not items[0].future.done():
                items[0].future.set_exception(error)
            return
        start = 0
        for item in items:
            if not item.future.done():
                item.future.set_result(
                    {name: array[start : start + item.rows] for name, array in outputs.items()}
                )
            start += item.rows

    async def _compute(self, items: list[_Item]) -> Arrays:
        rows = sum(item.rows for item in items)

        def work() -> Arrays:
            inputs = [item.inputs for item in items]
            merged = (
                {name: np.concatenate([one[name] for one in inputs]) for name in inputs[0]}
                if len(inputs) > 1
                else inputs[0]
            )
            return items[0].run(merged)

        loop = asyncio.get_running_loop()
        try:
            outputs = await loop.run_in_executor(self._thread, work)
        except RequestError:
            raise
        except Exception:
            log.error("computation_failed", rows=rows)
            raise RequestError(Status.INTERNAL, "The computation failed; see the log.") from None
        wrong = {name: array.shape for name, array in outputs.items() if len(array) != rows}
        if wrong:
            log.warning("wrong_batch", expected=rows, received=wrong)
            raise RequestError(Status.INTERNAL, "The export gave a wrong number of answers.")
        return outputs
