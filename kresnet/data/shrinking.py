"""How small a training image may be made before its random crops are taken.

Evaluation looks at the whole image as it is; only training views are made from smaller ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import tensorflow as tf

from kresnet.data import pixels
from kresnet.data.scan import Row

_NARROWEST: Final = 0.75  # width of a random crop by its height, see geometry.random_box
_WORTH: Final = 1.5  # shrinking further, by less than this, costs more time than it saves


def reduced(rows: Sequence[Row], image_size: int, min_area: float) -> tuple[np.ndarray, np.ndarray]:
    """Return how far each image is reduced while it is decoded, and the shape it is shrunk to.

    The smallest crop of what remains still has `image_size` pixels along its shorter side, so a
    crop is never magnified that would not have been.

    Args:
        rows: Images.
        image_size: Side of the model input in pixels.
        min_area: Smallest share of an image that a random crop covers.

    Returns:
        int32 `(rows,)` in 1, 2, 4, 8, see `pixels.decode`; and int32 `(rows, 2)`, height, width.
    """
    sizes = np.array([(row.height, row.width) for row in rows], np.int32)
    area = sizes.astype(np.float64).prod(axis=1)
    smallest = np.minimum(np.sqrt(min_area * _NARROWEST * area), sizes.min(axis=1))
    factor = np.maximum(smallest / image_size, 1.0)  # what may be divided by
    reduce = np.select([factor >= 8, factor >= 4, factor >= 2], [8, 4, 2], 1).astype(np.int32)
    divisor = np.where(factor >= _WORTH * reduce, factor, reduce)
    return reduce, np.ceil(sizes / divisor[:, np.newaxis]).astype(np.int32)


def decoded(contents: tf.Tensor, size: tf.Tensor, reduce: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """Decode an image and shrink it.

    Args:
        contents: Scalar string, the bytes of the file.
        size: int32 `(2,)`, upright height and width that the index has for the image.
        reduce: int32 scalar, as `reduced` gives it.
        shape: int32 `(2,)`, as `reduced` gives it.

    Returns:
        uint8 `(*shape, 3)`.

    Raises:
        tf.errors.InvalidArgumentError: The bytes cannot be decoded, or are of another size.
    """
    image = pixels.decode(contents, reduce)
    got = tf.shape(image)[:2]
    is_as_listed = (got == size) | (got == -(-size // reduce))
    message = "the image is not of the size it had when it was listed"
    same = tf.raw_ops.Assert(condition=tf.reduce_all(is_as_listed), data=[message])
    with tf.control_dependencies([same]):
        return pixels.shrink(image, shape)
