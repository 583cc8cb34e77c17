"""One training on many devices, and on many hosts.

TensorFlow's strategies carry what devices tell each other: MirroredStrategy between the GPUs of one
host, MultiWorkerMirroredStrategy between the processes that TF_CONFIG names. Batches follow from
the seed and their number, and each process computes its rows of the same batch; so the number of
devices changes the time, and not what is learned.

Processes are called workers here, and the first one the chief: it alone reads the sources, writes
the run and does what comes after the epochs. All others get what they need from it, over the wire.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import tensorflow as tf

from kresnet.data.scan import Row
from kresnet.data.service import Service, check_served
from kresnet.errors import ConfigError, Interrupted, ResourceError

if TYPE_CHECKING:
    from kresnet.train.recipe import Recipe

VARIABLE: Final = "TF_CONFIG"
"""Of the environment: what Kubeflow, Vertex AI, SageMaker and `kresnet launch` say of a cluster."""

WAIT: Final = "KRESNET_WAIT_S"
"""Of the environment: seconds that the workers of a training wait for each other, or for a data
service, at the start."""

PATIENCE: Final = "KRESNET_PATIENCE_S"
"""Of the environment: seconds of silence after which a worker, or a data service, is lost."""

_WAIT_S: Final = 600
_PATIENCE_S: Final = 30
_TRIES: Final = 3  # of a worker that is silent, within the patience
_JOBS: Final = ("chief", "master", "worker")
_AWAY: Final = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
)
"""What TensorFlow raises where another worker is not to be reached."""


class Lost(Interrupted):
    """Another worker of the training is gone; it can be gone on with from the last saved state."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What TF_CONFIG says.

    Attributes:
        workers: Job and address of each process, as ("worker", "10.0.0.1:2222"), the chief first.
        rank: Number of this process among them.
    """

    workers: tuple[tuple[str, str], ...]
    rank: int

    @classmethod
    def read(cls, text: str) -> Cluster | None:
        """Read TF_CONFIG; None where it names no other process.

        Raises:
            ConfigError: It is not what TensorFlow expects, or has tasks that train in another way.
        """
        try:
            config = json.loads(text)
            jobs = {name: list(hosts) for name, hosts in config.get("cluster", {}).items()}
            task = config.get("task", {})
            place = str(task.get("type")), int(task.get("index", 0))
        except (ValueError, TypeError, AttributeError):
            raise ConfigError(
                'TF_CONFIG must be as {"cluster": {"worker": ["host:port", ...]}, "task": '
                f'{{"type": "worker", "index": 0}}}}. Received: {text[:200]!r}. Mend or unset it.'
            ) from None
        places = [(job, k) for job in _JOBS for k in range(len(jobs.get(job, ())))]
        if sum(map(len, jobs.values())) < 2 and place[0] in ("None", *_JOBS):
            return None
        strange = sorted({*jobs} - {*_JOBS, "evaluator"})
        if strange or place not in places:
            raise ConfigError(
                "TF_CONFIG must name workers, a chief among them or not, and this process as one "
                f"of them: nothing else takes part. Received: {', '.join(jobs)}, and this one is "
                f"{place[0]} {place[1]}. Leave other tasks out."
            )
        return cls(tuple((job, jobs[job][k]) for job, k in places), places.index(place))


class Team:
    """The devices that train one model together.

    Args:
        strategy: TensorFlow's; None is this process's only device.
        cluster: The processes; None is this one alone.

    Attributes:
        rank: Number of this process, from 0.
        size: How many processes there are.
        replicas: How many devices there are in all of them.
    """

    def __init__(
        self, strategy: tf.distribute.Strategy | None = None, cluster: Cluster | None = None
    ) -> None:
        self.strategy, self._cluster = strategy, cluster
        self.rank = cluster.rank if cluster else 0
        self.size = len(cluster.workers) if cluster else 1
        self.replicas = strategy.num_replicas_in_sync if strategy else 1

    def __str__(self) -> str:
        devices = f"{self.replicas} device{'s' * (self.replicas > 1)}"
        return f"{devices} in {self.size} workers" if self.size > 1 else f"{devices} of this host"

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def worker(self) -> tuple[int, int]:
        """Number of this process and of all, as data is divided by them."""
        return self.rank, self.size

    def scope(self) -> AbstractContextManager[Any]:
        """Have variables that are made in here on every device."""
        return self.strategy.scope() if self.strategy else nullcontext()

    def rows(self, device: Any, count: tf.Tensor) -> slice:
        """Return which of its process's rows of a batch a device computes.

        Args:
            device: TensorFlow's replica context.
            count: Of the rows of the process.
        """
        here = self.replicas // self.size
        number = device.replica_id_in_sync_group % here
        return slice(number * count // here, (number + 1) * count // here)

    def joined(self, mine: np.ndarray, count: int) -> np.ndarray:
        """Return values of `count` images of all workers, in order.

        Args:
            mine: Those of this worker `(n, ...)`: of every image whose number is its rank, counted
                by the number of workers. Of a type of 4 bytes or a multiple.
            count: Of all images.

        Raises:
            Lost: Another worker is gone.
        """
        if self.size == 1:
            return mine
        whole = np.zeros((count, *mine.shape[1:]), mine.dtype)
        whole[self.rank :: self.size] = mine
        return self._sum(whole.view(np.int32)).view(mine.dtype).reshape(whole.shape)

    def any(self, flag: bool) -> bool:
        """Return whether it is so for one of the workers."""
        if self.size == 1:
            return flag
        return bool(self._sum(np.array([flag], np.int32))[0])

    def told(self, value: Any) -> Any:
        """Return what the chief has for a value of JSON types.

        Raises:
            Lost: The chief is gone.
        """
        if self.size == 1:
            return value
        text = json.dumps(value).encode() if self.is_chief else b""
        length = int(self._sum(np.array([len(text)], np.int32))[0])
        padded = np.zeros(-(-length // 4) * 4, np.uint8)
        padded[: len(text)] = np.frombuffer(text, np.uint8)
        return json.loads(self._sum(padded.view(np.int32)).tobytes()[:length])

    def share(self, variables: Sequence[Any]) -> None:
        """Give variables the chief's values on every device; what draws at random draws apart."""
        if self.strategy is None:
            return
        for variable in variables:
            if self.size > 1:
                value = np.array(variable)
                padded = np.zeros(-(-value.nbytes // 4) * 4, np.uint8)
                if self.is_chief:
                    padded[: value.nbytes] = np.frombuffer(value.tobytes(), np.uint8)
                told = self._sum(padded.view(np.int32)).tobytes()[: value.nbytes]
                variable.assign(np.frombuffer(told, value.dtype).reshape(value.shape))
            if variable.name == "seed_generator_state":
                copies = self.strategy.experimental_local_results(variable.value)
                for k, copy in enumerate(copies):
                    copy.assign_add([self.rank * len(copies) + k, 0])

    def leave(self) -> None:
        """Have nothing to do with the others any more, once all have come to this."""
        if self.size > 1:
            self.any(False)
            self._do_not_watch()

    def _do_not_watch(self) -> None:
        strategy: Any = self.strategy
        # TensorFlow's own way to stop waits until it has slept.
        if watch := getattr(strategy.extended, "_check_health_thread_should_stop", None):
            watch.set()

    def _sum(self, values: np.ndarray) -> np.ndarray:
        """Return the sum over the workers of int32: bits of what only one of them has."""
        strategy: Any = self.strategy
        mine = tf.identity(values.reshape(-1))
        with self.together():
            total = strategy.extended._host_cross_device_ops.reduce(
                tf.distribute.ReduceOp.SUM, mine, mine, options=_options()
            )
            return np.array(tf.convert_to_tensor(total))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Name a worker that is lost in what is done together.

        Raises:
            Lost: It is.
        """
        try:
            yield
        except _AWAY as error:
            if self.size == 1:
                raise
            self._do_not_watch()
            raise Lost(self._without(str(error))) from None

    def _without(self, said: str) -> str:
        """Say which worker is gone, as far as TensorFlow knows."""
        found = re.search(r"/job:(\w+)/replica:0/task:(\d+)", said)
        who = "a worker"
        if found and self._cluster:
            alike = [address for job, address in self._cluster.workers if job == found[1]]
            who = f"{found[1]} {found[2]} at {alike[int(found[2])]}"
        return (
            f"All {self.size} workers must stay until the end. Received: {who} is gone or cannot "
            "be reached. Start all of them again, as many as you like: they go on from the last "
            "saved state."
        )


ALONE: Final = Team()
"""This process, on one device."""


def check_team(recipe: Recipe, team: Team) -> None:
    """Refuse what a team cannot train, before anything is done.

    Raises:
        ConfigError: A batch is too small for it, or is computed in parts with norms that learn.
    """
    if recipe.batch_size < 2 * team.replicas:
        raise ConfigError(
            "Each device needs two images of a batch. Received: "
            f"batch_size={recipe.batch_size} for {team.replicas} devices. Raise --batch-size, or "
            "take fewer devices."
        )
    if recipe.accumulate > 1 and recipe.norms == "train" and team.replicas > 1:
        raise ConfigError(
            "Norms that learn see a whole batch on several devices, or its parts on one. Received: "
            f"accumulate={recipe.accumulate} and norms='train' on {team.replicas} devices. Use "
            "--accumulate 1, --set norms=frozen, or one device."
        )


def assembled(text: str | None = None) -> Team:
    """Return the team that this process belongs to, once all of it is there.

    Where there is no TF_CONFIG, it is all GPUs of this process, or all its logical processors where
    a test has made some.

    Args:
        text: In place of what TF_CONFIG has in the environment.

    Raises:
        ConfigError: TF_CONFIG is wrong, or TensorFlow has computed something before.
        ResourceError: The others have not come.
    """
    text = os.environ.get(VARIABLE, "") if text is None else text
    cluster = Cluster.read(text) if text.strip() else None
    if cluster:
        return Team(_of_hosts(cluster), cluster)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return _of_host(tuple(device.name for device in devices))


@cache
def _of_host(devices: tuple[str, ...]) -> Team:
    """Return a process's only team: TensorFlow would take messages of a second for the first's."""
    if len(devices) < 2:
        return ALONE
    return Team(tf.distribute.MirroredStrategy(devices))


def _of_hosts(cluster: Cluster) -> tf.distribute.Strategy:
    from tensorflow.python.distribute.collective_all_reduce_strategy import (
        CollectiveAllReduceExtended as Extended,
    )
    from tensorflow.python.eager import context

    # Without TensorFlow's coordination service its older watch is at work, whose times can be set:
    # what waits for a worker that is lost fails, and we say which one and how to go on.
    context.context().configure_coordination_service(service_type="")
    patience = _seconds(PATIENCE, _PATIENCE_S)
    Extended._check_health_interval = max(patience // (_TRIES + 1), 1)
    Extended._check_health_timeout = max(patience // (_TRIES + 1), 1)
    Extended._check_health_retry_limit = _TRIES
    Extended._check_health_initial_timeout = _seconds(WAIT, _WAIT_S)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=_options())
    except (RuntimeError, tf.errors.OpError) as error:
        if "program startup" in str(error):
            raise ConfigError(
                "Under TF_CONFIG the workers must meet before TensorFlow computes anything. "
                "Received: a process in which it has. Call kresnet first, or unset TF_CONFIG."
            ) from None
        others = ", ".join(address for _, address in cluster.workers)
        raise ResourceError(
            f"All workers of TF_CONFIG must come within {_seconds(WAIT, _WAIT_S)} s. Received: "
            f"{str(error).splitlines()[0]}. See whether {others} run and can reach each other; "
            f"{WAIT} sets another time."
        ) from None


def _options() -> Any:
    """Return how processes talk: in rings over gRPC, or by NCCL between GPUs."""
    kind = tf.distribute.experimental.CommunicationImplementation
    ring = not tf.config.list_physical_devices("GPU")
    return tf.distribute.experimental.CommunicationOptions(
        implementation=kind.RING if ring else kind.AUTO
    )


def service_of(address: str | None) -> Service | None:
    """Return the data service at an address, with the times that the environment has for it.

    Raises:
        ConfigError: It is no address.
    """
    if address is None:
        return None
    wait_s, patience_s = _seconds(WAIT, _WAIT_S), _seconds(PATIENCE, _PATIENCE_S)
    return Service(address, wait_s=wait_s, patience_s=patience_s)


def check_service(recipe: Recipe, rows: Sequence[Row]) -> None:
    """Refuse what a data service cannot make the batches of, before anything is done.

    Args:
        recipe: Of the training.
        rows: Its training images.

    Raises:
        ConfigError: It is the images, or what is to be kept of them.
    """
    check_served(rows, recipe.cache)
    if recipe.cut_cache != "none":
        raise ConfigError(
            "A data service makes new views of images, and `cut_cache` keeps some. Received: "
            f"data_service with cut_cache={recipe.cut_cache!r}. Use --set cut_cache=none, or leave "
            "--data-service out."
        )


def _seconds(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if text and not text.isdigit():
        raise ConfigError(f"`{name}` must be whole seconds. Received: {name}={text!r}.")
    return int(text or default)
