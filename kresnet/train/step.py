"""One step of a training: a batch, whole or in parts, its gradient, one update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import keras
import tensorflow as tf

from kresnet.errors import ConfigError
from kresnet.train.distribute import ALONE, Team
from kresnet.train.statistics import learning_norms

Loss = Literal["softmax", "sigmoid"]
Step = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
Errors = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

_PRESENT = 0.2  # a class with more of a target is present, as timm's --bce-target-thresh


def train_step(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    *,
    loss: Loss = "softmax",
    parts: int = 1,
    team: Team = ALONE,
) -> Step:
    """Return a compiled function that learns from one batch and gives its mean loss.

    It takes images `(b, s, s, c)`, targets `(b, k)` and weights `(b,)`, float32; in place of the
    images what else the model takes, in its type. The loss is
    the mean over the batch of weight times cross-entropy. It is not divided by the weights of the
    batch: their mean over all training images is 1, so gradients of small batches stay unbiased.

    In parts, the gradients of one part after the other are added, and one update is made: the
    same as that of the whole batch up to rounding, in the memory of a part. Norms that learn
    their statistics see a part at a time, which is another.

    With a team, each process gives its rows of the batch and gets the loss of all. Gradients are
    summed over all devices before they are clipped, and norms that learn see the whole batch: the
    same as on one device up to rounding. Nothing is learned where a worker is lost.

    Args:
        model: Gives logits `(b, k)`; made in the team's scope.
        optimizer: Built for the model's trainable variables, in the team's scope.
        loss: "softmax", or "sigmoid" for a mean of binary cross-entropies in which every class
            that a mixed image shows counts as present (Wightman et al. 2021, arXiv:2110.00476).
        parts: In how many parts a batch is computed, from 1.
        team: The devices that share the batch.

    Raises:
        ConfigError: Parts, and norms that learn on several devices.
    """
    if parts > 1 and team.replicas > 1 and learning_norms(model):
        raise ConfigError(
            "Norms that learn see a whole batch on several devices, or its parts on one. Received: "
            f"{parts} parts on {team.replicas} devices, with norms='train'. Use --accumulate 1, "
            "--set norms=frozen, or one device."
        )
    variables = model.trainable_variables
    classes = model.output_shape[-1]
    errors_of = errors_by(loss)

    def learned(
        images: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor, count: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Return a part's share of the mean loss over `count` images, and its gradient."""
        with tf.GradientTape() as tape:
            errors = errors_of(targets, model(images, training=True))
            value = tf.reduce_sum(weights * errors) / tf.cast(count, tf.float32)
            scaled = optimizer.scale_loss(value)
        return value, tape.gradient(scaled, variables)

    def in_parts(
        images: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor, count: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        here = tf.shape(images)[0]
        number = tf.minimum(here, parts)  # no part is empty

        def add(k: tf.Tensor, value: tf.Tensor, gradient: list[tf.Tensor]) -> tuple[object, ...]:
            part = slice(k * here // number, (k + 1) * here // number)
            more, moves = learned(images[part], targets[part], weights[part], count)
            return k + 1, value + more, [g + m for g, m in zip(gradient, moves, strict=True)]

        start = (tf.constant(0), tf.constant(0.0), [tf.zeros_like(v.value) for v in variables])
        _, value, gradient = tf.while_loop(
            lambda k, value, gradient: k < number, add, start, parallel_iterations=1
        )
        return value, gradient

    computed = learned if parts == 1 else in_parts

    def together(images: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        """Learn on one of several devices; it takes all rows of its process."""
        device: Any = tf.distribute.get_replica_context()
        mine = team.rows(device, tf.shape(images)[0])
        images, targets, weights = images[mine], targets[mine], weights[mine]
        count = device.all_reduce("SUM", tf.cast(tf.shape(images)[0], tf.float32))
        value, gradient = computed(images, targets, weights, count)
        value, *gradient = device.all_reduce("SUM", [value, *gradient])
        optimizer.apply(gradient, variables)
        return value

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, *model.input_shape[1:]), model.inputs[0].dtype),
            tf.TensorSpec((None, classes), tf.float32),
            tf.TensorSpec((None,), tf.float32),
        ],
        autograph=False,
    )
    def step(images: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        if team.strategy is not None:
            values = team.strategy.run(together, (images, targets, weights))
            return team.strategy.experimental_local_results(values)[0]
        value, gradient = computed(images, targets, weights, tf.shape(images)[0])
        optimizer.apply(gradient, variables)
        return value

    def watched(images: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        with team.together():
            return step(images, targets, weights)

    return watched if team.size > 1 else step


def errors_by(loss: Loss) -> Errors:
    """Return what takes targets and logits `(b, k)` and gives the error of each image `(b,)`."""
    return _softmax if loss == "softmax" else _sigmoid


def _softmax(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)


def _sigmoid(targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    present = tf.cast(targets > _PRESENT, tf.float32)
    errors = tf.nn.sigmoid_cross_entropy_with_logits(present, logits)
    return tf.reduce_mean(errors, axis=1)
