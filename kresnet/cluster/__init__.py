"""Ray clusters: how one is reached, and what is said where that fails."""

from __future__ import annotations

import logging
import os
from types import ModuleType

from kresnet.errors import ResourceError
from kresnet.machine import reach


def import_ray() -> ModuleType:
    """Import Ray.

    Raises:
        ResourceError: It is not installed; the message says how to.
    """
    # It reports what it is used for to its makers, unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ResourceError(
            f"A cluster needs Ray. Received: {error.name!r} missing. "
            "Install it: pip install 'kresnet[cluster]'"
        ) from None
    return ray


def connect(ray: ModuleType, address: str | None) -> None:
    """Connect to a cluster, or start one of this machine.

    Args:
        ray: From `import_ray`.
        address: Of a cluster, as "auto" or "10.0.0.1:6379"; None starts one.

    Raises:
        ResourceError: There is none.
    """
    try:
        if address:
            reach(address)  # Ray itself would try for many minutes
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({} if address else {"include_dashboard": False}),
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ResourceError(
            f"There must be a Ray cluster at its address. Received: ray={address!r} "
            f"({line_of(error)}). Start one with: ray start --head"
        ) from None


def line_of(error: BaseException) -> str:
    """Return an error in one line."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}"[:300]
