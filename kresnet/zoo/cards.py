"""What a set of weights expects of its input, and where published weights live."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from kresnet.errors import ConfigError

Interpolation = Literal["bilinear", "bicubic"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How pixels become model input: resize, centre crop, then `(pixels / 255 - mean) / std`.

    Attributes:
        image_size: Side of the square model input, in pixels.
        crop_pct: Side of the centre crop divided by the shorter side of the image, in (0, 1];
            timm's name and meaning. 0.875 is "resize to 256, crop 224".
        interpolation: Resampling kernel, always with antialiasing, as Pillow resizes.
        mean: Per-channel mean in RGB order, for pixels scaled to 0..1.
        std: Per-channel standard deviation in RGB order, for pixels scaled to 0..1.
    """

    image_size: int = 224
    crop_pct: float = 0.875
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


IMAGENET = Preprocessing()
# The Caffe weights behind keras.applications see 0..255 with the mean taken off.
CAFFE = Preprocessing(
    mean=(123.68 / 255, 116.779 / 255, 103.939 / 255), std=(1 / 255, 1 / 255, 1 / 255)
)
# akamaster's CIFAR nets were trained with ImageNet's mean and std (their trainer.py, line 88).
CIFAR10 = Preprocessing(image_size=32, crop_pct=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsCard:
    """One published set of weights.

    Attributes:
        variant: The key of `VARIANTS` that the weights fit.
        tag: What they were trained on; the name `build(..., weights=tag)` knows them by.
        url: Where the file is; its last part is the file's name in the cache.
        checksum: "sha256:" or "md5:" and the digest in hexadecimal, or the first digits of it.
        license: SPDX identifier.
        preprocessing: What the weights expect of their input.
        num_classes: Outputs of the published head.
        top1: Published top-1 accuracy in percent, of a single centre crop.
        top5: Published top-5 accuracy in percent, or None.
        source: Where the accuracy was published.
    """

    variant: str
    tag: str
    url: str
    checksum: str
    license: str
    preprocessing: Preprocessing
    num_classes: int
    top1: float
    top5: float | None
    source: str

    @property
    def file_name(self) -> str:
        """Name of the file, as it is cached."""
        return self.url.rsplit("/", 1)[-1]


def _torchvision(variant: str, digest: str, top1: float, top5: float) -> WeightsCard:
    """IMAGENET1K_V1; the file name ends with the first 8 digits of its SHA-256."""
    return WeightsCard(
        variant=variant,
        tag="imagenet",
        url=f"https://download.pytorch.org/models/{variant}-{digest}.pth",
        checksum=f"sha256:{digest}",
        license="BSD-3-Clause",
        preprocessing=IMAGENET,
        num_classes=1000,
        top1=top1,
        top5=top5,
        source="torchvision 0.29.2, models/resnet.py, IMAGENET1K_V1",
    )


def _keras(depth: int, md5: str, top1: float, top5: float) -> WeightsCard:
    """He's Caffe weights, as keras.applications has them; only an MD5 is published, no SHA-256."""
    return WeightsCard(
        variant=f"resnet{depth}_v1",
        tag="imagenet",
        url=(
            "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
            f"resnet{depth}_weights_tf_dim_ordering_tf_kernels.h5"
        ),
        checksum=f"md5:{md5}",
        license="MIT",
        preprocessing=CAFFE,
        num_classes=1000,
        top1=top1,
        top5=top5,
        source="keras-applications, README at commit bc89834",
    )


def _akamaster(depth: int, sha256: str, top1: float) -> WeightsCard:
    """Option-A nets; the file name ends with the first 8 digits of its SHA-256."""
    return WeightsCard(
        variant=f"resnet{depth}_cifar",
        tag="cifar10",
        url=(
            "https://raw.githubusercontent.com/akamaster/pytorch_resnet_cifar10/"
            "d5489e8995e81e91ce6b1d69dcc98ad579b0b153/pretrained_models/"
            f"resnet{depth}-{sha256[:8]}.th"
        ),
        checksum=f"sha256:{sha256}",
        license="BSD-2-Clause",
        preprocessing=CIFAR10,
        num_classes=10,
        top1=top1,
        top5=None,
        source="akamaster/pytorch_resnet_cifar10, README (100 - test error)",
    )


_ALL = (
    _torchvision("resnet18", "f37072fd", 69.758, 89.078),
    _torchvision("resnet34", "b627a593", 73.314, 91.420),
    _torchvision("resnet50", "0676ba61", 76.130, 92.862),
    _torchvision("resnet101", "63fe2227", 77.374, 93.546),
    _torchvision("resnet152", "394f9c45", 78.312, 94.046),
    _keras(50, "2cb95161c43110f7111970584f804107", 74.928, 92.060),
    _keras(101, "f1aeb4b969a6efcfb50fad2f0c20cfc5", 76.420, 92.786),
    _keras(152, "100835be76be38e30d865e96f2aaae62", 76.604, 93.118),
    _akamaster(20, "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8", 91.73),
    _akamaster(32, "d509ac1820d7f25398913559d7e81a13229b1e7adc5648e3bfa5e22dc137f850", 92.63),
    _akamaster(44, "014dd6541728a1c700b1642ab640e211dc6eb8ed507d70697458dc8f8a0ae2e4", 93.10),
    _akamaster(56, "4bfd97631478d6b638d2764fd2baff3edb1d7d82252d54439343b6596b9b5367", 93.39),
    _akamaster(110, "1d1ed7c2", 93.68),  # only the digits in the file name were seen
)

CARDS: Mapping[str, WeightsCard] = MappingProxyType(
    {f"{card.variant}.{card.tag}": card for card in _ALL}
)


def card_for(variant: str, tag: str) -> WeightsCard:
    """Look up the weights that were published for a variant.

    Args:
        variant: A key of `VARIANTS`, as "resnet50".
        tag: What the weights were trained on: "imagenet" or "cifar10".

    Raises:
        ConfigError: There are none; the message names those that there are.
    """
    card = CARDS.get(f"{variant}.{tag}")
    if card is not None:
        return card
    tags = [card.tag for card in _ALL if card.variant == variant]
    if tags:
        near = difflib.get_close_matches(tag, tags, n=1, cutoff=0.5)
        verb = "Did you mean" if near else f"{variant} has"
        end = "?" if near else "."
        fix = f"{verb} weights={tags[0]!r}{end}"
    else:
        variants = list(dict.fromkeys(card.variant for card in _ALL))
        near = difflib.get_close_matches(variant, variants, n=1, cutoff=0.6)
        fix = f"Did you mean {near[0]!r}?" if near else f"Published are those of {variants}."
    raise ConfigError(
        f"No such weights are published. Received: variant={variant!r}, weights={tag!r}. {fix}"
    )
