"""What this machine is, where it decides how fast something goes or which bits come out."""

from __future__ import annotations

import os
import platform
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

CORES: Final = "KRESNET_CORES"
"""Environment variable: the cores to stay on, as "0,1"; empty or absent is all."""

_REACH_S: Final = 10.0  # for what listens to answer


def cores() -> int:
    """Return how many processor cores this process may use."""
    return len(own_cores())


def own_cores() -> list[int]:
    """Return the numbers of the processor cores that this process may use, growing."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def stay_on_cores() -> None:
    """Keep this process to the cores that it was given, before anything counts them."""
    given = {int(core) for core in os.environ.get(CORES, "").split(",") if core}
    if given and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, given)


def end_with_input(code: int) -> None:
    """End this process with an exit code as soon as its standard input ends.

    It is a pipe from who started it, so nothing is left running of what was killed.
    """

    def wait() -> None:
        while os.read(0, 4096):  # not sys.stdin, whose lock a thread must not hold at the end
            pass
        os._exit(code)

    threading.Thread(target=wait, daemon=True).start()


def leashed(command: Sequence[str]) -> list[str]:
    """Return a command of kresnet as a program that ends with its standard input.

    Args:
        command: What follows `kresnet`.

    Returns:
        To be started with a pipe as its input; its exit code is then that of an interruption.
    """
    program = (
        "import sys; from kresnet.errors import Interrupted; "
        "from kresnet.machine import end_with_input; end_with_input(Interrupted.exit_code); "
        "sys.argv[0] = 'kresnet'; from kresnet.cli import main; main()"
    )
    return [sys.executable, "-c", program, *command]


def memory() -> int:
    """Return the bytes of memory that this process may use, by the machine and its container."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup 2 and 1
        try:
            total = min(total, int(Path("/sys/fs/cgroup", limit).read_text("ascii")))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return total


def processor() -> str:
    """Name the model of the processor, as exactly as the system does."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    said = {name.strip(): value.strip() for name, value in pairs}
    known = [said[name] for name in ("model name", "cpu family", "model") if name in said]
    return " ".join(known) or platform.processor() or platform.machine()


def free_addresses(count: int) -> list[str]:
    """Return addresses with free ports on this machine's loopback."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return addresses


def own_address() -> str:
    """Return the address by which this machine reaches others, its loopback if it reaches none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect(("192.0.2.1", 9))  # of no machine (RFC 5737), and nothing is sent
        except OSError:
            return "127.0.0.1"
        return str(way.getsockname()[0])


def reach(address: str) -> None:
    """Raise an OSError where nothing listens at "host:port", with or without a protocol."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()


def shares(things: Sequence[Any], count: int) -> list[Sequence[Any]]:
    """Divide things evenly; where there are too few for all, each has all of them."""
    if len(things) < count:
        return [things] * count
    return [things[len(things) * k // count : len(things) * (k + 1) // count] for k in range(count)]


@contextmanager
def staying_on(cores: Sequence[int]) -> Iterator[None]:
    """Have what is started in here stay on some cores."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Place:
    """What one of several processes side by side has for itself: cores, and a GPU if there are any.

    Args:
        number: Of the process, from 0.
        cores: Numbers of the cores that all share.
        jobs: Processes side by side.
        gpus: GPUs of this machine; each process is given one in turn.
    """

    def __init__(self, number: int, cores: Sequence[int], jobs: int, gpus: int) -> None:
        each = max(len(cores) // jobs, 1)
        first = number * each % max(len(cores) - each + 1, 1)
        self.cores = cores[first : first + each]
        self.gpu = number % gpus if gpus else None

    def environment(self) -> dict[str, str]:
        """Return the environment of a process here, which is to call `stay_on_cores`."""
        threads = str(len(self.cores))
        own = {
            CORES: ",".join(map(str, self.cores)),
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",
            "PYTHONUNBUFFERED": "1",
        }
        for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
            own[name] = os.environ.get(name, threads)
        if self.gpu is not None:
            known = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
            own["CUDA_VISIBLE_DEVICES"] = known[self.gpu] if known else str(self.gpu)
        return dict(os.environ) | own
