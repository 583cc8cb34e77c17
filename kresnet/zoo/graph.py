"""The layers a ResNet's graph is made of, with everything they share bound once.

`size.SizeLayers` has the same methods and counts instead: blocks are written once for both.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from kresnet.zoo.conv import Conv, ConvNorm, Norm
from kresnet.zoo.layers import BlurPool, DropPath, PadShortcut
from kresnet.zoo.variants import ResNetConfig


@contextmanager
def deep_graph() -> Iterator[None]:
    """Let Keras walk graphs of thousands of layers: it calls itself once for each layer."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 20_000))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


@dataclass(frozen=True, slots=True)
class KerasLayers:
    """Adds layers to a Keras graph.

    Attributes:
        config: The variant; says which norm, and how kernels are padded and standardised.
        dtype: Policy of all layers.
        activation: Name of the activation between the convolutions.
        kernel_regularizer: Of every kernel, or None.
        zero_init_residual: Each branch starts at zero, so a new block is the identity.
    """

    config: ResNetConfig
    dtype: keras.DTypePolicy
    activation: str = "relu"
    kernel_regularizer: Any = None
    zero_init_residual: bool = False

    def conv(
        self,
        x: Any,
        filters: int,
        kernel_size: int,
        *,
        name: str,
        last: bool = False,
        **options: Any,
    ) -> Any:
        """Convolve, with no norm behind; `last` ends a residual branch."""
        if last and self.zero_init_residual:
            options["kernel_initializer"] = "zeros"
        options.setdefault("use_bias", self.config.use_bias)
        return self._conv(Conv, x, filters, kernel_size, name=name, **options)

    def conv_norm(
        self,
        x: Any,
        filters: int,
        kernel_size: int,
        *,
        name: str,
        last: bool = False,
        **options: Any,
    ) -> Any:
        """Convolve and normalise; `last` ends a residual branch."""
        gamma = "zeros" if last and self.zero_init_residual else "ones"
        if self.config.norm == "group":
            x = self._conv(Conv, x, filters, kernel_size, name=name, **options)
            return self._group_norm(x, name=f"{name}_norm", gamma_initializer=gamma)
        options["gamma_initializer"] = gamma
        return self._conv(ConvNorm, x, filters, kernel_size, name=name, **options)

    def _conv(
        self, make: type[Conv], x: Any, filters: int, kernel_size: int, **options: Any
    ) -> Any:
        return make(
            filters,
            kernel_size,
            padding=self.config.padding,
            standardize=self.config.standardize,
            kernel_regularizer=self.kernel_regularizer,
            dtype=self.dtype,
            **options,
        )(x)

    def norm(self, x: Any, *, name: str) -> Any:
        """Normalise."""
        if self.config.norm == "group":
            return self._group_norm(x, name=name)
        return Norm(dtype=self.dtype, name=name)(x)

    def _group_norm(self, x: Any, **options: Any) -> Any:
        return keras.layers.GroupNormalization(32, epsilon=1e-5, dtype=self.dtype, **options)(x)

    def act(self, x: Any, kind: str | None = None, *, name: str) -> Any:
        """Apply an activation: the network's own, or the one given."""
        kind = kind or self.activation
        if kind == "relu":
            return keras.layers.ReLU(dtype=self.dtype, name=name)(x)
        if kind == "leaky_relu":
            return keras.layers.LeakyReLU(0.01, dtype=self.dtype, name=name)(x)
        return keras.layers.Activation(kind, dtype=self.dtype, name=name)(x)

    def gate(
        self, x: Any, filters: int, *, name: str, use_bias: bool = False, groups: int = 1
    ) -> Any:
        """Map the channels of `(b, n, 1, c)` by a dense layer: a 1x1 convolution."""
        return Conv(
            filters,
            1,
            groups=groups,
            use_bias=use_bias,
            kernel_regularizer=self.kernel_regularizer,
            dtype=self.dtype,
            name=name,
        )(x)

    def channel_conv(self, x: Any, kernel_size: int, *, name: str) -> Any:
        """Convolve along the channels of `(b, 1, 1, c)`."""
        channels = x.shape[-1]
        x = keras.layers.Reshape((channels, 1), dtype=self.dtype, name=f"{name}_line")(x)
        x = keras.layers.Conv1D(
            1,
            kernel_size,
            padding="same",
            use_bias=False,
            data_format="channels_last",
            kernel_regularizer=self.kernel_regularizer,
            dtype=self.dtype,
            name=name,
        )(x)
        return keras.layers.Reshape((1, 1, channels), dtype=self.dtype, name=f"{name}_back")(x)

    def softmax_over(self, x: Any, splits: int, groups: int, *, name: str) -> Any:
        """Softmax over the splits of `(b, 1, 1, splits * c)`, whose channels are group by group."""
        channels = x.shape[-1]
        x = keras.layers.Reshape(
            (groups, splits, channels // (groups * splits)), dtype=self.dtype, name=f"{name}_parts"
        )(x)
        x = keras.layers.Permute((2, 1, 3), dtype=self.dtype, name=f"{name}_by_split")(x)
        x = keras.layers.Softmax(axis=1, dtype=self.dtype, name=name)(x)
        return keras.layers.Reshape((1, 1, channels), dtype=self.dtype, name=f"{name}_back")(x)

    def max_pool(self, x: Any, size: int, strides: int, *, name: str) -> Any:
        """Take the largest of `size` x `size` pixels around every `strides`-th."""
        if size > 1:
            edge = ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0))
            behind_relu = self.activation == "relu" and (
                not self.config.preact or self.config.stem_norm
            )
            if self.config.pool_padding == "zero" or behind_relu:
                # Behind a ReLU, padding with zeros is padding with minus infinity.
                pad = keras.layers.ZeroPadding2D(
                    size // 2, data_format="channels_last", dtype=self.dtype, name=f"{name}_pad"
                )
                x = pad(x)
            else:
                x = ops.pad(x, edge, constant_values=float("-inf"))
        return keras.layers.MaxPooling2D(
            size, strides, data_format="channels_last", dtype=self.dtype, name=name
        )(x)

    def avg_pool(
        self,
        x: Any,
        size: int,
        strides: int,
        *,
        name: str,
        margin: tuple[int, int] | None = None,
    ) -> Any:
        """Average `size` x `size` pixels.

        What is outside of the image does not count. With a `margin` of that many zeros before and
        after it does, and windows that do not fit are left out.
        """
        if margin and any(margin):
            pad = keras.layers.ZeroPadding2D(
                (margin, margin), data_format="channels_last", dtype=self.dtype, name=f"{name}_pad"
            )
            x = pad(x)
        return keras.layers.AveragePooling2D(
            size,
            strides,
            padding="same" if margin is None else "valid",
            data_format="channels_last",
            dtype=self.dtype,
            name=name,
        )(x)

    def blur_pool(self, x: Any, strides: int, *, name: str) -> Any:
        """Blur and subsample."""
        return BlurPool(strides, dtype=self.dtype, name=name)(x)

    def mean(self, x: Any, *, name: str) -> Any:
        """Average over all places: `(b, 1, 1, c)`."""
        return keras.layers.GlobalAveragePooling2D(
            keepdims=True, data_format="channels_last", dtype=self.dtype, name=name
        )(x)

    def average(self, x: Any, axes: Sequence[int], *, name: str) -> Any:
        """Average over axes, which stay with length 1."""
        return ops.mean(x, axis=tuple(axes), keepdims=True)

    def maximum(self, x: Any, axes: Sequence[int], *, name: str) -> Any:
        """Take the largest over axes, which stay with length 1."""
        return ops.max(x, axis=tuple(axes), keepdims=True)

    def total(self, x: Any, *, name: str) -> Any:
        """Sum over axis 1, which stays with length 1."""
        return ops.sum(x, axis=1, keepdims=True)

    def split(self, x: Any, parts: int) -> list[Any]:
        """Divide the channels into equal parts."""
        size = x.shape[-1] // parts
        return [x[..., size * n : size * (n + 1)] for n in range(parts)]

    def concat(self, xs: Sequence[Any], *, name: str, axis: int = -1) -> Any:
        """Join along an axis."""
        return keras.layers.Concatenate(axis, dtype=self.dtype, name=name)(list(xs))

    def add(self, xs: Sequence[Any], *, name: str) -> Any:
        """Add."""
        return keras.layers.Add(dtype=self.dtype, name=name)(list(xs))

    def multiply(self, xs: Sequence[Any], *, name: str) -> Any:
        """Multiply, stretching axes of length 1."""
        return keras.layers.Multiply(dtype=self.dtype, name=name)(list(xs))

    def pad_shortcut(self, x: Any, filters: int, *, strides: int, name: str) -> Any:
        """Subsample, and widen with channels of zeros."""
        return PadShortcut(filters, strides=strides, dtype=self.dtype, name=name)(x)

    def drop_path(self, x: Any, rate: float, *, name: str) -> Any:
        """Drop a residual branch at random while training."""
        return DropPath(rate, dtype=self.dtype, name=name)(x) if rate else x

    def dropout(self, x: Any, rate: float, *, name: str) -> Any:
        """Drop activations at random while training."""
        return keras.layers.Dropout(rate, dtype=self.dtype, name=name)(x) if rate else x
