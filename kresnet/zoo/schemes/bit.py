"""Names of Big Transfer (Kolesnikov et al. 2019, arXiv:1912.11370): npz files and h5 twins.

Both hold kernels before their standardisation. Seen in the source: `bit_pytorch/models.py` and
`bit_tf2/models.py` of google-research/big_transfer.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from kresnet.zoo.cards import Preprocessing
from kresnet.zoo.schemes.source import Arrays, Layers, Scheme, Source, place

if TYPE_CHECKING:
    import keras

_UNIT = re.compile(r"(?:.*/)?(block\d+/unit\d+/(?:[abc]|a/proj)/\w+/\w+)")
_HALF = (0.5, 0.5, 0.5)
_CLASSES_OF_IMAGENET21K = 21843

# Which unit of theirs a part of ours is: their units are norm, then convolution; ours the reverse.
_UNITS = {
    "preact": "a/group_norm",
    "conv1": "a/standardized_conv2d",
    "conv1_norm": "b/group_norm",
    "conv2": "b/standardized_conv2d",
    "conv2_norm": "c/group_norm",
    "conv3": "c/standardized_conv2d",
    "shortcut": "a/proj/standardized_conv2d",
}


def _sources(layer: str, layers: Layers, arrays: Arrays) -> dict[str, Source]:
    keys = _keys(arrays)
    where = place(layer)
    if where and where.part in _UNITS:
        prefix = f"block{where.stage}/unit{where.block:02d}/{_UNITS[where.part]}"
    elif layer in ("stem_conv", "norm", "head"):
        prefix = layer
    else:
        return {}
    return {
        variable: Source(
            (keys.get(f"{prefix}/{variable}", f"{prefix}/{variable}"),),
            _as_dense if layer == "head" else np.asarray,
        )
        for variable in ("kernel", "bias", "gamma", "beta")
    }


def _keys(arrays: Arrays) -> dict[str, str]:
    """Return the name in the file of each array, by what is common to the names of both kinds."""
    keys = {}
    for key in arrays:
        unit = _UNIT.fullmatch(key)
        variable = key.rpartition("/")[2]
        if unit:
            keys[unit[1]] = key
        elif "root_block/" in key:
            keys[f"stem_conv/{variable}"] = key
        elif "head/" in key:
            keys[f"head/{variable}"] = key
        elif key.removeprefix("resnet/") == f"group_norm/{variable}":
            keys[f"norm/{variable}"] = key
    return keys


def _as_dense(array: np.ndarray) -> np.ndarray:
    """Take the kernel (1, 1, in, out) of a head that is a convolution as (in, out)."""
    return array[0, 0] if array.shape[:-2] == (1, 1) else array


def _preprocessing(model: keras.Model, arrays: Arrays) -> Preprocessing:
    """Return timm's: Google squeezes images into a square instead of cropping one."""
    bias = arrays.get(_keys(arrays).get("head/bias", ""))
    if bias is not None and bias.shape == (_CLASSES_OF_IMAGENET21K,):
        return Preprocessing(mean=_HALF, std=_HALF)
    return Preprocessing(image_size=448, crop_pct=1.0, mean=_HALF, std=_HALF)


BIT = Scheme(
    name="BiT",
    recognises=lambda arrays: any("root_block/" in key for key in arrays),
    sources=_sources,
    preprocessing=_preprocessing,
)
