"""What a ResNet is: keras only, every Keras backend.

Names are resolved on first use: the table of variants can be read without loading Keras.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kresnet.zoo.cards import Preprocessing as Preprocessing
    from kresnet.zoo.cards import WeightsCard as WeightsCard
    from kresnet.zoo.cards import card_for as card_for
    from kresnet.zoo.conv import Conv as Conv
    from kresnet.zoo.conv import ConvNorm as ConvNorm
    from kresnet.zoo.conv import Norm as Norm
    from kresnet.zoo.convert import LoadReport as LoadReport
    from kresnet.zoo.convert import load_weights as load_weights
    from kresnet.zoo.convert import save_torch as save_torch
    from kresnet.zoo.convert import to_torch as to_torch
    from kresnet.zoo.model import build as build
    from kresnet.zoo.norms import freeze_norms as freeze_norms
    from kresnet.zoo.norms import unfreeze_norms as unfreeze_norms
    from kresnet.zoo.rewrite import fold as fold
    from kresnet.zoo.rewrite import to_keras as to_keras
    from kresnet.zoo.rewrite import with_dtype as with_dtype
    from kresnet.zoo.size import Size as Size
    from kresnet.zoo.size import measure as measure
    from kresnet.zoo.taps import features as features
    from kresnet.zoo.variants import VARIANTS as VARIANTS
    from kresnet.zoo.variants import ResNetConfig as ResNetConfig

_HOME = {
    "VARIANTS": "variants",
    "Conv": "conv",
    "ConvNorm": "conv",
    "LoadReport": "convert",
    "Norm": "conv",
    "Preprocessing": "cards",
    "ResNetConfig": "variants",
    "Size": "size",
    "WeightsCard": "cards",
    "build": "model",
    "card_for": "cards",
    "features": "taps",
    "fold": "rewrite",
    "freeze_norms": "norms",
    "load_weights": "convert",
    "measure": "size",
    "save_torch": "convert",
    "to_keras": "rewrite",
    "to_torch": "convert",
    "unfreeze_norms": "norms",
    "with_dtype": "rewrite",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
