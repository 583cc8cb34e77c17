"""Kernels in a quarter of their room: eight bits a number, and a scale for each output channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from kresnet.zoo.torch_file import Damaged

FORMAT: Final = "kresnet-int8"
"""What the metadata of such a safetensors file say under "format"."""

_SCALE: Final = "_scale"
_LEVELS: Final = 127


def packed(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Round kernels to int8; the rest stays float32.

    Args:
        arrays: By name; the last axis of what is named `.../kernel` is the output channel's.

    Returns:
        The arrays, and beside each kernel its scales float32 `(channels,)` as `.../kernel_scale`.
    """
    small: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        array = np.asarray(array, np.float32)
        if not name.endswith("/kernel"):
            small[name] = array
            continue
        scale = np.abs(array).max(tuple(range(array.ndim - 1))) / _LEVELS
        steps = np.rint(array / np.where(scale == 0, 1, scale))
        small[name] = steps.astype(np.int8)
        small[name + _SCALE] = scale.astype(np.float32)
    return small


def expanded(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Undo `packed`: every array float32, up to half a step of its channel.

    Raises:
        Damaged: A kernel has no scales, or not one for each channel.
    """
    whole: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if array.dtype == np.int8:
            scale = arrays.get(name + _SCALE)
            if scale is None or scale.shape != array.shape[-1:]:
                raise Damaged(f"{name!r} does not have a scale for each channel")
            whole[name] = array.astype(np.float32) * scale
        elif not name.endswith(_SCALE):
            whole[name] = array
    return whole
