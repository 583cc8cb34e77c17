"""The command that starts the workers of one training, on this machine or on a cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Annotated, Any, Final

import typer

from kresnet.cli.options import RayWorkers, WorkerCpus, WorkerGpus
from kresnet.errors import ConfigError, Interrupted
from kresnet.machine import free_addresses, leashed, own_cores, shares, staying_on

_GRACE_S: Final = 120.0
"""Seconds that the others have to end by themselves when one has; then they are asked, and made."""

WORKERS: Final = 2

OF_RAY: Final = ("ray", "workers", "worker_cpus", "worker_gpus")
"""The parameters of a command that say where its workers are; they themselves are not told."""

_LOOK_S: Final = 0.1


def launch(
    command: Annotated[
        list[str], typer.Argument(help="The kresnet command, behind --, as -- train photos/.")
    ],
    workers: Annotated[int, typer.Option(min=1, help="Processes that train together.")] = WORKERS,
    ray: RayWorkers = None,
    worker_cpus: WorkerCpus = 1,
    worker_gpus: WorkerGpus = 0,
    restarts: Annotated[
        int, typer.Option(min=0, help="With --ray: how often it goes on after losing a machine.")
    ] = 3,
) -> None:
    """Start the workers of one training, here or on a cluster: launch --workers 2 -- train photos/.

    On a cluster, each worker has a place of its own; where a machine is lost, as many as there is
    room for go on from the last saved state.
    """
    if command[0] not in ("train", "resume"):
        raise ConfigError(
            "Workers share a training: `train` or `resume`. "
            f"Received: {command[0]!r}. Write kresnet launch --workers 2 -- train photos/."
        )
    if ray is not None:
        needs = {"cpus": worker_cpus, "gpus": worker_gpus, "restarts": restarts}
        on_ray(command, ray, workers=workers, **needs)
        return
    gpus = _gpus()
    if 0 < len(gpus) < workers:
        raise ConfigError(
            f"Each worker needs a GPU of its own. Received: workers={workers}, and {len(gpus)} "
            "GPUs. Start fewer, or set CUDA_VISIBLE_DEVICES= for none."
        )
    addresses = free_addresses(workers)
    cores, own_gpus = shares(own_cores(), workers), shares(gpus, workers)
    processes = []
    for rank in range(workers):
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
        own = {"TF_CONFIG": json.dumps(cluster), "PYTHONUNBUFFERED": "1"}
        if own_gpus[rank]:
            own["CUDA_VISIBLE_DEVICES"] = ",".join(own_gpus[rank])
        with staying_on(cores[rank]):
            processes.append(_start(rank, command, os.environ | own))
    with _forwarding(processes):
        _wait(processes)
    for thread in threading.enumerate():
        if thread.name.startswith("worker-"):
            thread.join()
    if code := worst([process.returncode for process in processes]):
        raise typer.Exit(code)


def handed_over(
    context: typer.Context, ray: str | None, *, workers: int | None, cpus: int, gpus: int
) -> bool:
    """Start the command that is under way with workers on a cluster, if one was named.

    Args:
        context: Of the command, whose own options of that kind are `OF_RAY`.
        ray: Address of the cluster; None is none.
        workers: As in `launch`, and as many where it is None.
        cpus: Cores of each.
        gpus: GPUs of each.

    Returns:
        Whether it has been done, to its end.

    Raises:
        ConfigError: Workers are asked for without a cluster.
        typer.Exit: It has ended with another code than 0.
    """
    if ray is None:
        if (workers, cpus, gpus) != (None, 1, 0):
            raise ConfigError(
                "`--workers`, `--worker-cpus` and `--worker-gpus` go with `--ray`. Received: "
                f"workers={workers}, cpus={cpus}, gpus={gpus} without it. Name a cluster, or "
                "start them here: kresnet launch --workers 2 -- train photos/"
            )
        return False
    on_ray(_said(context), ray, workers=workers or WORKERS, cpus=cpus, gpus=gpus)
    return True


def _said(context: typer.Context) -> list[str]:
    """Return the command that is under way as it was said, without what places its workers."""
    words, plain = [str(context.info_name)], []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is None or source.name != "COMMANDLINE" or parameter.name in OF_RAY:
            continue
        value: Any = context.params[parameter.name or ""]
        option, *_ = parameter.opts if value is not False else parameter.secondary_opts
        if parameter.param_type_name == "argument":
            plain.append(str(value))
        elif isinstance(value, bool):
            words.append(option)
        else:
            values = value if isinstance(value, list | tuple) else [value]
            words.extend(f"{option}={one}" for one in values)
    return [*words, "--", *plain] if plain else words


def on_ray(command: Sequence[str], ray: str, **options: int) -> None:
    """Run a command with workers on a Ray cluster, and pass on what they write.

    Args:
        command: What follows `kresnet`.
        ray: Address of the cluster; "local" starts one of this machine.
        **options: As in `kresnet.cluster.training.run_on_ray`.

    Raises:
        typer.Exit: It has ended with another code than 0.
    """
    from kresnet.cluster.training import run_on_ray
    from kresnet.console import Console

    def say(rank: int, stream: str, line: str) -> None:
        if rank == 0 and stream == "stdout":
            typer.echo(line)
        else:
            typer.echo(f"[{rank}] {line}", err=True)

    with Console() as console:
        address = None if ray == "local" else ray
        code = run_on_ray(command, address, say=say, tell=console.line, **options)
    if code:
        raise typer.Exit(code)


def worst(codes: Sequence[int]) -> int:
    """Return the exit code that says most of a training.

    A mistake counts most. Where a worker was killed, the others end with 5, and so does this: the
    training can be gone on with.

    Args:
        codes: Of the processes; minus the number of a signal that has ended one.
    """
    mistakes = [code for code in codes if code > 0 and code != Interrupted.exit_code]
    if mistakes:
        return mistakes[0]
    if any(code == Interrupted.exit_code for code in codes):
        return Interrupted.exit_code
    return max((128 - code for code in codes if code), default=0)


def _gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    folder = Path("/proc/driver/nvidia/gpus")
    return [str(k) for k, _ in enumerate(folder.iterdir())] if folder.is_dir() else []


def _start(rank: int, command: Sequence[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a worker whose lines begin with its number; the chief's results stay as they are."""
    process = subprocess.Popen(
        leashed(command),
        env=env,
        stdin=subprocess.PIPE,  # which ends with this process, and the worker with it
        stdout=None if rank == 0 else subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C comes once, from here
    )
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            arguments = (stream, f"[{rank}] ".encode())
            threading.Thread(target=_say, args=arguments, name=f"worker-{rank}").start()
    return process


def _say(stream: IO[bytes], prefix: bytes) -> None:
    for line in stream:
        sys.stderr.buffer.write(prefix + line)
        sys.stderr.buffer.flush()


@contextmanager
def _forwarding(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Pass Ctrl-C and SIGTERM on to the workers, which save and end."""

    def forward(kind: int, frame: FrameType | None) -> None:
        _tell(processes, signal.SIGTERM)

    before = {kind: signal.signal(kind, forward) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _tell(processes: Sequence[subprocess.Popen[bytes]], kind: signal.Signals) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(kind)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for the chief, and a while for the others once one of them has failed or all is done."""
    ended: float | None = None
    asked = False
    while any(process.poll() is None for process in processes):
        now = time.monotonic()
        if ended is None and (
            processes[0].poll() is not None or any(process.poll() for process in processes)
        ):
            ended = now
        if ended is not None and now - ended > _GRACE_S * (1 + asked):
            _tell(processes, signal.SIGKILL if asked else signal.SIGTERM)
            asked = True
        time.sleep(_LOOK_S)
