"""Every ResNet kresnet builds, one line each.

A row shows only what differs from its base, so the table reads as the papers do. Names are timm's
where timm has the model. Where a family comes from:

- resnet: He et al. 2015 (arXiv:1512.03385), table 1, and section 4.2 for CIFAR; the letters c and
  d are He et al. 2018 (arXiv:1812.01187), figure 2; s and t are their wider and tiered stems; vd
  is d as PaddleClas and KerasHub have it.
- resnetv2, preresnet: He et al. 2016 (arXiv:1603.05027); the `_bit` members are Kolesnikov et al.
  2019 (arXiv:1912.11370).
- resnext: Xie et al. 2016 (arXiv:1611.05431). wide_resnet, wrn: Zagoruyko & Komodakis 2016
  (arXiv:1605.07146). resnetrs: Bello et al. 2021 (arXiv:2103.07579).
- seresnet, senet: Hu et al. 2017 (arXiv:1709.01507). ecaresnet: Wang et al. 2019
  (arXiv:1910.03151). cbamresnet: Woo et al. 2018 (arXiv:1807.06521). skresnet: Li et al. 2019
  (arXiv:1903.06586). resnest: Zhang et al. 2020 (arXiv:2004.08955). res2net: Gao et al. 2019
  (arXiv:1904.01169). resnetblur: Zhang 2019 (arXiv:1904.11486).
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
        width: Filters of the first stage's blocks; each later stage doubles them.
        groups: Channel groups of a bottleneck's 3x3 convolution (ResNeXt's cardinality).
        group_width: Filters of one group where `width` is 64; 64 is a plain bottleneck.
        reduce_first: Divisor of the filters of a bottleneck's first convolution (2 in SENet-154).
        middle: What a block's wide 3x3 convolution is: "conv"; "sk", two kernels and a choice
            between them; "split", the split attention of ResNeSt; "res2", the scales of Res2Net.
        splits: Radix of "split", scales of "res2".
        split_input: In "sk", each kernel sees its share of the channels only.
        pool_first: In "split", the pooling that carries the stride is before the convolution.
        attention: What weighs the channels of a branch before it is added.
        reduction: Hidden channels of "se", "cbam" and "sk" divided by those they weigh.
        reduction_multiple: The hidden channels are a multiple of this.
        stem: "conv7" is a 7x7 convolution of stride 2; "deep" is three 3x3 convolutions instead;
            "conv3" is one 3x3 convolution of stride 1 and no pooling, for small images.
        stem_filters: Of each convolution of the stem.
        stem_norm: A pre-activation network's stem ends with a norm and an activation as well.
        stem_pool: A max-pool, or a 3x3 convolution of stride 2 ("conv", ResNet-RS).
        pool_padding: What surrounds the image in the max-pool. Zero and minus infinity are the
            same behind a ReLU, and differ behind a bare convolution.
        stride_in: The bottleneck convolution that carries a stage's stride: "conv1" as in the
            paper and keras.applications (v1), "conv2" as in torchvision and timm (v1.5).
        stride_last: The stride is in the last block of the stage before (keras.applications V2).
        shortcut: What an identity shortcut becomes where the shape changes: "conv" is a 1x1
            projection (option B), "conv3" a 3x3 one, "avgconv" an average-pool and a 1x1
            projection, "pad" subsamples and pads channels with zeros (option A). "none" leaves all
            shortcuts out, which is the plain network of the paper.
        project_first: The first block of every stage projects, whether the shape changes or not.
        preact: Norm and activation come before each convolution (v2), not after.
        norm: "batch", or "group" of 32 groups, which needs no statistics of the training set.
        standardize: Added to the variance of kernels that are standardised (Qiao et al. 2019,
            arXiv:1903.10520); None leaves kernels as they are.
        use_bias: Convolutions that no norm follows have a bias.
        antialias: What subsamples a branch instead of its strided convolution: an average-pool or
            a binomial blur.
        padding: "symmetric" as in the papers and PyTorch, or TensorFlow's "same".
        num_classes: Classes of the data set the variant was designed for.
        image_size: Side in pixels of the images it was designed for.
    """

    block: Literal["basic", "bottleneck"]
    depths: tuple[int, ...]
    width: int = 64
    groups: int = 1
    group_width: int = 64
    reduce_first: int = 1
    middle: Literal["conv", "sk", "split", "res2"] = "conv"
    splits: int = 1
    split_input: bool = True
    pool_first: bool = False
    attention: Literal["se", "eca", "cbam"] | None = None
    reduction: int = 16
    reduction_multiple: int = 8
    stem: Literal["conv7", "deep", "conv3"] = "conv7"
    stem_filters: tuple[int, ...] = (64,)
    stem_norm: bool = False
    stem_pool: Literal["max", "conv"] = "max"
    pool_padding: Literal["infinity", "zero"] = "infinity"
    stride_in: Literal["conv1", "conv2"] = "conv2"
    stride_last: bool = False
    shortcut: Literal["conv", "conv3", "avgconv", "pad", "none"] = "conv"
    project_first: bool = False
    preact: bool = False
    norm: Literal["batch", "group"] = "batch"
    standardize: float | None = None
    use_bias: bool = False
    antialias: Literal["avg", "blur"] | None = None
    padding: Literal["symmetric", "same"] = "symmetric"
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
        if len(self.stem_filters) != (3 if self.stem == "deep" else 1):
            raise ConfigError(
                "`stem_filters` must have one number for each convolution of the stem. "
                f"Received: stem={self.stem!r}, stem_filters={self.stem_filters}."
            )

    @property
    def expansion(self) -> int:
        """Output channels of a block divided by the width of its stage."""
        return 4 if self.block == "bottleneck" else 1

    @property
    def num_features(self) -> int:
        """Channels of the last stage, which is the length of the pooled feature vector."""
        return self.width * 2 ** (len(self.depths) - 1) * self.expansion


_18, _26, _34 = (2, 2, 2, 2), (2, 2, 2, 2), (3, 4, 6, 3)
_50, _101, _152, _200 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3), (3, 24, 36, 3)
_BASIC = ResNetConfig(block="basic", depths=_18)
_BOTTLENECK = ResNetConfig(block="bottleneck", depths=_50)


def _c(base: ResNetConfig) -> ResNetConfig:
    """Three 3x3 convolutions for the 7x7."""
    return replace(base, stem="deep", stem_filters=(32, 32, 64))


def _d(base: ResNetConfig) -> ResNetConfig:
    """C, and shortcuts that average before they project."""
    return replace(_c(base), shortcut="avgconv")


def _s(base: ResNetConfig) -> ResNetConfig:
    """C with a stem of twice the width."""
    return replace(base, stem="deep", stem_filters=(64, 64, 128))


def _e(base: ResNetConfig) -> ResNetConfig:
    """D with a stem of twice the width."""
    return replace(_s(base), shortcut="avgconv")


def _t(base: ResNetConfig) -> ResNetConfig:
    """D with a stem that widens step by step."""
    return replace(base, stem="deep", stem_filters=(24, 32, 64), shortcut="avgconv")


def _next(base: ResNetConfig, groups: int, group_width: int) -> ResNetConfig:
    return replace(base, groups=groups, group_width=group_width)


_V1 = replace(_BOTTLENECK, stride_in="conv1")
_V2_BASIC = replace(_BASIC, preact=True)
_V2 = replace(_BOTTLENECK, preact=True)
_V2_SLIM = replace(_V2, stride_last=True, use_bias=True, pool_padding="zero")
_MXNET_BASIC = replace(_V2_BASIC, stem_norm=True, project_first=True)
_MXNET = replace(_V2, stem_norm=True, project_first=True)
_SE_BASIC = replace(_BASIC, attention="se")
_SE = replace(_BOTTLENECK, attention="se")
_ECA = replace(_BOTTLENECK, attention="eca")
_AA = replace(_BOTTLENECK, antialias="avg")
_BLUR = replace(_BOTTLENECK, antialias="blur")
_SK_BASIC = replace(_BASIC, middle="sk", reduction=8, reduction_multiple=16)
_SK = replace(_BOTTLENECK, middle="sk")
_RS = replace(_d(_SE), reduction=4, stem_pool="conv")
_SPLIT = replace(_d(_BOTTLENECK), middle="split", splits=2)
_SPLIT_E = replace(_e(_BOTTLENECK), middle="split", splits=2)
_RES2 = replace(_BOTTLENECK, middle="res2", splits=4, group_width=26)
_CIFAR = ResNetConfig(
    block="basic",
    depths=(3, 3, 3),
    width=16,
    stem="conv3",
    stem_filters=(16,),
    shortcut="pad",
    num_classes=10,
    image_size=32,
)
_PRE_CIFAR = replace(_CIFAR, block="bottleneck", shortcut="conv", preact=True, stride_in="conv1")
_PLAIN = replace(_CIFAR, shortcut="none")


def _bit(depths: tuple[int, ...], factor: int) -> ResNetConfig:
    return replace(
        _V2,
        depths=depths,
        width=64 * factor,
        stem_filters=(64 * factor,),
        norm="group",
        standardize=1e-8,
        pool_padding="zero",
    )


def _wrn(blocks: int, factor: int) -> ResNetConfig:
    return replace(_CIFAR, depths=(blocks,) * 3, width=16 * factor, shortcut="conv", preact=True)


VARIANTS: Mapping[str, ResNetConfig] = MappingProxyType(
    {
        # v1.5, the layout of torchvision and timm
        "resnet10t": _t(replace(_BASIC, depths=(1, 1, 1, 1))),
        "resnet14t": _t(replace(_BOTTLENECK, depths=(1, 1, 1, 1))),
        "resnet18": _BASIC,
        "resnet18d": _d(_BASIC),
        "resnet18_vd": replace(_d(_BASIC), project_first=True),
        "resnet26": replace(_BOTTLENECK, depths=_26),
        "resnet26d": _d(replace(_BOTTLENECK, depths=_26)),
        "resnet26t": _t(replace(_BOTTLENECK, depths=_26)),
        "resnet34": replace(_BASIC, depths=_34),
        "resnet34d": _d(replace(_BASIC, depths=_34)),
        "resnet34_vd": replace(_d(_BASIC), depths=_34, project_first=True),
        "resnet50": _BOTTLENECK,
        "resnet50c": _c(_BOTTLENECK),
        "resnet50d": _d(_BOTTLENECK),
        "resnet50s": _s(_BOTTLENECK),
        "resnet50t": _t(_BOTTLENECK),
        "resnet50_gn": replace(_BOTTLENECK, norm="group"),
        "resnet101": replace(_BOTTLENECK, depths=_101),
        "resnet101c": _c(replace(_BOTTLENECK, depths=_101)),
        "resnet101d": _d(replace(_BOTTLENECK, depths=_101)),
        "resnet101s": _s(replace(_BOTTLENECK, depths=_101)),
        "resnet152": replace(_BOTTLENECK, depths=_152),
        "resnet152c": _c(replace(_BOTTLENECK, depths=_152)),
        "resnet152d": _d(replace(_BOTTLENECK, depths=_152)),
        "resnet152s": _s(replace(_BOTTLENECK, depths=_152)),
        "resnet200": replace(_BOTTLENECK, depths=_200),
        "resnet200d": _d(replace(_BOTTLENECK, depths=_200)),
        "resnet200_vd": _d(replace(_BOTTLENECK, depths=(3, 12, 48, 3))),
        # v1, the paper's layout and that of keras.applications
        "resnet50_v1": _V1,
        "resnet101_v1": replace(_V1, depths=_101),
        "resnet152_v1": replace(_V1, depths=_152),
        # grouped and wide
        "resnext50_32x4d": _next(_BOTTLENECK, 32, 4),
        "resnext50d_32x4d": _d(_next(_BOTTLENECK, 32, 4)),
        "resnext101_32x4d": replace(_next(_BOTTLENECK, 32, 4), depths=_101),
        "resnext101_32x8d": replace(_next(_BOTTLENECK, 32, 8), depths=_101),
        "resnext101_32x16d": replace(_next(_BOTTLENECK, 32, 16), depths=_101),
        "resnext101_32x32d": replace(_next(_BOTTLENECK, 32, 32), depths=_101),
        "resnext101_64x4d": replace(_next(_BOTTLENECK, 64, 4), depths=_101),
        "wide_resnet50_2": replace(_BOTTLENECK, group_width=128),
        "wide_resnet101_2": replace(_BOTTLENECK, group_width=128, depths=_101),
        # squeeze and excitation
        "seresnet18": _SE_BASIC,
        "seresnet34": replace(_SE_BASIC, depths=_34),
        "seresnet50": _SE,
        "seresnet50t": _t(_SE),
        "seresnet101": replace(_SE, depths=_101),
        "seresnet152": replace(_SE, depths=_152),
        "seresnet152d": _d(replace(_SE, depths=_152)),
        "seresnet200d": _d(replace(_SE, depths=_200)),
        "seresnet269d": _d(replace(_SE, depths=(3, 30, 48, 8))),
        "seresnext26d_32x4d": _d(replace(_next(_SE, 32, 4), depths=_26)),
        "seresnext26t_32x4d": _t(replace(_next(_SE, 32, 4), depths=_26)),
        "seresnext50_32x4d": _next(_SE, 32, 4),
        "seresnext101_32x4d": replace(_next(_SE, 32, 4), depths=_101),
        "seresnext101_32x8d": replace(_next(_SE, 32, 8), depths=_101),
        "seresnext101d_32x8d": _d(replace(_next(_SE, 32, 8), depths=_101)),
        "seresnext101_64x4d": replace(_next(_SE, 64, 4), depths=_101),
        "senet154": replace(_s(_next(_SE, 64, 4)), depths=_152, reduce_first=2, shortcut="conv3"),
        # efficient channel attention, convolutional block attention
        "ecaresnet26t": _t(replace(_ECA, depths=_26)),
        "ecaresnetlight": replace(_ECA, depths=(1, 1, 11, 3), shortcut="avgconv"),
        "ecaresnet50d": _d(_ECA),
        "ecaresnet50t": _t(_ECA),
        "ecaresnet101d": _d(replace(_ECA, depths=_101)),
        "ecaresnet200d": _d(replace(_ECA, depths=_200)),
        "ecaresnet269d": _d(replace(_ECA, depths=(3, 30, 48, 8))),
        "ecaresnext26t_32x4d": _t(replace(_next(_ECA, 32, 4), depths=_26)),
        "ecaresnext50t_32x4d": _t(_next(_ECA, 32, 4)),
        "cbamresnet50": replace(_BOTTLENECK, attention="cbam", reduction_multiple=1),
        # selective kernels, split attention, scales
        "skresnet18": _SK_BASIC,
        "skresnet34": replace(_SK_BASIC, depths=_34),
        "skresnet50": _SK,
        "skresnet50d": _d(_SK),
        "skresnext50_32x4d": replace(_next(_SK, 32, 4), reduction_multiple=32, split_input=False),
        "resnest14d": replace(_SPLIT, depths=(1, 1, 1, 1)),
        "resnest26d": replace(_SPLIT, depths=_26),
        "resnest50d": _SPLIT,
        "resnest50d_1s4x24d": replace(_next(_SPLIT, 4, 24), splits=1, pool_first=True),
        "resnest50d_4s2x40d": replace(_next(_SPLIT, 2, 40), splits=4, pool_first=True),
        "resnest101e": replace(_SPLIT_E, depths=_101),
        "resnest200e": replace(_SPLIT_E, depths=_200),
        "resnest269e": replace(_SPLIT_E, depths=(3, 30, 48, 8)),
        "res2net50_14w_8s": replace(_RES2, group_width=14, splits=8),
        "res2net50_26w_4s": _RES2,
        "res2net50_26w_6s": replace(_RES2, splits=6),
        "res2net50_26w_8s": replace(_RES2, splits=8),
        "res2net50_48w_2s": replace(_RES2, group_width=48, splits=2),
        "res2net50d": _d(_RES2),
        "res2net101_26w_4s": replace(_RES2, depths=_101),
        "res2net101d": _d(replace(_RES2, depths=_101)),
        "res2next50": _next(_RES2, 8, 4),
        # anti-aliased
        "resnetaa34d": _d(replace(_BASIC, depths=_34, antialias="avg")),
        "resnetaa50": _AA,
        "resnetaa50d": _d(_AA),
        "resnetaa101d": _d(replace(_AA, depths=_101)),
        "seresnetaa50d": _d(replace(_AA, attention="se")),
        "seresnextaa101d_32x8d": _d(replace(_next(_AA, 32, 8), depths=_101, attention="se")),
        "seresnextaa201d_32x8d": _e(
            replace(_next(_AA, 32, 8), depths=(3, 24, 36, 4), attention="se")
        ),
        "resnetblur18": replace(_BASIC, antialias="blur"),
        "resnetblur50": _BLUR,
        "resnetblur50d": _d(_BLUR),
        "resnetblur101d": _d(replace(_BLUR, depths=_101)),
        # ResNet-RS
        "resnetrs50": _RS,
        "resnetrs101": replace(_RS, depths=_101),
        "resnetrs152": replace(_RS, depths=_152),
        "resnetrs200": replace(_RS, depths=_200),
        "resnetrs270": replace(_RS, depths=(4, 29, 53, 4)),
        "resnetrs350": replace(_RS, depths=(4, 36, 72, 4)),
        "resnetrs420": replace(_RS, depths=(4, 44, 87, 4)),
        # v2, pre-activation, as in timm
        "resnetv2_18": _V2_BASIC,
        "resnetv2_18d": _d(_V2_BASIC),
        "resnetv2_34": replace(_V2_BASIC, depths=_34),
        "resnetv2_34d": _d(replace(_V2_BASIC, depths=_34)),
        "resnetv2_50": _V2,
        "resnetv2_50d": _d(_V2),
        "resnetv2_50t": _t(_V2),
        "resnetv2_50d_gn": replace(_d(_V2), norm="group"),
        "resnetv2_101": replace(_V2, depths=_101),
        "resnetv2_101d": _d(replace(_V2, depths=_101)),
        "resnetv2_152": replace(_V2, depths=_152),
        "resnetv2_152d": _d(replace(_V2, depths=_152)),
        "resnetv2_50x1_bit": _bit(_50, 1),
        "resnetv2_50x3_bit": _bit(_50, 3),
        "resnetv2_101x1_bit": _bit(_101, 1),
        "resnetv2_101x3_bit": _bit(_101, 3),
        "resnetv2_152x2_bit": _bit(_152, 2),
        "resnetv2_152x4_bit": _bit(_152, 4),
        # V2 of keras.applications; pre-activation as in MXNet
        "resnet50_v2": _V2_SLIM,
        "resnet101_v2": replace(_V2_SLIM, depths=_101),
        "resnet152_v2": replace(_V2_SLIM, depths=_152),
        "preresnet18": _MXNET_BASIC,
        "preresnet34": replace(_MXNET_BASIC, depths=_34),
        "preresnet50": _MXNET,
        "preresnet101": replace(_MXNET, depths=_101),
        "preresnet152": replace(_MXNET, depths=_152),
        # for 32 px images: 6n + 2 layers (section 4.2 of the paper), 9n + 2 pre-activated, 6n + 4
        # wide, the same without shortcuts, and the ResNet-8 of MLPerf Tiny
        "resnet20_cifar": _CIFAR,
        "resnet32_cifar": replace(_CIFAR, depths=(5, 5, 5)),
        "resnet44_cifar": replace(_CIFAR, depths=(7, 7, 7)),
        "resnet56_cifar": replace(_CIFAR, depths=(9, 9, 9)),
        "resnet110_cifar": replace(_CIFAR, depths=(18, 18, 18)),
        "resnet1202_cifar": replace(_CIFAR, depths=(200, 200, 200)),
        "preresnet164_cifar": replace(_PRE_CIFAR, depths=(18, 18, 18)),
        "preresnet1001_cifar": replace(_PRE_CIFAR, depths=(111, 111, 111)),
        "wrn16_8_cifar": _wrn(2, 8),
        "wrn28_10_cifar": _wrn(4, 10),
        "wrn40_10_cifar": _wrn(6, 10),
        "plain20_cifar": _PLAIN,
        "plain56_cifar": replace(_PLAIN, depths=(9, 9, 9)),
        "resnet8_cifar": replace(_CIFAR, depths=(1, 1, 1), shortcut="conv", padding="same"),
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
    hint = " or ".join(repr(n) for n in near) if near else "one of those `kresnet zoo list` prints"
    raise ConfigError(f"Unknown variant. Received: name={name!r}. Did you mean {hint}?")
