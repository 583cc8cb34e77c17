"""Exports: latency of one image and throughput of many, beside other ways to run the same weights.

`infer_steps.prepare` builds the network once, publishes our export with its check, and writes the
same weights for Keras and PyTorch. Our SavedModel takes part twice: in int8, and in the better of
float32 and bfloat16. Each contender tells how far its scores are from those of the float32 Keras
model. Our files take photos of any size and prepare them; Keras and PyTorch are given
prepared images, which is less work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kresnet.bench.speed.rotation import Contender, once
from kresnet.bench.speed.topics import Demand, Group, Options

_STEPS = "kresnet.bench.speed.infer_steps"
_TURN = {1: 20, 2: 3}  # timed calls in a turn, with one image and with more


def groups(options: Options, work: Path) -> Iterator[Group]:
    """Compare with one image, then with a batch."""
    from kresnet.zoo import measure
    from kresnet.zoo.variants import variant_config

    made = prepare(options, work)
    size = measure(variant_config(options.variant), image_size=options.image_size)
    for batch in sorted({1, options.batch}):
        ours = [_in_integers(work, batch)] if made["integers"] else []
        ours.append(_saved_model(work, batch))
        yield Group(
            f"Inference, {'1 image' if batch == 1 else f'{batch} images'}",
            "ms" if batch == 1 else "images/s",
            ours[0],
            (*ours[1:], *options.chosen(_others(options, work, batch))),
            images=batch,
            demand=Demand(flop=2.0 * size.macs * batch, weights=size.params),
            notes=(
                f"{options.variant}, {options.image_size} px; {2e-9 * size.macs:.1f} GFLOP an "
                "image. Files of kresnet prepare photos of 256 x 341 px; the others are given "
                "prepared images.",
            ),
        )


def prepare(options: Options, work: Path) -> dict[str, Any]:
    """Make what the contenders run, in `work`."""
    return once(
        f"{_STEPS}:prepare",
        {
            "folder": str(work),
            "variant": options.variant,
            "weights": options.weights,
            "image_size": options.image_size,
            "batch": options.batch,
            "data": options.data,
        },
        logs=work / "logs",
    )


def _others(options: Options, work: Path, batch: int) -> dict[str, tuple[Contender, ...]]:
    common = {"folder": str(work), "batch": batch, "steps": _steps(batch)}
    keras = Contender(
        "keras model.export",
        f"{_STEPS}:keras_export",
        {policy: {**common, "policy": policy} for policy in ("float32", "mixed_bfloat16")},
        ("keras", "tensorflow"),
    )
    return {
        "keras": (keras,),
        "onnxruntime": (_onnx(common),),
        "openvino": (_openvino(common),),
        "torchvision": (_torch("torchvision", options, common),),
        "timm": (_torch("timm", options, common),),
    }


def _saved_model(work: Path, batch: int) -> Contender:
    common = {"folder": str(work), "batch": batch, "steps": _steps(batch)}
    return Contender(
        "kresnet SavedModel, TensorFlow",
        f"{_STEPS}:saved_model",
        {precision: {**common, "precision": precision} for precision in ("float32", "bfloat16")},
        ("tensorflow",),
    )


def _in_integers(work: Path, batch: int) -> Contender:
    return Contender(
        "kresnet SavedModel in int8, TensorFlow",
        f"{_STEPS}:saved_model",
        {
            "int8": {
                "folder": str(work),
                "batch": batch,
                "steps": _steps(batch),
                "precision": "int8",
            }
        },
        ("tensorflow",),
        integers=True,
    )


def _onnx(common: Mapping[str, Any]) -> Contender:
    return Contender(
        "kresnet model.onnx, ONNX Runtime",
        f"{_STEPS}:onnx",
        {"as exported": common},
        ("onnxruntime",),
    )


def _openvino(common: Mapping[str, Any]) -> Contender:
    return Contender(
        "kresnet model.xml, OpenVINO",
        f"{_STEPS}:openvino",
        {"its own precision": common, "float32": {**common, "precision": "f32"}},
        ("openvino",),
    )


def _torch(library: str, options: Options, common: Mapping[str, Any]) -> Contender:
    arguments = {**common, "library": library, "variant": options.variant}
    return Contender(
        library,
        "kresnet.bench.speed.torch_steps:infer",
        {
            f"{kind}{', torch.compile' * compiled}": arguments
            | {"bfloat16": kind != "float32", "compiled": compiled}
            for kind in ("float32", "bfloat16 autocast")
            for compiled in (False, True)
        },
        ("torch", library),
    )


def _steps(batch: int) -> int:
    return _TURN[min(batch, 2)]
