"""Batches that other machines make: a tf.data service between the images and a training.

A batch is a function of the seed and its number, wherever it is made. So what goes to the service
is the numbers, and how to make the batch of one. Its dispatcher gives each number to one worker
(dynamic sharding), and the batch comes back with its number, in any order; here they are put in
order. What a worker had in hand when it was lost never comes: it is made here, by the same
function. So the batches are the same, bit for bit, and in the same order, whatever the number of
workers and whatever becomes of them; none is left out, and none comes twice.

Coordinated reads, an order of the service's own, take turns among the workers: what comes next
would follow from how many there are.
"""

from __future__ import annotations

import itertools
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import tensorflow as tf

from kresnet.data import arrays
from kresnet.data.items import Place, is_url
from kresnet.data.scan import Row
from kresnet.errors import ConfigError, Interrupted, ResourceError
from kresnet.machine import memory, reach

One = Callable[[tf.Tensor], tf.data.Dataset]
"""Gives for the number of a batch, int64, a dataset of that batch alone."""

_LOOK_S: Final = 0.5
_GAP_S: Final = 10.0  # for a batch to come when one behind it has
_SOON_S: Final = 2.0  # for it to be taken in, if it has
_SHARE: Final = 0.05  # of the memory for batches that came before their turn
_FEW: Final = 8  # of which there is always room
_REQUESTS: Final = 16  # batches on their way at once


class Gone(Interrupted):
    """A data service sends no batches any more; the training can be gone on with."""


@dataclass(frozen=True, slots=True)
class Service:
    """A tf.data service, by the address of its dispatcher.

    Attributes:
        address: As "grpc://host:5050" or "host:5050".
        wait_s: Seconds within which the first batch must come.
        patience_s: Seconds of silence after which it counts as lost; twice as long as the longest
            wait before, where that is more.

    Raises:
        ConfigError: The address is none.
    """

    address: str
    wait_s: float = 600.0
    patience_s: float = 30.0

    def __post_init__(self) -> None:
        """Give the address its protocol."""
        found = re.fullmatch(r"(?:grpc://)?((?:[^\s:/]+|\[[^\s\]]+\]):\d{1,5})", self.address)
        if found is None:
            raise ConfigError(
                "`data_service` must be the address of a dispatcher, as grpc://host:5050. "
                f"Received: data_service={self.address!r}."
            )
        object.__setattr__(self, "address", f"grpc://{found[1]}")

    def reach(self) -> None:
        """See whether a dispatcher and one of its workers are there.

        Raises:
            ResourceError: They are not.
        """
        try:
            reach(self.address)
        except OSError as error:
            raise ResourceError(
                "The dispatcher of a data service must listen at its address. Received: "
                f"data_service={self.address!r} ({error}). Start one with: kresnet data serve"
            ) from None
        for _ in self._in_order(lambda number: tf.data.Dataset.from_tensors((number[None],)), 0):
            return

    def batches(
        self, one: One, start: int, rows_of: Callable[[int], Sequence[Place]]
    ) -> Iterator[Any]:
        """Yield the batches from a number on, in order and without end.

        Args:
            one: Makes a batch, of at least one image; in ops alone, for it goes to other processes.
            start: Number of the first.
            rows_of: Returns the images of a batch.

        Raises:
            tf.errors.OpError: The batch whose turn it is cannot be made here either.
            ResourceError: No batch has come, or none that could be made there.
            Gone: No more come, or none that can be made there.
        """
        made = tf.function(
            lambda number: one(number).get_single_element(),
            input_signature=[tf.TensorSpec((), tf.int64)],
            autograph=False,
        )
        sent = 0
        for number, batch in enumerate(self._in_order(one, start), start):
            if batch is None:
                yield made(tf.constant(number, tf.int64))
            elif len(batch[0]):
                sent += 1
                yield batch
            else:
                made(tf.constant(number, tf.int64))  # an error of its own says more
                raise (Gone if sent else ResourceError)(
                    "The workers of a data service must see the images at the same paths. "
                    f"Received: {rows_of(number)[0].path!r} or another of its batch, which this "
                    f"machine can read and a worker of {self.address} cannot. Mount it there, or "
                    "leave --data-service out."
                )

    def _in_order(self, one: One, start: int) -> Iterator[Any | None]:
        """Yield each batch in its turn: without images if it cannot be made; None if lost."""
        arrivals = _Arrivals(self.address, _numbered(one, start))
        waiting = _Waiting(self, arrivals)
        try:
            for number in itertools.count(start):
                yield waiting.until(number)
        finally:
            arrivals.end()


def serve(dispatcher: str | None, *, host: str, port: int) -> tuple[str, list[Any]]:
    """Start a part of a data service in this process.

    Args:
        dispatcher: Whose worker to be, as "host:5050"; None starts one, with a worker.
        host: What others call this machine.
        port: Where to listen; 0 is any that is free.

    Returns:
        Address of the dispatcher, and what must not be let go of.

    Raises:
        ConfigError: The address is none.
        ResourceError: The port is taken, or the dispatcher is not there.
    """
    service = tf.data.experimental.service
    kept: list[Any] = []
    try:
        if port:  # else TensorFlow would share it with whoever has it
            socket.create_server(("", port)).close()
        if dispatcher is None:
            kept.append(service.DispatchServer(service.DispatcherConfig(port=port)))
            port, own = 0, kept[0].target.rpartition(":")[2]
            dispatcher, near = f"{host}:{own}", f"localhost:{own}"
        else:
            near = Service(dispatcher).address.removeprefix("grpc://")
            reach(near)  # TensorFlow would try for an hour
        config = service.WorkerConfig(near, worker_address=f"{host}:%port%", port=port)
        kept.append(service.WorkerServer(config))
    except (OSError, tf.errors.OpError) as error:
        said = str(error).splitlines()[0]
        raise ResourceError(
            "A data service needs a free port, and its workers a dispatcher. Received: "
            f"port={port}, dispatcher={dispatcher!r} ({said}). Choose others."
        ) from None
    return Service(dispatcher).address, kept


def check_served(rows: Sequence[Row], cache: str) -> None:
    """Refuse what cannot go through a data service.

    Args:
        rows: The training images.
        cache: Where decoded images are to be kept.

    Raises:
        ConfigError: They are behind URLs or need Python to be decoded, or are to be kept here.
    """
    url = next((row.path for row in rows if is_url(row.path)), None)
    if url or arrays.channels(rows):
        found = repr(url) if url else f"{rows[0].path!r}, which Python decodes"
        raise ConfigError(
            "A data service reads 8-bit images from disks, in TensorFlow alone. Received: "
            f"data_service with {found}. Put such images there, or leave --data-service out."
        )
    if cache in ("memory", "disk"):
        raise ConfigError(
            "A data service decodes in other processes, and this one can keep nothing of it. "
            f"Received: data_service with cache={cache!r}. Use --cache none, or leave "
            "--data-service out."
        )


class _Waiting:
    """Batches that came before their turn, and how long the next one may take."""

    def __init__(self, service: Service, arrivals: _Arrivals) -> None:
        self._service, self._arrivals = service, arrivals
        self._early: dict[int, tuple[float, Any]] = {}  # with the time at which they came
        self._most = _FEW
        self._longest: float | None = None

    def until(self, number: int) -> Any | None:
        """Return a batch; None if others come, and it does not.

        Raises:
            ResourceError: Nothing has come.
            Gone: Nothing comes any more.
        """
        asked = heard = time.monotonic()
        while number not in self._early:
            now = time.monotonic()
            if len(self._early) >= self._most or (now - asked > _SOON_S and self._has_gap(now)):
                return None
            if now - heard > self._patience:
                raise self._silent(f"nothing for {now - heard:.0f} s")
            try:
                found = self._arrivals.take()
            except queue.Empty:
                continue
            except tf.errors.OpError as error:
                said = " ".join(error.message.split())[:200]
                raise self._silent(f"{type(error).__name__}: {said}") from None
            self._longest = max(self._longest or 0.0, time.monotonic() - heard)
            heard = time.monotonic()
            came, *batch = found
            if int(came) >= number:  # else it was made here in the meantime
                self._early[int(came)] = heard, tuple(batch)
                size = sum(part.shape.num_elements() * part.dtype.size for part in batch)
                self._most = max(_FEW, int(_SHARE * memory() / max(size, 1)))
        return self._early.pop(number)[1]

    def _has_gap(self, now: float) -> bool:
        """Return whether a batch waits for its turn too long for one before it to come yet."""
        return any(now - since > _GAP_S for since, _ in self._early.values())

    @property
    def _patience(self) -> float:
        if self._longest is None:
            return self._service.wait_s
        return max(self._service.patience_s, 2 * self._longest)

    def _silent(self, received: str) -> Interrupted | ResourceError:
        address = self._service.address
        if self._longest is None:
            return ResourceError(
                "A data service must answer with a worker of this TensorFlow. Received: "
                f"{received} from {address}. See whether its workers run, and can be reached from "
                "here: kresnet data serve"
            )
        return Gone(
            f"A data service must stay until the end. Received: {received} from {address}. Start "
            "it again; the training goes on from the last saved state."
        )


class _Arrivals:
    """What a service sends, taken in by a thread: TensorFlow waits without end, and we do not."""

    def __init__(self, address: str, dataset: tf.data.Dataset) -> None:
        self._found: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._over = threading.Event()
        reading = threading.Thread(
            target=self._read, args=(address, dataset), name="data-service", daemon=True
        )
        reading.start()

    def take(self) -> Any:
        """Return the next thing that comes.

        Raises:
            queue.Empty: Nothing has, for a moment.
            tf.errors.OpError: The service says so.
        """
        found = self._found.get(timeout=_LOOK_S)
        if isinstance(found, Exception):
            raise found
        return found

    def end(self) -> None:
        """Take in no more."""
        self._over.set()

    def _read(self, address: str, dataset: tf.data.Dataset) -> None:
        try:
            for one in _distributed(dataset, address):
                self._put(one)
                if self._over.is_set():
                    return
        except Exception as error:
            self._put(error)

    def _put(self, thing: Any) -> None:
        while not self._over.is_set():
            with suppress(queue.Full):
                self._found.put(thing, timeout=_LOOK_S)
                return


def _numbered(one: One, start: int) -> tf.data.Dataset:
    """Return the batches with their numbers; without images where they cannot be made."""

    def numbered(number: tf.Tensor) -> tf.data.Dataset:
        batch = one(number)
        blank = tf.nest.map_structure(
            lambda spec: tf.zeros([0, *spec.shape[1:]], spec.dtype), batch.element_spec
        )
        told = batch.ignore_errors().concatenate(tf.data.Dataset.from_tensors(blank)).take(1)
        return told.map(tf.autograph.experimental.do_not_convert(lambda *made: (number, *made)))

    return tf.data.Dataset.range(start, 2**60).interleave(
        tf.autograph.experimental.do_not_convert(numbered),
        cycle_length=2,  # while the last images of one are made, the next is begun
        num_parallel_calls=2,
        deterministic=False,
    )


def _distributed(dataset: tf.data.Dataset, address: str) -> tf.data.Dataset:
    service = tf.data.experimental.service
    options = tf.data.Options()
    options.autotune.enabled = False  # it runs on behind the last batch
    return dataset.apply(
        service.distribute(
            processing_mode=service.ShardingPolicy.DYNAMIC,
            service=address,
            max_outstanding_requests=_REQUESTS,
            compression=None,  # numbers of 32 bits shrink little, and it takes time here
        )
    ).with_options(options)
