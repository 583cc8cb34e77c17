"""A running average of the weights and of the norms' statistics, apart from the optimizer.

Keras' own average (`use_ema`) leaves the statistics out, validates and saves the raw weights, and
replaces them at the end of every `fit`. This one is a second model's worth of variables: a part of
the saved state, scored beside the raw weights, and never mixed into them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf


class Average:
    """Exponential moving average of what changes in a training.

    Args:
        model: Its trainable variables, and the statistics that its norms learn, are averaged.
        reach: Share of the training that the average reaches back, above 0.

    Attributes:
        variables: The averages, float32, in a fixed order: what a saved state holds.
    """

    def __init__(self, model: keras.Model, *, reach: float) -> None:
        self._reach = reach
        self._of = moving_variables(model)
        self.variables = [
            keras.Variable(
                tf.identity(v.value), trainable=False, dtype="float32", name=f"average_{v.name}"
            )
            for v in self._of
        ]
        self._update = tf.function(
            self._move, input_signature=[tf.TensorSpec((), tf.float32)], autograph=False
        )
        self._exchange = tf.function(self._swap, autograph=False)

    def update(self, step: int, steps: int) -> None:
        """Take in the weights after update number `step`, from 1, of `steps` in all."""
        self._update(1.0 - decay(step, steps, reach=self._reach))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model its averages for a while; afterwards it is bit for bit what it was."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _move(self, share: tf.Tensor) -> None:
        for average, variable in zip(self.variables, self._of, strict=True):
            average.value.assign_add(share * (variable.value - average.value))

    def _swap(self) -> None:
        for average, variable in zip(self.variables, self._of, strict=True):
            kept = tf.identity(average.value)
            average.value.assign(variable.value)
            variable.value.assign(kept)


def decay(step: int, steps: int, *, reach: float) -> float:
    """Return the share of the average that stays in update number `step`, from 1, of `steps`.

    The mean age of what is in the average is a share of the training, whatever its length, and
    not a number of steps: torchvision rescales its decay to the same end. At the start it is
    younger, min(decay, (1 + t) / (10 + t)) as in TensorFlow and timm, so that the first weights,
    which are no result, are soon forgotten.
    """
    return min(1.0 - 1.0 / max(reach * steps, 10.0), (1.0 + step) / (10.0 + step))


def moving_variables(model: keras.Model) -> Sequence[Any]:
    """Return what changes while a model is trained: its weights, and statistics not frozen."""
    statistics = [
        variable
        for layer in model._flatten_layers(include_self=False)
        if layer.trainable and not getattr(layer, "frozen", False)
        for variable in layer._non_trainable_variables
        if variable.name.startswith("moving_")
    ]
    return [*model.trainable_variables, *statistics]
