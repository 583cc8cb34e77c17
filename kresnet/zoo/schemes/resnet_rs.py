"""Names of tf_keras.applications' ResNet-RS.

Seen in the source: `tf_keras/src/applications/resnet_rs.py`, version 2.21.
"""

from __future__ import annotations

import re

from kresnet.zoo.cards import Preprocessing
from kresnet.zoo.schemes.source import Arrays, Layers, Scheme, Source, keras_sources, place

_EPSILON = 1e-5
_STEM = re.compile(r"(.*)_stem_conv_1/kernel")
_PARTS = {
    "conv1": ("_conv_1", "batch_norm_1"),  # there is no underscore before it
    "conv2": ("_conv_2", "_batch_norm_2"),
    "conv3": ("_conv_3", "_batch_norm_3"),
    "shortcut": ("_projection_conv", "_projection_batch_norm"),
    "se_fc1": ("_se_se_reduce", None),
    "se_fc2": ("_se_se_expand", None),
}
_STEM_PARTS = {"stem_conv1": 1, "stem_conv2": 2, "stem_conv3": 3, "stem_pool": 4}


def _sources(layer: str, layers: Layers, arrays: Arrays) -> dict[str, Source]:
    ours, where = layers.get(layer), place(layer)
    if layer == "head":
        return keras_sources("predictions")
    if layer in _STEM_PARTS:
        prefix, number = _stem(arrays), _STEM_PARTS[layer]
        conv, norm = f"{prefix}_stem_conv_{number}", f"{prefix}_stem_batch_norm_{number}"
        return keras_sources(conv, norm, epsilon=_EPSILON, ours=ours)
    if where is None or where.part not in _PARTS:
        return {}
    block = f"BlockGroup{where.stage + 1}__block_{where.block - 1}_"
    conv_part, norm_part = _PARTS[where.part]
    return keras_sources(
        f"{block}{conv_part}",
        norm_part and f"{block}{norm_part}",
        epsilon=_EPSILON,
        ours=ours,
    )


def _stem(arrays: Arrays) -> str:
    """Return what the names of the stem begin with: "stem_1", or "stem_2" of a second model."""
    return next((match[1] for key in arrays if (match := _STEM.fullmatch(key))), "stem_1")


RESNET_RS = Scheme(
    name="ResNet-RS",
    recognises=lambda arrays: any(_STEM.fullmatch(key) for key in arrays),
    sources=_sources,
    preprocessing=lambda model, arrays: Preprocessing(interpolation="bicubic"),
    is_spare=lambda key: key.startswith("normalization"),
)
