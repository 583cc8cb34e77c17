"""From a variant's name to a Keras model, with its weights and what they expect of their input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from kresnet.errors import ConfigError
from kresnet.zoo.cards import Preprocessing, card_for, split_name
from kresnet.zoo.convert import load_weights
from kresnet.zoo.download import TAGS, find_weights
from kresnet.zoo.graph import KerasLayers, deep_graph
from kresnet.zoo.resnet import plan, trunk
from kresnet.zoo.variants import ResNetConfig, variant_config

ACTIVATIONS = ("relu", "leaky_relu", "elu", "silu", "gelu")


def build(
    name: str | ResNetConfig,
    *,
    num_classes: int | Literal["auto"] | None = "auto",
    keep_classes: Sequence[int | None] | None = None,
    input_shape: tuple[int | None, ...] | None = None,
    in_channels: int | None = None,
    bands: Sequence[int | None] | None = None,
    dtype: str | keras.DTypePolicy | None = None,
    activation: str = "relu",
    output_stride: Literal[8, 16, 32] = 32,
    drop_rate: float = 0.0,
    block_drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    zero_init_residual: bool | None = None,
    kernel_regularizer: str | keras.regularizers.Regularizer | None = None,
    classifier_activation: str | None = None,
    weights: str | Path | Mapping[str, np.ndarray] | None = None,
    allow_noncommercial: bool | None = None,
) -> keras.Model:
    """Build a ResNet as a flat functional Keras model.

    Args:
        name: A key of `kresnet.VARIANTS`, as "resnet50", or one with the tag of published weights,
            as "resnet50.a1_in1k"; `kresnet zoo list` prints both. Or a network of your own: a
            ResNetConfig.
        num_classes: Outputs of the dense head. "auto" is what the weights have, or the variant's
            own (1000, or 10 for CIFAR). None leaves the head out: the model ends in pooled features
            `(b, features)`.
        keep_classes: For each output, the class of the weights it takes its row of the head from,
            or None for a new one. Replaces `num_classes`.
        input_shape: `(height, width)` or `(height, width, channels)` of the images; sides are at
            least 32 (8 in networks for small images), or None for any size. None is any size in
            both directions.
        in_channels: Channels of the images; 3 if neither it nor `input_shape` says.
        bands: For each channel of the images, the channel of the weights that it takes its kernels
            from: 0 red, 1 green, 2 blue, None for the mean of the three. Without it, one channel
            gets the sum of the three, and more repeat them, scaled by `3 / channels`.
        dtype: Precision policy of this model, a name as "mixed_bfloat16" or a DTypePolicy; the
            global policy is not touched. Pooling and head stay float32 under every policy.
        activation: Between the convolutions: "relu", "leaky_relu" (slope 0.01), "elu", "silu" or
            "gelu". Published weights are made for "relu".
        output_stride: Image size divided by that of the last features; 8 or 16 dilate the last
            stages instead of subsampling.
        drop_rate: Dropout before the head, in [0, 1).
        block_drop_rate: Dropout before the last convolution of each residual branch, in [0, 1)
            (Zagoruyko & Komodakis 2016, arXiv:1605.07146, section 2.4).
        drop_path_rate: Stochastic depth of the last block, in [0, 1); it grows linearly from 0
            at the first block (Huang et al. 2016, arXiv:1603.09382, section 3).
        zero_init_residual: Start each residual branch at zero, by its last gamma (Goyal et al.
            2017, arXiv:1706.02677, section 5.1) or, pre-activated, its last kernel. None does so
            unless the variant is pre-activated.
        kernel_regularizer: Of every kernel, as "l2" or `keras.regularizers.L1(1e-5)`; its losses
            are in `model.losses`, which `fit` adds.
        classifier_activation: Activation of the head, as "softmax"; None gives logits.
        weights: A tag ("a1_in1k", or "imagenet" and "cifar10" for the variant's usual ones;
            downloaded once, verified, cached), the path of a checkpoint (see
            `kresnet.load_weights`), its arrays by name, or None for random.
            A `num_classes` that you give and that differs from the checkpoint's gets a new head.
        allow_noncommercial: Load weights whose licence forbids commercial use; None does if
            KRESNET_ALLOW_NONCOMMERCIAL is 1.

    Returns:
        A model from float images `(b, h, w, in_channels)`, normalised as
        `model.preprocessing` says, to float32 logits `(b, num_classes)`.

    Raises:
        ConfigError: An argument is out of range.
        WeightsError: The weights are not those of this variant.
        ResourceError: The weights cannot be downloaded.
    """
    config, name, tag = _variant(name)
    if tag and weights is not None:
        raise ConfigError(
            "The weights are given once: in the name or as `weights`. "
            f"Received: name='{name}.{tag}', weights={weights!r}."
        )
    weights = tag or weights
    is_tag = bool(tag) or (isinstance(weights, str) and weights in TAGS)
    card = card_for(name, str(weights)) if is_tag else None
    usual = card.num_classes if card else config.num_classes
    classes = _number_of_classes(num_classes, keep_classes, usual)
    shape = _image_shape(input_shape, in_channels, 8 if config.stem == "conv3" else 32)
    _check(config, activation, output_stride)
    rates = {"drop_path_rate": drop_path_rate, "block_drop_rate": block_drop_rate}
    _check_rates(drop_rate=drop_rate, **rates)
    regularizer = keras.regularizers.get(kernel_regularizer)
    layers = KerasLayers(
        config,
        dtype=_policy(dtype),
        activation=activation,
        kernel_regularizer=regularizer,
        zero_init_residual=not config.preact if zero_init_residual is None else zero_init_residual,
    )
    places = plan(config, output_stride=output_stride, **rates)
    images = keras.Input(shape, dtype="float32", name="images")
    x = trunk(images, config, places, layers)
    x = head(x, classes, drop_rate, classifier_activation, regularizer)
    with deep_graph():
        model = keras.Model(images, x, name=name)
    model.preprocessing = (
        card.preprocessing
        if card
        else Preprocessing(
            image_size=config.image_size, crop_pct=1.0 if config.image_size < 64 else 0.875
        )
    )
    if weights is not None:
        if isinstance(weights, str | Path):
            weights = find_weights(name, weights, allow_noncommercial=allow_noncommercial)
        report = load_weights(
            model,
            weights,
            new_head=num_classes != "auto" or keep_classes is not None,
            keep_classes=keep_classes,
            bands=bands,
            preprocessing=card.preprocessing if card else None,
        )
        model.preprocessing = report.preprocessing
    return model


def head(
    x: Any, num_classes: int | None, drop_rate: float, activation: str | None, regularizer: Any
) -> Any:
    """Pool features to `(b, features)` and map them to classes, if there are any."""
    # Mean and logits are float32 under every policy: bf16 has 8 bits, too few for probabilities.
    x = keras.layers.GlobalAveragePooling2D(
        data_format="channels_last", dtype="float32", name="pool"
    )(x)
    if num_classes is None:
        return x
    x = keras.layers.Dropout(drop_rate, dtype="float32", name="head_dropout")(x)
    return keras.layers.Dense(
        num_classes,
        activation=activation,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
        kernel_regularizer=regularizer,
        dtype="float32",
        name="head",
    )(x)


def _variant(name: str | ResNetConfig) -> tuple[ResNetConfig, str, str | None]:
    """Return the variant, its name, and the tag of weights that came with the name."""
    if isinstance(name, ResNetConfig):
        return name, "resnet", None
    variant, tag = split_name(name)
    return variant_config(variant), variant, tag


def _number_of_classes(
    num_classes: int | Literal["auto"] | None,
    keep_classes: Sequence[int | None] | None,
    usual: int,
) -> int | None:
    if keep_classes is not None:
        if num_classes not in ("auto", len(keep_classes)):
            raise ConfigError(
                "`keep_classes` gives one class for each output and replaces `num_classes`. "
                f"Received: num_classes={num_classes}, {len(keep_classes)} in keep_classes."
            )
        return len(keep_classes)
    if num_classes == "auto":
        return usual
    if num_classes is not None and num_classes < 1:
        raise ConfigError(
            "`num_classes` must be at least 1, or None for no head. "
            f"Received: num_classes={num_classes}."
        )
    return num_classes


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
    input_shape: tuple[int | None, ...] | None, in_channels: int | None, smallest: int
) -> tuple[int | None, int | None, int]:
    height, width, *channels = input_shape or (None, None)
    if len(channels) > 1 or any(n is not None and n < smallest for n in (height, width)):
        raise ConfigError(
            "`input_shape` must be (height, width) or (height, width, channels), with sides of at "
            f"least {smallest} pixels or None. Received: input_shape={input_shape}. "
            "Enlarge smaller images first."
        )
    given = {n for n in (*channels, in_channels) if n is not None} or {3}
    if len(given) > 1 or min(given) < 1:
        raise ConfigError(
            "`in_channels` must be at least 1 and agree with `input_shape`. "
            f"Received: in_channels={in_channels}, input_shape={input_shape}."
        )
    return height, width, given.pop()


def _check(config: ResNetConfig, activation: str, output_stride: int) -> None:
    if activation not in ACTIVATIONS:
        raise ConfigError(
            f"`activation` must be one of {', '.join(ACTIVATIONS)}. "
            f"Received: activation={activation!r}."
        )
    if output_stride not in (8, 16, 32) or (config.stride_last and output_stride != 32):
        raise ConfigError(
            "`output_stride` must be 8, 16 or 32, and 32 where the last block of a stage has its "
            f"stride. Received: output_stride={output_stride}."
        )


def _check_rates(**rates: float) -> None:
    for name, rate in rates.items():
        if not 0.0 <= rate < 1.0:
            raise ConfigError(f"`{name}` must be in [0, 1). Received: {name}={rate}.")
