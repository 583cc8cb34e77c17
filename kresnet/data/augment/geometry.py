"""Where the pixels of a view come from: crops, mirrors, and affine maps of a whole image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import tensorflow as tf

FILL: Final = 128.0
"""What shows where an image was moved away; AutoAugment's code (Cubuk et al. 2019) has it."""


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
    """Return True for half of the seeds, integers `(2,)`."""
    return tf.random.stateless_uniform((), seed) < 0.5


def shear_x(image: tf.Tensor, slope: tf.Tensor) -> tf.Tensor:
    """Take each pixel from `slope * y` further right; image float32 `(h, w, 3)`, 0..255."""
    return affine(image, [1.0, slope, 0.0, 0.0, 1.0, 0.0])


def shear_y(image: tf.Tensor, slope: tf.Tensor) -> tf.Tensor:
    """Take each pixel from `slope * x` further down; image float32 `(h, w, 3)`, 0..255."""
    return affine(image, [1.0, 0.0, 0.0, slope, 1.0, 0.0])


def translate_x(image: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
    """Move right by whole pixels, the fraction cut off; image float32 `(h, w, 3)`, 0..255."""
    return affine(image, [1.0, 0.0, -_whole(pixels), 0.0, 1.0, 0.0])


def translate_y(image: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
    """Move down by whole pixels, the fraction cut off; image float32 `(h, w, 3)`, 0..255."""
    return affine(image, [1.0, 0.0, 0.0, 0.0, 1.0, -_whole(pixels)])


def rotate(image: tf.Tensor, degrees: tf.Tensor) -> tf.Tensor:
    """Turn counterclockwise about the centre; image float32 `(h, w, 3)`, 0..255."""
    angle = tf.cast(degrees, tf.float32) * (math.pi / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    y, x = size[0] / 2, size[1] / 2
    return affine(image, [cos, -sin, x - x * cos + y * sin, sin, cos, y - x * sin - y * cos])


def affine(image: tf.Tensor, matrix: Sequence[float | tf.Tensor]) -> tf.Tensor:
    """Map an image affinely, interpolating bilinearly; what lies outside is grey 128.

    Args:
        image: float32 `(h, w, 3)`, 0..255.
        matrix: `(a, b, c, d, e, f)` as Pillow's: the result at `(x, y)` is the image at
            `(a x + b y + c, d x + e y + f)`, in pixels whose centres are at halves.

    Returns:
        float32 `(h, w, 3)`, 0..255.
    """
    a, b, c, d, e, f = (tf.cast(value, tf.float32) for value in matrix)
    # TensorFlow's pixels have their centres at whole numbers.
    c, f = c + (a + b - 1.0) / 2, f + (d + e - 1.0) / 2
    mapped = tf.raw_ops.ImageProjectiveTransformV3(
        images=image[tf.newaxis],
        transforms=tf.stack([a, b, c, d, e, f, 0.0, 0.0])[tf.newaxis],
        output_shape=tf.shape(image)[:2],
        fill_value=FILL,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return tf.ensure_shape(mapped[0], image.shape)


def _whole(pixels: tf.Tensor) -> tf.Tensor:
    pixels = tf.cast(pixels, tf.float32)
    return tf.sign(pixels) * tf.floor(tf.abs(pixels))
