"""Rewrite a model's graph: in built-in layers only, with its norms folded, or in another dtype.

What leaves kresnet must load without it, so these functions replace ConvNorm and PadShortcut.
They take any functional model that contains such layers, with whatever head a user has added.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import keras
from keras import ops

from kresnet.errors import ConfigError
from kresnet.zoo.layers import ConvNorm, DropPath, PadShortcut

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
        it does nothing at inference.
    """
    return _rewrite(model, _conv_and_norm, dtype)


def fold(model: keras.Model, *, dtype: Policy | None = None) -> keras.Model:
    """Return the model at inference with every norm multiplied into its convolution.

    Args:
        model: A functional model; it is not changed, and shares nothing with the result.
        dtype: Policy of the new layers; None keeps each layer's own. Float32 layers stay float32.

    Returns:
        A model of plain Conv2D layers with bias, named as the ConvNorm layers were. Its outputs
        are those of `model(x, training=False)`; it has no norm statistics left to train.
    """
    return _rewrite(model, _folded_conv, dtype)


def with_dtype(model: keras.Model, dtype: Policy) -> keras.Model:
    """Return a copy of the model, weights included, under another dtype policy.

    Float32 layers (the pooling and the head) stay float32.
    """
    return _rewrite(model, None, dtype)


class _Layers:
    """Makes each new layer once, so a layer that was called twice is shared again."""

    def __init__(self, dtype: Policy | None) -> None:
        self.dtype = None if dtype is None else keras.dtype_policies.get(dtype)
        self.made: dict[str, keras.layers.Layer] = {}

    def policy(self, layer: keras.layers.Layer) -> keras.DTypePolicy:
        """Return the policy of the layer's successor."""
        keeps_float32 = layer.name in ("pool", "head_dropout", "head")
        return layer.dtype_policy if self.dtype is None or keeps_float32 else self.dtype

    def call(
        self,
        make: Callable[..., keras.layers.Layer],
        x: Any,
        *,
        like: keras.layers.Layer,
        name: str,
        values: Callable[[], list[Any]] = list,
        **options: Any,
    ) -> Any:
        """Call the layer `name` on `x`, after making it and giving it its values."""
        if name not in self.made:
            self.made[name] = make(**options, name=name, dtype=self.policy(like))
            result = self.made[name](x)
            self.made[name].set_weights([ops.convert_to_numpy(v) for v in values()])
            return result
        return self.made[name](x)


Replacement: TypeAlias = Callable[[_Layers, ConvNorm, Any], Any]


def _rewrite(model: keras.Model, replace: Replacement | None, dtype: Policy | None) -> keras.Model:
    if (
        not isinstance(model, keras.Model)
        or isinstance(model, keras.Sequential)
        or not (getattr(model, "outputs", None))
    ):
        raise ConfigError(
            "The model must be a functional Keras model, as kresnet.build returns. "
            f"Received: {type(model).__name__}."
        )
    layers = _Layers(dtype)

    def apply(layer: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("training", None)
        if not isinstance(layer, keras.layers.Layer):
            return layer(*args, **kwargs)  # a keras.ops function has no state
        if isinstance(layer, keras.Model):
            nested = layers.made.setdefault(layer.name, _rewrite(layer, replace, dtype))
            return nested(*args, **kwargs)
        if replace and isinstance(layer, ConvNorm):
            return replace(layers, layer, args[0])
        if replace and isinstance(layer, PadShortcut):
            return _pad_shortcut(layers, layer, args[0])
        if replace and isinstance(layer, DropPath):
            return args[0]
        config = layer.get_config() | {"trainable": layer.trainable}
        config.pop("name"), config.pop("dtype", None)
        return layers.call(
            lambda **options: type(layer).from_config(config | options),
            *args,
            like=layer,
            name=layer.name,
            values=layer.get_weights,
            **kwargs,
        )

    result = keras.models.clone_model(
        model, clone_function=lambda layer: layer, call_function=apply
    )
    if hasattr(model, "preprocessing"):
        result.preprocessing = model.preprocessing
    return result


def _conv(
    layers: _Layers, layer: ConvNorm, x: Any, *, use_bias: bool, values: Callable[[], list[Any]]
) -> Any:
    padding = (layer.kernel_size - 1) // 2
    if layer.strides > 1 and padding:
        x = layers.call(
            keras.layers.ZeroPadding2D, x, like=layer, name=f"{layer.name}_pad", padding=padding
        )
    return layers.call(
        keras.layers.Conv2D,
        x,
        like=layer,
        name=layer.name,
        values=values,
        filters=layer.filters,
        kernel_size=layer.kernel_size,
        strides=layer.strides,
        padding="same" if layer.strides == 1 else "valid",
        groups=layer.groups,
        use_bias=use_bias,
        trainable=layer.trainable,
    )


def _conv_and_norm(layers: _Layers, layer: ConvNorm, x: Any) -> Any:
    x = _conv(layers, layer, x, use_bias=False, values=lambda: [layer.kernel])
    return layers.call(
        keras.layers.BatchNormalization,
        x,
        like=layer,
        name=f"{layer.name}_norm",
        values=lambda: [layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance],
        momentum=layer.momentum,
        epsilon=layer.epsilon,
        trainable=layer.trainable and not layer.frozen,
    )


def _folded_conv(layers: _Layers, layer: ConvNorm, x: Any) -> Any:
    return _conv(layers, layer, x, use_bias=True, values=lambda: list(layer.folded()))


def _pad_shortcut(layers: _Layers, layer: PadShortcut, x: Any) -> Any:
    """Write option A as a pooling of one pixel and a padding of channels."""
    before, after = layer.padding(x.shape[-1])
    x = layers.call(
        keras.layers.AveragePooling2D,
        x,
        like=layer,
        name=layer.name,
        pool_size=1,
        strides=layer.strides,
    )
    return ops.pad(x, ((0, 0), (0, 0), (0, 0), (before, after)))
