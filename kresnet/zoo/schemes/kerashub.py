"""KerasHub's preset folders: config.json, model.weights.h5, task.weights.h5, image_converter.json.

The .weights.h5 files of Keras 3 keep arrays by position: "layers/conv2d_3/vars/0" is the first
variable of the fourth convolution, in the order of the model's layers. Newer files also hold the
name of each layer; for older ones the order follows from the configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kresnet.errors import WeightsError
from kresnet.zoo.cards import Interpolation, Preprocessing
from kresnet.zoo.checkpoint import StoredLayer, read_positions, reading
from kresnet.zoo.schemes.source import (
    Arrays,
    Layers,
    Scheme,
    Source,
    keras_sources,
    place,
    usual_preprocessing,
)
from kresnet.zoo.torch_file import Damaged

_EPSILON = 1e-5
_MAX_JSON_BYTES = 1024**2
_MAX_BLOCKS = 1000
_VARIABLES = {
    "conv2d": ("kernel", "bias"),
    "dense": ("kernel", "bias"),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
}


def read_preset(folder: Path) -> tuple[dict[str, np.ndarray], Scheme]:
    """Read a preset that KerasHub saved or downloaded.

    Args:
        folder: The folder; its files must lie in it.

    Returns:
        Arrays as "layer/variable" by KerasHub's names, and the scheme of this preset, which knows
        its structure and its preprocessing.

    Raises:
        WeightsError: It is no preset of a ResNet, or damaged.
    """
    with reading(folder):
        config = _backbone(_json(folder, "config.json"))
        arrays = _named(read_positions(_member(folder, "model.weights.h5")), config)
        if (folder / "task.weights.h5").exists():
            head = read_positions(_member(folder, "task.weights.h5")).get("dense")
            if head is not None:
                arrays |= _variables("predictions", "dense", head)
        preprocessing = _preprocessing(folder)
    scheme = Scheme(
        name="KerasHub",
        recognises=lambda arrays: "conv1_conv/kernel" in arrays,
        sources=_sources,
        preprocessing=lambda model, arrays: preprocessing or usual_preprocessing(model, arrays),
        check=partial(_check, block_type=config["block_type"]),
    )
    return arrays, scheme


def _sources(layer: str, layers: Layers, arrays: Arrays) -> dict[str, Source]:
    ours, where = layers.get(layer), place(layer)
    if layer == "head":
        return keras_sources("predictions")
    if layer == "norm":
        return keras_sources(None, "post_bn", epsilon=_EPSILON, ours=ours)
    if layer.startswith("stem_conv"):
        number = layer.removeprefix("stem_conv") or "1"
        return keras_sources(f"conv{number}_conv", f"conv{number}_bn", epsilon=_EPSILON, ours=ours)
    if where is None:
        return {}
    prefix = f"stack{where.stage - 1}_block{where.block - 1}"
    if where.part == "preact":
        return keras_sources(None, f"{prefix}_pre_activation_bn", epsilon=_EPSILON, ours=ours)
    index = "0" if where.part == "shortcut" else where.part.removeprefix("conv")
    return keras_sources(
        f"{prefix}_{index}_conv", f"{prefix}_{index}_bn", epsilon=_EPSILON, ours=ours
    )


def _check(layers: Layers, source: str, *, block_type: str) -> None:
    """Refuse models of the same shapes whose strides are elsewhere."""
    conv, shortcut = (layers.get(f"stage2_block1_{part}") for part in ("conv1", "shortcut"))
    bottleneck = "stage2_block1_conv3" in layers
    pooled = block_type.endswith("_vd") and "stage2_block1_preact" not in layers
    if bottleneck and conv is not None and conv.strides != 1:
        raise WeightsError(
            "Weights of KerasHub need a variant with the stride in the 3x3 convolution. "
            f"Received: source={source!r}, a model with the stride in the first 1x1. "
            "Build the variant without '_v1' at the end of its name, as 'resnet50'."
        )
    if shortcut is not None and (shortcut.strides == 1) != pooled:
        letter = "'d' variant, whose shortcuts average" if pooled else "variant without average"
        raise WeightsError(
            f"The preset's blocks need a {letter} before they project. "
            f"Received: source={source!r}, with block_type={block_type!r}. "
            f"Build {'resnet50d' if pooled else 'resnet50c'!r} or the like."
        )


def _named(layers: Mapping[str, StoredLayer], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Name the arrays of the backbone, by the names in the file or else by its order."""
    kinds = ("conv2d", "batch_normalization")
    in_order = dict(zip(kinds, _order(config), strict=True))
    arrays: dict[str, np.ndarray] = {}
    for kind in kinds:
        groups = [_numbered(kind, index) for index in range(len(in_order[kind]))]
        found = [group for group in layers if _numbered_kind(group) == kind]
        if sorted(found) != sorted(groups):
            raise Damaged(f"it has {len(found)} {kind} layers where its config has {len(groups)}")
        stored = [layers[group] for group in groups]
        names = [layer.name for layer in stored if layer.name is not None]
        if len(set(names)) != len(stored):
            names = in_order[kind]
        for name, layer in zip(names, stored, strict=True):
            arrays |= _variables(name, kind, layer)
    return arrays


def _numbered(kind: str, index: int) -> str:
    return f"{kind}_{index}" if index else kind


def _numbered_kind(group: str) -> str:
    kind, _, number = group.rpartition("_")
    return kind if number.isdecimal() else group


def _variables(name: str, kind: str, layer: StoredLayer) -> dict[str, np.ndarray]:
    if len(layer.arrays) > len(_VARIABLES[kind]):
        raise Damaged(f"{name!r} has {len(layer.arrays)} variables")
    return {f"{name}/{v}": a for v, a in zip(_VARIABLES[kind], layer.arrays, strict=False)}


def _order(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the convolutions and norms in the order in which Keras stores them.

    Keras sorts layers by their distance to the output, so the convolution of a shortcut comes just
    before the last one of its branch, and likewise its norm.
    """
    preact, bottleneck = config["use_pre_activation"], "bottleneck" in config["block_type"]
    stem = len(config["input_conv_filters"])
    convs = [f"conv{number}_conv" for number in range(1, stem + 1)]
    norms = [f"conv{number}_bn" for number in range(1, stem + 1 - preact)]
    for stack, blocks in enumerate(config["stackwise_num_blocks"]):
        for block in range(blocks):
            projects = block == 0 and (stack > 0 or config["block_type"] != "basic_block")
            indices = [*("12" if bottleneck else "1"), *("0" if projects else "")]
            last = "3" if bottleneck else "2"
            prefix = f"stack{stack}_block{block}"
            convs += [f"{prefix}_{index}_conv" for index in (*indices, last)]
            norms += [f"{prefix}_pre_activation_bn"] if preact else []
            norms += [f"{prefix}_{i}_bn" for i in indices if not (preact and i == "0")]
            norms += [] if preact else [f"{prefix}_{last}_bn"]
    return convs, norms + (["post_bn"] if preact else [])


def _member(folder: Path, name: str) -> Path:
    """Return a file of the folder, refusing one that is really elsewhere."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise Damaged(f"{name} is a link out of the folder")
    if not path.is_file():
        raise Damaged(f"{name} is missing")
    return path


def _json(folder: Path, name: str) -> Any:
    path = _member(folder, name)
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise Damaged(f"{name} is larger than {_MAX_JSON_BYTES} bytes")
    return json.loads(path.read_text(encoding="utf-8"))


def _backbone(tree: Any) -> Mapping[str, Any]:
    """Return the arguments of a ResNetBackbone, checked."""
    if not isinstance(tree, dict) or tree.get("class_name") != "ResNetBackbone":
        kind = tree.get("class_name") if isinstance(tree, dict) else tree
        raise Damaged(f"its config is of {str(kind)[:50]!r}, not of a ResNetBackbone")
    config: dict[str, Any] = tree["config"]
    blocks = config["stackwise_num_blocks"]
    stem = config["input_conv_filters"]
    counts = [*blocks, *stem]
    if (
        not all(type(count) is int and count > 0 for count in counts)
        or sum(blocks) > _MAX_BLOCKS
        or len(stem) not in (1, 3)
        or not isinstance(config["block_type"], str)
        or type(config["use_pre_activation"]) is not bool
    ):
        raise Damaged("its config does not describe a ResNet")
    return config


def _preprocessing(folder: Path) -> Preprocessing | None:
    """Read what the image converter does: `pixels * scale + offset` on 0..255."""
    if not (folder / "image_converter.json").exists():
        return None
    config = _json(folder, "image_converter.json")["config"]
    scale = _three(config.get("scale"), 1.0)
    offset = _three(config.get("offset"), 0.0)
    if not np.isfinite([*scale, *offset]).all() or not (scale > 0).all():
        raise Damaged("image_converter.json has no usable scale and offset")
    interpolation: Interpolation = (
        "bicubic" if config.get("interpolation") == "bicubic" else "bilinear"
    )
    return Preprocessing(
        image_size=_side(config.get("image_size")),
        crop_pct=1.0,
        interpolation=interpolation,
        mean=tuple(float(m) for m in -offset / (255 * scale)),
        std=tuple(float(s) for s in 1 / (255 * scale)),
    )


def _three(value: Any, default: float) -> np.ndarray:
    """Return a number or three as three."""
    given = default if value is None else value
    return np.broadcast_to(np.asarray(given, np.float64), (3,))


def _side(value: Any) -> int:
    sides = value if isinstance(value, Sequence) else [value]
    return max((s for s in sides if type(s) is int and 0 < s <= 4096), default=224)
