"""The search for a better recipe: keras_tuner's oracles ask, a process a trial answers."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from kresnet.errors import ResourceError

if TYPE_CHECKING:
    from kresnet.tune.hypermodel import ResNetHyperModel as ResNetHyperModel
    from kresnet.tune.space import Space as Space

_HOME = {"ResNetHyperModel": "kresnet.tune.hypermodel", "Space": "kresnet.tune.space"}
_NEEDED = {"keras_tuner": "decides on trials", "tensorboard": "is imported by keras_tuner"}

__all__ = sorted(_HOME)


def check_installed() -> None:
    """Refuse to search without the packages of the extra.

    Raises:
        ResourceError: One is not installed; the message says how to get it.
    """
    for package, what in _NEEDED.items():
        if find_spec(package) is None:
            raise ResourceError(
                f"A search needs {package}, which {what}. Received: no such package. "
                "Install it: pip install 'kresnet[tune]'"
            )


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'kresnet.tune' has no attribute {name!r}")
    if name == "ResNetHyperModel":
        check_installed()
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
