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
from typing import IO, Annotated, Final

import typer

from kresnet.errors import ConfigError, Interrupted
from kresnet.machine import free_addresses, own_cores, shares, staying_on

_GRACE_S: Final = 120.0
"""Seconds that the others have to end by themselves when one has; then they are asked, and made."""

_LOOK_S: Final = 0.1


def launch(
    command: Annotated[
        list[str], typer.Argument(help="The kresnet command, behind --, as -- train photos/.")
    ],
    workers: Annotated[int, typer.Option(min=1, help="Processes that train together.")] = 2,
    ray: Annotated[
        str | None,
        typer.Option(help="Address of a Ray cluster for the workers, as auto; local starts one."),
    ] = None,
    worker_cpus: Annotated[int, typer.Option(min=1, help="With --ray: cores of a worker.")] = 1,
    worker_gpus: Annotated[int, typer.Option(min=0, help="With --ray: GPUs of a worker.")] = 0,
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
        _on_ray(command, ray, workers=workers, **needs)
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


def _on_ray(command: Sequence[str], ray: str, **options: int) -> None:
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
        [sys.executable, "-m", "kresnet", *command],
        env=env,
        stdin=subprocess.DEVNULL,
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
