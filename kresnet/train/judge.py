"""How good a model is on the validation images, and which of two is better."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf


@dataclass(frozen=True, slots=True)
class Score:
    """How well a model does on images it did not learn from.

    Attributes:
        accuracy: Share of images whose highest score is the right class.
        loss: Mean negative log-likelihood of the right class, in nats.
    """

    accuracy: float
    loss: float

    def beats(self, other: Score | None) -> bool:
        """Tell whether this is better; equal accuracy is decided by the loss."""
        return other is None or (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


class Judge:
    """Scores a model, as its weights now are, on every validation image once."""

    def __init__(self, model: keras.Model, batches: tf.data.Dataset) -> None:
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
        )
