"""The few layers Keras lacks. Tensors are channels-last: b h w c."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kresnet.errors import ConfigError


@keras.saving.register_keras_serializable("kresnet")
class ConvNorm(keras.layers.Layer):
    """Convolution and batch normalisation as one layer.

    While the statistics are learned (`training=True`) it is a convolution followed by a batch
    norm. Once they are frozen, and at inference, the norm is a fixed affine map, so it multiplies
    into the *kernel*: `conv(x, kernel * scale) + (beta - moving_mean * scale)` with
    `scale = gamma / sqrt(moving_variance + epsilon)`. Outputs, trained variables and gradients
    are those of the unfused pair, but the work on activations is gone.

    Padding is symmetric, `(kernel_size - 1) // 2` on each side, as in the papers and PyTorch.
    TensorFlow's "same" is not: at stride 2 on even sizes it pads only below and to the right.

    Attributes:
        frozen: Statistics stay as they are and are used even when training.
            `kresnet.freeze_norms` sets it on a whole model.

    Args:
        filters: Output channels.
        kernel_size: Side of the square kernel; odd.
        strides: Stride in both directions.
        groups: Number of channel groups that are convolved apart.
        epsilon: Added to the variance; 1e-5 in ResNet weights, not Keras' default 1e-3.
        momentum: Of the moving statistics, in Keras' sense; 0.9, not Keras' default 0.99.
        gamma_initializer: "zeros" makes a residual branch start as the identity
            (Goyal et al. 2017, arXiv:1706.02677, section 5.1).

    Input: `(b, h, w, in)`. Output: `(b, ceil(h / strides), ceil(w / strides), filters)`, in the
    compute dtype; variables are float32, and so are statistics and the folding.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        *,
        strides: int = 1,
        groups: int = 1,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        gamma_initializer: str = "ones",
        frozen: bool = False,
        **layer_options: Any,
    ) -> None:
        super().__init__(**layer_options)
        if kernel_size % 2 == 0:
            raise ConfigError(f"`kernel_size` must be odd. Received: kernel_size={kernel_size}.")
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.groups = groups
        self.epsilon = epsilon
        self.momentum = momentum
        self.gamma_initializer = gamma_initializer
        self.frozen = frozen

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the kernel, the affine map and the moving statistics."""
        channels = input_shape[-1]
        if channels is None or channels % self.groups:
            raise ConfigError(
                "Input channels must be known and divisible by `groups`. "
                f"Received: input_shape={tuple(input_shape)}, groups={self.groups}."
            )
        # autocast=False: the folding is computed in float32 and rounded once, at the end.
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size, self.kernel_size, channels // self.groups, self.filters),
            # He et al. 2015, arXiv:1502.01852, with fan-out as in torchvision and timm.
            initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
            autocast=False,
        )
        self.gamma = self.add_weight(
            name="gamma",
            shape=(self.filters,),
            initializer=self.gamma_initializer,
            autocast=False,
        )
        self.beta = self.add_weight(
            name="beta", shape=(self.filters,), initializer="zeros", autocast=False
        )
        self.moving_mean = self.add_weight(
            name="moving_mean",
            shape=(self.filters,),
            initializer="zeros",
            trainable=False,
            autocast=False,
        )
        self.moving_variance = self.add_weight(
            name="moving_variance",
            shape=(self.filters,),
            initializer="ones",
            trainable=False,
            autocast=False,
        )

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Convolve and normalise `x`."""
        if training and self.trainable and not self.frozen:
            return self._normalize(self._convolve(x, ops.convert_to_tensor(self.kernel)))
        kernel, bias = self.folded()
        return _add_bias(self._convolve(x, kernel), ops.cast(bias, self.compute_dtype))

    def folded(self) -> tuple[Any, Any]:
        """Return the kernel and bias, in float32, of the one convolution this layer amounts to."""
        # Not rsqrt: TensorFlow's is an approximation on processors, off by 1e-7 even at 1.
        scale = self.gamma / ops.sqrt(self.moving_variance + self.epsilon)
        return self.kernel * scale, self.beta - self.moving_mean * scale

    def _convolve(self, x: Any, kernel: Any) -> Any:
        padding = (self.kernel_size - 1) // 2
        if self.strides > 1 and padding:
            x = ops.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        return ops.conv(
            x,
            ops.cast(kernel, self.compute_dtype),
            strides=self.strides,
            # With an odd kernel and stride 1, "same" is symmetric and needs no copy of x.
            padding="same" if self.strides == 1 else "valid",
            data_format="channels_last",
        )

    def _normalize(self, x: Any) -> Any:
        """Batch norm with the batch's statistics, which also move the stored ones."""
        x = ops.cast(x, "float32")
        mean, variance = ops.moments(x, axes=(0, 1, 2))
        self.moving_mean.assign(self.moving_mean * self.momentum + mean * (1.0 - self.momentum))
        self.moving_variance.assign(
            self.moving_variance * self.momentum + variance * (1.0 - self.momentum)
        )
        x = ops.batch_normalization(
            x,
            mean=mean,
            variance=variance,
            axis=-1,
            offset=ops.convert_to_tensor(self.beta),
            scale=ops.convert_to_tensor(self.gamma),
            epsilon=self.epsilon,
        )
        return ops.cast(x, self.compute_dtype)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Return `(b, ceil(h / strides), ceil(w / strides), filters)`."""
        return _strided(input_shape, self.strides, self.filters)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this layer."""
        return super().get_config() | {
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "groups": self.groups,
            "epsilon": self.epsilon,
            "momentum": self.momentum,
            "gamma_initializer": self.gamma_initializer,
            "frozen": self.frozen,
        }


def _strided(shape: Sequence[int | None], strides: int, filters: int) -> tuple[int | None, ...]:
    """Return the shape after a layer that keeps every `strides`-th pixel and has `filters`."""
    batch, height, width, _ = shape
    sides = (None if n is None else -(-n // strides) for n in (height, width))
    return (batch, *sides, filters)


def _add_bias(x: Any, bias: Any) -> Any:
    """Add a bias to each channel; on TensorFlow with the op that fuses into the convolution."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.nn.bias_add(x, bias)  # `x + bias` is not fused with Conv2D and Relu.
    return x + bias


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
        return _strided(input_shape, self.strides, self.filters)

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
