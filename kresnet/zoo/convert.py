"""Foreign checkpoints into our variables, by name, and back.

`kresnet.zoo.schemes` tells where each variable comes from; here they are checked and written.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from kresnet.errors import ResourceError, WeightsError
from kresnet.zoo.cards import Preprocessing
from kresnet.zoo.checkpoint import read_checkpoint
from kresnet.zoo.schemes import scheme_of
from kresnet.zoo.schemes.adapt import Adaptation
from kresnet.zoo.schemes.kerashub import read_preset
from kresnet.zoo.schemes.source import Arrays, Scheme, Source
from kresnet.zoo.schemes.torch import to_torch as to_torch

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class LoadReport:
    """What went where when a checkpoint was loaded.

    Attributes:
        source: The file, or "arrays".
        scheme: Whose names it uses, as "torch", "keras.applications" or "kresnet".
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
    keep_classes: Sequence[int | None] | None = None,
    bands: Sequence[int | None] | None = None,
    preprocessing: Preprocessing | None = None,
) -> LoadReport:
    """Load a checkpoint into a model from `build`, by name.

    Nothing is written before everything is checked. Arrays are computed in float64 and rounded
    once.

    Args:
        model: A kresnet model.
        source: Path of a checkpoint that `read_checkpoint` reads or of a KerasHub preset's folder,
            or arrays by name. The names are those of torchvision and timm (batch norm may be folded
            into weight and bias), keras.applications, BiT, qubvel, tf_keras' ResNet-RS, MLPerf
            Tiny's ResNet-8, or ours, "layer/variable".
        strict: Refuse a checkpoint that does not fit exactly. Else load the variables that fit.
        new_head: Keep the head the model was built with if the checkpoint has none or has another
            number of classes. If the numbers agree, the head is loaded.
        keep_classes: For each output of our head, the class of the checkpoint that it becomes, or
            None to keep the output as it is.
        bands: For each channel of our images, the channel of the checkpoint's whose kernels it
            gets: 0 red, 1 green, 2 blue, None for the mean of them all. What n bands share is
            divided by n. Without it, the kernels of one channel are the sum of the three, and those
            of more repeat them, scaled by `3 / channels`, as timm does.
        preprocessing: What the checkpoint expects of its input, if you know it better than its
            names tell.

    Returns:
        What was loaded and what was not.

    Raises:
        ConfigError: `keep_classes` or `bands` are not as long as they must be, or out of range.
        WeightsError: The file cannot be read, its names are unknown, it has values that are not
            finite, or it does not fit.
    """
    name, arrays, scheme = _open(source)
    layers = {layer.name: layer for layer in model.layers if layer.weights}
    if strict:
        scheme.check(layers, name)

    def sources(layer: str) -> Mapping[str, Source]:
        return scheme.sources(layer, layers, arrays)

    used = {key for key in arrays if scheme.is_spare(key)}
    adaptation = Adaptation(_channels(model), bands, keep_classes)
    classes = _classes(sources("head"), arrays)
    adaptation.check(layers.get("head"), classes)
    head: Literal["loaded", "new", "none"] = "loaded" if "head" in layers else "none"
    if head == "loaded" and new_head and not adaptation.fits(layers["head"], classes):
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
        value = _fitted(path, variable, origin, arrays, adaptation)
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
        scheme=scheme.name,
        matched=matched,
        missing=tuple(missing),
        unused=tuple(key for key in arrays if key not in used),
        mismatched=tuple(mismatched),
        head=head,
        preprocessing=adaptation.preprocessing(
            preprocessing or scheme.preprocessing(model, arrays)
        ),
    )
    if not plan or (strict and (missing or mismatched or report.unused)):
        raise WeightsError(_misfit(report))
    for _, variable, value in plan:
        variable.assign(value)
    return report


def save_torch(model: keras.Model, path: str | Path) -> None:
    """Write a model's weights as a safetensors file by timm's names.

    `timm.create_model(name, num_classes=n, checkpoint_path=path)` takes it where timm has the
    variant, as does `safetensors.torch.load_file`. The file appears whole or not at all. Its
    metadata hold what timm calls a `pretrained_cfg`, as JSON.

    Args:
        model: A kresnet model.
        path: The file, which is replaced if there is one.

    Raises:
        WeightsError: A layer with weights has no counterpart in torch's ResNets.
        ResourceError: The file cannot be written.
    """
    metadata = {"format": "pt", "pretrained_cfg": json.dumps(_timm_config(model))}
    write_arrays(Path(path), to_torch(model), metadata)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write a safetensors file, which appears whole or not at all.

    Raises:
        ResourceError: The file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        save_file(dict(arrays), partial, metadata)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise ResourceError(
            f"The weights must be written to a folder with room and rights. Received: path="
            f"{str(path)!r}, error={' '.join(str(error).split())[:200]!r}. Give another path."
        ) from error


def _timm_config(model: keras.Model) -> dict[str, Any]:
    """Return what timm wants to know about weights."""
    config: dict[str, Any] = {"architecture": model.name}
    if any(layer.name == "head" for layer in model.layers):
        config["num_classes"] = int(model.output_shape[-1])
    said: Preprocessing | None = getattr(model, "preprocessing", None)
    if said is not None:
        config |= {
            "input_size": [_channels(model), said.image_size, said.image_size],
            "interpolation": said.interpolation,
            "crop_pct": said.crop_pct,
            "mean": list(said.mean),
            "std": list(said.std),
        }
    return config


def _open(
    source: str | Path | Mapping[str, np.ndarray],
) -> tuple[str, dict[str, np.ndarray], Scheme]:
    """Return what to call the source, its finite arrays and how they are named."""
    if isinstance(source, Mapping):
        name, arrays = "arrays", dict(source)
        scheme = None
    elif Path(source).is_dir():
        name = str(source)
        arrays, scheme = read_preset(Path(source))
    else:
        name, arrays = str(source), read_checkpoint(source)
        scheme = None
    for key, array in arrays.items():
        _check_finite(key, array, name)
    return name, arrays, scheme or scheme_of(arrays, name)


class _Assignment(NamedTuple):
    """A value that is about to be written."""

    path: str
    variable: Any
    value: np.ndarray


def _pairs(
    layers: Iterable[keras.Layer], sources: Callable[[str], Mapping[str, Source]]
) -> Iterator[tuple[str, Any, Source | None]]:
    """Yield every variable with its path and where it comes from."""
    for layer in layers:
        origins = sources(layer.name)
        for variable in layer.weights:
            yield f"{layer.name}/{variable.name}", variable, origins.get(variable.name)


def _fitted(
    path: str, variable: Any, origin: Source, arrays: Arrays, adaptation: Adaptation
) -> np.ndarray | None:
    """Return a variable's value in float32, or None where it cannot have that shape."""
    value = origin.compute(arrays)
    if value is not None and path in ("stem_conv/kernel", "stem_conv1/kernel"):
        value = adaptation.stem(value)
    if value is not None and path.startswith("head/"):
        value = adaptation.head(value, variable)
    if value is None or value.shape != tuple(variable.shape):
        return None
    with np.errstate(over="ignore"):  # an overflow is reported by name
        return value.astype(np.float32)


def _channels(model: keras.Model) -> int:
    """Return the channels of the model's images."""
    return int(model.input_shape[-1])


def _classes(head: Mapping[str, Source], arrays: Arrays) -> int | None:
    """Return the classes of the checkpoint's head, or None where it has none."""
    bias = head.get("bias")
    array = arrays.get(bias.keys[0]) if bias else None
    return None if array is None or array.ndim != 1 else len(array)


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
