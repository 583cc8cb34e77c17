"""Residual blocks: functions from tensor to tensor.

He et al. 2015 (arXiv:1512.03385): a block learns `F(x)` and returns `relu(F(x) + x)`. Where the
shape changes, the shortcut `x` is subsampled and projected to the new number of channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from kresnet.zoo.layers import ConvNorm, DropPath, PadShortcut
from kresnet.zoo.variants import ResNetConfig


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of one model, with everything they share bound once."""

    dtype: keras.DTypePolicy
    shortcut: str
    zero_init_residual: bool = True

    def conv_norm(
        self, x: Any, filters: int, kernel_size: int, *, strides: int = 1, name: str, **options: Any
    ) -> Any:
        """Convolve and normalise."""
        layer = ConvNorm(
            filters, kernel_size, strides=strides, dtype=self.dtype, name=name, **options
        )
        return layer(x)

    def last_conv_norm(self, x: Any, filters: int, kernel_size: int, *, name: str) -> Any:
        """End a residual branch; its norm starts at gamma 0, so a new block is the identity."""
        gamma = "zeros" if self.zero_init_residual else "ones"
        return self.conv_norm(x, filters, kernel_size, name=name, gamma_initializer=gamma)

    def relu(self, x: Any, *, name: str) -> Any:
        """Apply ReLU."""
        return keras.layers.ReLU(dtype=self.dtype, name=name)(x)

    def match_shape(self, x: Any, filters: int, *, strides: int, name: str) -> Any:
        """Return the shortcut: `x` itself, or `x` brought to the shape of the branch."""
        if strides == 1 and x.shape[-1] == filters:
            return x
        if self.shortcut == "pad":
            return PadShortcut(filters, strides=strides, dtype=self.dtype, name=name)(x)
        return self.conv_norm(x, filters, 1, strides=strides, name=name)

    def add(self, branch: Any, shortcut: Any, *, drop_path: float, name: str) -> Any:
        """Add branch and shortcut, dropping the branch at random while training."""
        if drop_path:
            branch = DropPath(drop_path, dtype=self.dtype, name=f"{name}_drop_path")(branch)
        x = keras.layers.Add(dtype=self.dtype, name=f"{name}_add")([branch, shortcut])
        return self.relu(x, name=f"{name}_out")


def basic_block(
    x: Any, width: int, *, strides: int, drop_path: float, layers: Layers, name: str
) -> Any:
    """3x3 -> 3x3, both `width` wide (the paper's figure 5, left).

    Args:
        x: Features `(b, h, w, c)`.
        width: Filters of both convolutions and channels of the result.
        strides: Stride of the first convolution and of the shortcut.
        drop_path: Probability of dropping the branch in training.
        layers: What the model's layers share.
        name: Prefix of the layer names, as "stage2_block1".

    Returns:
        Features `(b, ceil(h / strides), ceil(w / strides), width)`.
    """
    shortcut = layers.match_shape(x, width, strides=strides, name=f"{name}_shortcut")
    x = layers.conv_norm(x, width, 3, strides=strides, name=f"{name}_conv1")
    x = layers.relu(x, name=f"{name}_relu1")
    x = layers.last_conv_norm(x, width, 3, name=f"{name}_conv2")
    return layers.add(x, shortcut, drop_path=drop_path, name=name)


def bottleneck_block(
    x: Any,
    width: int,
    *,
    strides: int,
    drop_path: float,
    layers: Layers,
    name: str,
    stride_in: str,
) -> Any:
    """1x1 -> 3x3 -> 1x1, narrow in the middle (the paper's figure 5, right).

    Args:
        x: Features `(b, h, w, c)`.
        width: Filters of the first two convolutions; the last has four times as many.
        strides: Stride of the block, carried by the convolution `stride_in` and the shortcut.
        drop_path: Probability of dropping the branch in training.
        layers: What the model's layers share.
        name: Prefix of the layer names, as "stage2_block1".
        stride_in: "conv1" (v1) or "conv2" (v1.5).

    Returns:
        Features `(b, ceil(h / strides), ceil(w / strides), 4 * width)`.
    """
    strides1, strides2 = (strides, 1) if stride_in == "conv1" else (1, strides)
    shortcut = layers.match_shape(x, 4 * width, strides=strides, name=f"{name}_shortcut")
    x = layers.conv_norm(x, width, 1, strides=strides1, name=f"{name}_conv1")
    x = layers.relu(x, name=f"{name}_relu1")
    x = layers.conv_norm(x, width, 3, strides=strides2, name=f"{name}_conv2")
    x = layers.relu(x, name=f"{name}_relu2")
    x = layers.last_conv_norm(x, 4 * width, 1, name=f"{name}_conv3")
    return layers.add(x, shortcut, drop_path=drop_path, name=name)


def block(
    x: Any,
    width: int,
    *,
    config: ResNetConfig,
    strides: int,
    drop_path: float,
    layers: Layers,
    name: str,
) -> Any:
    """Add the kind of block that `config` asks for."""
    if config.block == "basic":
        return basic_block(x, width, strides=strides, drop_path=drop_path, layers=layers, name=name)
    return bottleneck_block(
        x,
        width,
        strides=strides,
        drop_path=drop_path,
        layers=layers,
        name=name,
        stride_in=config.stride_in,
    )
