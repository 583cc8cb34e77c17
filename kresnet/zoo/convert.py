"""Foreign checkpoints into our variables, by name, and back.

Each scheme is one function: from the name of our layer to where each of its variables comes from.
Nothing is loaded by order: it differs between Keras versions while shapes coincide
(tensorflow#33459).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from kresnet.errors import WeightsError
from kresnet.zoo.cards import CAFFE, CIFAR10, IMAGENET, Preprocessing
from kresnet.zoo.checkpoint import read_checkpoint

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class LoadReport:
    """What went where when a checkpoint was loaded.

    Attributes:
        source: The file, or "arrays".
        scheme: Whose names it uses: "torch", "torch-folded", "keras.applications" or "kresnet".
        matched: Our variables that were loaded, as "stem_conv/kernel".
        missing: Our variables that the checkpoint has no array for.
        unused: Arrays of the checkpoint that no variable of ours asks for.
        mismatched: Our variables whose array has another shape, with both shapes.
        head: "loaded", "new" where the model keeps the head it was built with, "none" where it
            has no head.
        preprocessing: What these weights expect of their input.
    """

    source: str
    scheme: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    mismatched: tuple[str, ...]
    head: Literal["loaded", "new", "none"]
    preprocessing: Preprocessing

    def __str__(self) -> str:
        first = (
            f"{self.source} ({self.scheme} names): {len(self.matched)} variables loaded, "
            f"head: {self.head}"
        )
        return "\n".join((first, *self._lists()))

    def _lists(self) -> list[str]:
        """Return one line for each kind of problem: sorted, at most 10 names, and a count."""
        lines = []
        for kind in ("missing", "unused", "mismatched"):
            names = sorted(getattr(self, kind))
            if names:
                more = ", ..." if len(names) > 10 else ""
                lines.append(f"{kind} ({len(names)}): {', '.join(names[:10])}{more}")
        return lines


def load_weights(
    model: keras.Model,
    source: str | Path | Mapping[str, np.ndarray],
    *,
    strict: bool = True,
    new_head: bool = False,
) -> LoadReport:
    """Load a checkpoint into a model from `build`, by name.

    Nothing is written before everything is checked. Arrays are computed in float64 and rounded
    once. A model with another number of input channels gets the stem kernel adapted: summed for
    one channel, else repeated and scaled by `3 / channels`, as timm does.

    Args:
        model: A kresnet model.
        source: Path of a checkpoint that `read_checkpoint` reads, or its arrays by name. The names
            are torchvision's (batch norm may be folded into weight and bias), those of
            keras.applications, or ours, "layer/variable".
        strict: Refuse a checkpoint that does not fit exactly. Else load the variables that fit.
        new_head: Keep the head the model was built with if the checkpoint has none or has another
            number of classes. If the numbers agree, the head is loaded.

    Returns:
        What was loaded and what was not.

    Raises:
        WeightsError: The file cannot be read, its names are unknown, it has values that are not
            finite, or it does not fit.
    """
    if isinstance(source, Mapping):
        name, arrays = "arrays", dict(source)
    else:
        name, arrays = str(source), read_checkpoint(source)
    for key, array in arrays.items():
        _check_finite(key, array, name)
    scheme = _scheme(arrays, name)
    layers = {layer.name: layer for layer in model.layers if layer.weights}
    if strict and scheme == "keras.applications":
        _check_stride(layers, name)

    def sources(layer: str) -> Mapping[str, _Source]:
        return _SCHEMES[scheme](layer, getattr(layers.get(layer), "epsilon", 0.0), arrays)

    used = {key for key in arrays if key.endswith("num_batches_tracked")}
    head: Literal["loaded", "new", "none"] = "loaded" if "head" in layers else "none"
    if head == "loaded" and new_head and not _head_fits(layers["head"], sources("head"), arrays):
        head = "new"
        del layers["head"]
    if head != "loaded":
        used.update(*(origin.keys for origin in sources("head").values()))

    plan: list[_Assignment] = []
    missing, mismatched = [], []
    for path, variable, origin in _pairs(layers.values(), sources):
        if origin is None or not all(key in arrays for key in origin.keys):
            missing.append(path)
            continue
        used.update(origin.keys)
        value = _fitted(path, origin, arrays, tuple(variable.shape))
        if value is None:
            found = " and ".join(f"{key} {arrays[key].shape}" for key in origin.keys)
            mismatched.append(f"{path} {tuple(variable.shape)} from {found}")
            continue
        _check_finite(" and ".join(origin.keys), value, name)
        plan.append(_Assignment(path, variable, value))

    matched = tuple(path for path, _, _ in plan)
    if head == "loaded" and not {f"head/{v.name}" for v in layers["head"].weights} <= {*matched}:
        head = "new"
    report = LoadReport(
        source=name,
        scheme=scheme,
        matched=matched,
        missing=tuple(missing),
        unused=tuple(key for key in arrays if key not in used),
        mismatched=tuple(mismatched),
        head=head,
        preprocessing=_preprocessing(model, scheme),
    )
    if not plan or (strict and (missing or mismatched or report.unused)):
        raise WeightsError(_misfit(report))
    for _, variable, value in plan:
        variable.assign(value)
    return report


def to_torch(model: keras.Model) -> dict[str, np.ndarray]:
    """Return a model's weights as the state dict of the torch model of the same structure.

    Args:
        model: A kresnet model.

    Returns:
        Arrays by torchvision's names (for CIFAR variants those of akamaster, which has no
        torchvision counterpart), kernels OIHW float32, `num_batches_tracked` 0. With
        `torch.from_numpy` on each, `load_state_dict(strict=True)` takes it.

    Raises:
        WeightsError: A layer with weights has no counterpart in torch's ResNets.
    """
    state: dict[str, np.ndarray] = {}
    for layer in model.layers:
        values = {variable.name: np.array(variable.numpy()) for variable in layer.weights}
        names = _torch_names(layer.name)
        if layer.name == "head":
            head = "linear" if _is_cifar(model) else "fc"
            state[f"{head}.weight"] = np.ascontiguousarray(values["kernel"].T)
            state[f"{head}.bias"] = values["bias"]
        elif names is not None and "gamma" in values:
            conv, norm = names
            state[f"{conv}.weight"] = np.ascontiguousarray(values["kernel"].transpose(3, 2, 0, 1))
            state[f"{norm}.weight"] = values["gamma"]
            state[f"{norm}.bias"] = values["beta"]
            state[f"{norm}.running_mean"] = values["moving_mean"]
            state[f"{norm}.running_var"] = values["moving_variance"]
            state[f"{norm}.num_batches_tracked"] = np.array(0, np.int64)
        elif values:
            raise WeightsError(
                "Every layer with weights must be one of a kresnet model. "
                f"Received: layer={layer.name!r}. Export the model before adding to it."
            )
    return state


class _Assignment(NamedTuple):
    """A value that is about to be written."""

    path: str
    variable: Any
    value: np.ndarray


class _Source(NamedTuple):
    """One variable of ours: the arrays it is made of, and how."""

    keys: tuple[str, ...]
    transform: Callable[..., np.ndarray] = np.asarray

    def compute(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Return the variable in float64, or None where the arrays do not go together."""
        values = [arrays[key].astype(np.float64) for key in self.keys]
        if any(value.shape != values[0].shape for value in values):
            return None
        return self.transform(*values)


# Maps (our layer's name, its epsilon, all names of the checkpoint) to the layer's variables.
_Scheme = Callable[[str, float, Collection[str]], Mapping[str, _Source]]


def _torch(layer: str, epsilon: float, keys: Collection[str]) -> dict[str, _Source]:
    """Map torchvision, timm and akamaster."""
    if layer == "head":
        return _torch_head(keys)
    names = _torch_names(layer)
    if names is None:
        return {}
    conv, norm = names
    return {
        "kernel": _Source((f"{conv}.weight",), _hwio),
        "gamma": _Source((f"{norm}.weight",)),
        "beta": _Source((f"{norm}.bias",)),
        "moving_mean": _Source((f"{norm}.running_mean",)),
        "moving_variance": _Source((f"{norm}.running_var",)),
    }


def _torch_folded(layer: str, epsilon: float, keys: Collection[str]) -> dict[str, _Source]:
    """Map torchvision's names without batch norm: a weight and a bias for each convolution.

    gamma / sqrt(moving_variance + epsilon) is 1, so the norm only adds the bias.
    """
    if layer == "head":
        return _torch_head(keys)
    names = _torch_names(layer)
    if names is None:
        return {}
    bias = (f"{names[0]}.bias",)
    return {
        "kernel": _Source((f"{names[0]}.weight",), _hwio),
        "gamma": _Source(bias, np.ones_like),
        "beta": _Source(bias),
        "moving_mean": _Source(bias, np.zeros_like),
        "moving_variance": _Source(bias, lambda b: np.full_like(b, 1.0 - epsilon)),
    }


def _keras_applications(layer: str, epsilon: float, keys: Collection[str]) -> dict[str, _Source]:
    """Map keras.applications: biased convolutions, epsilon 1.001e-5, stem kernel for BGR."""
    if layer == "head":
        return {v: _Source((f"predictions/{v}",)) for v in ("kernel", "bias")}
    block = _BLOCK.fullmatch(layer)
    if layer == "stem_conv":
        prefix = "conv1"
    elif block:
        stage, number, index = block.groups()
        prefix = f"conv{int(stage) + 1}_block{number}_{index or 0}"
    else:
        return {}
    conv, norm = f"{prefix}_conv", f"{prefix}_bn"
    return {
        "kernel": _Source(
            (f"{conv}/kernel",), _flip_inputs if layer == "stem_conv" else np.asarray
        ),
        "gamma": _Source(
            (f"{norm}/gamma", f"{norm}/moving_variance"),
            lambda gamma, variance: gamma * np.sqrt((variance + epsilon) / (variance + 1.001e-5)),
        ),
        "beta": _Source((f"{norm}/beta",)),
        "moving_mean": _Source((f"{norm}/moving_mean", f"{conv}/bias"), np.subtract),
        "moving_variance": _Source((f"{norm}/moving_variance",)),
    }


def _kresnet(layer: str, epsilon: float, keys: Collection[str]) -> dict[str, _Source]:
    """Map our own names."""
    variables = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
    return {v: _Source((f"{layer}/{v}",)) for v in variables}


_SCHEMES: dict[str, _Scheme] = {
    "torch": _torch,
    "torch-folded": _torch_folded,
    "keras.applications": _keras_applications,
    "kresnet": _kresnet,
}

_BLOCK = re.compile(r"stage(\d+)_block(\d+)_(?:conv(\d+)|shortcut)")


def _scheme(keys: Collection[str], source: str) -> str:
    """Tell the naming scheme from the names."""
    if any(key.startswith("stem_conv/") for key in keys):
        return "kresnet"
    if any(key.startswith("conv1_conv/") for key in keys):
        return "keras.applications"
    if "conv1.weight" in keys:
        return "torch" if any(key.startswith("bn1.") for key in keys) else "torch-folded"
    examples = ", ".join(repr(key) for key in sorted(keys)[:5]) or "none"
    raise WeightsError(
        "The checkpoint must name its arrays as torchvision ('conv1.weight'), keras.applications "
        "('conv1_conv/kernel') or kresnet ('stem_conv/kernel'). "
        f"Received: source={source!r}, with {len(keys)} names: {examples}. "
        "Rename its arrays and pass them as a mapping."
    )


def _torch_names(layer: str) -> tuple[str, str] | None:
    """Return torchvision's names of our ConvNorm: its convolution and its norm."""
    if layer == "stem_conv":
        return "conv1", "bn1"
    block = _BLOCK.fullmatch(layer)
    if block is None:
        return None
    stage, number, index = block.groups()
    prefix = f"layer{stage}.{int(number) - 1}"
    if index is None:
        return f"{prefix}.downsample.0", f"{prefix}.downsample.1"
    return f"{prefix}.conv{index}", f"{prefix}.bn{index}"


def _torch_head(keys: Collection[str]) -> dict[str, _Source]:
    name = "linear" if "linear.weight" in keys else "fc"
    return {
        "kernel": _Source((f"{name}.weight",), np.transpose),
        "bias": _Source((f"{name}.bias",)),
    }


def _hwio(kernel: np.ndarray) -> np.ndarray:
    """Reorder (out, in, h, w) to (h, w, in, out)."""
    return kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel


def _flip_inputs(kernel: np.ndarray) -> np.ndarray:
    """Let a kernel (h, w, in, out) for BGR images take RGB."""
    return np.flip(kernel, -2)


def _adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Make a kernel (h, w, 3, out) take another number of channels, at the same output scale."""
    if kernel.ndim != 4 or kernel.shape[2] != 3 or channels == 3:
        return kernel
    adapted: np.ndarray
    if channels == 1:
        adapted = kernel.sum(axis=2, keepdims=True)
    else:
        adapted = kernel[:, :, np.arange(channels) % 3] * (3 / channels)
    return adapted


def _pairs(
    layers: Iterable[keras.Layer], sources: Callable[[str], Mapping[str, _Source]]
) -> Iterator[tuple[str, Any, _Source | None]]:
    """Yield every variable with its path and where it comes from."""
    for layer in layers:
        origins = sources(layer.name)
        for variable in layer.weights:
            yield f"{layer.name}/{variable.name}", variable, origins.get(variable.name)


def _fitted(
    path: str, origin: _Source, arrays: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> np.ndarray | None:
    """Return a variable's value in float32, or None where it cannot have that shape."""
    value = origin.compute(arrays)
    if value is not None and path == "stem_conv/kernel":
        value = _adapt_channels(value, shape[2])
    if value is None or value.shape != shape:
        return None
    with np.errstate(over="ignore"):  # an overflow is reported by name
        return value.astype(np.float32)


def _head_fits(
    head: keras.Layer, sources: Mapping[str, _Source], arrays: Mapping[str, np.ndarray]
) -> bool:
    """Return whether the checkpoint has a head of the model's number of classes."""
    bias = sources["bias"].keys[0]
    return bias in arrays and arrays[bias].shape == tuple(head.bias.shape)


def _check_finite(key: str, array: np.ndarray, source: str) -> None:
    try:
        finite = np.isfinite(array).all()
    except TypeError as error:
        raise WeightsError(
            "A checkpoint must hold arrays of numbers. "
            f"Received: source={source!r}, {key} of dtype {array.dtype}. Remove that array."
        ) from error
    if not finite:
        raise WeightsError(
            "Weights must be finite float32 numbers. "
            f"Received: source={source!r}, {key} with NaN, infinity or a value out of range. "
            "Train or export the checkpoint again; this one is broken."
        )


def _check_stride(layers: Mapping[str, keras.Layer], source: str) -> None:
    """Refuse the v1.5 layout, whose shapes are the same but whose outputs are not."""
    conv = layers.get("stage2_block1_conv1")
    if conv is not None and "stage2_block1_conv3" in layers and conv.strides == 1:
        raise WeightsError(
            "Weights of keras.applications need a v1 variant, with the stride in the first 1x1 "
            f"convolution. Received: source={source!r}, a model with the stride in the 3x3. "
            "Build the variant with '_v1' at the end of its name, as 'resnet50_v1'."
        )


def _is_cifar(model: keras.Model) -> bool:
    return any(layer.name == "stem_conv" and layer.kernel_size == 3 for layer in model.layers)


def _preprocessing(model: keras.Model, scheme: str) -> Preprocessing:
    """Return what weights of this scheme were trained with; of our own, what the model says."""
    if scheme == "keras.applications":
        return CAFFE
    usual = CIFAR10 if _is_cifar(model) else IMAGENET
    return getattr(model, "preprocessing", usual) if scheme == "kresnet" else usual


def _misfit(report: LoadReport) -> str:
    """Say what does not fit, and what to do."""
    fix = "Build the variant the checkpoint was made for"
    fix += ", or pass strict=False to load what fits." if report.matched else "."
    wrong = (*report.missing, *report.mismatched)
    if wrong and all(name.startswith("head/") for name in wrong):
        fix = "Pass new_head=True to keep a new head, or build with the checkpoint's num_classes."
    first = (
        "The checkpoint must hold exactly the model's variables. "
        f"Received: source={report.source!r} ({report.scheme} names), "
        f"{len(report.matched)} variables fit."
    )
    return "\n".join((first, *report._lists(), fix))
