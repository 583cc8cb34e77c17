"""How the gradients of a convolution's kernel and bias are computed, as was measured fastest.

On processors with AMX, TensorFlow's gradient of a kernel is its slowest convolution: in bfloat16 it
has a fifth of the speed of the forward one. But it is a product of matrices, one for each tap of
the kernel: `kernel[i, j] = (pixels that tap i, j sees).T @ dy`. As such it is two to three times
faster, where what has to be copied for it does not cost more. Forward pass and gradient of the
input stay TensorFlow's own.

The gradient of a bias is a sum over pixels, and as a product with ones it costs a seventh of what
TensorFlow adds to the gradient of the kernel for it (11 of 78 ms for 16 images of a ResNet-50 in
float32, two cores). In bfloat16 TensorFlow's own, where it is not part of the kernel's, also adds
up in 8 bits: 100,000 pixels of mean .1 and deviation 1 come to a fifth of their sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Way = Literal["convolution", "matmul", "shifts", "patches"]
Padding = Literal["SAME", "VALID"]


class Measured(NamedTuple):
    """What the gradient of one kernel took, in ms for 32 images, on two cores with AMX.

    Attributes:
        kernel_size: Side of the kernel.
        strides: Stride of the convolution.
        side: Of its input in pixels.
        channels: It takes in.
        filters: Channels it gives out.
        way: The fastest other way: "matmul", of every `strides`-th pixel; "shifts", a matmul for
            each tap; "patches", one matmul of all that the taps see.
        convolution_ms: TensorFlow's own.
        way_ms: The other way.
    """

    kernel_size: int
    strides: int
    side: int
    channels: int
    filters: int
    way: Way
    convolution_ms: float
    way_ms: float

    @property
    def fastest(self) -> Way:
        """The way to take."""
        return self.way if self.way_ms < self.convolution_ms else "convolution"


MEASURED: MappingProxyType[str, tuple[Measured, ...]] = MappingProxyType(
    {
        # `python -m kresnet.bench.gradients` measures it again.
        "bfloat16": (
            Measured(1, 1, 56, 64, 256, "matmul", 10.7, 4.8),
            Measured(1, 1, 28, 128, 512, "matmul", 9.1, 3.4),
            Measured(1, 1, 14, 1024, 256, "matmul", 9.4, 2.9),
            Measured(1, 1, 7, 2048, 512, "matmul", 9.5, 3.0),
            Measured(1, 2, 56, 256, 512, "matmul", 20.0, 35.0),
            Measured(1, 2, 28, 512, 1024, "matmul", 29.5, 20.0),
            Measured(1, 2, 14, 1024, 2048, "matmul", 36.5, 13.3),
            Measured(3, 1, 56, 64, 64, "shifts", 5.8, 21.0),
            Measured(3, 1, 28, 128, 128, "shifts", 5.8, 15.0),
            Measured(3, 1, 14, 256, 256, "shifts", 7.2, 9.1),
            Measured(3, 1, 7, 512, 512, "shifts", 18.3, 7.7),
            Measured(3, 2, 56, 128, 128, "patches", 9.1, 34.0),
            Measured(3, 2, 28, 256, 256, "patches", 12.1, 18.5),
            Measured(3, 2, 14, 512, 512, "patches", 26.9, 12.4),
        ),
    }
)
"""Rows of each dtype. Where there are none, TensorFlow's own way is taken."""


def fastest_way(
    kernel: Sequence[int], strides: int, sides: Sequence[int | None], dtype: str
) -> Way:
    """Return how to compute the gradient of a kernel: as for the most similar shape measured.

    Args:
        kernel: Its shape `(k, k, in, out)`.
        strides: Of the convolution.
        sides: Height and width of its input. Where unknown, all measured sizes must agree.
        dtype: It computes in.
    """
    size, _, channels, filters = kernel
    rows = [
        row for row in MEASURED.get(dtype, ()) if (row.kernel_size, row.strides) == (size, strides)
    ]
    known = [side for side in sides if side]
    if len(known) < len(sides) or not rows:
        ways = {row.fastest for row in rows}
        return ways.pop() if len(ways) == 1 else "convolution"
    wanted = (math.sqrt(math.prod(known)), channels, filters)

    def distance(row: Measured) -> float:
        has = (row.side, row.channels, row.filters)
        return sum(math.log2(a / b) ** 2 for a, b in zip(wanted, has, strict=True))

    return min(rows, key=distance).fastest


def convolve(x: Any, kernel: Any, strides: int, padding: Padding, way: Way) -> Any:
    """Return `tf.nn.conv2d(x, kernel, strides, padding)`, whose kernel's gradient goes another way.

    Args:
        x: `(b, h, w, in)`.
        kernel: `(k, k, in, out)`, k odd, of the same dtype.
        strides: Stride in both directions.
        padding: "SAME" only where it is symmetric: at stride 1, and of kernels of one tap.
        way: How to compute the gradient of the kernel.
    """
    import tensorflow as tf

    def back(dy: Any) -> tuple[Any, Any]:
        return (
            _input_gradient(tf.shape(x), kernel, dy, strides, padding),
            kernel_gradient(x, dy, kernel.shape, strides, padding, way),
        )

    return _recorded(lambda: tf.nn.conv2d(x, kernel, strides, padding), (x, kernel), back)


def kernel_gradient(
    x: Any,
    dy: Any,
    shape: Sequence[int],
    strides: int,
    padding: Padding,
    way: Way,
) -> Any:
    """Return the gradient of a kernel, whose own gradients are convolutions again.

    Args:
        x: Input of the convolution, `(b, h, w, in)`.
        dy: Gradient of its output, `(b, h', w', out)`.
        shape: Of the kernel, `(k, k, in, out)`.
        strides: As in `convolve`.
        padding: As in `convolve`.
        way: As in `convolve`.

    Returns:
        `shape`, in the dtype of `x`; sums are float32, and rounded once for each tap.
    """
    import tensorflow as tf

    compute = {"convolution": _by_convolution, "patches": _by_patches}.get(way, _by_shifts)

    def back(u: Any) -> tuple[Any, Any]:
        # `<kernel_gradient(x, dy), u>` is `<conv2d(x, u), dy>`: linear in each of the three.
        return (
            _input_gradient(tf.shape(x), u, dy, strides, padding),
            tf.nn.conv2d(x, u, strides, padding),
        )

    return _recorded(lambda: compute(x, dy, tuple(shape), strides, padding), (x, dy), back)


def add_bias(x: Any, bias: Any) -> Any:
    """Return `tf.nn.bias_add(x, bias)`, whose bias' gradient is a product for each image.

    Args:
        x: `(b, h, w, c)`.
        bias: `(c,)` in float32, the dtype of its gradient; it is rounded to the dtype of `x`.
    """
    import tensorflow as tf

    bias = tf.convert_to_tensor(bias)  # of a variable

    def back(dy: Any) -> tuple[Any, Any]:
        count, height, width = (dy.shape[axis] or tf.shape(dy)[axis] for axis in range(3))
        pixels = height * width
        ones = tf.ones((count, 1, pixels), dy.dtype)
        sums = tf.matmul(ones, tf.reshape(dy, (count, pixels, x.shape[-1])))
        return dy, tf.reduce_sum(tf.cast(sums, bias.dtype), (0, 1))

    return _recorded(lambda: tf.nn.bias_add(x, tf.cast(bias, x.dtype)), (x, bias), back)


def _recorded(
    compute: Callable[[], Any], inputs: tuple[Any, ...], back: Callable[[Any], tuple[Any, ...]]
) -> Any:
    """Return what is computed, with `back` as its gradient for every tape that is watching.

    This is how `tf.custom_gradient` does it in eager mode. In a `tf.function` that registers each
    gradient for good, and with it the graph and the variables of every step ever compiled. Where
    TensorFlow has it no more, or a tape is outside of the function, gradients are TensorFlow's own.
    """
    try:
        from tensorflow.python.eager import record
    except ImportError:
        return compute()
    with record.stop_recording():
        result = compute()
    record.record_operation("ConvolutionGradient", [result], list(inputs), back)
    return result


def _input_gradient(shape: Any, kernel: Any, dy: Any, strides: int, padding: str) -> Any:
    import tensorflow as tf

    return tf.raw_ops.Conv2DBackpropInput(
        input_sizes=shape,
        filter=kernel,
        out_backprop=dy,
        strides=(1, strides, strides, 1),
        padding=padding,
    )


def _by_convolution(x: Any, dy: Any, shape: tuple[int, ...], strides: int, padding: str) -> Any:
    import tensorflow as tf

    return tf.raw_ops.Conv2DBackpropFilter(
        input=x,
        filter_sizes=shape,
        out_backprop=dy,
        strides=(1, strides, strides, 1),
        padding=padding,
    )


def _by_shifts(x: Any, dy: Any, shape: tuple[int, ...], strides: int, padding: str) -> Any:
    """Multiply the pixels that each tap sees with the gradient, tap by tap."""
    import tensorflow as tf

    size, _, channels, filters = shape
    height, width = (dy.shape[axis] or tf.shape(dy)[axis] for axis in (1, 2))
    x = _padded(x, size, padding)
    dy = tf.reshape(dy, (-1, filters))
    taps = []
    for i in range(size):
        for j in range(size):
            seen = x
            if size > 1 or strides > 1:
                seen = x[
                    :,
                    i : i + strides * (height - 1) + 1 : strides,
                    j : j + strides * (width - 1) + 1 : strides,
                ]
            taps.append(tf.matmul(tf.reshape(seen, (-1, channels)), dy, transpose_a=True))
    return tf.reshape(tf.stack(taps) if len(taps) > 1 else taps[0], shape)


def _by_patches(x: Any, dy: Any, shape: tuple[int, ...], strides: int, padding: str) -> Any:
    """Multiply all that the taps see with the gradient, at once."""
    import tensorflow as tf

    size, _, channels, filters = shape
    patches = tf.image.extract_patches(
        _padded(x, size, padding),
        (1, size, size, 1),
        (1, strides, strides, 1),
        (1, 1, 1, 1),
        "VALID",
    )
    patches = tf.reshape(patches, (-1, size * size * channels))
    dy = tf.reshape(dy, (-1, filters))
    return tf.reshape(tf.matmul(patches, dy, transpose_a=True), shape)


def _padded(x: Any, size: int, padding: str) -> Any:
    import tensorflow as tf

    margin = size // 2 if padding == "SAME" else 0
    return tf.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0))) if margin else x
