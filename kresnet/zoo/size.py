"""Parameters and multiplications of a variant, counted on its own blocks without building it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from kresnet.zoo.blocks import block
from kresnet.zoo.resnet import plan, stem, trunk
from kresnet.zoo.variants import ResNetConfig

if TYPE_CHECKING:
    from kresnet.zoo.graph import KerasLayers


class Size(NamedTuple):
    """What a variant costs.

    Attributes:
        params: Trainable parameters; moving statistics are not counted, as in PyTorch.
        macs: Multiply-accumulate operations of convolutions and dense layers for one image, as
            torchvision publishes them; norms, activations and pools are not counted.
    """

    params: int
    macs: int


def measure(
    config: ResNetConfig, *, image_size: int | None = None, num_classes: int | None = None
) -> Size:
    """Count the parameters and multiplications of a variant.

    Args:
        config: The variant.
        image_size: Side of the square image in pixels; None is the variant's own.
        num_classes: Outputs of the head; None is the variant's own, 0 leaves the head out.
    """
    layers = SizeLayers(config)
    side = image_size or config.image_size
    # It has the methods that the blocks call; see the test that compares the two.
    x = trunk(Extent(side, side, 3), config, plan(config), cast("KerasLayers", layers))
    classes = config.num_classes if num_classes is None else num_classes
    layers.params += (x.channels + 1) * classes
    layers.macs += x.channels * classes
    return Size(layers.params, layers.macs)


class Front(NamedTuple):
    """The stages of a variant before one of them.

    Attributes:
        macs: Multiply-accumulate operations for one image, counted as in `Size`.
        values: Numbers that they hand on for one image.
    """

    macs: int
    values: int


def measure_front(config: ResNetConfig, stage: int, *, image_size: int) -> Front:
    """Count what comes before a stage: the stem and the stages with lower numbers.

    Args:
        config: The variant.
        stage: Number of the stage, from 1.
        image_size: Side of the square image in pixels.
    """
    layers = SizeLayers(config)
    x: Any = stem(Extent(image_size, image_size, 3), config, cast("KerasLayers", layers))
    for place in plan(config):
        if int(place.name.removeprefix("stage").partition("_")[0]) < stage:
            x = block(x, place, config, cast("KerasLayers", layers))
    return Front(layers.macs, x.height * x.width * x.channels)


class Extent(NamedTuple):
    """Height, width and channels of a tensor that is not there."""

    height: int
    width: int
    channels: int

    @property
    def shape(self) -> tuple[None, int, int, int]:
        """What a tensor would say."""
        return (None, *self)


class SizeLayers:
    """Counts what `KerasLayers` would build."""

    def __init__(self, config: ResNetConfig) -> None:
        self.config = config
        self.params = 0
        self.macs = 0

    def conv(
        self,
        x: Extent,
        filters: int,
        kernel_size: int,
        *,
        use_bias: bool | None = None,
        **options: Any,
    ) -> Extent:
        """Count a convolution."""
        use_bias = self.config.use_bias if use_bias is None else use_bias
        return self._conv(x, filters, kernel_size, use_bias=use_bias, **options)

    def conv_norm(self, x: Extent, filters: int, kernel_size: int, **options: Any) -> Extent:
        """Count a convolution and its norm's gamma and beta."""
        return self.norm(self._conv(x, filters, kernel_size, **options))

    def gate(self, x: Extent, filters: int, **options: Any) -> Extent:
        """Count a dense layer."""
        return self._conv(x, filters, 1, **options)

    def _conv(
        self,
        x: Extent,
        filters: int,
        kernel_size: int,
        *,
        strides: int = 1,
        groups: int = 1,
        use_bias: bool = False,
        **options: Any,
    ) -> Extent:
        kernel = kernel_size**2 * x.channels // groups * filters
        x = Extent(_divided(x.height, strides), _divided(x.width, strides), filters)
        self.params += kernel + filters * use_bias
        self.macs += kernel * x.height * x.width
        return x

    def norm(self, x: Extent, **options: Any) -> Extent:
        """Count gamma and beta."""
        self.params += 2 * x.channels
        return x

    def channel_conv(self, x: Extent, kernel_size: int, **options: Any) -> Extent:
        """Count a convolution along the channels."""
        self.params += kernel_size
        self.macs += kernel_size * x.channels
        return x

    def blur_pool(self, x: Extent, strides: int, **options: Any) -> Extent:
        """Count the blur, which has no parameters."""
        x = self.max_pool(x, 3, strides)
        self.macs += 9 * x.height * x.width * x.channels
        return x

    def max_pool(self, x: Extent, size: int, strides: int, **options: Any) -> Extent:
        """Subsample."""
        return x._replace(height=_divided(x.height, strides), width=_divided(x.width, strides))

    def avg_pool(
        self,
        x: Extent,
        size: int,
        strides: int,
        *,
        margin: tuple[int, int] | None = None,
        **options: Any,
    ) -> Extent:
        """Subsample."""
        if margin is None:
            return self.max_pool(x, size, strides)
        short = size - sum(margin)
        height, width = ((n - short) // strides + 1 for n in (x.height, x.width))
        return x._replace(height=height, width=width)

    def pad_shortcut(self, x: Extent, filters: int, *, strides: int, **options: Any) -> Extent:
        """Subsample and widen."""
        return self.max_pool(x, 1, strides)._replace(channels=filters)

    def act(self, x: Extent, *args: Any, **options: Any) -> Extent:
        """Change nothing, as what follows."""
        return x

    dropout = drop_path = softmax_over = act

    def mean(self, x: Extent, **options: Any) -> Extent:
        """Reduce to one place."""
        return x._replace(height=1, width=1)

    def average(self, x: Extent, axes: Sequence[int], **options: Any) -> Extent:
        """Reduce to one over axes."""
        return Extent(*(1 if axis in axes else n for axis, n in enumerate(x, start=1)))

    maximum = average

    def total(self, x: Extent, **options: Any) -> Extent:
        """Reduce to one over axis 1."""
        return x._replace(height=1)

    def split(self, x: Extent, parts: int) -> list[Extent]:
        """Divide the channels."""
        return [x._replace(channels=x.channels // parts)] * parts

    def concat(self, xs: Sequence[Extent], *, axis: int = -1, **options: Any) -> Extent:
        """Join."""
        if axis == 1:
            return xs[0]._replace(height=sum(x.height for x in xs))
        return xs[0]._replace(channels=sum(x.channels for x in xs))

    def add(self, xs: Sequence[Extent], **options: Any) -> Extent:
        """Keep the larger of each axis."""
        return Extent(*(max(sides) for sides in zip(*xs, strict=True)))

    multiply = add


def _divided(side: int, strides: int) -> int:
    return -(-side // strides)
