"""Convolution and batch norm, together and apart. Tensors are channels-last: b h w c."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import keras
from keras import ops

from kresnet.errors import ConfigError
from kresnet.zoo import gradients
from kresnet.zoo.processor import normalize, on_processor
from kresnet.zoo.replicas import moments_together


@keras.saving.register_keras_serializable("kresnet")
class Conv(keras.layers.Layer):
    """Convolution as the ResNet papers and PyTorch have it.

    Padding is symmetric, `dilation_rate * (kernel_size - 1) // 2` on each side. TensorFlow's "same"
    is not: at stride 2 on even sizes it pads only below and to the right.

    Args:
        filters: Output channels.
        kernel_size: Side of the square kernel; odd.
        strides: Stride in both directions.
        dilation_rate: Distance of the kernel's taps, in pixels of the input.
        groups: Number of channel groups that are convolved apart.
        use_bias: Add a bias.
        padding: "symmetric", or TensorFlow's "same".
        standardize: Standardise the kernel of each filter to mean 0 and variance 1 before use
            (Qiao et al. 2019, arXiv:1903.10520); the number is added to the variance. None does
            not.
        kernel_initializer: Of the kernel; He et al. 2015 (arXiv:1502.01852) with fan-out, as in
            torchvision and timm, unless given.
        kernel_regularizer: Of the kernel, as `keras.regularizers.L2(1e-4)`.

    Input: `(b, h, w, in)`. Output: `(b, ceil(h / strides), ceil(w / strides), filters)`, in the
    compute dtype; variables are float32.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        *,
        strides: int = 1,
        dilation_rate: int = 1,
        groups: int = 1,
        use_bias: bool = False,
        padding: Literal["symmetric", "same"] = "symmetric",
        standardize: float | None = None,
        kernel_initializer: Any = None,
        kernel_regularizer: Any = None,
        **layer_options: Any,
    ) -> None:
        super().__init__(**layer_options)
        if kernel_size % 2 == 0:
            raise ConfigError(f"`kernel_size` must be odd. Received: kernel_size={kernel_size}.")
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.dilation_rate = dilation_rate
        self.groups = groups
        self.use_bias = use_bias
        self.padding = padding
        self.standardize = standardize
        self.kernel_initializer = keras.initializers.get(
            kernel_initializer
            or keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
        )
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the kernel and the bias."""
        channels = input_shape[-1]
        if channels is None or channels % self.groups:
            raise ConfigError(
                "Input channels must be known and divisible by `groups`. "
                f"Received: input_shape={tuple(input_shape)}, groups={self.groups}."
            )
        # autocast=False: kernels are folded and standardised in float32 and rounded once, at the
        # end.
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size, self.kernel_size, channels // self.groups, self.filters),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            autocast=False,
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(self.filters,), initializer="zeros", autocast=False
            )

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Convolve `x`."""
        return self._convolve(x, *self.folded(), learns=bool(training))

    def folded(self) -> tuple[Any, Any | None]:
        """Return kernel and bias, in float32, of the plain convolution this layer amounts to."""
        kernel = ops.convert_to_tensor(self.kernel)
        if self.standardize is not None:
            # Not ops.moments: it subtracts the squared mean from the mean square, and cancels.
            kernel = kernel - ops.mean(kernel, axis=(0, 1, 2), keepdims=True)
            variance = ops.mean(ops.square(kernel), axis=(0, 1, 2), keepdims=True)
            kernel = kernel / ops.sqrt(variance + self.standardize)
        return kernel, ops.convert_to_tensor(self.bias) if self.use_bias else None

    def _convolve(self, x: Any, kernel: Any, bias: Any | None, *, learns: bool) -> Any:
        """Return the convolution, in the compute dtype; `learns` says that gradients follow."""
        step, strides, margin = self.geometry()
        if step > 1:
            x = x[:, ::step, ::step, :]
        if margin:
            x = ops.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        kernel = ops.cast(kernel, self.compute_dtype)
        padding = "valid" if margin else "same"
        way = self._gradient_way(x, strides, padding) if learns else "convolution"
        if way != "convolution":
            x = gradients.convolve(x, kernel, strides, "VALID" if margin else "SAME", way)
        else:
            convolve = _grouped if self.groups > 1 and _has_grouped_convolution() else ops.conv
            x = convolve(
                x,
                kernel,
                strides=strides,
                padding=padding,
                dilation_rate=self.dilation_rate // step,
                data_format="channels_last",
            )
        if bias is None:
            return x
        add = gradients.add_bias if learns and on_processor("gradients") else _add_bias
        return add(x, bias)

    def _gradient_way(self, x: Any, strides: int, padding: str) -> gradients.Way:
        """Return how to compute the gradient of the kernel for an input `x`."""
        is_symmetric = padding == "valid" or strides == 1 or self.kernel_size == 1
        is_plain = self.groups == self.dilation_rate == 1 and is_symmetric
        if not is_plain or not on_processor("gradients"):
            return "convolution"
        shape = self.kernel_size, self.kernel_size, x.shape[-1], self.filters
        return gradients.fastest_way(shape, strides, x.shape[1:3], self.compute_dtype)

    def geometry(self) -> tuple[int, int, int]:
        """Return how to compute it: keep each n-th pixel, pad with m zeros, convolve with stride s.

        Returns:
            n, s and m. Strided and dilated by the same factor is a plain convolution of every n-th
            pixel, and TensorFlow has no convolution that is both. With an odd kernel and stride 1,
            "same" padding is symmetric and needs no copy of the image: m is 0.
        """
        step = self.strides if self.strides > 1 and self.dilation_rate % self.strides == 0 else 1
        strides = self.strides // step
        symmetric = strides > 1 and self.padding == "symmetric"
        return step, strides, (self.kernel_size - 1) // 2 if symmetric else 0

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Return `(b, ceil(h / strides), ceil(w / strides), filters)`."""
        return strided(input_shape, self.strides, self.filters)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this layer."""
        return super().get_config() | {
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "dilation_rate": self.dilation_rate,
            "groups": self.groups,
            "use_bias": self.use_bias,
            "padding": self.padding,
            "standardize": self.standardize,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }


_IN_ONE = ("float32", "bfloat16")
"""Types of `processor.normalize`."""


class _Statistics:
    """What a batch norm keeps: gamma and beta, which learn, and the statistics, which move."""

    def _add_norm(self: Any, channels: int, gamma_initializer: str) -> None:
        def add(name: str, initializer: str, trainable: bool = True) -> Any:
            return self.add_weight(
                name=name,
                shape=(channels,),
                initializer=initializer,
                trainable=trainable,
                autocast=False,
            )

        self.gamma = add("gamma", gamma_initializer)
        self.beta = add("beta", "zeros")
        self.moving_mean = add("moving_mean", "zeros", trainable=False)
        self.moving_variance = add("moving_variance", "ones", trainable=False)

    def affine(self: Any) -> tuple[Any, Any]:
        """Return scale and offset, in float32, of the map that the kept statistics amount to."""
        # Not rsqrt: TensorFlow's is an approximation on processors, off by 1e-7 even at 1.
        scale = self.gamma / ops.sqrt(self.moving_variance + self.epsilon)
        return scale, self.beta - self.moving_mean * scale

    def _learns_statistics(self: Any, training: bool | None) -> bool:
        return bool(training) and self.trainable and not self.frozen

    def _normalize(self: Any, x: Any) -> Any:
        """Batch norm with the batch's statistics, which also move the stored ones.

        On several devices the batch is that of all of them.
        """
        scale, offset = ops.convert_to_tensor(self.gamma), ops.convert_to_tensor(self.beta)
        together = moments_together()
        if together is None and self.compute_dtype in _IN_ONE and on_processor("norms"):
            x, mean, variance = normalize(x, scale, offset, self.epsilon)
        else:
            x = ops.cast(x, "float32")
            mean, variance = together(x) if together else ops.moments(x, axes=(0, 1, 2))
            x = ops.batch_normalization(
                x,
                mean=mean,
                variance=variance,
                axis=-1,
                offset=offset,
                scale=scale,
                epsilon=self.epsilon,
            )
        self.moving_mean.assign(self.moving_mean * self.momentum + mean * (1.0 - self.momentum))
        self.moving_variance.assign(
            self.moving_variance * self.momentum + variance * (1.0 - self.momentum)
        )
        return ops.cast(x, self.compute_dtype)


@keras.saving.register_keras_serializable("kresnet")
class ConvNorm(_Statistics, Conv):
    """Convolution and batch normalisation as one layer.

    While the statistics are learned (`training=True`) it is a convolution followed by a batch
    norm. Once they are frozen, and at inference, the norm is a fixed affine map, so it multiplies
    into the *kernel*: `conv(x, kernel * scale) + (beta - moving_mean * scale)` with
    `scale = gamma / sqrt(moving_variance + epsilon)`. Outputs, trained variables and gradients
    are those of the unfused pair, but the work on activations is gone.

    Attributes:
        frozen: Statistics stay as they are and are used even when training.
            `kresnet.freeze_norms` sets it on a whole model.

    Args:
        filters: Output channels.
        kernel_size: Side of the square kernel; odd.
        epsilon: Added to the variance; 1e-5 in ResNet weights, not Keras' default 1e-3.
        momentum: Of the moving statistics, in Keras' sense; 0.9, not Keras' default 0.99.
        gamma_initializer: "zeros" makes a residual branch start as the identity
            (Goyal et al. 2017, arXiv:1706.02677, section 5.1).
        frozen: See above.
        conv_options: The other arguments of `Conv`.

    Input: `(b, h, w, in)`. Output: `(b, ceil(h / strides), ceil(w / strides), filters)`, in the
    compute dtype; variables are float32, and so are statistics and the folding.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        *,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        gamma_initializer: str = "ones",
        frozen: bool = False,
        **conv_options: Any,
    ) -> None:
        super().__init__(filters, kernel_size, **conv_options)
        self.epsilon = epsilon
        self.momentum = momentum
        self.gamma_initializer = gamma_initializer
        self.frozen = frozen

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the kernel, the affine map and the moving statistics."""
        super().build(input_shape)
        self._add_norm(self.filters, self.gamma_initializer)

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Convolve and normalise `x`."""
        learns = bool(training)
        if self._learns_statistics(training):
            return self._normalize(self._convolve(x, *super().folded(), learns=learns))
        return self._convolve(x, *self.folded(), learns=learns)

    def folded(self) -> tuple[Any, Any]:
        """Return the kernel and bias, in float32, of the one convolution this layer amounts to."""
        kernel, bias = super().folded()
        scale, offset = self.affine()
        return kernel * scale, offset if bias is None else offset + bias * scale

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this layer."""
        return super().get_config() | {
            "epsilon": self.epsilon,
            "momentum": self.momentum,
            "gamma_initializer": self.gamma_initializer,
            "frozen": self.frozen,
        }


@keras.saving.register_keras_serializable("kresnet")
class Norm(_Statistics, keras.layers.Layer):
    """Batch normalisation whose gamma and beta learn on when its statistics are frozen.

    Where no convolution is before it to fold into: at the start of a pre-activation block.

    Args:
        epsilon: Added to the variance; 1e-5 in ResNet weights, not Keras' default 1e-3.
        momentum: Of the moving statistics, in Keras' sense; 0.9, not Keras' default 0.99.
        frozen: Statistics stay as they are and are used even when training.

    Input and output: `(b, h, w, c)`; variables are float32, and so is the computation.
    """

    def __init__(
        self,
        *,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        frozen: bool = False,
        **layer_options: Any,
    ) -> None:
        super().__init__(**layer_options)
        self.epsilon = epsilon
        self.momentum = momentum
        self.frozen = frozen

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the affine map and the moving statistics."""
        self._add_norm(int(input_shape[-1] or 0), "ones")

    def call(self, x: Any, training: bool | None = None) -> Any:
        """Normalise `x`."""
        if self._learns_statistics(training):
            return self._normalize(x)
        scale, offset = self.affine()
        return ops.cast(ops.cast(x, "float32") * scale + offset, self.compute_dtype)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> Sequence[int | None]:
        """Return the input shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this layer."""
        return super().get_config() | {
            "epsilon": self.epsilon,
            "momentum": self.momentum,
            "frozen": self.frozen,
        }


def strided(shape: Sequence[int | None], strides: int, filters: int) -> tuple[int | None, ...]:
    """Return the shape after a layer that keeps every `strides`-th pixel and has `filters`."""
    batch, height, width, _ = shape
    sides = (None if n is None else -(-n // strides) for n in (height, width))
    return (batch, *sides, filters)


def _add_bias(x: Any, bias: Any) -> Any:
    """Add a bias to each channel; on TensorFlow with the op that fuses into the convolution."""
    bias = ops.cast(bias, x.dtype)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.nn.bias_add(x, bias)  # `x + bias` is not fused with Conv2D and Relu.
    return x + bias


def _has_grouped_convolution() -> bool:
    """Return whether TensorFlow convolves groups by itself, forwards and backwards.

    Keras compiles each such convolution with XLA, because TensorFlow without oneDNN has no gradient
    for it on processors. With oneDNN it has, and is many times faster: 14 forwards, 400 with
    gradients (3x3, 32 groups of 4, 56 px, two cores).
    """
    return keras.backend.backend() == "tensorflow" and os.environ.get(
        "TF_ENABLE_ONEDNN_OPTS", "1"
    ).lower() not in ("0", "false")


def _grouped(
    x: Any, kernel: Any, *, strides: int, padding: str, dilation_rate: int, data_format: str
) -> Any:
    import tensorflow as tf

    return tf.nn.convolution(x, kernel, strides, padding.upper(), dilations=dilation_rate)
