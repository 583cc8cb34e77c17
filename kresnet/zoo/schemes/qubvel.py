"""Names of qubvel/classification_models, which has MXNet's pre-activation ResNets.

Seen in the source: `classification_models/models/resnet.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kresnet.zoo.cards import Preprocessing
from kresnet.zoo.schemes.source import Arrays, Layers, Scheme, Source, keras_sources, place

if TYPE_CHECKING:
    import keras

_EPSILON = 2e-5


def _sources(layer: str, layers: Layers, arrays: Arrays) -> dict[str, Source]:
    ours = layers.get(layer)
    if layer == "head":
        return keras_sources("fc1")
    if layer == "stem_conv":
        return keras_sources("conv0", "bn0", epsilon=_EPSILON, ours=ours)
    if layer == "norm":
        return keras_sources(None, "bn1", epsilon=_EPSILON, ours=ours)
    where = place(layer)
    if where is None:
        return {}
    prefix = f"stage{where.stage}_unit{where.block}"
    if where.part == "preact":
        return keras_sources(None, f"{prefix}_bn1", epsilon=_EPSILON, ours=ours)
    if where.part == "shortcut":
        return keras_sources(f"{prefix}_sc")
    index = where.part.removeprefix("conv")
    norm = f"{prefix}_bn{int(index) + 1}" if index.isdecimal() else None
    return keras_sources(f"{prefix}_conv{index}", norm, epsilon=_EPSILON, ours=ours)


def _preprocessing(model: keras.Model, arrays: Arrays) -> Preprocessing:
    """Return the norm of the images, `bn_data`, which has no gamma; images are 0..255."""
    names = ("beta", "moving_mean", "moving_variance")
    parts = [arrays.get(f"bn_data/{name}") for name in names]
    if any(part is None or part.shape != (3,) for part in parts):
        return Preprocessing(mean=(0.0,) * 3, std=(1 / 255,) * 3)
    beta, mean, variance = (np.asarray(part, np.float64) for part in parts)
    deviation = np.sqrt(np.maximum(variance, 0.0) + _EPSILON)
    return Preprocessing(
        mean=tuple(float(m) for m in (mean - beta * deviation) / 255),
        std=tuple(float(s) for s in deviation / 255),
    )


QUBVEL = Scheme(
    name="qubvel",
    recognises=lambda arrays: "conv0/kernel" in arrays and "bn0/gamma" in arrays,
    sources=_sources,
    preprocessing=_preprocessing,
    is_spare=lambda key: key.startswith("bn_data/"),
)
