"""Residual blocks: functions from tensor to tensor.

He et al. 2015 (arXiv:1512.03385): a block learns `F(x)` and returns `relu(F(x) + x)`. Where the
shape changes, the shortcut `x` is subsampled and projected to the new number of channels. He et al.
2016 (arXiv:1603.05027) move norm and activation before each convolution, so that the shortcuts of
all blocks add up to an identity from the first block to the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kresnet.zoo.attention import weigh
from kresnet.zoo.kernels import Spatial, spatial
from kresnet.zoo.variants import ResNetConfig

if TYPE_CHECKING:
    from kresnet.zoo.graph import KerasLayers


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a block is, and what follows from it.

    Attributes:
        name: Prefix of the layer names, as "stage2_block1".
        width: Filters of the stage's blocks.
        opens: It is the first block of its stage.
        strides: Stride of the block.
        dilation: Dilation of the stage's 3x3 convolutions.
        first_dilation: Dilation of this block's first 3x3: that of the stage before in the first
            block of a dilated stage.
        drop_path: Probability of dropping the branch in training.
        dropout: Of the activations before the branch's last convolution.
    """

    name: str
    width: int
    opens: bool
    strides: int = 1
    dilation: int = 1
    first_dilation: int = 1
    drop_path: float = 0.0
    dropout: float = 0.0


def block(x: Any, at: Place, config: ResNetConfig, layers: KerasLayers) -> Any:
    """Add the block that `config` has at this place.

    Args:
        x: Features `(b, h, w, c)`.
        at: Which block of the network it is.
        config: The variant.
        layers: What the model's layers share.

    Returns:
        Features `(b, ceil(h / strides), ceil(w / strides), width * expansion)`.
    """
    return (preact_block if config.preact else post_block)(x, at, config, layers)


def post_block(x: Any, at: Place, config: ResNetConfig, layers: KerasLayers) -> Any:
    """`act(F(x) + x)`: the block of 2015, whose activation comes after the addition."""
    shortcut = match_shape(x, at, config, layers)
    x = (bottleneck if config.block == "bottleneck" else basic)(x, at, config, layers)
    x = weigh(x, config, layers, name=at.name)
    x = layers.drop_path(x, at.drop_path, name=f"{at.name}_drop_path")
    if shortcut is not None:
        x = layers.add([x, shortcut], name=f"{at.name}_add")
    return layers.act(x, name=f"{at.name}_out")


def basic(x: Any, at: Place, config: ResNetConfig, layers: KerasLayers) -> Any:
    """3x3 -> 3x3, both `width` wide (the paper's figure 5, left)."""
    x = spatial(x, at.width, _spatial(at, "conv1", x, config), config, layers)
    x = layers.dropout(x, at.dropout, name=f"{at.name}_dropout")
    return layers.conv_norm(
        x, at.width, 3, dilation_rate=at.dilation, last=True, name=f"{at.name}_conv2"
    )


def bottleneck(x: Any, at: Place, config: ResNetConfig, layers: KerasLayers) -> Any:
    """1x1 -> 3x3 -> 1x1, narrow in the middle (the paper's figure 5, right)."""
    width = int(at.width * config.group_width / 64) * config.groups
    first = width * config.splits if config.middle == "res2" else width // config.reduce_first
    strides1 = at.strides if config.stride_in == "conv1" else 1
    at2 = _spatial(at, "conv2", x, config)
    x = layers.conv_norm(x, first, 1, strides=strides1, name=f"{at.name}_conv1")
    x = layers.act(x, name=f"{at.name}_act1")
    x = spatial(x, width, at2, config, layers)
    x = layers.dropout(x, at.dropout, name=f"{at.name}_dropout")
    return layers.conv_norm(x, 4 * at.width, 1, last=True, name=f"{at.name}_conv3")


def preact_block(x: Any, at: Place, config: ResNetConfig, layers: KerasLayers) -> Any:
    """`F(act(norm(x))) + x`: the block of 2016, whose norms come before its convolutions.

    The norm behind a convolution is the next one's, so the two are one layer here as well; only the
    first norm of the branch stands alone.
    """
    before = layers.act(layers.norm(x, name=f"{at.name}_preact"), name=f"{at.name}_preact_act")
    shortcut = match_shape(x, at, config, layers, before)
    strides1, strides2 = (at.strides, 1) if config.stride_in == "conv1" else (1, at.strides)
    dilation: dict[str, Any] = {"dilation_rate": at.first_dilation}
    if config.block == "basic":
        x = layers.conv_norm(
            before, at.width, 3, strides=at.strides, **dilation, name=f"{at.name}_conv1"
        )
        x = layers.act(x, name=f"{at.name}_act1")
        x = layers.dropout(x, at.dropout, name=f"{at.name}_dropout")
        x = layers.conv(
            x, at.width, 3, dilation_rate=at.dilation, last=True, name=f"{at.name}_conv2"
        )
    else:
        x = layers.conv_norm(before, at.width, 1, strides=strides1, name=f"{at.name}_conv1")
        x = layers.act(x, name=f"{at.name}_act1")
        x = layers.conv_norm(x, at.width, 3, strides=strides2, **dilation, name=f"{at.name}_conv2")
        x = layers.act(x, name=f"{at.name}_act2")
        x = layers.dropout(x, at.dropout, name=f"{at.name}_dropout")
        x = layers.conv(x, 4 * at.width, 1, last=True, name=f"{at.name}_conv3")
    x = layers.drop_path(x, at.drop_path, name=f"{at.name}_drop_path")
    return layers.add([x, shortcut], name=f"{at.name}_out")


def match_shape(
    x: Any, at: Place, config: ResNetConfig, layers: KerasLayers, before: Any = None
) -> Any:
    """Return the shortcut: `x` itself, or `x` brought to the shape of the branch.

    Args:
        x: What enters the block.
        at: The block.
        config: The variant; its `shortcut` says how.
        layers: What the model's layers share.
        before: What a pre-activation block projects, instead of `x`; no norm follows then.

    Returns:
        The shortcut, or None where the network has none.
    """
    if config.shortcut == "none":
        return None
    filters, name = at.width * config.expansion, f"{at.name}_shortcut"
    if not _changes_shape(x, at, config):
        return x
    if config.shortcut == "pad":
        return layers.pad_shortcut(x, filters, strides=at.strides, name=name)
    if config.stride_last and x.shape[-1] == filters:
        return layers.max_pool(x, 1, at.strides, name=name)
    x = x if before is None else before
    kernel_size, strides, dilation = 1, at.strides, 1
    if config.shortcut == "conv3" and (at.strides > 1 or at.dilation > 1):
        kernel_size, dilation = 3, at.first_dilation
    if config.shortcut == "avgconv" and (at.strides > 1 or at.dilation > 1):
        # Where dilation replaces the stride, timm averages with a border of zeros, at stride 1.
        margin = None if at.strides > 1 else (0, 1)
        x = layers.avg_pool(x, 2, at.strides, margin=margin, name=f"{name}_pool")
        strides = 1
    convolve = layers.conv_norm if before is None else layers.conv
    return convolve(x, filters, kernel_size, strides=strides, dilation_rate=dilation, name=name)


def _changes_shape(x: Any, at: Place, config: ResNetConfig) -> bool:
    return (
        at.strides > 1
        or x.shape[-1] != at.width * config.expansion
        or (config.project_first and at.opens)
    )


def _spatial(at: Place, number: str, x: Any, config: ResNetConfig) -> Spatial:
    carries = config.block == "basic" or config.stride_in == "conv2"
    return Spatial(
        name=f"{at.name}_{number}",
        act=f"{at.name}_act{number[-1]}",
        strides=at.strides if carries else 1,
        dilation=at.first_dilation,
        redilates=at.first_dilation != at.dilation,
        projects=_changes_shape(x, at, config),
    )
