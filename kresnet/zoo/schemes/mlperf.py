"""Names of MLPerf Tiny's ResNet-8: Keras' automatic ones, numbered in the order of creation.

Seen in the file `pretrainedResnet.h5` of mlcommons/tiny. Images are 0..255, epsilon is 1e-3,
every convolution has a bias, and no norm is behind those of the shortcuts.
"""

from __future__ import annotations

import re

import numpy as np

from kresnet.zoo.cards import Preprocessing
from kresnet.zoo.schemes.source import Arrays, Layers, Scheme, Source, keras_sources

_EPSILON = 1e-3
_RAW = Preprocessing(image_size=32, crop_pct=1.0, mean=(0.0,) * 3, std=(1 / 255,) * 3)

# Which convolution and which norm of theirs, counted from 0, a layer of ours is.
_NUMBERS: dict[str, tuple[int, int | None]] = {
    "stem_conv": (0, 0),
    "stage1_block1_conv1": (1, 1),
    "stage1_block1_conv2": (2, 2),
    "stage2_block1_conv1": (3, 3),
    "stage2_block1_conv2": (4, 4),
    "stage2_block1_shortcut": (5, None),
    "stage3_block1_conv1": (6, 5),
    "stage3_block1_conv2": (7, 6),
    "stage3_block1_shortcut": (8, None),
}


def _sources(layer: str, layers: Layers, arrays: Arrays) -> dict[str, Source]:
    ours = layers.get(layer)
    if layer == "head":
        return keras_sources(_numbered("dense", arrays)[0])
    if layer not in _NUMBERS:
        return {}
    number, norm_number = _NUMBERS[layer]
    conv = _numbered("conv2d", arrays)[number]
    if norm_number is not None:
        norm = _numbered("batch_normalization", arrays)[norm_number]
        return keras_sources(conv, norm, epsilon=_EPSILON, ours=ours, biased=True)
    bias = (f"{conv}/bias",)
    variance = 1.0 - getattr(ours, "epsilon", 0.0)  # gamma / sqrt(variance + epsilon) is 1
    return keras_sources(conv) | {
        "gamma": Source(bias, np.ones_like),
        "beta": Source(bias),
        "moving_mean": Source(bias, np.zeros_like),
        "moving_variance": Source(bias, lambda b: np.full_like(b, variance)),
    }


def _numbered(kind: str, arrays: Arrays) -> list[str]:
    """Return the names of the layers of one kind in the order of their numbers."""
    names = {key.rpartition("/")[0] for key in arrays}
    found = [match for name in names if (match := re.fullmatch(rf"{kind}(?:_(\d+))?", name))]
    return [match[0] for match in sorted(found, key=lambda match: int(match[1] or 0))]


def _recognises(arrays: Arrays) -> bool:
    kinds = ("conv2d", "batch_normalization", "dense")
    return [len(_numbered(kind, arrays)) for kind in kinds] == [9, 7, 1]


MLPERF = Scheme(
    name="MLPerf Tiny",
    recognises=_recognises,
    sources=_sources,
    preprocessing=lambda model, arrays: _RAW,
)
