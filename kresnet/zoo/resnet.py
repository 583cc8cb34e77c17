"""From a variant's name to a Keras model: stem, stages, pooling, head.

Layer names are part of the interface; weights, freezing and features rely on them:
`stem_conv`, `stem_relu`, `stem_pool`; `stage{1..4}_block{1..n}_conv{k}`, `_relu{k}`, `_shortcut`,
`_add`, `_out`; `pool`, `head_dropout`, `head`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from kresnet.errors import ConfigError
from kresnet.zoo.blocks import Layers, block
from kresnet.zoo.cards import Preprocessing
from kresnet.zoo.convert import load_weights
from kresnet.zoo.download import find_weights
from kresnet.zoo.variants import ResNetConfig, variant_config


def build(
    name: str,
    *,
    num_classes: int | Literal["auto"] | None = "auto",
    input_shape: tuple[int | None, ...] | None = None,
    in_channels: int | None = None,
    dtype: str | keras.DTypePolicy | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    classifier_activation: str | None = None,
    weights: str | Path | Mapping[str, np.ndarray] | None = None,
) -> keras.Model:
    """Build a ResNet as a flat functional Keras model.

    Args:
        name: A key of `kresnet.VARIANTS`, as "resnet50".
        num_classes: Outputs of the dense head. "auto" is the variant's own (1000, or 10 for
            CIFAR). None leaves the head out: the model ends in pooled features `(b, features)`.
        input_shape: `(height, width)` or `(height, width, channels)` of the images; sides are at
            least 32, or None for any size. None is any size in both directions.
        in_channels: Channels of the images; 3 if neither it nor `input_shape` says.
        dtype: Precision policy of this model, a name as "mixed_bfloat16" or a DTypePolicy; the
            global policy is not touched. Pooling and head stay float32 under every policy.
        drop_rate: Dropout before the head, in [0, 1).
        drop_path_rate: Stochastic depth of the last block, in [0, 1); it grows linearly from 0
            at the first block (Huang et al. 2016, arXiv:1603.09382, section 3).
        classifier_activation: Activation of the head, as "softmax"; None gives logits.
        weights: "imagenet" or "cifar10" (downloaded once, verified, cached), the path of a
            checkpoint (see `kresnet.load_weights`), its arrays by name, or None for random.
            A `num_classes` that you give and that differs from the checkpoint's gets a new head.

    Returns:
        A model from float images `(b, h, w, in_channels)`, normalised as
        `model.preprocessing` says, to float32 logits `(b, num_classes)`.

    Raises:
        ConfigError: An argument is out of range.
        WeightsError: The weights are not those of this variant.
        ResourceError: The weights cannot be downloaded.
    """
    config = variant_config(name)
    classes = config.num_classes if num_classes == "auto" else num_classes
    shape = _image_shape(input_shape, in_channels)
    _check(classes, drop_rate, drop_path_rate)

    images = keras.Input(shape, dtype="float32", name="images")
    policy = _policy(dtype)
    layers = Layers(policy, shortcut=config.shortcut)
    x = stem(images, config, layers)
    x = stages(x, config, layers, drop_path_rate)
    # Mean and logits are float32 under every policy: bf16 has 8 bits, too few for probabilities.
    x = keras.layers.GlobalAveragePooling2D(dtype="float32", name="pool")(x)  # (b, features)
    if classes is not None:
        x = keras.layers.Dropout(drop_rate, dtype="float32", name="head_dropout")(x)
        x = keras.layers.Dense(
            classes,
            activation=classifier_activation,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
            dtype="float32",
            name="head",
        )(x)
    model = keras.Model(images, x, name=name)

    model.preprocessing = Preprocessing(
        image_size=config.image_size, crop_pct=1.0 if config.image_size < 64 else 0.875
    )
    if weights is not None:
        if isinstance(weights, str | Path):
            weights = find_weights(name, weights)
        report = load_weights(model, weights, new_head=num_classes != "auto")
        model.preprocessing = report.preprocessing
    return model


def stem(x: Any, config: ResNetConfig, layers: Layers) -> Any:
    """Turn images into the first features, at a quarter (conv7) or all (conv3) of their size."""
    if config.stem == "conv3":
        x = layers.conv_norm(x, config.width, 3, name="stem_conv")
        return layers.relu(x, name="stem_relu")
    x = layers.conv_norm(x, config.width, 7, strides=2, name="stem_conv")  # (b, h/2, w/2, 64)
    x = layers.relu(x, name="stem_relu")
    # After a ReLU, padding with zeros is padding with minus infinity.
    x = keras.layers.ZeroPadding2D(1, dtype=layers.dtype, name="stem_pad")(x)
    return keras.layers.MaxPooling2D(3, 2, dtype=layers.dtype, name="stem_pool")(x)  # h/4, w/4


def stages(x: Any, config: ResNetConfig, layers: Layers, drop_path_rate: float) -> Any:
    """Stack the residual blocks; each stage but the first halves the size, doubles the width."""
    last = max(sum(config.depths) - 1, 1)
    index = 0
    for stage, depth in enumerate(config.depths, start=1):
        for number in range(1, depth + 1):
            x = block(
                x,
                config.width * 2 ** (stage - 1),
                config=config,
                strides=2 if stage > 1 and number == 1 else 1,
                drop_path=drop_path_rate * index / last,
                layers=layers,
                name=f"stage{stage}_block{number}",
            )
            index += 1
    return x


def _policy(dtype: str | keras.DTypePolicy | None) -> keras.DTypePolicy:
    if dtype is None:
        return keras.config.dtype_policy()
    if isinstance(dtype, keras.DTypePolicy):
        return dtype
    try:
        return keras.DTypePolicy(dtype)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            "`dtype` must be a Keras dtype policy, as 'float32' or 'mixed_bfloat16'. "
            f"Received: dtype={dtype!r}."
        ) from error


def _image_shape(
    input_shape: tuple[int | None, ...] | None, in_channels: int | None
) -> tuple[int | None, int | None, int]:
    height, width, *channels = input_shape or (None, None)
    if len(channels) > 1 or any(side is not None and side < 32 for side in (height, width)):
        raise ConfigError(
            "`input_shape` must be (height, width) or (height, width, channels), with sides of at "
            f"least 32 pixels or None. Received: input_shape={input_shape}. "
            "Enlarge smaller images first."
        )
    given = {n for n in (*channels, in_channels) if n is not None} or {3}
    if len(given) > 1 or min(given) < 1:
        raise ConfigError(
            "`in_channels` must be at least 1 and agree with `input_shape`. "
            f"Received: in_channels={in_channels}, input_shape={input_shape}."
        )
    return height, width, given.pop()


def _check(num_classes: int | None, drop_rate: float, drop_path_rate: float) -> None:
    if num_classes is not None and num_classes < 1:
        raise ConfigError(
            "`num_classes` must be at least 1, or None for no head. "
            f"Received: num_classes={num_classes}."
        )
    for name, rate in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)):
        if not 0.0 <= rate < 1.0:
            raise ConfigError(f"`{name}` must be in [0, 1). Received: {name}={rate}.")
