"""Logits and probabilities of a Keras model for the rows of an index."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from kresnet.data.pipeline import evaluation_batches
from kresnet.data.scan import Row
from kresnet.zoo import Preprocessing


def predict_logits(
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
        Logits float32 `(rows, classes)`.
    """
    run = tf.function(
        lambda images: tf.cast(model(images, training=False), tf.float32), reduce_retracing=True
    )
    batches = evaluation_batches(rows, preprocessing, batch_size=batch_size)
    return np.concatenate([run(images).numpy() for images, _ in batches])


def predict(
    model: keras.Model,
    rows: Sequence[Row],
    preprocessing: Preprocessing,
    *,
    batch_size: int = 32,
) -> np.ndarray:
    """Return probabilities float32 `(rows, classes)`; arguments as in `predict_logits`."""
    logits = predict_logits(model, rows, preprocessing, batch_size=batch_size)
    return tf.nn.softmax(logits).numpy()
