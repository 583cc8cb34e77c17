"""The weights that the other contenders begin with, in the forms that they take.

Weights whose norms were folded away have no statistics: their norms are identities. A network that
learns its statistics while it is tuned, as the others do, would start from nonsense. So they are
given the statistics of the training images, and the scale and offset that keep the function what
it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kresnet.bench.accuracy.checking import CHECK, KERAS, TORCH
from kresnet.bench.accuracy.task import Labelled, Task
from kresnet.data import pixels
from kresnet.zoo import Preprocessing, build, to_keras
from kresnet.zoo.conv import ConvNorm
from kresnet.zoo.schemes.torch import to_torch

_CHECKED = 4
_AT_ONCE = 32


def contend(task: Task) -> None:
    """Write the files into the task's folder of starting weights."""
    model = build(
        task.variant,
        num_classes=None,
        input_shape=(task.image_size, task.image_size),
        weights=task.weights,
        dtype="float32",
    )
    preprocessing: Preprocessing = replace(model.preprocessing, image_size=task.image_size)
    some = np.concatenate([*batches(task.train[:_CHECKED], preprocessing)])
    features = model.predict_on_batch(some)
    if is_folded(model):
        give_statistics(model, batches(task.train, preprocessing))
    folder = Path(task.start)
    to_keras(model).save(folder / KERAS)
    arrays: dict[str, Any] = to_torch(model)
    np.savez(folder / TORCH, **arrays)
    np.savez(
        folder / CHECK,
        images=some,
        features=features,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )


def batches(images: tuple[Labelled, ...], preprocessing: Preprocessing) -> Iterator[np.ndarray]:
    """Return images as the model takes them, float32 `(n, s, s, 3)`."""
    yield from (
        tf.data.Dataset.from_tensor_slices([path for path, _ in images])
        .map(lambda path: pixels.prepare(tf.io.read_file(path), preprocessing))
        .batch(_AT_ONCE)
        .as_numpy_iterator()
    )


def is_folded(model: keras.Model) -> bool:
    """Tell whether the norms of a model do nothing but add."""
    norms = [layer for layer in model.layers if isinstance(layer, ConvNorm)]
    return all(np.all(np.array(layer.moving_mean) == 0) for layer in norms)


def give_statistics(model: keras.Model, batches: Iterable[np.ndarray]) -> None:
    """Give norms the statistics of what goes through them, and keep the model's outputs.

    A norm is y = gamma (x - mean) / sqrt(variance + epsilon) + beta. With m and v, the mean and
    variance of x over the images, in place of mean and variance, it stays the same function for
    gamma' = gamma sqrt((v + epsilon) / (variance + epsilon)) and beta' = the mean of y.

    Args:
        model: Its convolutions with norms are `ConvNorm` layers.
        batches: Model inputs `(n, s, s, 3)`.
    """
    layers = [layer for layer in model.layers if isinstance(layer, ConvNorm)]
    outputs = keras.Model(model.inputs, [layer.output for layer in layers])

    @tf.function(reduce_retracing=True, autograph=False)
    def moments(images: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
        return [
            (tf.reduce_mean(y, (0, 1, 2)), tf.reduce_mean(tf.square(y), (0, 1, 2)))
            for y in outputs(images, training=False)
        ]

    count = 0
    sums = [np.zeros((2, layer.filters)) for layer in layers]
    for images in batches:
        count += len(images)
        for total, found in zip(sums, moments(images), strict=True):
            total += len(images) * np.array(found, np.float64)
    for layer, total in zip(layers, sums, strict=True):
        mean, square = total / count
        gamma, beta, old_mean, old_variance = (
            np.array(v, np.float64)
            for v in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
        )
        scale = gamma / np.sqrt(old_variance + layer.epsilon)
        variance = np.maximum(square - mean**2, 0.0) / scale**2
        layer.moving_mean.assign(old_mean + (mean - beta) / scale)
        layer.moving_variance.assign(variance)
        layer.gamma.assign(scale * np.sqrt(variance + layer.epsilon))
        layer.beta.assign(mean)
