"""The statistics of norms, computed anew from images instead of remembered from training steps.

A moving average is of the weights of the last steps, and of views as training sees them. Weights
that were averaged have no statistics of their own at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf


class Recalibration:
    """Gives the norms of a model the exact statistics of a set of images.

    "Precise" batch norm (Wu & Johnson 2021, arXiv:2105.07576, section 3): the statistics of all
    images, as batch norm sees them in training, weigh each image alike. Nothing is dropped at
    random meanwhile.

    Args:
        model: Its norms that learn statistics are recalibrated; frozen ones stay as they are.
        batches: Returns `(images (b, s, s, c), labels (b,))`, each time the same.
    """

    def __init__(
        self, model: keras.Model, batches: Callable[[], Iterator[tuple[tf.Tensor, tf.Tensor]]]
    ) -> None:
        self._model, self._batches = model, batches
        self._norms = learning_norms(model)
        self._run = tf.function(
            lambda images: model(images, training=True), reduce_retracing=True, autograph=False
        )

    def __call__(self) -> int:
        """Recalibrate for the weights as they now are; return the number of images."""
        count = 0
        means = [np.zeros(norm.moving_mean.shape, np.float64) for norm in self._norms]
        squares = [np.zeros_like(mean) for mean in means]
        with _bare(self._model, self._norms):
            for images, _ in self._batches():
                self._run(images)
                size = len(images)
                count += size
                for mean, square, norm in zip(means, squares, self._norms, strict=True):
                    center = norm.moving_mean.numpy().astype(np.float64)
                    mean += size * center
                    square += size * (norm.moving_variance.numpy() + center**2)
        for mean, square, norm in zip(means, squares, self._norms, strict=True):
            center = mean / count
            norm.moving_mean.assign(center)
            norm.moving_variance.assign(np.maximum(square / count - center**2, 0.0))
        return count


def learning_norms(model: keras.Model) -> list[Any]:
    """Return the layers of a model that learn statistics, in order."""
    return [
        layer
        for layer in model._flatten_layers(include_self=False)
        if hasattr(layer, "moving_mean") and layer.trainable and not getattr(layer, "frozen", False)
    ]


@contextmanager
def _bare(model: keras.Model, norms: Sequence[Any]) -> Iterator[None]:
    """Have norms remember the last batch alone, and drop nothing, while a function is traced."""
    random = [
        layer for layer in model._flatten_layers(include_self=False) if hasattr(layer, "rate")
    ]
    before = [(norm, "momentum", norm.momentum) for norm in norms]
    before += [(layer, "rate", layer.rate) for layer in random]
    try:
        for layer, name, _ in before:
            setattr(layer, name, 0.0)
        yield
    finally:
        for layer, name, value in before:
            setattr(layer, name, value)
