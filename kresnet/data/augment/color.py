"""Changes of colour, each a function of a whole image.

Legend of shapes: images are float32 `(h, w, 3)`, RGB in 0..255, before and after. Where Pillow has
the operation (ImageEnhance, ImageOps), it is Pillow's but for rounding to whole grey levels.
"""

from __future__ import annotations

from typing import Final

import tensorflow as tf

_GREY: Final = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow's mode L


def random_jitter(image: tf.Tensor, seed: tf.Tensor, *, strength: float) -> tf.Tensor:
    """Change brightness, then contrast, then saturation, each by a random factor.

    The jitter of Krizhevsky's successors as torchvision's `ColorJitter` has it, in a fixed order
    and without hue. The three are one linear map, so the image is passed over once.

    Args:
        image: See the legend.
        seed: Integers `(2,)`.
        strength: The factors are uniform in `1 - strength` to `1 + strength`; in [0, 1].

    Returns:
        See the legend.
    """
    low, high = 1.0 - strength, 1.0 + strength
    light, contrast, color = tf.unstack(tf.random.stateless_uniform((3,), seed, low, high))
    grey = tf.tile(tf.constant(_GREY)[:, tf.newaxis], [1, 3])
    mixture = light * contrast * (color * tf.eye(3) + (1.0 - color) * grey)
    offset = (1.0 - contrast) * light * _mean_grey(image)
    jittered = tf.reshape(tf.reshape(image, (-1, 3)) @ mixture + offset, tf.shape(image))
    return _in_range(tf.ensure_shape(jittered, image.shape))


def brightness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blend with black; 1 changes nothing, 0 is black."""
    return _in_range(image * factor)


def contrast(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blend with the mean grey; 1 changes nothing, 0 is grey."""
    return _in_range(image * factor + tf.floor(_mean_grey(image) + 0.5) * (1.0 - factor))


def saturation(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blend with the grey image; 1 changes nothing, 0 is grey."""
    grey = tf.tile(tf.constant(_GREY)[:, tf.newaxis], [1, 3])
    mixture = factor * tf.eye(3) + (1.0 - factor) * grey
    mixed = tf.reshape(tf.reshape(image, (-1, 3)) @ mixture, tf.shape(image))
    return _in_range(tf.ensure_shape(mixed, image.shape))


def sharpness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blend with the smoothed image; 1 changes nothing, 0 is smooth, 2 is sharp.

    The kernel is 3 x 3, 5 in its middle and 1 around it, over 13; the border stays as it is.
    """
    rows = image[:-2] + image[1:-1] + image[2:]
    around = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    inner = image[1:-1, 1:-1]
    smooth = (around + 4.0 * inner) / 13.0
    change = (1.0 - factor) * (smooth - inner)
    return _in_range(image + tf.pad(change, [[1, 1], [1, 1], [0, 0]]))


def posterize(image: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Keep the highest `bits` of the eight of each level, 1..8."""
    step = tf.pow(2.0, 8.0 - tf.cast(bits, tf.float32))
    return tf.floor(tf.round(image) / step) * step


def solarize(image: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Invert every level from `threshold` on, 0..255."""
    return tf.where(image < threshold, image, 255.0 - image)


def autocontrast(image: tf.Tensor) -> tf.Tensor:
    """Stretch each channel to 0..255; a channel of one level stays as it is."""
    low, high = tf.reduce_min(image, (0, 1)), tf.reduce_max(image, (0, 1))
    is_flat = high <= low
    scale = tf.where(is_flat, 1.0, 255.0 / tf.where(is_flat, 1.0, high - low))
    return _in_range(_by_channel(image, scale, -tf.where(is_flat, 0.0, low) * scale))


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Give each channel a flat histogram, by Pillow's table: whole levels in, whole levels out."""
    width = tf.shape(image)[1]
    first = tf.tile(tf.constant([0, 256, 512]), [width])
    places = tf.reshape(tf.cast(tf.round(image), tf.int32), (-1, 3 * width)) + first
    counts = tf.reshape(tf.math.bincount(tf.reshape(places, [-1]), minlength=768), (3, 256))
    levels = tf.range(256)
    last = tf.reduce_max(tf.where(counts > 0, levels, 0), axis=1)
    step = (tf.reduce_sum(counts, axis=1) - tf.gather(counts, last, batch_dims=1)) // 255
    below = tf.cumsum(counts, axis=1, exclusive=True)
    table = (below + step[:, tf.newaxis] // 2) // tf.maximum(step, 1)[:, tf.newaxis]
    table = tf.where(step[:, tf.newaxis] == 0, levels, tf.minimum(table, 255))
    equal = tf.gather(tf.cast(tf.reshape(table, [-1]), tf.float32), places)
    return tf.ensure_shape(tf.reshape(equal, tf.shape(image)), image.shape)


def _mean_grey(image: tf.Tensor) -> tf.Tensor:
    return tf.tensordot(tf.reduce_mean(image, (0, 1)), tf.constant(_GREY), 1)


def _by_channel(image: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Scale each channel; broadcasting along whole rows is much faster than along channels."""
    width = tf.shape(image)[1]
    rows = tf.reshape(image, (-1, 3 * width)) * tf.tile(scale, [width]) + tf.tile(offset, [width])
    return tf.ensure_shape(tf.reshape(rows, tf.shape(image)), image.shape)


def _in_range(image: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(image, 0.0, 255.0)
