"""The network: stem, then stages of residual blocks. The head is in `model.py`.

Layer names are part of the interface; weights, freezing and features rely on them:
`stem_conv` or `stem_conv{1..3}`, `stem_act`, `stem_pool`; `stage{1..4}_block{1..n}` followed by
`_conv{k}`, `_act{k}`, `_shortcut`, `_add`, `_out`; in pre-activation networks `_preact`, and `norm`
and `norm_act` at the end; then `pool`, `head_dropout`, `head`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kresnet.zoo.blocks import Place, block
from kresnet.zoo.variants import ResNetConfig

if TYPE_CHECKING:
    from kresnet.zoo.graph import KerasLayers


def trunk(x: Any, config: ResNetConfig, places: Sequence[Place], layers: KerasLayers) -> Any:
    """Turn images `(b, h, w, c)` into the features `(b, h/32, w/32, features)` of the last stage.

    Args:
        x: Normalised images.
        config: The variant.
        places: The blocks, from `plan`.
        layers: What the model's layers share.
    """
    x = stem(x, config, layers)
    for place in places:
        x = block(x, place, config, layers)
    if config.preact:
        x = layers.act(layers.norm(x, name="norm"), name="norm_act")
    return x


def stem(x: Any, config: ResNetConfig, layers: KerasLayers) -> Any:
    """Turn images into the first features, at a quarter of their size, or all of it (conv3)."""
    last = len(config.stem_filters)
    for number, filters in enumerate(config.stem_filters, start=1):
        suffix = str(number) if last > 1 else ""
        size = 7 if config.stem == "conv7" else 3
        strides = 2 if number == 1 and config.stem != "conv3" else 1
        if number == last and config.preact and not config.stem_norm:
            x = layers.conv(x, filters, size, strides=strides, name=f"stem_conv{suffix}")
        else:
            x = layers.conv_norm(x, filters, size, strides=strides, name=f"stem_conv{suffix}")
            x = layers.act(x, name="stem_act" if number == last else f"stem_act{suffix}")
    if config.stem == "conv3":
        return x
    if config.stem_pool == "conv":
        x = layers.conv_norm(x, config.stem_filters[-1], 3, strides=2, name="stem_pool")
        return layers.act(x, name="stem_pool_act")
    if config.antialias == "avg":
        return layers.avg_pool(x, 2, 2, margin=(0, 0), name="stem_pool")
    if config.antialias == "blur":
        return layers.blur_pool(layers.max_pool(x, 3, 1, name="stem_pool"), 2, name="stem_blur")
    return layers.max_pool(x, 3, 2, name="stem_pool")


def plan(
    config: ResNetConfig,
    *,
    output_stride: int = 32,
    drop_path_rate: float = 0.0,
    block_drop_rate: float = 0.0,
) -> list[Place]:
    """Lay out the blocks: each stage but the first halves the size and doubles the width.

    Args:
        config: The variant.
        output_stride: Where the strides have multiplied to this, later stages keep the size and
            dilate their kernels instead (Chen et al. 2017, arXiv:1706.05587, section 3.1).
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 at the first
            (Huang et al. 2016, arXiv:1603.09382, section 3).
        block_drop_rate: Dropout before the last convolution of each branch.
    """
    last = max(sum(config.depths) - 1, 1)
    places: list[Place] = []
    reached, dilation, dilation_before = (1 if config.stem == "conv3" else 4), 1, 1
    for stage, depth in enumerate(config.depths, start=1):
        strides = 1 if stage == (len(config.depths) if config.stride_last else 1) else 2
        if reached * strides > output_stride:
            dilation, strides = dilation * strides, 1
        reached *= strides
        for number in range(1, depth + 1):
            carries = number == (depth if config.stride_last else 1)
            places.append(
                Place(
                    name=f"stage{stage}_block{number}",
                    width=config.width * 2 ** (stage - 1),
                    opens=number == 1,
                    strides=strides if carries else 1,
                    dilation=dilation,
                    first_dilation=dilation_before,
                    drop_path=drop_path_rate * len(places) / last,
                    dropout=block_drop_rate,
                )
            )
            dilation_before = dilation
    return places
