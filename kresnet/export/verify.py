"""Reload what was exported in fresh processes without kresnet, and hold it to the Keras model."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from tensorflow.core.protobuf import saved_model_pb2

from kresnet.data import pixels
from kresnet.errors import ExportError
from kresnet.export import replay
from kresnet.export.contract import TOLERANCE, TOLERANCES, Contract, FormatCheck, Precision
from kresnet.export.golden import FOLDER
from kresnet.export.reference import Input, Reference
from kresnet.export.saved_model import size_of_saved_model

_HEAT_TOLERANCES: Final[dict[Precision, float]] = {"float32": 1e-2, "bfloat16": 1.0, "int8": 1.0}
"""Of a heatmap. It is scaled to its maximum, so one of hardly any evidence may turn in few bits."""
_LOADERS: Final = ("tf.saved_model.load", "session loader", "C API")


def verify_saved_model(
    directory: Path, reference: Reference, contract: Contract, own: Reference | None = None
) -> FormatCheck:
    """Compare a SavedModel with the Keras model, through every loader and signature.

    `tf.saved_model.load` answers for all samples; it, the session loader with the tag "serve" and
    TensorFlow's C API answer for the golden images through every signature, with a broken image
    among them.

    Args:
        directory: Holds it.
        reference: What the Keras model says.
        contract: Of the export.
        own: What the network says that was written, where that is another than the Keras model's:
            it is compared with that, and the difference from the Keras model is only told.

    Raises:
        ExportError: It does not load, or something differs.
    """
    own = own or reference
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder) / "request.json"
        request.write_text(json.dumps(_request(directory, reference, folder)), encoding="utf-8")
        with ThreadPoolExecutor() as pool:
            replays = [
                pool.submit(run_replay, runtime, directory, request)
                for runtime in ("savedmodel", "c_api")
            ]
            expected, meant = reference.scores("pixels"), own.scores("pixels")
        answers, loaders = replays[0].result(), list(_LOADERS[:2])
        with suppress(FileNotFoundError):  # a TensorFlow without the library of the C API
            answers |= replays[1].result()
            loaders.append(_LOADERS[2])
    check = make_check(size_of_saved_model(directory), answers["scores"], expected, reference)
    check = check.model_copy(update={"input": "bytes or pixels", "loaders": tuple(loaders)})
    problems = [
        f"{loader}: {problem}"
        for loader in loaders
        for problem in _golden_problems(loader, answers, own, contract)
    ]
    tolerance = TOLERANCES[contract.precision]
    difference = float(np.abs(answers["scores"] - meant).max(initial=0.0))
    if not difference <= tolerance:
        problems.append(f"max |dp| {difference:.1e} on {check.images} real images")
    refuse("The SavedModel", problems, tolerance)
    return check


def verify_file(
    runtime: str,
    path: Path,
    kind: Input,
    reference: Reference,
    *,
    size: int | None = None,
    tolerance: float | None = TOLERANCE,
) -> FormatCheck:
    """Compare one file with the Keras model on all samples, through its own runtime.

    Args:
        runtime: A key of `replay.FILES`.
        path: The file.
        kind: What the file takes.
        reference: What the Keras model says.
        size: Of the file and what belongs to it, in bytes; None is that of the file alone.
        tolerance: Largest difference of a probability; None accepts any.

    Raises:
        ExportError: It does not load, or differs by more than `tolerance`.
    """
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder) / "request.json"
        request.write_text("{}", encoding="utf-8")
        answers = run_replay(runtime, path, request, reference.inputs(kind))
    bytes_ = path.stat().st_size if size is None else size
    check = make_check(bytes_, answers["scores"], reference.scores(kind), reference)
    if tolerance is not None and not check.max_difference <= tolerance:
        problem = f"max |dp| {check.max_difference:.1e} on {check.images} real images"
        refuse(path.name, [problem], tolerance)
    return check.model_copy(update={"input": kind, "loaders": (runtime,)})


def make_check(
    size: int, scores: np.ndarray, expected: np.ndarray, reference: Reference
) -> FormatCheck:
    """Compare scores with the expected ones, `(n, k)` each."""
    if scores.shape != expected.shape:
        refuse("The export", [f"scores of shape {scores.shape}, expected {expected.shape}"])
    same = scores.argmax(axis=1) == expected.argmax(axis=1)
    return FormatCheck(
        bytes=size,
        max_difference=float(np.abs(scores - expected).max(initial=0.0)),
        top1_agreement=float(same.mean()) if len(same) else 1.0,
        images=len(scores),
        accuracy=reference.accuracy(scores),
        reference_accuracy=reference.accuracy(expected),
    )


def refuse(what: str, problems: list[str], tolerance: float = TOLERANCE) -> None:
    """Raise if there are problems.

    Raises:
        ExportError: There are.
    """
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ExportError(
            f"{what} must answer as the Keras model does, within {tolerance:g}. "
            f"Received: {'; '.join(problems[:3])}{more}. It was not published."
        )


def _golden_problems(
    loader: str, answers: Mapping[str, np.ndarray], reference: Reference, contract: Contract
) -> Iterator[str]:
    expected = reference.golden_scores
    names = np.array([name.encode() for name in contract.classes])
    count = len(expected)  # the broken image comes behind them
    for signature in ("serving_default", "serving_bytes", "explain", "classify"):

        def found(output: str, signature: str = signature) -> np.ndarray:
            return answers[f"{loader}/{signature}/{output}"]

        difference = float(np.abs(found("scores")[:count] - expected).max(initial=0.0))
        if not difference <= TOLERANCES[contract.precision]:
            yield f"{signature}: max |dp| {difference:.1e} on the golden images"
        listed = found("classes" if signature == "classify" else "labels")
        if not np.array_equal(listed, np.tile(names, (len(listed), 1))):
            yield f"{signature}: wrong labels"
        if signature == "classify":
            continue
        best = names[found("scores")[:count].argmax(axis=1)]
        if not np.array_equal(found("label")[:count], best):
            yield f"{signature}: the best label is not that of the best score"
        if not found("ok")[:count].all():
            yield f"{signature}: a good image counts as bad"
        if signature != "serving_default" and (
            found("ok")[count] or found("scores")[count].any() or not found("abstain")[count]
        ):
            yield f"{signature}: a broken image got an answer"
    heat = np.abs(answers[f"{loader}/explain/heatmap"][:count] - reference.golden_heatmaps)
    if not heat.max(initial=0.0) <= _HEAT_TOLERANCES[contract.precision]:
        yield f"explain: heatmaps differ by {heat.max():.1e}"


def _request(directory: Path, reference: Reference, folder: str) -> dict[str, Any]:
    arrays = []
    for golden in reference.goldens:
        arrays.append(str(Path(folder) / f"{golden.name}.npy"))
        np.save(arrays[-1], pixels.decode(golden.contents).numpy())
    return {
        "paths": [sample.path for sample in reference.samples],
        "golden": [str(directory / FOLDER / golden.name) for golden in reference.goldens],
        "pixels": arrays,
        "signatures": tensor_names(directory),
    }


def tensor_names(directory: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Read the names of the tensors of each signature from the file."""
    saved = saved_model_pb2.SavedModel.FromString((directory / "saved_model.pb").read_bytes())
    return {
        name: {
            "inputs": {key: tensor.name for key, tensor in signature.inputs.items()},
            "outputs": {key: tensor.name for key, tensor in signature.outputs.items()},
        }
        for name, signature in saved.meta_graphs[0].signature_def.items()
        if signature.method_name
    }


def run_replay(
    runtime: str, path: Path, request: Path, arrays: Iterable[np.ndarray] = ()
) -> dict[str, np.ndarray]:
    """Run `replay.py` in a process without kresnet and return its answers.

    Raises:
        ExportError: It failed.
        FileNotFoundError: This machine lacks the library of the runtime.
    """
    answer = request.with_name(f"{runtime}.npz")
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(  # -I: neither the current folder nor PYTHONPATH can help it
            [sys.executable, "-I", str(replay.__file__), runtime, str(path), str(request), answer],
            stdin=subprocess.PIPE,
            stdout=errors,
            stderr=errors,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        _feed(process, arrays)
        code = process.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip().splitlines() or ["no message"]
    if code and "libtensorflow_cc" in said[-1]:
        raise FileNotFoundError(said[-1])
    if code:
        raise ExportError(
            f"An export must load and answer in a fresh process, with {runtime}. "
            f"Received: exit code {code}, {said[-1]}. It was not published."
        )
    with np.load(answer) as stored:
        return dict(stored)


def _feed(process: subprocess.Popen[bytes], arrays: Iterable[np.ndarray]) -> None:
    if process.stdin is None:
        return
    # A pipe breaks where the process has failed, and then its exit code tells.
    with suppress(BrokenPipeError), process.stdin as stream:
        for array in arrays:
            content = io.BytesIO()
            np.save(content, array)
            stream.write(len(content.getbuffer()).to_bytes(8, "little"))
            stream.write(content.getbuffer())
