"""Names of keras.applications' ResNet50, 101 and 152, and of their V2."""

from __future__ import annotations

import numpy as np

from kresnet.errors import WeightsError
from kresnet.zoo.cards import CAFFE, Preprocessing
from kresnet.zoo.schemes.source import Arrays, Layers, Scheme, Source, keras_sources, place

_EPSILON = 1.001e-5
# Published accuracies are at 299 pixels; the models' default of 224 costs 6 points of top-1.
_V2 = Preprocessing(image_size=299, mean=(0.5,) * 3, std=(0.5,) * 3)


def _v1_sources(layer: str, layers: Layers, arrays: Arrays) -> dict[str, Source]:
    """Map convolutions that all have a bias, and a stem kernel for BGR."""
    where = place(layer)
    if layer == "head":
        return keras_sources("predictions")
    if layer == "stem_conv":
        prefix = "conv1"
    elif where:
        prefix = _prefix(layer)
    else:
        return {}
    return keras_sources(
        f"{prefix}_conv",
        f"{prefix}_bn",
        epsilon=_EPSILON,
        ours=layers.get(layer),
        biased=True,
        kernel=_flip_inputs if layer == "stem_conv" else np.asarray,
    )


def _v2_sources(layer: str, layers: Layers, arrays: Arrays) -> dict[str, Source]:
    """Map convolutions that have a bias where no norm follows."""
    where, ours = place(layer), layers.get(layer)
    if layer == "head":
        return keras_sources("predictions")
    if layer == "stem_conv":
        return keras_sources("conv1_conv")
    if layer == "norm":
        return keras_sources(None, "post_bn", epsilon=_EPSILON, ours=ours)
    if where is None:
        return {}
    prefix = _prefix(layer)
    if where.part == "preact":
        return keras_sources(None, f"{prefix}_bn", epsilon=_EPSILON, ours=ours)
    norm = f"{prefix}_bn" if where.part in ("conv1", "conv2") else None
    return keras_sources(f"{prefix}_conv", norm, epsilon=_EPSILON, ours=ours)


def _prefix(layer: str) -> str:
    """Return what their names of a block's layers begin with: "conv2_block1_0"."""
    where = place(layer)
    if where is None:
        return layer
    index = "0" if where.part == "shortcut" else where.part.removeprefix("conv")
    return f"conv{where.stage + 1}_block{where.block}_{index}"


def _flip_inputs(kernel: np.ndarray) -> np.ndarray:
    """Let a kernel (h, w, in, out) for BGR images take RGB."""
    return np.flip(kernel, -2)


def _check_v1(layers: Layers, source: str) -> None:
    """Refuse the v1.5 layout, whose shapes are the same but whose outputs are not."""
    conv = layers.get("stage2_block1_conv1")
    if conv is not None and "stage2_block1_conv3" in layers and conv.strides == 1:
        raise WeightsError(
            "Weights of keras.applications need a v1 variant, with the stride in the first 1x1 "
            f"convolution. Received: source={source!r}, a model with the stride in the 3x3. "
            "Build the variant with '_v1' at the end of its name, as 'resnet50_v1'."
        )


def _check_v2(layers: Layers, source: str) -> None:
    """Refuse a stride in the first block of a stage."""
    conv = layers.get("stage2_block1_conv2")
    if conv is not None and conv.strides != 1:
        raise WeightsError(
            "Weights of keras.applications' V2 need a variant with the stride in the last block of "
            f"a stage. Received: source={source!r}, a model with the stride in the first. "
            "Build the variant with '_v2' at the end of its name, as 'resnet50_v2'."
        )


def _is_v2(arrays: Arrays) -> bool:
    return any("_preact_bn/" in key or key.startswith("post_bn/") for key in arrays)


def _has_stem(arrays: Arrays) -> bool:
    return any(key.startswith("conv1_conv/") for key in arrays)


KERAS_APPLICATIONS_V2 = Scheme(
    name="keras.applications V2",
    recognises=lambda arrays: _has_stem(arrays) and _is_v2(arrays),
    sources=_v2_sources,
    preprocessing=lambda model, arrays: _V2,
    check=_check_v2,
)

KERAS_APPLICATIONS = Scheme(
    name="keras.applications",
    recognises=_has_stem,
    sources=_v1_sources,
    preprocessing=lambda model, arrays: CAFFE,
    check=_check_v1,
)
