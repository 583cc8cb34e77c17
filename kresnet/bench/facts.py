"""What the numbers of a bench depend on: the machine and the versions of what was run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from kresnet.machine import cores, processor

_FLAGS: Final = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def machine() -> dict[str, Any]:
    """Return what is known of this machine, as JSON types."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="utf-8").split() if cpuinfo.is_file() else []
    return {
        "processor": processor(),
        "cores": cores(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def version(package: str) -> str:
    """Return the installed version of a package, by its name in imports; "unknown" if it has none.

    Nothing is imported for it.
    """
    for name in (package, f"{package}-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def missing(packages: Iterable[str]) -> str | None:
    """Say which packages are not installed; None if all are."""
    names = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(names)}" if names else None
