"""Mixup and CutMix: each image of a batch takes something of its neighbour, and of its label.

Images are mixed in pairs of neighbours, 0 with 1, 2 with 3. The order of the images is random, so
neighbours are as random as any others, and a worker that has an even slice of a batch needs
nothing of the other slices.

Legend of shapes: b images a batch, h height, w width, k classes.
"""

from __future__ import annotations

import tensorflow as tf


def mix(
    images: tf.Tensor,
    targets: tf.Tensor,
    weights: tf.Tensor,
    seeds: tf.Tensor,
    *,
    mixup: float,
    cutmix: float,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Mix the pairs of a batch; where both kinds are on, each pair draws one of them.

    Mixup (Zhang et al. 2018, arXiv:1710.09412): images and targets are `share * own +
    (1 - share) * neighbour's`, with a share of Beta(mixup, mixup). CutMix (Yun et al. 2019,
    arXiv:1905.04899, algorithm 1): a rectangle is the neighbour's. It has the image's aspect
    ratio, `1 - share` of its area with a share of Beta(cutmix, cutmix), a uniform centre, and is
    clipped to the image; targets follow the area that is left.

    Args:
        images: float32 `(b, h, w, 3)`, any range.
        targets: float32 `(b, k)`, probabilities.
        weights: float32 `(b,)`. They are mixed as the targets are: a mixed weight is the expected
            weight of its targets.
        seeds: int64 `(b, 2)`; the first of a pair decides. An odd one at the end stays as it is.
        mixup: Parameter of the distribution; 0 turns mixup off. The paper takes 0.1 to 0.4 for
            ImageNet.
        cutmix: The same of CutMix, for which the paper takes 1.

    Returns:
        Images, targets and weights, in shape and type as they came.
    """
    if not mixup and not cutmix:
        return images, targets, weights
    count = tf.shape(images)[0]
    pairs = (count + 1) // 2
    drawn = tf.map_fn(
        lambda seed: _pair_draw(seed, mixup=mixup, cutmix=cutmix),
        seeds[::2],
        fn_output_signature=tf.TensorSpec((4,), tf.float32),
    )
    is_alone = tf.range(pairs) * 2 + 1 == count
    share, is_cut, y, x = tf.unstack(drawn, axis=1)
    share = tf.where(is_alone, 1.0, share)
    neighbour = tf.minimum(tf.bitwise.bitwise_xor(tf.range(count), 1), count - 1)

    def mixed(own: tf.Tensor, part: tf.Tensor) -> tf.Tensor:
        return part * own + (1.0 - part) * tf.gather(own, neighbour)

    # Rows of all channels, because broadcasting along three channels is slow.
    shape = tf.shape(images)
    keep = share[:, tf.newaxis, tf.newaxis]
    if cutmix:
        outside = _outside_rectangle(shape, share, y, x)
        keep = tf.where(is_cut[:, tf.newaxis, tf.newaxis] > 0.5, outside, keep)
        share = tf.reduce_mean(keep, axis=(1, 2))
    keep, share = (tf.repeat(part, 2, axis=0)[:count] for part in (keep, share))
    rows = mixed(tf.reshape(images, (count, shape[1], -1)), keep)
    return (
        tf.ensure_shape(tf.reshape(rows, shape), images.shape),
        tf.ensure_shape(mixed(targets, share[:, tf.newaxis]), targets.shape),
        tf.ensure_shape(mixed(weights, share), weights.shape),
    )


def _pair_draw(seed: tf.Tensor, *, mixup: float, cutmix: float) -> tf.Tensor:
    """Return share, whether to cut (0 or 1), and the centre of the cut, y and x in [0, 1)."""
    choice, y, x = tf.unstack(tf.random.stateless_uniform((3,), seed))
    is_cut = choice < (0.5 if mixup and cutmix else float(cutmix > 0))
    alpha = tf.where(is_cut, cutmix, mixup)
    # In float64, where the gamma of a small parameter does not vanish.
    one, two = tf.unstack(
        tf.random.stateless_gamma(
            (2,),
            seed + tf.constant([1, 0], seed.dtype),
            tf.cast(alpha, tf.float64),
            None,
            tf.float64,
        )
    )
    share = tf.cast(one / (one + two), tf.float32)
    return tf.stack([share, tf.cast(is_cut, tf.float32), y, x])


def _outside_rectangle(shape: tf.Tensor, share: tf.Tensor, y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Return float32 `(pairs, h, 3 w)`: 0 inside each pair's rectangle, and 1 outside."""
    side = tf.sqrt(1.0 - share)

    def inside(length: tf.Tensor, centre: tf.Tensor) -> tf.Tensor:
        extent = tf.cast(length, tf.float32)
        half = tf.floor(extent * side) / 2.0
        first = tf.floor(tf.floor(centre * extent) - half)[:, tf.newaxis]
        last = tf.floor(tf.floor(centre * extent) + half)[:, tf.newaxis]
        place = tf.range(extent)[tf.newaxis]
        return (place >= first) & (place < last)

    columns = tf.repeat(inside(shape[2], x), shape[3], axis=1)[:, tf.newaxis]
    return tf.cast(~(inside(shape[1], y)[:, :, tf.newaxis] & columns), tf.float32)
