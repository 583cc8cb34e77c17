"""Every ResNet kresnet builds, one line each.

A row shows only what differs from its base, so the table reads as the papers do:
ResNet is He et al. 2015 (arXiv:1512.03385), table 1 for ImageNet and section 4.2 for CIFAR.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from kresnet.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ResNetConfig:
    """What makes one ResNet different from another.

    Attributes:
        block: "basic" is 3x3 -> 3x3; "bottleneck" is 1x1 -> 3x3 -> 1x1 with four times the width.
        depths: Number of blocks in each stage.
        width: Filters of the first stage's 3x3 convolutions; each later stage doubles them.
        stem: "conv7" is a 7x7 convolution of stride 2 and a max-pool; "conv3" is one 3x3
            convolution, for small images.
        stride_in: The bottleneck convolution that carries a stage's stride: "conv1" as in the
            paper and keras.applications (v1), "conv2" as in torchvision and timm (v1.5).
        shortcut: What an identity shortcut becomes where the shape changes: "conv" is a 1x1
            projection (option B), "pad" subsamples and pads channels with zeros (option A).
        num_classes: Classes of the data set the variant was designed for.
        image_size: Side in pixels of the images it was designed for.
    """

    block: Literal["basic", "bottleneck"]
    depths: tuple[int, ...]
    width: int = 64
    stem: Literal["conv7", "conv3"] = "conv7"
    stride_in: Literal["conv1", "conv2"] = "conv2"
    shortcut: Literal["conv", "pad"] = "conv"
    num_classes: int = 1000
    image_size: int = 224

    def __post_init__(self) -> None:
        if not self.depths or any(depth < 1 for depth in self.depths):
            raise ConfigError(
                "Every stage needs at least one block. "
                f"Received: depths={self.depths}. Give one positive number for each stage."
            )
        if self.width < 1:
            raise ConfigError(f"`width` must be positive. Received: width={self.width}.")

    @property
    def expansion(self) -> int:
        """Output channels of a block divided by the width of its 3x3 convolution."""
        return 4 if self.block == "bottleneck" else 1

    @property
    def num_features(self) -> int:
        """Channels of the last stage, which is the length of the pooled feature vector."""
        return self.width * 2 ** (len(self.depths) - 1) * self.expansion


_BASIC = ResNetConfig(block="basic", depths=(2, 2, 2, 2))
_BOTTLENECK = ResNetConfig(block="bottleneck", depths=(3, 4, 6, 3))
_V1 = replace(_BOTTLENECK, stride_in="conv1")
_CIFAR = ResNetConfig(
    block="basic",
    depths=(3, 3, 3),
    width=16,
    stem="conv3",
    shortcut="pad",
    num_classes=10,
    image_size=32,
)

VARIANTS: Mapping[str, ResNetConfig] = MappingProxyType(
    {
        # v1.5, the layout of torchvision and timm
        "resnet18": _BASIC,
        "resnet34": replace(_BASIC, depths=(3, 4, 6, 3)),
        "resnet50": _BOTTLENECK,
        "resnet101": replace(_BOTTLENECK, depths=(3, 4, 23, 3)),
        "resnet152": replace(_BOTTLENECK, depths=(3, 8, 36, 3)),
        # v1, the paper's layout and that of keras.applications
        "resnet50_v1": _V1,
        "resnet101_v1": replace(_V1, depths=(3, 4, 23, 3)),
        "resnet152_v1": replace(_V1, depths=(3, 8, 36, 3)),
        # 6n + 2 layers for 32 px images, section 4.2 of the paper
        "resnet20_cifar": _CIFAR,
        "resnet32_cifar": replace(_CIFAR, depths=(5, 5, 5)),
        "resnet44_cifar": replace(_CIFAR, depths=(7, 7, 7)),
        "resnet56_cifar": replace(_CIFAR, depths=(9, 9, 9)),
        "resnet110_cifar": replace(_CIFAR, depths=(18, 18, 18)),
    }
)


def variant_config(name: str) -> ResNetConfig:
    """Look a variant up by name.

    Raises:
        ConfigError: There is no such variant; the message names the nearest ones.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    near = difflib.get_close_matches(name, VARIANTS, n=3, cutoff=0.5)
    hint = " or ".join(repr(n) for n in near) if near else "one of " + ", ".join(VARIANTS)
    raise ConfigError(f"Unknown variant. Received: name={name!r}. Did you mean {hint}?")
