"""What this machine is, where it decides how fast something goes or which bits come out."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def cores() -> int:
    """Return how many processor cores this process may use."""
    return len(own_cores())


def own_cores() -> list[int]:
    """Return the numbers of the processor cores that this process may use, growing."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


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
