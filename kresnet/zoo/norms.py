"""Switch all norms of a model between learning their statistics and keeping them.

Fine-tuning on few images needs the pretrained statistics kept: batch statistics of a small, narrow
data set move the moving averages away from what the weights were trained with, and accuracy falls
(He et al. 2016 and every transfer-learning guide since). In Keras 3 `base(x, training=False)` does
*not* keep them: `fit` passes `training=True` through the outer model and overrides it.
"""

from __future__ import annotations

from collections.abc import Iterator

import keras

from kresnet.errors import ConfigError
from kresnet.zoo.conv import ConvNorm, Norm


def freeze_norms(model: keras.Model, *, affine: bool = False) -> int:
    """Keep the statistics of every norm as they are, in training too.

    Takes effect at once, also on a compiled model.

    Args:
        model: Any Keras model; nested models are included. Group norms have no statistics to keep.
        affine: Freeze gamma and beta too, as `BatchNormalization.trainable = False` does.
            Keras' own BatchNormalization layers cannot train gamma and beta on frozen
            statistics, so theirs are always frozen.

    Returns:
        The number of norms.

    Raises:
        ConfigError: The model has no norms.
    """
    return _switch(model, frozen=True, affine=affine)


def unfreeze_norms(model: keras.Model) -> int:
    """Let every norm learn its statistics, gamma and beta again; returns how many there are."""
    return _switch(model, frozen=False, affine=False)


def _switch(model: keras.Model, *, frozen: bool, affine: bool) -> int:
    count = 0
    for layer in _norms(model):
        count += 1
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = not frozen
            continue
        layer.gamma.trainable = layer.beta.trainable = layer.trainable and not affine
        if not isinstance(layer, keras.layers.GroupNormalization):
            layer.frozen = frozen
    if not count:
        raise ConfigError(
            "The model needs at least one norm: a ConvNorm, Norm, BatchNormalization or "
            f"GroupNormalization layer. Received: model={model.name!r}. A folded model has none."
        )
    # Keras keeps the traced functions of fit, evaluate and predict; they still hold the old mode.
    model.train_function = model.test_function = model.predict_function = None
    return count


def _norms(model: keras.Model) -> Iterator[keras.layers.Layer]:
    kinds = ConvNorm, Norm, keras.layers.BatchNormalization, keras.layers.GroupNormalization
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, kinds):
            yield layer
