"""Choose the runtime by measurement: the fastest here that agrees with the SavedModel."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import tensorflow as tf

from kresnet.errors import ExportError, KresnetError
from kresnet.export.contract import Contract
from kresnet.serve import log
from kresnet.serve.runtime import (
    PreparedRuntime,
    Runtime,
    TensorFlowRuntime,
    answer,
    example_of_image,
    onnx_compute,
    openvino_compute,
)
from kresnet.serve.signatures import callable_signatures, read_signatures

_Compute = Callable[[np.ndarray], np.ndarray]
_BATCH = 8
GOLDEN_TOLERANCE: Final = 0.01
"""Difference of a probability that other processors may make, and damaged weights exceed."""

_SIGNATURE = "serving_bytes"


@dataclass(frozen=True, slots=True)
class Measured:
    """How a runtime did.

    Attributes:
        single_ms: Median time of one image, from its bytes to its scores.
        batch_ms: Median time of an image in a batch of eight.
        difference: Largest difference of a probability from the SavedModel's.
    """

    single_ms: float
    batch_ms: float
    difference: float

    @property
    def cost(self) -> float:
        """What the choice goes by: the geometric mean of both times."""
        return float(np.sqrt(self.single_ms * self.batch_ms))


def open_runtime(
    directory: Path, *, runtime: str, tolerance: float, prefer: str = ""
) -> tuple[Runtime, dict[str, object]]:
    """Load one version of an export in the best runtime, warmed up.

    Args:
        directory: The version.
        runtime: "auto", or the one to use.
        tolerance: Largest difference of a probability from the SavedModel's.
        prefer: Name of the runtime that served the version before. If it agrees for this version
            too, it is taken without a measurement, which would be disturbed by the requests.

    Returns:
        The runtime, and the SavedModel's SignatureDefs.

    Raises:
        ExportError: The export does not load, or no file of it agrees.
        ResourceError: The package of `runtime` is missing.
    """
    contract = Contract.load(directory)
    definitions = read_signatures(directory)
    signatures = callable_signatures(definitions)
    if _SIGNATURE not in signatures:
        raise ExportError(
            f'An export has the signature "{_SIGNATURE}". Received: {directory}, without. '
            "Export again."
        )
    whole = TensorFlowRuntime(directory, contract, signatures)
    images, expected = sample_images(directory)
    reference = _scores(whole, images)
    if expected is not None and not np.abs(reference - expected).max() <= GOLDEN_TOLERANCE:
        raise ExportError(
            f"An export answers its golden images as it did when it was made. Received: {directory}"
            ", which does not. Its files are damaged: copy them again, or export again."
        )
    if not np.isfinite(reference).all():
        raise ExportError(f"Probabilities are numbers. Received: {directory}, giving NaN.")
    _warm_up(whole, images)
    best: Runtime | None = None
    best_cost = np.inf
    if runtime in ("auto", "tensorflow"):
        if runtime == "tensorflow" or prefer == whole.name:
            return whole, definitions
        best, best_cost = whole, _measure(whole, images, reference).cost
    reasons = []
    for name, load in sorted(
        _candidates(directory, contract, runtime), key=lambda candidate: candidate[0] != prefer
    ):
        try:
            other = PreparedRuntime(name, load(), whole)
            measured = _measure(other, images, reference)
        except KresnetError as error:
            reasons.append(str(error))
            log.event("runtime_unavailable", runtime=name, reason=str(error))
            if runtime != "auto" and error.exit_code == 4:
                raise
            continue
        if not measured.difference <= tolerance:
            reasons.append(f"{name} differs by {measured.difference:.1e}")
            log.event("runtime_differs", runtime=name, difference=measured.difference)
        elif name == prefer:
            return other, definitions
        elif measured.cost < best_cost:
            best, best_cost = other, measured.cost
    if best is None:
        raise ExportError(
            f"The export must hold a file for the runtime that agrees within {tolerance:g}. "
            f"Received: {directory} with --runtime {runtime} ({'; '.join(reasons) or 'no file'}). "
            "Export with that format, or take --runtime auto."
        )
    log.event("runtime_chosen", runtime=best.name, milliseconds_an_image=round(best_cost, 3))
    return best, definitions


def sample_images(directory: Path) -> tuple[list[bytes], np.ndarray | None]:
    """Return images to try an export on, and their scores where the export knows them.

    Raises:
        ExportError: The golden images are damaged.
    """
    folder = directory / "assets.extra" / "golden"
    if not (folder / "expected.json").is_file():
        rng = np.random.default_rng(0)
        blocks = rng.integers(0, 256, (7, 10, 3)).repeat(40, 0).repeat(40, 1).astype("uint8")
        return [tf.io.encode_jpeg(blocks).numpy()], None
    try:
        stored = json.loads((folder / "expected.json").read_text(encoding="utf-8"))["images"]
        images = [(folder / Path(image["file"]).name).read_bytes() for image in stored]
        return images, np.array([image["scores"] for image in stored], np.float32)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"An export's golden images must be readable. Received: {folder} ({error!r}). "
            "Export again."
        ) from None


def _candidates(
    directory: Path, contract: Contract, runtime: str
) -> Iterator[tuple[str, Callable[[], _Compute]]]:
    size = contract.preprocessing.image_size
    for file in ("model.onnx", "model.int8.onnx"):
        if not (directory / file).is_file():
            continue
        if runtime in ("auto", "onnxruntime"):
            yield f"onnxruntime: {file}", partial(onnx_compute, directory / file, size)
        if runtime in ("auto", "openvino") and not (
            file == "model.onnx" and (directory / "openvino" / "model.xml").is_file()
        ):
            yield from _openvino(directory, file, size)
    if runtime in ("auto", "openvino") and (directory / "openvino" / "model.xml").is_file():
        yield from _openvino(directory, "openvino/model.xml", size)


def _openvino(
    directory: Path, file: str, size: int
) -> Iterator[tuple[str, Callable[[], _Compute]]]:
    for precision in ("f32", "auto"):  # on a processor with AMX, "auto" is bfloat16
        yield (
            f"openvino {precision}: {file}",
            partial(openvino_compute, directory / file, size, precision),
        )


def _warm_up(whole: TensorFlowRuntime, images: list[bytes]) -> None:
    """Call every signature once: the first call of each takes many times as long."""
    encoded = np.array([images[0], b""], object)
    size = whole.contract.preprocessing.image_size
    inputs = {
        "images": np.zeros((2, size, size + 1, 3), np.uint8),
        "image_bytes": encoded,
        "class_index": np.array([-1, 0], np.int32),
        "inputs": np.array([example_of_image(images[0]), b""], object),
    }
    for name, signature in whole.signatures.items():
        if set(signature.inputs) <= set(inputs):
            answer(whole, name, {one: inputs[one] for one in signature.inputs})


def _scores(runtime: Runtime, images: list[bytes]) -> np.ndarray:
    return answer(runtime, _SIGNATURE, {"image_bytes": np.array(images, object)})["scores"]


def _measure(runtime: Runtime, images: list[bytes], reference: np.ndarray) -> Measured:
    difference = float(np.abs(_scores(runtime, images) - reference).max())
    many = (images * _BATCH)[:_BATCH]
    singles, batches = [], []
    for k in range(5):
        start = time.perf_counter()
        _scores(runtime, [many[k % len(many)]])
        middle = time.perf_counter()
        _scores(runtime, many)
        singles.append(middle - start)
        batches.append((time.perf_counter() - middle) / _BATCH)
    measured = Measured(
        1e3 * statistics.median(singles), 1e3 * statistics.median(batches), difference
    )
    log.event(
        "runtime_measured",
        runtime=runtime.name,
        single_ms=round(measured.single_ms, 3),
        batch_ms=round(measured.batch_ms, 3),
        difference=difference,
    )
    return measured
