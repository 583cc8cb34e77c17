"""Rewrite a model's graph: in built-in layers only, with its norms folded, or in another dtype.

What leaves kresnet must load without it, so these functions replace the layers that are its own.
They take any functional model that contains such layers, with whatever head a user has added.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

import keras
from keras import ops

from kresnet.errors import ConfigError
from kresnet.zoo.conv import Conv, ConvNorm, Norm
from kresnet.zoo.graph import deep_graph
from kresnet.zoo.layers import BlurPool, DropPath, PadShortcut

Policy: TypeAlias = str | keras.DTypePolicy


def to_keras(model: keras.Model, *, dtype: Policy | None = None) -> keras.Model:
    """Return the same function in Keras' own layers: Conv2D and BatchNormalization.

    Args:
        model: A functional model; it is not changed, and shares nothing with the result.
        dtype: Policy of the new layers; None keeps each layer's own. Float32 layers stay float32.

    Returns:
        A model of equal outputs, trainable with norm statistics, whose `.keras` file loads
        without kresnet. `ConvNorm` "a" becomes Conv2D "a" and BatchNormalization "a_norm".
        A frozen ConvNorm gives a BatchNormalization of `trainable=False`. DropPath is left out:
        it does nothing at inference. Standardised kernels become what they are standardised to.
    """
    return _rewrite(model, _BUILT_IN, _Layers(dtype))


def fold(model: keras.Model, *, dtype: Policy | None = None, portable: bool = True) -> keras.Model:
    """Return the model at inference with every norm multiplied into its convolution.

    Args:
        model: A functional model; it is not changed, and shares nothing with the result.
        dtype: Policy of the new layers; None keeps each layer's own. Float32 layers stay float32.
        portable: Use Keras' layers only. Else grouped convolutions stay kresnet's: Keras has
            TensorFlow compile each of its own with XLA, which on processors is many times slower.

    Returns:
        A model of plain Conv2D layers with bias, named as the ConvNorm layers were. Its outputs
        are those of `model(x, training=False)`. The norms of pre-activation blocks, which have no
        convolution before them, and group norms, which have no statistics, stay.
    """
    return _rewrite(model, _FOLDED, _Layers(dtype, portable=portable))


def with_dtype(model: keras.Model, dtype: Policy) -> keras.Model:
    """Return a copy of the model, weights included, under another dtype policy.

    Float32 layers (the pooling and the head) stay float32.
    """
    return _rewrite(model, {}, _Layers(dtype))


class _Layers:
    """Makes each new layer once, so a layer that was called twice is shared again."""

    def __init__(self, dtype: Policy | None, *, portable: bool = True) -> None:
        self.portable = portable
        self.dtype = None if dtype is None else keras.dtype_policies.get(dtype)
        self.made: dict[str, keras.layers.Layer] = {}

    def for_nested(self) -> _Layers:
        """Return the maker for a model inside the model, whose names are its own."""
        return _Layers(self.dtype, portable=self.portable)

    def policy(self, layer: keras.layers.Layer) -> keras.DTypePolicy:
        """Return the policy of the layer's successor."""
        keeps_float32 = layer.name in ("pool", "head_dropout", "head")
        return layer.dtype_policy if self.dtype is None or keeps_float32 else self.dtype

    def call(
        self,
        make: Callable[..., keras.layers.Layer],
        *inputs: Any,
        like: keras.layers.Layer,
        name: str,
        values: Callable[[], list[Any]] = list,
        arguments: Mapping[str, Any] = MappingProxyType({}),
        **options: Any,
    ) -> Any:
        """Call the layer `name` on inputs, after making it and giving it its values."""
        if name in self.made:
            return self.made[name](*inputs, **arguments)
        self.made[name] = make(**options, name=name, dtype=self.policy(like))
        result = self.made[name](*inputs, **arguments)
        self.made[name].set_weights([ops.convert_to_numpy(v) for v in values()])
        return result


def _rewrite(
    model: keras.Model, replacements: Mapping[type, Replacement], layers: _Layers
) -> keras.Model:
    if (
        not isinstance(model, keras.Model)
        or isinstance(model, keras.Sequential)
        or not (getattr(model, "outputs", None))
    ):
        raise ConfigError(
            "The model must be a functional Keras model, as kresnet.build returns. "
            f"Received: {type(model).__name__}."
        )

    def apply(layer: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("training", None)
        if not isinstance(layer, keras.layers.Layer):
            return layer(*args, **kwargs)  # a keras.ops function has no state
        if isinstance(layer, keras.Model):
            if layer.name not in layers.made:
                inner = layers.for_nested()
                layers.made[layer.name] = _rewrite(layer, replacements, inner)
            return layers.made[layer.name](*args, **kwargs)
        if type(layer) in replacements:
            return replacements[type(layer)](layers, layer, args[0])
        config = layer.get_config() | {"trainable": layer.trainable}
        config.pop("name"), config.pop("dtype", None)
        return layers.call(
            lambda **options: type(layer).from_config(config | options),
            *args,
            like=layer,
            name=layer.name,
            values=layer.get_weights,
            arguments=kwargs,
        )

    with deep_graph():
        result = keras.models.clone_model(
            model, clone_function=lambda layer: layer, call_function=apply
        )
    if hasattr(model, "preprocessing"):
        result.preprocessing = model.preprocessing
    return result


def _plain_conv(
    layers: _Layers, layer: Conv, x: Any, *, use_bias: bool, values: Callable[[], list[Any]]
) -> Any:
    """Write a convolution as Conv2D, with what has to come before it."""
    step, strides, margin = layer.geometry()
    if step > 1:
        x = _every(layers, layer, x, step, name=f"{layer.name}_every_{step}")
    if margin:
        x = layers.call(
            keras.layers.ZeroPadding2D, x, like=layer, name=f"{layer.name}_pad", padding=margin
        )
    return layers.call(
        keras.layers.Conv2D,
        x,
        like=layer,
        name=layer.name,
        values=values,
        filters=layer.filters,
        kernel_size=layer.kernel_size,
        strides=strides,
        padding="valid" if margin else "same",
        dilation_rate=layer.dilation_rate // step,
        data_format="channels_last",
        groups=layer.groups,
        use_bias=use_bias,
        kernel_regularizer=layer.kernel_regularizer,
        trainable=layer.trainable,
    )


def _conv(layers: _Layers, layer: Conv, x: Any) -> Any:
    """Write a convolution without norm; a standardised kernel is one no longer."""
    values = (v for v in layer.folded() if v is not None)
    return _plain_conv(layers, layer, x, use_bias=layer.use_bias, values=lambda: list(values))


def _conv_and_norm(layers: _Layers, layer: ConvNorm, x: Any) -> Any:
    values = (v for v in Conv.folded(layer) if v is not None)
    x = _plain_conv(layers, layer, x, use_bias=layer.use_bias, values=lambda: list(values))
    return _norm(layers, layer, x, name=f"{layer.name}_norm")


def _norm(layers: _Layers, layer: ConvNorm | Norm, x: Any, name: str | None = None) -> Any:
    return layers.call(
        keras.layers.BatchNormalization,
        x,
        like=layer,
        name=name or layer.name,
        values=lambda: [layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance],
        momentum=layer.momentum,
        epsilon=layer.epsilon,
        trainable=layer.trainable and not layer.frozen,
    )


def _folded_conv(layers: _Layers, layer: Conv, x: Any) -> Any:
    """Write any convolution as one with the norm behind it in its kernel and bias."""
    kernel, bias = layer.folded()
    values = [kernel] if bias is None else [kernel, bias]
    if layer.groups > 1 and not layers.portable:
        return layers.call(
            Conv,
            x,
            like=layer,
            name=layer.name,
            values=lambda: values,
            use_bias=bias is not None,
            **{key: getattr(layer, key) for key in _GEOMETRY},
        )
    return _plain_conv(layers, layer, x, use_bias=bias is not None, values=lambda: values)


_GEOMETRY = ("filters", "kernel_size", "strides", "dilation_rate", "groups", "padding")


def _blur_pool(layers: _Layers, layer: BlurPool, x: Any) -> Any:
    """Write the blur as a depthwise convolution with a kernel that does not learn."""
    channels = x.shape[-1]
    x = ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    return layers.call(
        keras.layers.DepthwiseConv2D,
        x,
        like=layer,
        name=layer.name,
        values=lambda: [layer.kernel(channels)],
        kernel_size=3,
        strides=layer.strides,
        use_bias=False,
        data_format="channels_last",
        trainable=False,
    )


def _pad_shortcut(layers: _Layers, layer: PadShortcut, x: Any) -> Any:
    """Write option A as a pooling of one pixel and a padding of channels."""
    before, after = layer.padding(x.shape[-1])
    x = _every(layers, layer, x, layer.strides, name=layer.name)
    return ops.pad(x, ((0, 0), (0, 0), (0, 0), (before, after)))


def _every(layers: _Layers, layer: keras.layers.Layer, x: Any, step: int, *, name: str) -> Any:
    """Keep every `step`-th pixel in both directions."""
    return layers.call(
        keras.layers.AveragePooling2D,
        x,
        like=layer,
        name=name,
        pool_size=1,
        strides=step,
        data_format="channels_last",
    )


def _drop_nothing(layers: _Layers, layer: DropPath, x: Any) -> Any:
    return x


Replacement: TypeAlias = Callable[[_Layers, Any, Any], Any]
_BUILT_IN: dict[type, Replacement] = {
    ConvNorm: _conv_and_norm,
    Conv: _conv,
    Norm: _norm,
    PadShortcut: _pad_shortcut,
    BlurPool: _blur_pool,
    DropPath: _drop_nothing,
}
_FOLDED: dict[type, Replacement] = _BUILT_IN | {ConvNorm: _folded_conv, Conv: _folded_conv}
