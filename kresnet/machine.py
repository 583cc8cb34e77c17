"""What this machine is, where it decides how fast something goes or which bits come out."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
