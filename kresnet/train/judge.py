"""Scores a model on the validation images."""

from __future__ import annotations

from collections.abc import Iterable

import keras
import numpy as np
import tensorflow as tf

from kresnet.train.distribute import ALONE, Team
from kresnet.train.score import Score


class Judge:
    """Scores a model, as its weights now are, on every validation image once.

    Args:
        model: Gives logits `(b, k)`.
        batches: `(what the model takes, labels (b,))`, the same each time. In a team, those of
            this process: of every image whose number is its rank, counted by the processes.
        team: Whose processes have a share of the images each, and all get the same score.
        count: Of the images of all processes; of no account for one alone.
    """

    def __init__(
        self,
        model: keras.Model,
        batches: Iterable[tuple[tf.Tensor, tf.Tensor]],
        *,
        team: Team = ALONE,
        count: int = 0,
    ) -> None:
        self._batches, self._team, self._count = batches, team, count
        self._logits = tf.function(
            lambda images: model(images, training=False), reduce_retracing=True
        )

    def __call__(self) -> Score:
        """Return the score."""
        right: list[np.ndarray] = [np.zeros(0, bool)]  # of a process without an image
        losses: list[np.ndarray] = [np.zeros(0, np.float32)]
        for images, labels in self._batches:
            logits = self._logits(images)
            right.append(tf.argmax(logits, axis=1, output_type=labels.dtype).numpy() == labels)
            losses.append(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits).numpy())
        mine = np.stack([np.concatenate(right), np.concatenate(losses)], axis=1, dtype=np.float32)
        answers = self._team.joined(mine, self._count)
        return Score(
            float((answers[:, 0] > 0).mean()),
            float(answers[:, 1].mean(dtype=np.float64)),
            len(answers),
        )
