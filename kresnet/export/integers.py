"""int8 for TensorFlow: a network whose convolutions are computed in 8-bit integers.

TensorFlow has such convolutions from oneDNN, for x86, and they do in one pass what follows one in a
ResNet: bias, shortcut, ReLU and the rounding to 8 bits. So activations stay in 8 bits from block to
block. Whatever has no such operation is computed in float32 in between: grouped convolutions,
attention, the norms of pre-activation blocks, the pooling and the head.

Kernels are constants of the graph, because the operations take no variables.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from kresnet.errors import ExportError
from kresnet.export.servable import with_features
from kresnet.zoo.graph import deep_graph

SHARES: Final = (1.0, 0.95)
"""Of the training images: how many to keep nothing from, in the order to try; see `in_integers`."""

_BATCH: Final = 8
_STEPS: Final = 127  # of kernels and signed activations, on either side of zero
_STEPS_UNSIGNED: Final = 255
_LARGEST_BIAS: Final = 2.0**30  # in steps of the 32-bit sums that it is added to


class Range(NamedTuple):
    """What values an activation takes.

    Attributes:
        low: The smallest; of one that is never negative, 0.
        high: The largest, at least 0.
    """

    low: float
    high: float

    @property
    def signed(self) -> bool:
        """Whether there are negative values."""
        return self.low < 0

    @property
    def peak(self) -> float:
        """The largest absolute value."""
        return max(self.high, -self.low)


class Codes(NamedTuple):
    """An activation in 8 bits.

    Attributes:
        codes: quint8, or qint8 where signed. Zero stands for zero.
        range: What the codes stand for: 0 to its peak, or its negative peak to its peak.
    """

    codes: tf.Tensor
    range: Range

    @property
    def low(self) -> float:
        """What the smallest code stands for."""
        return -self.range.peak if self.range.signed else 0.0

    @property
    def step(self) -> float:
        """What a code of one stands for."""
        return self.range.peak / (_STEPS if self.range.signed else _STEPS_UNSIGNED)


class Convolution(NamedTuple):
    """A convolution that waits for what follows, to be computed with it.

    Attributes:
        layer: With kernel and bias.
        input: What is convolved.
        shortcut: What is added; never negative.
        offset: What is added to the bias.
    """

    layer: keras.layers.Conv2D
    input: Codes
    shortcut: Codes | None = None
    offset: float = 0.0


Value: TypeAlias = tf.Tensor | Codes | Convolution


def in_integers(
    model: keras.Model, images: Sequence[np.ndarray], share: float = 1.0
) -> keras.Model:
    """Return a model that computes its convolutions in 8 bits.

    Rounding moves the mean of an activation, most where many of its values are small, so the head's
    bias takes back what the features' means moved by (Nagel et al. 2019, arXiv:1906.04721, section
    4.2, there for each layer).

    Args:
        model: Gives logits from its layers "pool" and "head", in float32 with its norms folded;
            best from `rounding.rounded`. It is not changed.
        images: Prepared training images, float32 `(s, s, 3)` each. They say how large activations
            get; what gets larger is cut off.
        share: Of the images, above 0 and at most 1: how many of them nothing is cut off from, for
            each activation. The fewer, the finer the steps.

    Returns:
        The layers "integers", "pool" and "head". It is for inference, and cannot be saved by Keras.

    Raises:
        ExportError: This TensorFlow computes no integers.
    """
    with deep_graph():
        body = keras.Model(model.inputs[0], with_features(model).outputs[0])
    inputs = keras.Input(model.inputs[0].shape[1:], name="images")
    seen = _see(body, images)
    features = Integers(body, seen.ranges(share), name="integers")(inputs)
    pool, head = (
        type(layer).from_config(layer.get_config())
        for layer in (model.get_layer("pool"), model.get_layer("head"))
    )
    pooled = pool(features)
    result = keras.Model(inputs, head(pooled), name=model.name)
    try:
        found = keras.Model(inputs, pooled).predict(np.stack(images), _BATCH, verbose=0)
    except tf.errors.OpError as error:
        raise ExportError(
            "8-bit convolutions are those of oneDNN in TensorFlow, for x86, which are on with VNNI "
            "and AMX unless TF_ENABLE_ONEDNN_OPTS=0 is set. Received: "
            f"{type(error).__name__} from one. Export in float32."
        ) from None
    kernel, bias = model.get_layer("head").get_weights()
    head.set_weights([kernel, bias + (seen.features - found.mean(axis=0)) @ kernel])
    return result


class Integers(keras.layers.Layer):
    """Computes a model's output in 8 bits as far as it can, float32 `(n, g, g, f)`.

    Attributes:
        constants: Bytes of its kernels in 8 bits.

    Args:
        body: A functional model of one input and one output.
        ranges: Of its activations, by the `id` of their tensor in the graph.
    """

    def __init__(
        self, body: keras.Model, ranges: Mapping[int, Range], **layer_options: Any
    ) -> None:
        super().__init__(dtype="float32", **layer_options)
        eights = [layer for layer in body.layers if _in_8_bits(layer)]
        self.constants = sum(math.prod(layer.kernel.shape) for layer in eights)
        # What stays in float32 keeps its variables; the rest of the body must not be tracked.
        self.floats = [layer for layer in body.layers if layer.weights and not _in_8_bits(layer)]
        spec = tf.TensorSpec(body.inputs[0].shape, tf.float32)
        # One function, which all that call it share with its constants.
        self._function = tf.function(_Walk(body, ranges), input_signature=[spec], autograph=False)

    def call(self, images: tf.Tensor) -> tf.Tensor:
        """Compute the output for prepared images `(n, s, s, 3)`."""
        return self._function(images)


class _Seen(NamedTuple):
    """What a model computed for images.

    Attributes:
        tensors: Those of its graph, t of them.
        lows: Smallest value of each for each image, `(t, n)`.
        highs: Largest value, `(t, n)`.
        features: Means of the last over images and places, `(f,)`.
    """

    tensors: list[Any]
    lows: np.ndarray
    highs: np.ndarray
    features: np.ndarray

    def ranges(self, share: float) -> dict[int, Range]:
        """Return the range of each tensor by its `id`, such that `share` of the images keep it."""
        lows, highs = (
            np.maximum(np.quantile(ends, share, axis=1, method="higher"), 0)
            for ends in (-self.lows, self.highs)
        )
        return {
            # What is always zero needs a range all the same.
            id(tensor): Range(-float(low), float(high) if low + high > 0 else 1.0)
            for tensor, low, high in zip(self.tensors, lows, highs, strict=True)
        }


def _see(body: keras.Model, images: Sequence[np.ndarray]) -> _Seen:
    """Compute a model for images and look at everything on the way."""
    tensors = [*body.inputs, *(tensor for node in _nodes(body) for tensor in _outputs(node))]
    with deep_graph():
        watched = keras.Model(body.inputs[0], [*tensors, body.outputs[0]])

    @tf.function(autograph=False)
    def look(batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        *seen, features = watched(batch, training=False)
        flat = [tf.reshape(x, (tf.shape(batch)[0], -1)) for x in seen]
        lows = tf.stack([tf.reduce_min(x, axis=1) for x in flat])
        highs = tf.stack([tf.reduce_max(x, axis=1) for x in flat])
        return lows, highs, tf.reduce_mean(features, axis=(1, 2))

    batches = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    parts = [[x.numpy() for x in look(tf.stack(list(batch)))] for batch in batches]
    lows, highs, features = zip(*parts, strict=True)
    means = np.concatenate(features).mean(axis=0)
    return _Seen(tensors, np.concatenate(lows, axis=1), np.concatenate(highs, axis=1), means)


class _Walk:
    """Goes through a model's graph, from images to output.

    Args:
        body: The model.
        ranges: Of its activations.
    """

    def __init__(self, body: keras.Model, ranges: Mapping[int, Range]) -> None:
        self._body = body
        self._ranges = ranges
        self._kernels = {  # float32, bias last
            layer.name: layer.get_weights() for layer in body.layers if _in_8_bits(layer)
        }
        self._users: dict[int, list[Any]] = defaultdict(list)
        for node in _nodes(body):
            for tensor in node.input_tensors:
                self._users[id(tensor)].append(node.operation)

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        """Compute the output."""
        values: dict[int, Value] = {id(self._body.inputs[0]): images}
        for node in _nodes(self._body):
            values |= self._apply(node, values)
        return self._real(self._body.outputs[0], values)

    def _apply(self, node: Any, values: dict[int, Value]) -> dict[int, Value]:
        """Return what a node gives, by the `id` of its tensors."""
        operation, inputs = node.operation, node.input_tensors
        first, outputs = inputs[0], _outputs(node)
        key = id(outputs[0])
        range_, value = self._ranges[key], values[id(first)]
        if _in_8_bits(operation):
            return {key: Convolution(operation, self._codes(first, values))}
        if isinstance(operation, keras.layers.Dropout):
            return {key: value}
        if _is_relu(operation) and isinstance(value, Convolution) and self._is_only_for(first):
            return {key: self._convolve(value, Range(0.0, range_.high), relu=True)}
        if isinstance(operation, keras.layers.Add):
            waiting = self._with_shortcut(node, values)
            if waiting is not None:
                return {key: waiting}
        if isinstance(operation, keras.layers.ZeroPadding2D) and all(
            _in_8_bits(user) or isinstance(value, Codes) for user in self._users[key]
        ):
            codes = self._codes(first, values)
            return {key: _padded(codes, operation.padding)}
        if isinstance(operation, keras.layers.MaxPooling2D) and isinstance(value, Codes):
            return {key: _max_pooled(value, operation)}
        real = {id(tensor): self._real(tensor, values) for tensor in inputs}
        args, kwargs = node.arguments.fill_in(real)
        results = keras.tree.flatten(operation(*args, **kwargs))
        return {id(tensor): result for tensor, result in zip(outputs, results, strict=True)}

    def _with_shortcut(self, node: Any, values: dict[int, Value]) -> Convolution | None:
        """Return the convolution that an addition can be a part of, with what is added to it.

        TensorFlow has a sum with signed codes as well, but cuts it off at half of its range. So a
        signed shortcut is moved up until it is not, and the bias of the convolution down.
        """
        users = self._users[id(_outputs(node)[0])]
        if len(node.input_tensors) != 2 or len(users) != 1 or not _is_relu(users[0]):
            return None
        for branch, shortcut in (node.input_tensors, node.input_tensors[::-1]):
            waiting, other = values[id(branch)], values[id(shortcut)]
            if not isinstance(waiting, Convolution) or not self._is_only_for(branch):
                continue
            low, high = self._ranges[id(shortcut)]
            if isinstance(other, Convolution):
                moved = other._replace(offset=-low)
                codes = self._convolve(moved, Range(0.0, high - low), relu=True)
                return waiting._replace(shortcut=codes, offset=low)
            codes = self._codes(shortcut, values)
            if not codes.range.signed:
                return waiting._replace(shortcut=codes)
        return None

    def _is_only_for(self, tensor: Any) -> bool:
        """Return whether nothing but one operation takes a tensor."""
        return len(self._users[id(tensor)]) == 1

    def _codes(self, tensor: Any, values: dict[int, Value]) -> Codes:
        """Return a value in 8 bits, rounded the first time that it is asked for."""
        value, range_ = values[id(tensor)], self._ranges[id(tensor)]
        if isinstance(value, Convolution):
            value = self._convolve(value, range_._replace(low=-range_.peak), relu=False)
        elif not isinstance(value, Codes):
            return _rounded(value, range_)  # others take the float itself
        values[id(tensor)] = value
        return value

    def _real(self, tensor: Any, values: dict[int, Value]) -> tf.Tensor:
        """Return a value in float32."""
        value = values[id(tensor)]
        if isinstance(value, tf.Tensor):
            return value
        codes = self._codes(tensor, values)
        return tf.cast(_bits(codes), tf.float32) * codes.step

    def _convolve(self, what: Convolution, output: Range, *, relu: bool) -> Codes:
        """Compute a convolution and what goes with it, rounded to the range of the output."""
        layer, inputs, shortcut, offset = what
        kernel, *rest = self._kernels[layer.name]
        bias = (rest[0] if rest else np.zeros(kernel.shape[-1], np.float32)) + np.float32(offset)
        peaks = np.abs(kernel).max(axis=(0, 1, 2))
        # A bias is added in steps of the sum. A channel of hardly any weights has too small ones.
        smallest = np.abs(bias) * _STEPS / (inputs.step * _LARGEST_BIAS)
        peaks = np.where(peaks > 0, np.maximum(peaks, smallest), 1.0).astype(np.float32)
        codes = np.rint(kernel / peaks * _STEPS).astype(tf.qint8.as_numpy_dtype)
        options = {
            "input": inputs.codes,
            "filter": tf.constant(codes, tf.qint8),
            "bias": bias,
            "min_input": inputs.low,
            "max_input": inputs.range.peak,
            "min_filter": -peaks,
            "max_filter": peaks,
            "min_freezed_output": -output.peak if output.signed else 0.0,
            "max_freezed_output": output.peak,
            "strides": (1, *layer.strides, 1),
            "dilations": (1, *layer.dilation_rate, 1),
            "padding": layer.padding.upper(),
        }
        if shortcut is not None:
            options |= {
                "summand": shortcut.codes,
                "min_summand": shortcut.low,
                "max_summand": shortcut.range.peak,
            }
            run = tf.raw_ops.QuantizedConv2DWithBiasSumAndReluAndRequantize
        elif relu:
            run = tf.raw_ops.QuantizedConv2DWithBiasAndReluAndRequantize
        else:
            run = tf.raw_ops.QuantizedConv2DWithBiasAndRequantize
        return Codes(run(**options)[0], output)


def _nodes(model: keras.Model) -> list[Any]:
    """Return the calls of a functional model's operations, in the order to compute them."""
    return [
        node
        for depth in sorted(model._nodes_by_depth, reverse=True)
        for node in model._nodes_by_depth[depth]
        if not isinstance(node.operation, keras.layers.InputLayer)
    ]


def _outputs(node: Any) -> list[Any]:
    """Return the tensors that a node gives."""
    found: list[Any] = keras.tree.flatten(node.outputs)
    return found


def _in_8_bits(operation: Any) -> bool:
    """Return whether a layer is a convolution that there are 8-bit operations for.

    Those of single pixels, in attention, do little work, and all depends on them.
    """
    return (
        isinstance(operation, keras.layers.Conv2D)
        and operation.groups == 1
        and operation.activation is keras.activations.linear
        and operation.input.shape[1:3] != (1, 1)
    )


def _is_relu(operation: Any) -> bool:
    """Return whether a layer is the plain ReLU."""
    return isinstance(operation, keras.layers.ReLU) and (
        operation.max_value,
        operation.negative_slope,
        operation.threshold,
    ) == (None, 0.0, 0.0)


def _bits(codes: Codes) -> tf.Tensor:
    """Return codes as plain whole numbers."""
    return tf.bitcast(codes.codes, tf.int8 if codes.range.signed else tf.uint8)


def _rounded(x: tf.Tensor, range_: Range) -> Codes:
    """Round float32 to 8 bits."""
    low = -range_.peak if range_.signed else 0.0
    quantized = tf.raw_ops.QuantizeV2(
        input=x,
        min_range=low,
        max_range=range_.peak,
        T=tf.qint8 if range_.signed else tf.quint8,
        mode="SCALED",
        round_mode="HALF_TO_EVEN",
        narrow_range=range_.signed,
    )
    return Codes(quantized.output, range_)


def _padded(codes: Codes, margins: Sequence[Sequence[int]]) -> Codes:
    """Surround with zeros."""
    padded = tf.pad(_bits(codes), ((0, 0), *margins, (0, 0)))
    return Codes(tf.bitcast(padded, codes.codes.dtype), codes.range)


def _max_pooled(codes: Codes, layer: keras.layers.MaxPooling2D) -> Codes:
    """Take maxima; the largest code is of the largest value."""
    pooled = tf.raw_ops.QuantizedMaxPool(
        input=codes.codes,
        min_input=codes.low,
        max_input=codes.range.peak,
        ksize=(1, *layer.pool_size, 1),
        strides=(1, *layer.strides, 1),
        padding=layer.padding.upper(),
    )
    return Codes(pooled.output, codes.range)
