"""What a block's 3x3 convolution can be: plain, anti-aliased, selective, split, in scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kresnet.zoo.attention import hidden
from kresnet.zoo.variants import ResNetConfig

if TYPE_CHECKING:
    from kresnet.zoo.graph import KerasLayers


@dataclass(frozen=True, kw_only=True, slots=True)
class Spatial:
    """One 3x3 convolution of a block.

    Attributes:
        name: Of the layer, or prefix of the layers, as "stage2_block1_conv2".
        act: Name of the activation behind it.
        strides: Stride it carries.
        dilation: Distance of its taps.
        redilates: The convolutions behind it have another dilation.
        projects: The block's shortcut is projected.
    """

    name: str
    act: str
    strides: int
    dilation: int
    redilates: bool
    projects: bool


def spatial(x: Any, filters: int, at: Spatial, config: ResNetConfig, layers: KerasLayers) -> Any:
    """Convolve 3x3, normalise and activate, in the way of the variant.

    Args:
        x: Features `(b, h, w, c)`; with scales, `c` is `filters * splits`.
        filters: Channels of the result, or of one scale.
        at: Which convolution it is.
        config: The variant.
        layers: What the model's layers share.

    Returns:
        Features `(b, ceil(h / strides), ceil(w / strides), filters)`, with scales
        `filters * splits`.
    """
    make = {"conv": plain, "sk": selective, "split": split_attention, "res2": scales}
    return make[config.middle](x, filters, at, config, layers)


def plain(x: Any, filters: int, at: Spatial, config: ResNetConfig, layers: KerasLayers) -> Any:
    """One convolution; anti-aliased it has stride 1, and an average or a blur subsamples."""
    antialias = config.antialias if at.strides > 1 or at.redilates else None
    x = layers.conv_norm(
        x,
        filters,
        3,
        strides=1 if antialias else at.strides,
        dilation_rate=at.dilation,
        groups=config.groups,
        name=at.name,
    )
    x = layers.act(x, name=at.act)
    if antialias == "blur":
        x = layers.blur_pool(x, at.strides, name=f"{at.name}_blur")
    elif antialias and at.strides > 1:
        x = layers.avg_pool(x, at.strides, at.strides, name=f"{at.name}_pool")
    return x


def selective(x: Any, filters: int, at: Spatial, config: ResNetConfig, layers: KerasLayers) -> Any:
    """Two kernels, 3x3 and 3x3 dilated, weighed for each channel (Li et al. 2019, section 3.1).

    With `split_input`, each sees half of the channels, as in timm.
    """
    inputs = layers.split(x, 2) if config.split_input else [x, x]
    paths = []
    for number, one in enumerate(inputs, start=1):
        path = layers.conv_norm(
            one,
            filters,
            3,
            strides=at.strides,
            dilation_rate=number * at.dilation,
            groups=config.groups,
            name=f"{at.name}_path{number}",
        )
        paths.append(layers.act(path, name=f"{at.name}_path{number}_act"))
    width = hidden(filters, config.reduction, config.reduction_multiple)
    squeezed = layers.mean(layers.add(paths, name=f"{at.name}_sum"), name=f"{at.name}_mean")
    squeezed = layers.conv_norm(squeezed, width, 1, name=f"{at.name}_fc1")
    squeezed = layers.act(squeezed, "relu", name=f"{at.name}_fc1_act")
    weights = layers.gate(squeezed, 2 * filters, name=f"{at.name}_fc2")
    return _choose(paths, layers.softmax_over(weights, 2, 1, name=f"{at.name}_choice"), at, layers)


def split_attention(
    x: Any, filters: int, at: Spatial, config: ResNetConfig, layers: KerasLayers
) -> Any:
    """`splits` grouped convolutions, weighed for each channel (Zhang et al. 2020, section 3).

    A pooling carries the stride, before or behind it.
    """
    pools = at.strides > 1
    if pools and config.pool_first:
        x = layers.avg_pool(x, 3, at.strides, margin=(1, 1), name=f"{at.name}_pool")
    x = layers.conv_norm(
        x,
        filters * config.splits,
        3,
        dilation_rate=at.dilation,
        groups=config.groups * config.splits,
        name=at.name,
    )
    x = layers.act(x, name=at.act)
    paths = layers.split(x, config.splits) if config.splits > 1 else [x]
    total = layers.add(paths, name=f"{at.name}_sum") if config.splits > 1 else x
    squeezed = layers.mean(total, name=f"{at.name}_mean")
    width = max(32, hidden(filters * config.splits, 4, 8))
    grouped: dict[str, Any] = {"groups": config.groups, "use_bias": True}
    squeezed = layers.conv_norm(squeezed, width, 1, **grouped, name=f"{at.name}_fc1")
    squeezed = layers.act(squeezed, "relu", name=f"{at.name}_fc1_act")
    weights = layers.gate(squeezed, filters * config.splits, **grouped, name=f"{at.name}_fc2")
    if config.splits == 1:
        weights = layers.act(weights, "sigmoid", name=f"{at.name}_choice")
        x = layers.multiply([x, weights], name=f"{at.name}_chosen")
    else:
        weights = layers.softmax_over(
            weights, config.splits, config.groups, name=f"{at.name}_choice"
        )
        x = _choose(paths, weights, at, layers)
    if pools and not config.pool_first:
        x = layers.avg_pool(x, 3, at.strides, margin=(1, 1), name=f"{at.name}_pool")
    return x


def scales(x: Any, filters: int, at: Spatial, config: ResNetConfig, layers: KerasLayers) -> Any:
    """Channels in `splits` parts, each convolved after adding the one before (Gao et al. 2019).

    The last part passes; where the block changes the shape, parts are apart and it is pooled.
    """
    *parts, last = layers.split(x, config.splits)
    results: list[Any] = []
    for number, part in enumerate(parts, start=1):
        if results and not at.projects:
            part = layers.add([results[-1], part], name=f"{at.name}_scale{number}_add")
        part = layers.conv_norm(
            part,
            filters,
            3,
            strides=at.strides,
            dilation_rate=at.dilation,
            groups=config.groups,
            name=f"{at.name}_scale{number}",
        )
        results.append(layers.act(part, name=f"{at.name}_scale{number}_act"))
    if at.projects:
        last = layers.avg_pool(last, 3, at.strides, margin=(1, 1), name=f"{at.name}_pool")
    return layers.concat([*results, last], name=f"{at.name}_scales")


def _choose(paths: list[Any], weights: Any, at: Spatial, layers: KerasLayers) -> Any:
    """Add up the paths, each times its weights `(b, 1, 1, len(paths) * c)`."""
    shares = layers.split(weights, len(paths))
    weighed = [
        layers.multiply([path, share], name=f"{at.name}_weighed{number}")
        for number, (path, share) in enumerate(zip(paths, shares, strict=True), start=1)
    ]
    return layers.add(weighed, name=f"{at.name}_chosen")
