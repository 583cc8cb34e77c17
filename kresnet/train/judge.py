"""Scores a model on the validation images."""

from __future__ import annotations

from collections.abc import Iterable

import keras
import numpy as np
import tensorflow as tf

from kresnet.train.score import Score


class Judge:
    """Scores a model, as its weights now are, on every validation image once.

    Args:
        model: Gives logits `(b, k)`.
        batches: `(what the model takes, labels (b,))`, the same each time.
    """

    def __init__(self, model: keras.Model, batches: Iterable[tuple[tf.Tensor, tf.Tensor]]) -> None:
        self._batches = batches
        self._logits = tf.function(
            lambda images: model(images, training=False), reduce_retracing=True
        )

    def __call__(self) -> Score:
        """Return the score."""
        right: list[np.ndarray] = []
        losses: list[np.ndarray] = []
        for images, labels in self._batches:
            logits = self._logits(images)
            right.append(tf.argmax(logits, axis=1, output_type=labels.dtype).numpy() == labels)
            losses.append(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits).numpy())
        return Score(
            float(np.concatenate(right).mean()),
            float(np.concatenate(losses).mean(dtype=np.float64)),
            sum(map(len, right)),
        )
