"""From bytes to pixels to model input: the only such code, so that no two paths can disagree.

Training, evaluation, export and serving all call these functions. They are TensorFlow ops from
end to end, so they trace into a SavedModel and run wherever that is loaded.

Legend of shapes: n images, h height, w width, s side of the model input.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Final

import tensorflow as tf

from kresnet.data import headers
from kresnet.data.headers import orientation as orientation
from kresnet.zoo.cards import Interpolation, Preprocessing

MAX_PIXELS: Final = 100_000_000
"""`decode` refuses an image whose header announces more: a small file can ask for gigabytes."""

_KERNELS: Final = {"bilinear": "triangle", "bicubic": "keyscubic"}


def prepare(contents: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Turn the bytes of an image file into model input.

    Args:
        contents: Scalar string, see `decode`.
        preprocessing: What the model expects.

    Returns:
        float32 `(s, s, 3)`, normalised RGB.

    Raises:
        tf.errors.InvalidArgumentError: `contents` cannot be decoded.
    """
    return prepare_pixels(decode(contents), preprocessing)


def prepare_pixels(images: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Turn decoded images of one size into model input.

    Args:
        images: `(h, w, 3)` or `(n, h, w, 3)`, upright RGB in 0..255, uint8 or floating.
        preprocessing: What the model expects.

    Returns:
        float32 `(s, s, 3)` or `(n, s, s, 3)`, normalised RGB.
    """
    images = tf.convert_to_tensor(images)
    shape = tf.shape(images)
    box = center_box(shape[-3], shape[-2], preprocessing.crop_pct)
    pixels = resample(images, box, preprocessing.image_size, preprocessing.interpolation)
    return normalize(pixels, preprocessing)


def center_box(height: int | tf.Tensor, width: int | tf.Tensor, crop_pct: float) -> tf.Tensor:
    """Return the centred square that evaluation looks at.

    It is what "resize the shorter side to `size / crop_pct`, then centre-crop `size`" keeps, in
    source pixels and not rounded.

    Args:
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        crop_pct: Side of the square divided by the shorter side of the image, in (0, 1].

    Returns:
        float32 `(4,)`: top, left, height, width.
    """
    height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    side = crop_pct * tf.minimum(height, width)
    return tf.stack([(height - side) / 2, (width - side) / 2, side, side])


def resample(
    images: tf.Tensor,
    box: tf.Tensor,
    size: int,
    interpolation: Interpolation,
    flip: bool | tf.Tensor = False,
) -> tf.Tensor:
    """Cut `box` out of the images and resize it to a square, antialiased, in one op.

    Equal to Pillow's `resize((size, size), box=...)` but for Pillow's rounding to whole grey
    levels. Only the box is computed, so a small crop of a large photo is cheap.

    Args:
        images: `(h, w, 3)` or `(n, h, w, 3)`, range 0..255, uint8 or floating.
        box: float32 `(4,)`: top, left, height, width in source pixels, inside the image.
        size: Side of the result, in pixels.
        interpolation: `"bilinear"` or `"bicubic"`.
        flip: Whether to mirror the result left to right; a bool or a scalar bool tensor.

    Returns:
        float32 `(size, size, 3)` or `(n, size, size, 3)`, range 0..255.
    """
    images, box = tf.convert_to_tensor(images), tf.convert_to_tensor(box)
    is_single = images.shape.rank == 3
    scale = size / box[2:]
    resized = tf.raw_ops.ScaleAndTranslate(
        images=images[tf.newaxis] if is_single else images,
        size=[size, size],
        scale=scale,
        translation=-box[:2] * scale,
        kernel_type=_KERNELS[interpolation],
        antialias=True,
    )
    if interpolation == "bicubic":  # its negative lobes overshoot at edges
        resized = tf.clip_by_value(resized, 0.0, 255.0)
    resized = tf.cond(tf.convert_to_tensor(flip), lambda: tf.reverse(resized, [2]), lambda: resized)
    return resized[0] if is_single else resized


def normalize(pixels: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Scale pixels to what the weights were trained on: `(pixels / 255 - mean) / std`.

    Args:
        pixels: `(..., w, 3)`, RGB in 0..255, any numeric dtype; or with as many channels as
            `preprocessing` has means, in any units.
        preprocessing: Gives mean and std, for pixels scaled to 0..1.

    Returns:
        float32, the shape of `pixels`.
    """
    pixels = tf.cast(pixels, tf.float32)
    width = tf.shape(pixels)[-2]
    mean = tf.tile(tf.constant(preprocessing.mean, tf.float32) * 255, [width])
    std = tf.tile(tf.constant(preprocessing.std, tf.float32) * 255, [width])
    # On a CPU, broadcasting along whole rows is ten times faster than along three channels.
    rows = tf.reshape(pixels, (-1, len(preprocessing.mean) * width))
    return tf.ensure_shape(tf.reshape((rows - mean) / std, tf.shape(pixels)), pixels.shape)


def shrink(image: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """Resize an image to fewer pixels, antialiased; to its own size, it stays as it is.

    Args:
        image: uint8 `(h, w, 3)`.
        shape: int32 `(2,)`, the new height and width.

    Returns:
        uint8 `(*shape, 3)`.
    """

    def resized() -> tf.Tensor:
        scale = tf.cast(shape, tf.float32) / tf.cast(tf.shape(image)[:2], tf.float32)
        smaller = tf.raw_ops.ScaleAndTranslate(
            images=image[tf.newaxis],
            size=shape,
            scale=scale,
            translation=tf.zeros(2),
            kernel_type=_KERNELS["bilinear"],
            antialias=True,
        )
        return tf.cast(tf.round(smaller[0]), tf.uint8)

    is_same = tf.reduce_all(tf.shape(image)[:2] == shape)
    return tf.ensure_shape(tf.cond(is_same, lambda: image, resized), (None, None, 3))


def decode(contents: tf.Tensor, reduce: tf.Tensor | None = None) -> tf.Tensor:
    """Decode an image file into upright RGB pixels.

    The content decides the format, whatever the file is named: JPEG (RGB, grey, CMYK), PNG (all
    colour types, 8 and 16 bit), BMP (8, 24, 32 bit), GIF and WebP (the first frame of an
    animation). What is transparent shows white. The fourth byte of a 32-bit BMP is padding with
    most writers, so it is ignored.

    Args:
        contents: Scalar string, the bytes of the file.
        reduce: Scalar int32, 1, 2, 4 or 8: a JPEG is decoded at this fraction of its size, which
            costs less than decoding and shrinking it. None, as for evaluation, is 1.

    Returns:
        uint8 `(h, w, 3)`, turned as the EXIF orientation of a JPEG, PNG or WebP says. The height
        and width of a reduced JPEG are those of the image over `reduce`, rounded up.

    Raises:
        tf.errors.InvalidArgumentError: The bytes are damaged, are no image of these formats, or
            announce more than `MAX_PIXELS` pixels (checked before any pixel is decoded).
    """
    # Reading headers is hundreds of tiny ops: on a GPU each would be a kernel and a copy.
    with tf.device("/CPU:0"):
        contents = tf.convert_to_tensor(contents)
        is_jpeg = tf.strings.substr(contents, 0, len(headers.JPEG)) == headers.JPEG
        upright = tf.cond(
            is_jpeg, lambda: _decode_jpeg(contents, reduce), lambda: _decode_other(contents)
        )
        return tf.ensure_shape(upright, (None, None, 3))


def _apart(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Keep a rarely needed function out of the graph around it, where its ops would cost time.

    An op of a branch that is not taken still passes through the executor; the hundreds of them
    here would add half to the time of a small JPEG.
    """

    def on_cpu(*inputs: tf.Tensor) -> tf.Tensor:
        with tf.device("/CPU:0"):  # a function does not inherit the device of its caller
            return function(*inputs)

    made: Callable[..., tf.Tensor] = tf.function(
        on_cpu,
        autograph=False,
        reduce_retracing=True,
        experimental_attributes={"_noinline": True},
    )
    return made


def _decode_jpeg(contents: tf.Tensor, reduce: tf.Tensor | None) -> tf.Tensor:
    # The accurate transform gives Pillow's pixels, bit for bit; TensorFlow's default is up to 7
    # grey levels off and only 7 % faster.
    at = partial(tf.io.decode_jpeg, contents, channels=3, dct_method="INTEGER_ACCURATE")
    shape = tf.io.extract_jpeg_shape(contents)
    with _limited(shape[0], shape[1]):
        if reduce is None:
            stored = at()
        else:
            steps = tf.reduce_sum(tf.cast(reduce >= [2, 4, 8], tf.int32))
            stored = tf.switch_case(steps, [partial(at, ratio=2**k) for k in range(4)])
    head = tf.strings.substr(contents, 0, 2**17)
    has_exif = tf.strings.regex_full_match(head, r"\C*Exif\x00\x00\C*")
    return tf.cond(has_exif, lambda: _turn_jpeg(stored, contents), lambda: stored)


@_apart
def _turn_jpeg(stored: tf.Tensor, contents: tf.Tensor) -> tf.Tensor:
    return _turn(stored, orientation(contents))


@_apart
def _decode_other(contents: tf.Tensor) -> tf.Tensor:
    stored = tf.case(
        [
            (headers.starts(contents, headers.PNG), lambda: _decode_png(contents)),
            (headers.starts(contents, headers.BMP), lambda: _decode_bmp(contents)),
            (headers.starts(contents, headers.GIF), lambda: _decode_gif(contents)),
            (headers.is_webp(contents), lambda: _decode_webp(contents)),
        ],
        default=_refuse,
    )
    return _turn(stored, orientation(contents))


def _turn(pixels: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
    """Undo EXIF orientation `turn`: orientations 5 to 8 swap the axes, then come the mirrors."""
    pixels = tf.cond(turn >= 5, lambda: tf.transpose(pixels, (1, 0, 2)), lambda: pixels)
    is_upside_down = tf.reduce_any(turn == [3, 4, 7, 8])
    pixels = tf.cond(is_upside_down, lambda: tf.reverse(pixels, [0]), lambda: pixels)
    is_mirrored = tf.reduce_any(turn == [2, 3, 6, 7])
    return tf.cond(is_mirrored, lambda: tf.reverse(pixels, [1]), lambda: pixels)


def _decode_png(contents: tf.Tensor) -> tf.Tensor:
    head = headers.bytes_at(contents, 16, 10)
    has_alpha = (head[9] == 4) | (head[9] == 6) | (headers.png_chunk(contents, b"tRNS") >= 0)
    with _limited(headers.big_endian(head[4:8]), headers.big_endian(head[:4])):
        # Alpha is asked for only where there is some: what TensorFlow adds to a palette is wrong.
        return tf.cond(
            has_alpha,
            lambda: _over_white(tf.io.decode_png(contents, channels=4)),
            lambda: tf.io.decode_png(contents, channels=3),
        )


def _decode_bmp(contents: tf.Tensor) -> tf.Tensor:
    head = headers.bytes_at(contents, 14, 12)
    height = headers.little_endian(head[8:12])
    height = tf.minimum(height, 2**32 - height)  # negative where the rows run from the top down
    with _limited(height, headers.little_endian(head[4:8])):
        stored = tf.io.decode_bmp(contents)  # palette indices, or 3 or 4 channels

    def looked_up() -> tf.Tensor:
        start = 14 + headers.little_endian(head[:4])
        palette = tf.reshape(headers.bytes_at(contents, start, 4 * 256), (256, 4))
        rgb = tf.cast(tf.reverse(palette[:, :3], [1]), tf.uint8)
        return tf.gather(rgb, tf.cast(stored[..., 0], tf.int32))

    return tf.cond(tf.shape(stored)[-1] == 1, looked_up, lambda: stored[..., :3])


def _decode_gif(contents: tf.Tensor) -> tf.Tensor:
    head = headers.bytes_at(contents, 6, 4)
    control = headers.gif_control(contents)
    block = headers.bytes_at(contents, control, 8)

    def on_white() -> tf.Tensor:
        """Make the transparent colour opaque and white; TensorFlow paints it black."""
        frame = headers.bytes_at(contents, control + 8, 10)
        has_palette = (frame[0] == 0x2C) & (frame[9] >= 0x80)
        color = tf.where(has_palette, control + 18, 13) + 3 * block[6]
        opaque = headers.replaced(contents, control + 3, [block[3] - 1])
        return headers.replaced(opaque, color, [255, 255, 255])

    is_transparent = (control >= 0) & (block[3] % 2 == 1)
    contents = tf.cond(is_transparent, on_white, lambda: contents)
    contents, first = headers.gif_still(contents)
    # It may be larger than the whole.
    frame = headers.bytes_at(contents, tf.where(first < 0, first, first + 5), 4)
    width, height = (
        tf.maximum(headers.little_endian(head[k : k + 2]), headers.little_endian(frame[k : k + 2]))
        for k in (0, 2)
    )
    with _limited(height, width):
        return tf.io.decode_image(contents, channels=3, expand_animations=False)


def _decode_webp(contents: tf.Tensor) -> tf.Tensor:
    head = headers.bytes_at(contents, 12, 18)
    kind, flags = head[3], head[8]  # the last letter of "VP8X", "VP8L" or "VP8 "
    is_extended, is_lossless = kind == ord("X"), kind == ord("L")
    packed = headers.little_endian(head[9:13])
    extended = [1 + headers.little_endian(head[15:18]), 1 + headers.little_endian(head[12:15])]
    lossless = [1 + packed // 2**14 % 2**14, 1 + packed % 2**14]
    lossy = [headers.little_endian(head[k : k + 2]) % 2**14 for k in (16, 14)]
    size = tf.where(is_extended, extended, tf.where(is_lossless, lossless, lossy))
    # Where an animation does not announce alpha, TensorFlow 2.21 writes four channels into room
    # for three, so every animation is made to announce it. No tf.cond here: when contents are a
    # constant, TensorFlow evaluates ops of branches that are not taken.
    alpha, animation = 0x10, 0x02
    is_unsafe = is_extended & (flags // animation % 2 == 1) & (flags // alpha % 2 == 0)
    contents = headers.replaced(contents, 20, [tf.where(is_unsafe, flags + alpha, flags)])
    with _limited(size[0], size[1]):
        # Not decode_webp: a server with an older TensorFlow refuses a graph that names an op it
        # lacks, even where no WebP ever comes.
        stored = tf.io.decode_image(contents, expand_animations=False)
    return tf.cond(tf.shape(stored)[-1] == 4, lambda: _over_white(stored), lambda: stored)


def _refuse() -> tf.Tensor:
    message = "expected a JPEG, PNG, BMP, GIF or WebP image"
    with tf.control_dependencies([tf.raw_ops.Assert(condition=False, data=[message])]):
        return tf.zeros((1, 1, 3), tf.uint8)


def _limited(height: tf.Tensor, width: tf.Tensor) -> AbstractContextManager[object]:
    """Let the ops made inside run only if the image is of a size that may be decoded."""
    area = tf.cast(height, tf.float64) * tf.cast(width, tf.float64)  # integers would overflow
    message = f"more than {MAX_PIXELS // 10**6} megapixels, height and width are"
    fits = tf.raw_ops.Assert(condition=area <= MAX_PIXELS, data=[message, height, width])
    guard: AbstractContextManager[object] = tf.control_dependencies([fits])
    return guard


def _over_white(rgba: tf.Tensor) -> tf.Tensor:
    """Composite uint8 `(h, w, 4)` over white, rounded to the nearest level."""
    darkness = tf.cast(255 - rgba[..., :3], tf.uint16) * tf.cast(rgba[..., 3:], tf.uint16)
    return 255 - tf.cast((darkness + 127) // 255, tf.uint8)
