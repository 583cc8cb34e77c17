"""Random erasing: noise instead of a rectangle of the image."""

from __future__ import annotations

from typing import Final

import tensorflow as tf

_AREA: Final = (0.02, 0.4)  # s_l and s_h of the paper
_RATIO: Final = (0.3, 1 / 0.3)  # r_1 and r_2
_TRIES: Final = 10  # a rectangle that does not fit is drawn again


def random_erasing(image: tf.Tensor, seed: tf.Tensor, *, probability: float = 0.5) -> tf.Tensor:
    """Fill a random rectangle with noise, uniform in 0..255 (Zhong et al. 2020, arXiv:1708.04896).

    Args:
        image: float32 `(h, w, 3)`, 0..255.
        seed: Integers `(2,)`.
        probability: Share of the images that lose a rectangle; the paper's is 0.5.

    Returns:
        float32 `(h, w, 3)`, 0..255. The rectangle covers 0.02 to 0.4 of the image, its height
        divided by its width lies in 0.3 to 3.33, both uniform, and it lies inside the image.
    """
    noise_seed = seed + tf.constant([2, 0], seed.dtype)

    def erased() -> tf.Tensor:
        top, left, height, width = tf.unstack(random_rectangle(tf.shape(image), seed))
        padding = [
            [top, tf.shape(image)[0] - top - height],
            [left, tf.shape(image)[1] - left - width],
            [0, 0],
        ]
        noise = tf.random.stateless_uniform(tf.stack([height, width, 3]), noise_seed, 0.0, 255.0)
        # What is padded is negative, so that the image shows there.
        patch = tf.pad(noise, padding, constant_values=-1.0)
        return tf.where(patch < 0.0, image, patch)

    chance = tf.random.stateless_uniform((), seed) < probability
    return tf.ensure_shape(tf.cond(chance, erased, lambda: image), image.shape)


def random_rectangle(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draw the rectangle of `random_erasing`.

    Args:
        shape: int32, starts with height and width of the image.
        seed: Integers `(2,)`.

    Returns:
        int32 `(4,)`: top, left, height, width; height and width are 0 if none of ten fits.
    """
    size = tf.cast(shape[:2], tf.float32)
    draws = tf.random.stateless_uniform((_TRIES + 1, 2), seed + tf.constant([1, 0], seed.dtype))
    area = (_AREA[0] + draws[:_TRIES, 0] * (_AREA[1] - _AREA[0])) * size[0] * size[1]
    ratio = _RATIO[0] + draws[:_TRIES, 1] * (_RATIO[1] - _RATIO[0])
    sides = tf.floor(tf.stack([tf.sqrt(area * ratio), tf.sqrt(area / ratio)], axis=1))
    fits = tf.reduce_all(sides <= size, axis=1)
    chosen = tf.where(tf.reduce_any(fits), sides[tf.argmax(fits)], 0.0)
    corner = tf.floor(draws[_TRIES] * (size - chosen + 1.0))
    return tf.cast(tf.concat([corner, chosen], axis=0), tf.int32)
