"""Random views of images: every one a pure function of an image and a seed, in TensorFlow ops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import tensorflow as tf

from kresnet.data import pixels
from kresnet.data.augment import color, erasing, geometry, policies
from kresnet.zoo.cards import Interpolation

Policy = Literal["none", "light", "trivial", "rand"]

STREAMS: Final = 8
"""Seeds that a view uses: `(seed, n)` to `(seed, n + STREAMS - 1)`; the last is for mixing."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What happens to a training image.

    Attributes:
        policy: After the crop: nothing, "light" changes of colour, or the operations of
            TrivialAugment ("trivial") or RandAugment ("rand").
        min_area: Smallest share of an image that the random crop covers, in (0, 1].
        flip: Mirror half of the images left to right.
        vertical_flip: Turn half of the images upside down, as in a mirror.
        color: Strength of "light", in [0, 1]: brightness, contrast and saturation change by
            factors from `1 - color` to `1 + color`.
        erase: Share of the images that lose a random rectangle, in [0, 1].
        mixup: Parameter of mixup's distribution; 0 is none.
        cutmix: Parameter of CutMix's distribution; 0 is none.
        repeats: Views of each image in a batch (Hoffer et al. 2020, arXiv:1901.09335).
        smoothing: Share of each label that is spread over all classes, in [0, 1).
    """

    policy: Policy = "light"
    min_area: float = 0.35
    flip: bool = True
    vertical_flip: bool = False
    color: float = 0.2
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    repeats: int = 1
    smoothing: float = 0.0

    def view(
        self, image: tf.Tensor, seed: tf.Tensor, *, size: int, interpolation: Interpolation
    ) -> tf.Tensor:
        """Return a random view of an image.

        Args:
            image: uint8 `(h, w, 3)`.
            seed: int64 `(2,)`; the `STREAMS - 1` numbers after its second are used up, too.
            size: Side of the view in pixels.
            interpolation: Of the crop: "bilinear" or "bicubic".

        Returns:
            float32 `(size, size, 3)`, 0..255.
        """
        seeds = [seed + tf.constant([0, k], seed.dtype) for k in range(STREAMS)]
        shape = tf.shape(image)
        box = geometry.random_box(shape[0], shape[1], seeds[0], min_area=self.min_area)
        flip = geometry.random_flip(seeds[1]) if self.flip else False
        view = pixels.resample(image, box, size, interpolation, flip)
        if self.vertical_flip:
            view = tf.cond(
                geometry.random_flip(seeds[2]), lambda: tf.reverse(view, [0]), lambda: view
            )
        match self.policy:
            case "light" if self.color:
                view = color.random_jitter(view, seeds[3], strength=self.color)
            case "trivial":
                view = policies.trivial_augment(view, seeds[4])
            case "rand":
                view = policies.rand_augment(view, seeds[4])
        if self.erase:
            view = erasing.random_erasing(view, seeds[5], probability=self.erase)
        return view
