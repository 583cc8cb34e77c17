"""Say where the time of a training step, or of a SavedModel's answer, goes, and at which rate.

    python -m kresnet.bench.profile --norms frozen
    python -m kresnet.bench.profile --norms trainable --precision bfloat16
    python -m kresnet.bench.profile --export saved_models/flowers/1 --batch-size 1

Operations run one at a time here, each on all cores, so that their times add up; else TensorFlow
runs several at a time. TensorFlow's profiler tells how long each took; told are means over some
turns. The limit is the mean rate of a 3x3 convolution of 256 channels in the same precision, called
between the steps: others who use the cores take the same share of it as of them.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Final

import numpy as np
import tensorflow as tf

from kresnet.bench.speed.limits import convolution
from kresnet.bench.speed.work import seconds_of
from kresnet.bench.step import drawn, training_step
from kresnet.errors import ResourceError
from kresnet.export.contract import Contract, Precision
from kresnet.machine import cores, processor
from kresnet.zoo import measure
from kresnet.zoo.variants import variant_config

BETWEEN: Final = "between operations, and the call"
CONVOLUTIONS: Final = "forward, with what is fused to it"

_WARM_UP: Final = 2
_CALLS: Final = 8  # of the convolution after each step
_PHOTO: Final = (256, 341)  # height and width
_CONVOLUTIONS: Final = {
    "Conv2D": "forward",
    "Conv2DBackpropInput": "gradient of inputs",
    "Conv2DBackpropFilter": "gradient of kernels",
}
_KINDS: Final = {  # of what is done with activations
    "ReluGrad": "gradients of ReLU",
    "Relu": "ReLU that is not fused",
    "AddN": "sums of branches and of gradients",
    "AddV2": "sums of branches and of gradients",
    "Cast": "casts",
    "MatMul": "gradient of kernels as products, and the head",
    "BatchMatMulV2": "gradients of biases",
    "Fill": "gradients of biases",
    "Pad": "padding, pooling, slices",
    "Slice": "padding, pooling, slices",
    "StridedSlice": "padding, pooling, slices",
    "ExtractImagePatches": "padding, pooling, slices",
    "MaxPool": "padding, pooling, slices",
    "MaxPoolGrad": "padding, pooling, slices",
}

_PARTS: Final = {  # of an answer
    "ScaleAndTranslate": "preparing the photos",
    "Cast": "preparing the photos",
    "Sub": "preparing the photos",
    "RealDiv": "preparing the photos",
    "FusedMatMul": "the head",
    "MatMul": "the head",
    "MaxPool": "pooling and padding",
    "Mean": "pooling and padding",
    "Pad": "pooling and padding",
}


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--variant", default="resnet50", help="network")
    parser.add_argument("--norms", choices=("frozen", "trainable"), default="frozen", help="state")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--image-size", type=int, default=224, help="side of the images")
    parser.add_argument("--batch-size", type=int, default=32, help="images a step")
    parser.add_argument("--turns", type=int, default=5, help="steps")
    parser.add_argument("--export", type=Path, help="a version's directory: profile its answers")
    options = parser.parse_args()
    tf.config.threading.set_inter_op_parallelism_threads(1)
    print(f"{processor()}, {cores()} cores, TensorFlow {tf.__version__}; {options.turns} turns")
    (_print_answers if options.export else _print_step)(options)


def _print_step(options: argparse.Namespace) -> None:
    step = training_step(options.variant, options.norms, options.image_size, options.precision)
    batch = drawn(options.batch_size, options.image_size)
    graph = step.get_concrete_function().graph  # type: ignore[attr-defined]
    turns, limit = _with_limit(lambda: step(*batch).numpy(), options.precision, options.turns)
    print(
        f"{options.variant}, norms {options.norms}, {options.precision}, {options.batch_size} "
        f"images of {options.image_size} px; limit {limit:.0f} GFLOP/s\n"
    )
    flop = flop_by_kind(graph, options.batch_size, turns[0])
    print(table(seconds_by_kind(turns, partial(kind_of, graph)), flop, limit))


def _print_answers(options: argparse.Namespace) -> None:
    contract = Contract.load(options.export)
    serve = tf.saved_model.load(str(options.export)).signatures["serving_default"]
    rng = np.random.default_rng(0)
    photos = tf.constant(rng.integers(0, 256, (options.batch_size, *_PHOTO, 3)), tf.uint8)
    turns, limit = _with_limit(
        lambda: serve(images=photos)["scores"].numpy(), contract.precision, options.turns
    )
    side = contract.preprocessing.image_size
    print(
        f"{contract.variant}, {contract.precision}, {options.batch_size} photos of "
        f"{_PHOTO[1]} x {_PHOTO[0]} px, prepared for {side} px; limit {limit:.0f} GFLOP/s\n"
    )
    config = variant_config(contract.variant)
    size = measure(config, image_size=side, num_classes=len(contract.classes))
    flop = {CONVOLUTIONS: 2.0 * size.macs * options.batch_size}
    print(table(seconds_by_kind(turns, part_of), flop, limit))


def _with_limit(
    step: Callable[[], object], precision: Precision, turns: int
) -> tuple[list[dict[str, float]], float]:
    """Return the turns of `traced`, and the limit in GFLOP/s."""
    compute, work = convolution(precision)
    found, called = traced(step, compute, turns)
    return found, work / mean(called) / 1e9


def traced(
    step: Callable[[], object], beside: Callable[[], object], turns: int
) -> tuple[list[dict[str, float]], list[float]]:
    """Run steps under TensorFlow's profiler, and something else between them without it.

    Args:
        step: Returns when all is computed.
        beside: What is called some times after each; it, too.
        turns: Steps; those before, which warm up, are not traced.

    Returns:
        For each step, the seconds of every operation as `name:type`, and of what is `BETWEEN`
        them; and the seconds of each call of `beside`.
    """
    for _ in range(_WARM_UP):
        step()
        beside()
    found, called = [], []
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as folder:
            with tf.profiler.experimental.Profile(folder):
                started = time.perf_counter()
                step()
                taken = time.perf_counter() - started
            seconds = _operations(Path(folder))
        found.append(seconds | {BETWEEN: max(0.0, taken - sum(seconds.values()))})
        called += [seconds_of(beside) for _ in range(_CALLS)]
    return found, called


def _operations(folder: Path) -> dict[str, float]:
    # The profiler's viewer is a package of its own; this is the format that it reads.
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    seconds: dict[str, float] = defaultdict(float)
    for file in folder.rglob("*.xplane.pb"):
        space = xplane_pb2.XSpace.FromString(file.read_bytes())
        for plane in space.planes:
            names = {key: value.name for key, value in plane.event_metadata.items()}
            for line in plane.lines:
                for event in line.events:
                    name, _, kind = names[event.metadata_id].rpartition(":")
                    # Others tell what TensorFlow itself does, as `Class::method` or `call: what`.
                    if name and not name.endswith(":") and not kind.startswith(" "):
                        seconds[f"{name}:{kind}"] += event.duration_ps / 1e12
    if not seconds:
        raise ResourceError(
            "TensorFlow's profiler must tell what runs. Received: no operation. Let no other "
            "profiler run in this process."
        )
    return dict(seconds)


def seconds_by_kind(
    turns: Sequence[Mapping[str, float]], kind: Callable[[str], str]
) -> dict[str, float]:
    """Return the seconds of each kind in a turn, the mean of all.

    Args:
        turns: From `traced`.
        kind: Of an operation as `name:type`; of a step, `kind_of` with its graph, and of an answer
            `part_of`.
    """
    found: dict[str, float] = defaultdict(float)
    for turn in turns:
        for name, seconds in turn.items():
            found[name if name == BETWEEN else kind(name)] += seconds / len(turns)
    return dict(found)


def part_of(name: str) -> str:
    """Return the kind of an operation in an answer of a SavedModel, `name:type`."""
    ran = _type_of(name)
    return CONVOLUTIONS if "Conv2D" in ran else _PARTS.get(ran, "all else")


def _type_of(name: str) -> str:
    """Return what TensorFlow ran, whichever library computed it."""
    return name.rpartition(":")[2].removeprefix("_Mkl").removeprefix("Native")


def kind_of(graph: tf.Graph, name: str) -> str:
    """Return the kind of an operation.

    Args:
        graph: Of the step, before TensorFlow rewrites it.
        name: `name:type`, as it was run.
    """
    name, ran = name.rpartition(":")[0], _type_of(name)
    if "/" in name and "adam" in name.partition("/")[0]:
        return "optimizer"
    if "Conv2D" in ran:
        operation = ran.removeprefix("Fused").removesuffix("WithBias")
        return f"{_CONVOLUTIONS[operation]}, {_size(_convolution(graph, name))}"
    if "BatchNorm" in ran:
        return "norms"
    if "MatMul" in ran or "Pool" in ran:
        return _KINDS[ran.removeprefix("Fused")]
    if not _of_activations(graph, name):
        return "weights: times the scale of their norms, and the gradient of it"
    return _KINDS.get(ran, "norms")


def flop_by_kind(graph: tf.Graph, batch: int, ran: Iterable[str]) -> dict[str, float]:
    """Return the arithmetic of each kind of convolution, a multiply-add being two.

    The gradients of a convolution take as much as itself, that of its input only where it is asked
    for. Those of kernels count by their size, however they are computed.

    Args:
        graph: Of the step.
        batch: Images.
        ran: Operations as `name:type`; TensorFlow leaves out what nothing depends on.
    """
    names = {name.rpartition(":")[0] for name in ran}
    found: dict[str, float] = defaultdict(float)
    for operation in graph.get_operations():
        if operation.type == "Conv2D":
            flop = 2.0 * batch * math.prod(operation.outputs[0].shape[1:3])
            flop *= math.prod(operation.inputs[1].shape)
            found[f"forward, {_size(operation)}"] += flop
            found[f"gradient of kernels, {_size(operation)}"] += flop
        elif operation.type == "Conv2DBackpropInput" and operation.name in names:
            flop = 2.0 * batch * math.prod(operation.inputs[2].shape[1:3])
            found[f"gradient of inputs, {_size(operation)}"] += flop * math.prod(
                operation.inputs[1].shape
            )
    return dict(found)


def _convolution(graph: tf.Graph, name: str) -> tf.Operation:
    """Return the convolution that runs under a name, which may be that of what is fused to it."""
    operation = graph.get_operation_by_name(name)
    while operation.type not in _CONVOLUTIONS:
        operation = operation.inputs[0].op
    return operation


def _size(convolution: tf.Operation) -> str:
    is_kernels = convolution.type == "Conv2DBackpropFilter"
    kernel = convolution.outputs[0] if is_kernels else convolution.inputs[1]
    return f"{kernel.shape[0]} x {kernel.shape[1]}"


def _of_activations(graph: tf.Graph, name: str) -> bool:
    """Return whether an operation computes or reads what has a batch; weights have known shapes."""
    try:
        operation = graph.get_operation_by_name(name)
    except KeyError:  # TensorFlow made it of others
        return True
    return any(not t.shape.is_fully_defined() for t in (*operation.inputs, *operation.outputs))


def table(seconds: Mapping[str, float], flop: Mapping[str, float], limit: float) -> str:
    """Return Markdown, convolutions first.

    Args:
        seconds: Of each kind.
        flop: Of each kind of convolution.
        limit: GFLOP/s.
    """
    return "\n".join(
        [
            "| what | s | % of the step | GFLOP/s | % of the limit |",
            "|---|---|---|---|---|",
            *_rows(seconds, flop, limit),
        ]
    )


def _rows(seconds: Mapping[str, float], flop: Mapping[str, float], limit: float) -> Iterator[str]:
    whole = sum(seconds.values())

    def row(name: str, taken: float, work: float | None) -> str:
        cells = [name, f"{taken:.3f}", f"{100 * taken / whole:.1f}"]
        rate = work / taken / 1e9 if work else None
        cells += [f"{rate:.0f}", f"{100 * rate / limit:.0f}"] if rate else ["-", "-"]
        return f"| {' | '.join(cells)} |"

    convolutions = sorted(name for name in seconds if name.partition(",")[0] in _NAMES)
    for name in convolutions:
        yield row(name, seconds[name], flop.get(name))
    others = [name for name in seconds if name not in convolutions]
    for name in sorted(others, key=lambda name: -seconds[name]):
        yield row(name, seconds[name], None)
    yield row("the whole step", whole, sum(flop.values()))


_NAMES: Final = frozenset(_CONVOLUTIONS.values())


if __name__ == "__main__":
    main()
