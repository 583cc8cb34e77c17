"""kresnet: the ResNet workbench for Keras 3 and TensorFlow.

Public names are resolved on first use, so `import kresnet` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kresnet.errors import KresnetError as KresnetError
    from kresnet.train.recipe import Recipe as Recipe
    from kresnet.workflow import Result as Result
    from kresnet.workflow import fit as fit
    from kresnet.workflow import resume as resume
    from kresnet.zoo import VARIANTS as VARIANTS
    from kresnet.zoo import build as build
    from kresnet.zoo import features as features
    from kresnet.zoo import fold as fold
    from kresnet.zoo import freeze_norms as freeze_norms
    from kresnet.zoo import load_weights as load_weights
    from kresnet.zoo import to_keras as to_keras
    from kresnet.zoo import unfreeze_norms as unfreeze_norms

__version__ = "0.1.0"

_ZOO = (
    *("VARIANTS", "build", "features", "fold", "freeze_norms", "load_weights", "to_keras"),
    "unfreeze_norms",
)
_HOME = {
    "KresnetError": "kresnet.errors",
    "Recipe": "kresnet.train.recipe",
    "Result": "kresnet.workflow",
    "fit": "kresnet.workflow",
    "resume": "kresnet.workflow",
    **dict.fromkeys(_ZOO, "kresnet.zoo"),
}
_PACKAGES = ("tune", "zoo")

__all__ = [*sorted(_HOME), "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _PACKAGES:
        return import_module(f"kresnet.{name}")
    raise AttributeError(f"module 'kresnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES])
