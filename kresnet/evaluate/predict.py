"""Probabilities of a Keras model for the rows of an index."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from kresnet.data.pipeline import evaluation_batches
from kresnet.data.scan import Row
from kresnet.zoo import Preprocessing


def predict(
    model: keras.Model,
    rows: Sequence[Row],
    preprocessing: Preprocessing,
    *,
    batch_size: int = 32,
) -> np.ndarray:
    """Score every row once, in order.

    Args:
        model: Gives logits.
        rows: Images.
        preprocessing: What the model expects.
        batch_size: Images a step.

    Returns:
        Probabilities float32 `(rows, classes)`.
    """
    run = tf.function(
        lambda images: tf.nn.softmax(model(images, training=False)), reduce_retracing=True
    )
    batches = evaluation_batches(rows, preprocessing, batch_size=batch_size)
    return np.concatenate([run(images).numpy() for images, _ in batches])
