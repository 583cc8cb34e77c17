"""Random views of an image, as a pure function of the image's size and a seed."""

from __future__ import annotations

import tensorflow as tf


def random_box(
    height: tf.Tensor, width: tf.Tensor, seed: tf.Tensor, *, min_area: float
) -> tf.Tensor:
    """Draw the crop of a training view (Szegedy et al. 2015, arXiv:1409.4842, section 6).

    Args:
        height: Image height in pixels, a scalar.
        width: Image width in pixels, a scalar.
        seed: Integers `(2,)`; the same seed draws the same crop.
        min_area: Smallest share of the image's area that a crop covers, in (0, 1]; 1 leaves
            only the largest crop of the drawn aspect ratio.

    Returns:
        float32 `(4,)`: top, left, height, width in pixels, inside the image. The aspect ratio
        lies between 3:4 and 4:3, and the area between `min_area` and 1, both shrunk where the
        image is too narrow for them.
    """
    height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    area, ratio, top, left = tf.unstack(tf.random.stateless_uniform((4,), seed))
    area = (min_area + area * (1.0 - min_area)) * height * width
    ratio = tf.exp((2.0 * ratio - 1.0) * tf.math.log(4.0 / 3.0))
    crop_height = tf.minimum(tf.sqrt(area / ratio), height)
    crop_width = tf.minimum(tf.sqrt(area * ratio), width)
    return tf.stack(
        [top * (height - crop_height), left * (width - crop_width), crop_height, crop_width]
    )


def random_flip(seed: tf.Tensor) -> tf.Tensor:
    """Return True for half of the seeds, independently of the crop drawn from the same seed."""
    return tf.random.stateless_uniform((), seed + tf.constant([0, 1], seed.dtype)) < 0.5
