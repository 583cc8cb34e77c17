"""Round kernels to 8 bits so that the error of one weight is made good by the others.

Rounding each weight to the nearest step is blind to what the weights do together: where many small
changes add up, as after fine-tuning, it may take all of them back. Here the weights of an output
channel are rounded one after the other, and what each loses is spread over those still to come, by
how their inputs go together on real images (Frantar et al. 2022, arXiv:2210.17323).

Legend of shapes: o output channels, p weights of one output channel, m places that are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import keras
import numpy as np
import tensorflow as tf

from kresnet.zoo import Conv, with_dtype
from kresnet.zoo.graph import deep_graph

_IMAGES: Final = 64
_BATCH: Final = 8
_PLACES: Final = 64  # of the output of a convolution, for each image
_DAMPING: Final = 0.01  # of the mean diagonal; keeps the inverse well-conditioned
_BLOCK: Final = 128
_STEPS: Final = 127  # on either side of zero


def rounded(folded: keras.Model, images: Sequence[np.ndarray]) -> keras.Model:
    """Return the model with kernels that 8 bits hold exactly.

    The step of an output channel is its largest weight divided by 127. That weight stays the
    largest, so whoever quantizes the kernels symmetrically, channel by channel, finds these steps.

    Args:
        folded: A model with its norms folded; it is not changed.
        images: Prepared training images, float32 `(s, s, 3)` each.
    """
    layers = [
        layer
        for layer in folded.layers
        if isinstance(layer, keras.layers.Conv2D | Conv | keras.layers.Dense)
    ]
    # Spread over all of them: they may come class by class.
    places = np.linspace(0, len(images) - 1, min(_IMAGES, len(images))).round().astype(int)
    products = _products(folded, layers, [images[k] for k in places])
    result = with_dtype(folded, "float32")
    for layer, sums in zip(layers, products, strict=True):
        kernel = layer.kernel.numpy()
        parts = np.split(kernel.reshape(-1, kernel.shape[-1]).T, len(sums))
        rows = np.concatenate([_round_rows(*pair) for pair in zip(parts, sums, strict=True)])
        result.get_layer(layer.name).kernel.assign(rows.T.reshape(kernel.shape))
    return result


def _products(
    model: keras.Model, layers: Sequence[keras.layers.Layer], images: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Return sums of products of inputs over places and images, `(groups, p, p)` for each layer."""
    with deep_graph():
        watched = keras.Model(model.inputs[0], [layer.input for layer in layers])
    run = tf.function(
        lambda x: [
            _inputs(layer, features)
            for layer, features in zip(layers, watched(x, training=False), strict=True)
        ]
    )
    rng = np.random.default_rng(0)
    sums: list[np.ndarray] = []
    for start in range(0, len(images), _BATCH):
        seen = run(tf.stack(list(images[start : start + _BATCH])))
        for place, inputs in enumerate(seen):
            flat = tf.reshape(inputs, (-1, *inputs.shape[-2:])).numpy()
            x = flat[rng.permutation(len(flat))[: _PLACES * _BATCH]].transpose(1, 0, 2)
            product = x.transpose(0, 2, 1) @ x
            if start == 0:
                sums.append(product)
            else:
                sums[place] += product
    return sums


def _inputs(layer: keras.layers.Layer, features: tf.Tensor) -> tf.Tensor:
    """Return what each weight of a layer is multiplied with, `(..., groups, p)`."""
    if isinstance(layer, keras.layers.Dense):
        return features[..., tf.newaxis, :]
    if isinstance(layer, Conv):
        step, stride, margin = layer.geometry()
        features = features[:, ::step, ::step]
        if margin:
            features = tf.pad(features, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
        strides, rate = (stride, stride), (layer.dilation_rate // step,) * 2
        padding = "VALID" if margin else "SAME"
    else:
        strides, rate, padding = layer.strides, layer.dilation_rate, layer.padding.upper()
    height, width = layer.kernel.shape[:2]
    patches = tf.image.extract_patches(
        features, (1, height, width, 1), (1, *strides, 1), (1, *rate, 1), padding
    )
    places, channels = tf.shape(patches)[:3], features.shape[-1] // layer.groups
    apart = (height * width, layer.groups, channels)
    patches = tf.reshape(patches, tf.concat([places, apart], axis=0))
    grouped = tf.transpose(patches, (0, 1, 2, 4, 3, 5))
    return tf.reshape(
        grouped, tf.concat([places, (layer.groups, height * width * channels)], axis=0)
    )


def _round_rows(rows: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Round rows `(o, p)` to 127 steps on either side of zero, given products of inputs `(p, p)`.

    Returns:
        float32 `(o, p)`.
    """
    order = np.argsort(-np.diag(products), kind="stable")  # what matters most comes first
    rows, products = rows[:, order].astype(np.float64), products[np.ix_(order, order)]
    products = products.astype(np.float64)
    products[np.diag_indices_from(products)] += _DAMPING * np.diag(products).mean() + 1e-12
    # The upper factor of the inverse holds, row by row, how to spread an error over the rest.
    spread = np.linalg.cholesky(np.linalg.inv(products)).T
    largest = np.abs(rows).argmax(axis=1)
    peaks = np.take_along_axis(rows, largest[:, np.newaxis], axis=1)[:, 0]
    steps = np.maximum(np.abs(peaks), 1e-12) / _STEPS
    result = np.empty_like(rows)
    for start in range(0, rows.shape[1], _BLOCK):
        end = min(start + _BLOCK, rows.shape[1])
        errors = np.empty((len(rows), end - start))
        for k in range(start, end):
            nearest = np.clip(np.rint(rows[:, k] / steps), -_STEPS, _STEPS) * steps
            nearest = np.where(largest == k, peaks, nearest)
            result[:, k] = nearest
            errors[:, k - start] = (rows[:, k] - nearest) / spread[k, k]
            rows[:, k + 1 : end] -= np.outer(errors[:, k - start], spread[k, k + 1 : end])
        rows[:, end:] -= errors @ spread[start:end, end:]
    return result[:, np.argsort(order)].astype(np.float32)
