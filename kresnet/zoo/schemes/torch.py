"""Names of torchvision, timm and akamaster, from them and to them."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np

from kresnet.errors import WeightsError
from kresnet.zoo.schemes.source import (
    Arrays,
    Layers,
    Scheme,
    Source,
    is_cifar,
    place,
    usual_preprocessing,
)

if TYPE_CHECKING:
    import keras

_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def to_torch(model: keras.Model) -> dict[str, np.ndarray]:
    """Return a model's weights as the state dict of the torch model of the same structure.

    Args:
        model: A kresnet model.

    Returns:
        Arrays by timm's names, which are torchvision's where it has the model, and for CIFAR
        variants akamaster's; kernels OIHW float32, `num_batches_tracked` 0. With
        `torch.from_numpy` on each, `load_state_dict(strict=True)` takes it.

    Raises:
        WeightsError: A layer with weights has no counterpart in torch's ResNets.
    """
    state: dict[str, np.ndarray] = {}
    names = {layer.name for layer in model.layers}
    head = "linear" if is_cifar(model) and "norm" not in names else None
    for layer in model.layers:
        keys = _keys(layer.name, names, head=head)
        for variable in layer.weights:
            if variable.name not in keys and "seed" in variable.path:
                continue  # a random layer's state
            if variable.name not in keys:
                raise WeightsError(
                    "Every layer with weights must be one of a kresnet model. "
                    f"Received: layer={layer.name!r}. Export the model before adding to it."
                )
            key, value = keys[variable.name], np.array(variable.numpy())
            state[key] = np.ascontiguousarray(_to_torch_layout(key, value))
            if key.endswith("running_var"):
                count = key.replace("running_var", "num_batches_tracked")
                state[count] = np.array(0, np.int64)
    return state


def _sources(layer: str, layers: Layers, arrays: Arrays) -> dict[str, Source]:
    pooled = any(".downsample.2." in key for key in arrays)
    names = {*layers, *(["stage1_block1_shortcut_pool"] if pooled else [])}
    keys = _keys(layer, names, head="linear" if "linear.weight" in arrays else None)
    reorder = _head_layout if layer == "head" else _from_torch_layout
    return {
        variable: Source((key,), reorder if variable == "kernel" else np.asarray)
        for variable, key in keys.items()
    }


def _folded_sources(layer: str, layers: Layers, arrays: Arrays) -> dict[str, Source]:
    """Map torchvision's names without batch norm: a weight and a bias for each convolution.

    gamma / sqrt(moving_variance + epsilon) is 1, so the norm only adds the bias.
    """
    sources = _sources(layer, layers, arrays)
    if layer == "head" or "kernel" not in sources:
        return sources
    kernel = sources["kernel"]
    bias = (kernel.keys[0].removesuffix("weight") + "bias",)
    epsilon = getattr(layers.get(layer), "epsilon", 0.0)
    return {
        "kernel": kernel,
        "gamma": Source(bias, np.ones_like),
        "beta": Source(bias),
        "moving_mean": Source(bias, np.zeros_like),
        "moving_variance": Source(bias, lambda b: np.full_like(b, 1.0 - epsilon)),
    }


def _keys(layer: str, names: Collection[str], *, head: str | None) -> dict[str, str]:
    """Return torch's name of each variable that a layer of ours may have.

    Args:
        layer: Name of our layer.
        names: Names of all of the model's layers, which tell its structure.
        head: Name of the head, if it is not the usual one.
    """
    preactivated = "norm" in names
    if layer == "head":
        head = head or ("head.fc" if preactivated else "fc")
        return {"kernel": f"{head}.weight", "bias": f"{head}.bias"}
    only_norm = layer.endswith("_norm") and layer.removesuffix("_norm") in names
    found = (_preactivated if preactivated else _usual)(layer.removesuffix("_norm"), names)
    if found is None:
        return {}
    conv, norm = found
    keys = {variable: f"{norm}.{name}" for variable, name in _NORM.items()} if norm else {}
    if conv and not only_norm:
        keys |= {"kernel": f"{conv}.weight", "bias": f"{conv}.bias"}
    return keys


def _usual(layer: str, names: Collection[str]) -> tuple[str | None, str | None] | None:
    """Return names of the convolution and its norm in timm's resnet, sknet, resnest, res2net."""
    stem = {
        "stem_conv": ("conv1", "bn1"),
        "stem_conv1": ("conv1.0", "conv1.1"),
        "stem_conv2": ("conv1.3", "conv1.4"),
        "stem_conv3": ("conv1.6", "bn1"),
        "stem_pool": ("maxpool.0", "maxpool.1"),
    }
    where = place(layer)
    if where is None:
        return stem.get(layer)
    block = f"stage{where.stage}_block{where.block}"
    selective = any(f"{block}_conv{k}_path1" in names for k in (1, 2))
    split = not selective and f"{block}_conv2_fc1" in names
    pooled = any(name.endswith("_shortcut_pool") for name in names)
    first = 1 if pooled else 0
    parts: dict[str, tuple[str, str | None]] = {
        "shortcut": (f"downsample.{first}", f"downsample.{first + 1}"),
        "se_fc1": ("se.fc1", None),
        "se_fc2": ("se.fc2", None),
        "eca": ("se.conv", None),
        "cbam_fc1": ("se.channel.fc1", None),
        "cbam_fc2": ("se.channel.fc2", None),
        "cbam_spatial": ("se.spatial.conv.conv", "se.spatial.conv.bn"),
    }
    for k in (1, 2, 3):
        parts[f"conv{k}"] = (
            (f"conv{k}.conv", f"conv{k}.bn") if selective else (f"conv{k}", f"bn{k}")
        )
        reduce = (f"conv{k}.attn.fc_reduce", f"conv{k}.attn.bn")
        parts[f"conv{k}_fc1"] = (f"conv{k}.fc1", f"conv{k}.bn1") if split else reduce
        parts[f"conv{k}_fc2"] = (f"conv{k}.fc2" if split else f"conv{k}.attn.fc_select", None)
        for n in (1, 2):
            parts[f"conv{k}_path{n}"] = (f"conv{k}.paths.{n - 1}.conv", f"conv{k}.paths.{n - 1}.bn")
    if split:
        parts["conv2"] = ("conv2.conv", "conv2.bn0")
    if scale := re.fullmatch(r"conv2_scale(\d+)", where.part):
        parts[where.part] = (f"convs.{int(scale[1]) - 1}", f"bns.{int(scale[1]) - 1}")
    return _prefixed(f"layer{where.stage}.{where.block - 1}", parts.get(where.part))


def _preactivated(layer: str, names: Collection[str]) -> tuple[str | None, str | None] | None:
    """Return names of the convolution and of the norm behind it in timm's resnetv2."""
    where = place(layer)
    if where is None:
        if stem := re.fullmatch(r"stem_conv(\d?)", layer):
            return f"stem.conv{stem[1]}", f"stem.norm{stem[1]}"
        return (None, "norm") if layer == "norm" else None
    parts: dict[str, tuple[str | None, str | None]] = {
        "preact": (None, "norm1"),
        "conv1": ("conv1", "norm2"),
        "conv2": ("conv2", "norm3"),
        "conv3": ("conv3", None),
        "shortcut": ("downsample.conv", None),
    }
    return _prefixed(f"stages.{where.stage - 1}.blocks.{where.block - 1}", parts.get(where.part))


def _prefixed(
    prefix: str, found: tuple[str | None, str | None] | None
) -> tuple[str | None, str | None] | None:
    if found is None:
        return None
    conv, norm = (name and f"{prefix}.{name}" for name in found)
    return conv, norm


def _from_torch_layout(kernel: np.ndarray) -> np.ndarray:
    """Reorder (out, in, h, w) to (h, w, in, out), (out, in, w) and (out, in) alike."""
    return kernel.transpose(*range(2, kernel.ndim), 1, 0)


def _to_torch_layout(key: str, value: np.ndarray) -> np.ndarray:
    if value.ndim < 2:
        return value
    value = value.transpose(value.ndim - 1, value.ndim - 2, *range(value.ndim - 2))
    return value[:, :, np.newaxis, np.newaxis] if key == "head.fc.weight" else value


def _head_layout(kernel: np.ndarray) -> np.ndarray:
    """Reorder a head that is a dense layer or a 1x1 convolution to (in, out)."""
    return kernel.reshape(kernel.shape[:2]).T if kernel.shape[2:] in ((), (1, 1)) else kernel


def _is_torch(arrays: Arrays) -> bool:
    stems = ("conv1", "conv1.0", "stem.conv", "stem.conv1")
    return any(f"{stem}.weight" in arrays for stem in stems)


def _has_norms(arrays: Arrays) -> bool:
    return any("running_mean" in key or ".bn" in key or ".norm" in key for key in arrays)


TORCH = Scheme(
    name="torch",
    recognises=lambda arrays: _is_torch(arrays) and _has_norms(arrays),
    sources=_sources,
    preprocessing=usual_preprocessing,
    is_spare=lambda key: key.endswith("num_batches_tracked"),
)

TORCH_FOLDED = Scheme(
    name="torch-folded",
    recognises=_is_torch,
    sources=_folded_sources,
    preprocessing=usual_preprocessing,
)
