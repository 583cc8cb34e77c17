"""What weighs the channels of a residual branch before it is added."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from kresnet.zoo.variants import ResNetConfig

if TYPE_CHECKING:
    from kresnet.zoo.graph import KerasLayers


def weigh(x: Any, config: ResNetConfig, layers: KerasLayers, *, name: str) -> Any:
    """Weigh the channels of `x`, `(b, h, w, c)`, as the variant does, if it does."""
    if config.attention is None:
        return x
    make = {"se": squeeze_excite, "eca": efficient_attention, "cbam": block_attention}
    return make[config.attention](x, config, layers, name=f"{name}_{config.attention}")


def squeeze_excite(x: Any, config: ResNetConfig, layers: KerasLayers, *, name: str) -> Any:
    """Weigh channels by two dense layers on their means (Hu et al. 2017, section 3)."""
    width = hidden(x.shape[-1], config.reduction, config.reduction_multiple, at_least=0.0)
    gate = layers.mean(x, name=f"{name}_mean")
    gate = layers.gate(gate, width, use_bias=True, name=f"{name}_fc1")
    gate = layers.act(gate, "relu", name=f"{name}_act")
    gate = layers.gate(gate, x.shape[-1], use_bias=True, name=f"{name}_fc2")
    gate = layers.act(gate, "sigmoid", name=f"{name}_gate")
    return layers.multiply([x, gate], name=name + "_scale")


def efficient_attention(x: Any, config: ResNetConfig, layers: KerasLayers, *, name: str) -> Any:
    """Weigh channels by a convolution along their means (Wang et al. 2019, section 3.2).

    The kernel's size follows from the number of channels, as timm computes it: equation 12 with
    gamma 2 and b 1, but at least 3.
    """
    size = int(abs(math.log2(x.shape[-1]) + 1) / 2)
    gate = layers.mean(x, name=f"{name}_mean")
    gate = layers.channel_conv(gate, max(size if size % 2 else size + 1, 3), name=name)
    gate = layers.act(gate, "sigmoid", name=f"{name}_gate")
    return layers.multiply([x, gate], name=f"{name}_scale")


def block_attention(x: Any, config: ResNetConfig, layers: KerasLayers, *, name: str) -> Any:
    """Weigh channels, then places (Woo et al. 2018, section 3)."""
    width = hidden(x.shape[-1], config.reduction, config.reduction_multiple, at_least=0.0)
    # Mean and maximum pass the same two dense layers, side by side: (b, 2, 1, c).
    both = [layers.mean(x, name=f"{name}_mean"), layers.maximum(x, (1, 2), name=f"{name}_max")]
    gate = layers.concat(both, axis=1, name=f"{name}_both")
    gate = layers.gate(gate, width, name=f"{name}_fc1")
    gate = layers.act(gate, "relu", name=f"{name}_act")
    gate = layers.gate(gate, x.shape[-1], name=f"{name}_fc2")
    gate = layers.act(layers.total(gate, name=f"{name}_sum"), "sigmoid", name=f"{name}_gate")
    x = layers.multiply([x, gate], name=f"{name}_scale")
    over = [
        layers.average(x, (3,), name=f"{name}_over_mean"),
        layers.maximum(x, (3,), name=f"{name}_over_max"),
    ]
    gate = layers.concat(over, name=f"{name}_over")
    gate = layers.conv_norm(gate, 1, 7, name=f"{name}_spatial")
    gate = layers.act(gate, "sigmoid", name=f"{name}_spatial_gate")
    return layers.multiply([x, gate], name=f"{name}_spatial_scale")


def hidden(channels: int, reduction: int, multiple: int, *, at_least: float = 0.9) -> int:
    """Return the number of hidden channels: `channels / reduction`, a multiple of `multiple`.

    Args:
        channels: Channels that are weighed.
        reduction: What they are divided by.
        multiple: What the result is rounded to the nearest multiple of.
        at_least: Rounding down must leave this share, as in timm; else it rounds up.
    """
    wanted = channels / reduction
    rounded = max(multiple, int(wanted + multiple / 2) // multiple * multiple)
    return rounded + multiple if rounded < at_least * wanted else rounded
