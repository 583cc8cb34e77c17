"""Statistics of a batch that several devices share, in TensorFlow's strategies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras


def moments_together() -> Callable[[Any], tuple[Any, Any]] | None:
    """Return what takes the moments over all devices of a strategy; None where there is but one.

    It takes `(b, h, w, c)`, float32, of a device, and gives mean and (biased) variance `(c,)` of
    all; devices may have different numbers of images. As on one device, the variance is taken
    around the mean, in a second pass: Keras' synchronised norm subtracts the squared mean from a
    mean of squares, and loses its digits where the mean is large.
    """
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    device: Any = tf.distribute.get_replica_context()
    if device is None or device.num_replicas_in_sync == 1:
        return None

    def moments(x: Any) -> tuple[Any, Any]:
        here = tf.cast(tf.size(x) / tf.shape(x)[-1], tf.float32)
        axes = (0, 1, 2)
        # One message for both: the sums, and how many pixels there are.
        sums = tf.concat([tf.reduce_sum(x, axes), here[None]], axis=0)
        sums = device.all_reduce("SUM", sums)
        count = tf.stop_gradient(sums[-1])
        mean = sums[:-1] / count
        squares = tf.reduce_sum(tf.math.squared_difference(x, mean), axes)
        return mean, device.all_reduce("SUM", squares) / count

    return moments
