"""Our own names, "layer/variable"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kresnet.zoo.cards import Preprocessing
from kresnet.zoo.schemes.source import Arrays, Layers, Scheme, Source, usual_preprocessing

if TYPE_CHECKING:
    import keras


def _sources(layer: str, layers: Layers, arrays: Arrays) -> dict[str, Source]:
    variables = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
    return {v: Source((f"{layer}/{v}",)) for v in variables}


def _preprocessing(model: keras.Model, arrays: Arrays) -> Preprocessing:
    """Return what the model says: the names do not tell."""
    return getattr(model, "preprocessing", None) or usual_preprocessing(model, arrays)


KRESNET = Scheme(
    name="kresnet",
    recognises=lambda arrays: any(key.startswith("stem_conv") for key in arrays),
    sources=_sources,
    preprocessing=_preprocessing,
)
