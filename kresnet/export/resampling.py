"""`pixels.resample` of the centred square as matrix products, for runtimes without such an op.

Along each direction, resampling is linear: output row i is a weighted mean of the input rows, with
weights from a kernel centred where row i lies in the input. The weights are computed in the graph,
so one graph takes images of every size, and no intermediate is rounded.
"""

from __future__ import annotations

import tensorflow as tf

from kresnet.data import pixels
from kresnet.zoo.cards import Interpolation, Preprocessing


def prepare_by_matrices(images: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Do what `pixels.prepare_pixels` does, in matrix products.

    Args:
        images: uint8 `(n, h, w, 3)`, upright RGB.
        preprocessing: What the model expects; s is its side.

    Returns:
        float32 `(n, s, s, 3)`, normalised RGB.
    """
    shape = tf.shape(images)
    count, height, width = shape[0], shape[1], shape[2]
    size, kernel = preprocessing.image_size, preprocessing.interpolation
    top, left, side, _ = tf.unstack(pixels.center_box(height, width, preprocessing.crop_pct))
    rows = _weights(height, top, side, size, kernel)  # (s, h)
    columns = _weights(width, left, side, size, kernel)  # (s, w)
    x = tf.reshape(tf.cast(images, tf.float32), tf.stack([count, height, width * 3]))
    x = tf.reshape(tf.matmul(rows, x), tf.stack([count, size, width, 3]))
    # One large product: a product for each row would have three rows, and take five times as long.
    x = tf.reshape(tf.transpose(x, (0, 1, 3, 2)), tf.stack([count * size * 3, width]))
    x = tf.reshape(tf.matmul(x, tf.transpose(columns)), tf.stack([count, size, 3, size]))
    x = tf.transpose(x, (0, 1, 3, 2))
    if kernel == "bicubic":
        x = tf.clip_by_value(x, 0.0, 255.0)
    mean, std = (255 * tf.constant(v, tf.float32) for v in (preprocessing.mean, preprocessing.std))
    return (x - mean) / std


def _weights(
    count: tf.Tensor, start: tf.Tensor, side: tf.Tensor, size: int, kernel: Interpolation
) -> tf.Tensor:
    """Return the share of each of `count` input pixels in each of `size` output pixels.

    The input pixels `start` to `start + side` are resized. In the order of operations of
    tensorflow/core/kernels/image/scale_and_translate_op.cc, so that even rounding is the same.
    """
    scale = size / side
    inverse_scale, translation = 1 / scale, -start * scale
    centers = (tf.range(size, dtype=tf.float32) + 0.5) * inverse_scale - inverse_scale * translation
    places = tf.range(tf.cast(count, tf.float32)) + 0.5
    # Antialiasing: downscaling widens the kernel by the scale, upscaling does not narrow it.
    x = tf.abs((places - centers[:, tf.newaxis]) / tf.maximum(inverse_scale, 1))
    if kernel == "bilinear":
        weights = tf.maximum(1 - x, 0)
    else:  # Keys 1981, doi:10.1109/TASSP.1981.1163711, with a = -1/2
        near, far = ((1.5 * x - 2.5) * x) * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = tf.where(x < 1, near, tf.where(x < 2, far, 0.0))
    return weights / tf.reduce_sum(weights, axis=1, keepdims=True)
