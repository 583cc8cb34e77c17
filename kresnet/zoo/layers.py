"""The few other layers Keras lacks. Tensors are channels-last: b h w c."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kresnet.zoo.conv import strided


@keras.saving.register_keras_serializable("kresnet")
class BlurPool(keras.layers.Layer):
    """Subsample behind a binomial blur (Zhang 2019, arXiv:1904.11486, section 3.2).

    The kernel is `[1, 2, 1] / 4` in both directions, on an image that is mirrored at its borders.

    Args:
        strides: Every how many pixels one is kept.

    Input: `(b, h, w, c)`. Output: `(b, ceil(h / strides), ceil(w / strides), c)`.
    """

    def __init__(self, strides: int = 2, **layer_options: Any) -> None:
        super().__init__(**layer_options)
        self.strides = strides

    def call(self, x: Any) -> Any:
        """Blur and subsample `x`."""
        x = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
        kernel = ops.convert_to_tensor(self.kernel(x.shape[-1]), dtype=x.dtype)
        return ops.depthwise_conv(
            x, kernel, strides=self.strides, padding="valid", data_format="channels_last"
        )

    @staticmethod
    def kernel(channels: int) -> np.ndarray:
        """Return the depthwise kernel `(3, 3, channels, 1)`."""
        line = np.array([1, 2, 1], "float32") / 4
        return np.tile(np.outer(line, line)[:, :, np.newaxis, np.newaxis], (1, 1, channels, 1))

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Return `(b, ceil(h / strides), ceil(w / strides), c)`."""
        return strided(input_shape, self.strides, input_shape[-1] or 0)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this layer."""
        return super().get_config() | {"strides": self.strides}


@keras.saving.register_keras_serializable("kresnet")
class PadShortcut(keras.layers.Layer):
    """Parameter-free shortcut, option A of He et al. 2015, section 3.3.

    Takes every `strides`-th pixel and pads the channels with zeros, half before and half after,
    as the reference CIFAR weights were trained.

    Input: `(b, h, w, in)`. Output: `(b, ceil(h / strides), ceil(w / strides), filters)`.
    """

    def __init__(self, filters: int, *, strides: int = 1, **layer_options: Any) -> None:
        super().__init__(**layer_options)
        self.filters = filters
        self.strides = strides

    def call(self, x: Any) -> Any:
        """Subsample `x` and widen it with zeros."""
        padding = self.padding(x.shape[-1])
        return ops.pad(x[:, :: self.strides, :: self.strides, :], ((0, 0), (0, 0), (0, 0), padding))

    def padding(self, channels: int) -> tuple[int, int]:
        """Return how many channels of zeros come before and after the `channels` there are."""
        missing = self.filters - channels
        return missing // 2, missing - missing // 2

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Return `(b, ceil(h / strides), ceil(w / strides), filters)`."""
        return strided(input_shape, self.strides, self.filters)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this layer."""
        return super().get_config() | {"filters": self.filters, "strides": self.strides}


@keras.saving.register_keras_serializable("kresnet")
class DropPath(keras.layers.Layer):
    """Stochastic depth (Huang et al. 2016, arXiv:1603.09382): drop a residual branch per image.

    Kept branches are divided by the survival rate, so inference needs no scaling.

    Args:
        rate: Probability that an image's branch is dropped in training, in [0, 1).
        seed: Makes the choice repeatable.
    """

    def __init__(self, rate: float, *, seed: int | None = None, **layer_options: Any) -> None:
        super().__init__(**layer_options)
        self.rate = rate
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Return `x` with whole images zeroed at random while training."""
        if not training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        shape = (ops.shape(x)[0], 1, 1, 1)
        draw = keras.random.uniform(shape, dtype="float32", seed=self.seed_generator)
        return x * ops.cast(ops.cast(draw < keep, "float32") / keep, x.dtype)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Sequence[int | None]:
        """Return the input shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this layer."""
        return super().get_config() | {"rate": self.rate, "seed": self.seed}
