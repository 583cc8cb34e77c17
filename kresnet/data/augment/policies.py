"""RandAugment and TrivialAugment: a few of fourteen operations, drawn at random for each image.

Both draw from the same operations and differ in ranges. The ranges are those of the papers' code:
of AutoAugment (Cubuk et al. 2019, arXiv:1805.09501, appendix A) for RandAugment, and the
"Wide" ones of TrivialAugment. An image is float32 `(s, s, 3)`, RGB in 0..255, before and after.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

import tensorflow as tf

from kresnet.data.augment import color, geometry

LEVELS: Final = 30
"""A strength is a whole number from 0 to this."""


class Operation(NamedTuple):
    """One of the fourteen.

    Attributes:
        apply: Takes an image and a magnitude.
        rand: Magnitudes of RandAugment at strengths 0 and `LEVELS`; linear between.
        wide: The same of TrivialAugment.
        signed: Whether half of the magnitudes are negated.
    """

    apply: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    rand: tuple[float, float] = (0.0, 0.0)
    wide: tuple[float, float] = (0.0, 0.0)
    signed: bool = False


def operations(side: int) -> dict[str, Operation]:
    """Return the fourteen operations for images of `side` pixels, by their names in the papers."""
    far = 150 / 331 * side  # AutoAugment moved images of 331 pixels by up to 150

    def factor(
        change: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    ) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
        return lambda image, magnitude: change(image, 1.0 + magnitude)

    return {
        "Identity": Operation(lambda image, unused: tf.identity(image)),
        "ShearX": Operation(geometry.shear_x, (0.0, 0.3), (0.0, 0.99), signed=True),
        "ShearY": Operation(geometry.shear_y, (0.0, 0.3), (0.0, 0.99), signed=True),
        "TranslateX": Operation(geometry.translate_x, (0.0, far), (0.0, 32.0), signed=True),
        "TranslateY": Operation(geometry.translate_y, (0.0, far), (0.0, 32.0), signed=True),
        "Rotate": Operation(geometry.rotate, (0.0, 30.0), (0.0, 135.0), signed=True),
        "Brightness": Operation(factor(color.brightness), (0.0, 0.9), (0.0, 0.99), signed=True),
        "Color": Operation(factor(color.saturation), (0.0, 0.9), (0.0, 0.99), signed=True),
        "Contrast": Operation(factor(color.contrast), (0.0, 0.9), (0.0, 0.99), signed=True),
        "Sharpness": Operation(factor(color.sharpness), (0.0, 0.9), (0.0, 0.99), signed=True),
        "Posterize": Operation(_posterize, (8.0, 4.0), (8.0, 2.0)),
        "Solarize": Operation(color.solarize, (255.0, 0.0), (255.0, 0.0)),
        "AutoContrast": Operation(lambda image, unused: color.autocontrast(image)),
        "Equalize": Operation(lambda image, unused: color.equalize(image)),
    }


def rand_augment(
    image: tf.Tensor, seed: tf.Tensor, *, count: int = 2, strength: int = 9
) -> tf.Tensor:
    """Apply `count` random operations, all of one strength.

    Cubuk et al. 2020, arXiv:1909.13719; the defaults are the paper's for ResNet-50 on ImageNet.

    Args:
        image: float32 `(s, s, 3)`, 0..255.
        seed: Integers `(2,)`.
        count: How many, one after the other; the same may come twice.
        strength: Of each, 0..30.

    Returns:
        float32 `(s, s, 3)`, 0..255.
    """
    apply = _applier(image.shape[0], wide=False)
    draws = tf.random.stateless_uniform((count, 2), seed)
    for which, sign in map(tf.unstack, tf.unstack(draws)):
        image = apply(image, which, tf.constant(float(strength)), sign)
    return image


def trivial_augment(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Apply one random operation of a random strength.

    Müller and Hutter 2021, arXiv:2103.10158, the "Wide" space; there is nothing to tune.

    Args:
        image: float32 `(s, s, 3)`, 0..255.
        seed: Integers `(2,)`.

    Returns:
        float32 `(s, s, 3)`, 0..255.
    """
    which, strength, sign = tf.unstack(tf.random.stateless_uniform((3,), seed))
    apply = _applier(image.shape[0], wide=True)
    return apply(image, which, tf.floor(strength * (LEVELS + 1)), sign)


def _applier(side: int, *, wide: bool) -> Callable[..., tf.Tensor]:
    """Return a function of image, choice in [0, 1), strength, and a sign that is minus below 0.5.

    An op of a branch that is not taken still costs its passage through the executor, so each
    operation is a function of its own.
    """
    chosen = operations(side).values()
    functions = [_apart(operation.apply) for operation in chosen]
    ranges = tf.constant([operation.wide if wide else operation.rand for operation in chosen])
    signed = tf.constant([operation.signed for operation in chosen])

    def apply(
        image: tf.Tensor, which: tf.Tensor, strength: tf.Tensor, sign: tf.Tensor
    ) -> tf.Tensor:
        number = tf.cast(which * len(functions), tf.int32)
        low, high = tf.unstack(ranges[number])
        magnitude = low + (high - low) * strength / LEVELS
        magnitude = tf.where(signed[number] & (sign < 0.5), -magnitude, magnitude)
        branches = [partial(function, image, magnitude) for function in functions]
        return tf.ensure_shape(tf.switch_case(number, branches), image.shape)

    return apply


def _apart(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    made: Callable[..., tf.Tensor] = tf.function(
        function, autograph=False, experimental_attributes={"_noinline": True}
    )
    return made


def _posterize(image: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    return color.posterize(image, tf.round(bits))
