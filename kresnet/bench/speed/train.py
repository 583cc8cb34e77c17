"""A training step: kresnet's own, with frozen and with learning norms, beside those of others.

All see one drawn batch of 1000 classes, normalised, and make one AdamW update of every weight a
step. "Frozen" norms keep their statistics. Ours and PyTorch's train gamma and beta all the same;
Keras' cannot, which is less work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kresnet.bench.speed.rotation import Contender
from kresnet.bench.speed.topics import Demand, Group, Options

_KERAS = "kresnet.bench.speed.keras_steps"
_TORCH = "kresnet.bench.speed.torch_steps"
_LIBRARIES = {"torchvision": ("torch", "torchvision"), "timm": ("torch", "timm")}


def groups(options: Options, work: Path) -> Iterator[Group]:
    """Compare steps with frozen norms, then steps with learning ones."""
    from kresnet.zoo import measure
    from kresnet.zoo.variants import variant_config

    size = measure(variant_config(options.variant), image_size=options.image_size)
    # Forward, the gradient of the inputs and that of the kernels: three times as much.
    demand = Demand(flop=6.0 * size.macs * options.batch)
    learning = keras(options, frozen=False)
    by_peer = {
        "keras": (learning, keras(options, frozen=True)),
        "keras_hub": (keras_hub(options),),
        **{library: (torch(options, library, frozen=True),) for library in _LIBRARIES},
    }
    notes = (
        f"{options.variant}, {options.image_size} px, batches of {options.batch}; "
        f"{6e-9 * size.macs:.1f} GFLOP an image.",
    )
    yield Group(
        "Training step, norms frozen",
        "images/s",
        kresnet(options, frozen=True),
        options.chosen(by_peer),
        images=options.batch,
        demand=demand,
        notes=notes,
    )
    by_peer = {
        "keras": (learning,),
        **{library: (torch(options, library, frozen=False),) for library in _LIBRARIES},
    }
    yield Group(
        "Training step, norms learning",
        "images/s",
        kresnet(options, frozen=False),
        options.chosen(by_peer),
        images=options.batch,
        demand=demand,
        notes=notes,
    )


def kresnet(options: Options, *, frozen: bool, image_size: int | None = None) -> Contender:
    """Return our own step."""
    arguments = _step(options) | {"frozen": frozen}
    if image_size:
        arguments["image_size"] = image_size
    return Contender(
        f"kresnet, norms {_norms(frozen)}",
        f"{_KERAS}:kresnet",
        {"train_step": arguments},
        ("keras", "tensorflow"),
    )


def keras(options: Options, *, frozen: bool) -> Contender:
    """Return keras.applications, trained by Keras' own `train_on_batch`."""
    return Contender(
        f"keras.applications, BatchNormalization {_norms(frozen)}",
        f"{_KERAS}:applications",
        _policies(_step(options) | {"frozen": frozen}),
        ("keras", "tensorflow"),
    )


def keras_hub(options: Options) -> Contender:
    """Return KerasHub's backbone with a dense layer, trained by Keras' own `train_on_batch`."""
    return Contender(
        "KerasHub ResNetBackbone, BatchNormalization frozen",
        f"{_KERAS}:hub",
        _policies(_step(options)),
        ("keras", "tensorflow", "keras_hub"),
    )


def torch(options: Options, library: str, *, frozen: bool) -> Contender:
    """Return a network of torchvision or timm, channels last."""
    step = _step(options) | {"library": library, "norms": "kept" if frozen else "learning"}
    settings: dict[str, Mapping[str, Any]] = {
        "bfloat16 autocast": step | {"bfloat16": True, "compiled": False},
        "bfloat16 autocast, torch.compile": step | {"bfloat16": True, "compiled": True},
        "float32, torch.compile": step | {"bfloat16": False, "compiled": True},
    }
    if frozen:
        settings["bfloat16 autocast, torch.compile, gamma and beta fixed"] = step | {
            "norms": "fixed",
            "bfloat16": True,
            "compiled": True,
        }
    return Contender(
        f"{library}, norms {_norms(frozen)}", f"{_TORCH}:train", settings, _LIBRARIES[library]
    )


def _policies(arguments: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    return {policy: {**arguments, "policy": policy} for policy in ("mixed_bfloat16", "float32")}


def _step(options: Options) -> dict[str, Any]:
    return {
        "variant": options.variant,
        "image_size": options.image_size,
        "batch": options.batch,
        "steps": options.steps,
    }


def _norms(frozen: bool) -> str:
    return "frozen" if frozen else "learning"
