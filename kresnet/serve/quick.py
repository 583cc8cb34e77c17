"""Answers without TensorFlow: the ONNX or OpenVINO file of an export in its own runtime.

Loading TensorFlow and a SavedModel takes most of the time of answering for one photo. A file that
was held to the Keras model when it was made answers the same within `TOLERANCE`, and Pillow decodes
the usual files to the same pixels (`data.light`). For others, TensorFlow is loaded to decode them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np

from kresnet.data import light
from kresnet.errors import ConfigError, ExportError, ResourceError
from kresnet.export.contract import TOLERANCE, Contract
from kresnet.machine import cores
from kresnet.serve.answer import Answer, Answering, named, read_image

Runtime = Literal["auto", "tensorflow", "onnxruntime", "openvino"]

_FILES: Final = {"onnxruntime": "model.onnx", "openvino": "openvino/model.xml"}
_AT_ONCE: Final = 32  # images in memory

Score = Callable[[np.ndarray], np.ndarray]
"""uint8 `(1, h, w, 3)` -> float32 `(1, k)`, probabilities."""


def open_export(
    directory: Path,
    runtime: str = "auto",
    *,
    before_tensorflow: Callable[[], None] = lambda: None,
) -> Answering:
    """Load one version of an export to answer for image files.

    Args:
        directory: The version.
        runtime: "tensorflow" for the SavedModel, "onnxruntime" or "openvino" for their files, or
            "auto" for the first of these two that is there, agreed and is installed, else
            TensorFlow.
        before_tensorflow: Called before TensorFlow is loaded, if it has to be.

    Raises:
        ConfigError: There is no such runtime.
        ExportError: The export, or its file for the runtime, cannot be used.
        ResourceError: The runtime is not installed.
    """
    if runtime not in get_args(Runtime):
        known = ", ".join(get_args(Runtime))
        raise ConfigError(f"`--runtime` must be one of {known}. Received: {runtime!r}.")
    contract = Contract.load(directory)
    for name in _FILES if runtime == "auto" else ():
        if not _obstacle(directory, contract, name) and find_spec(name):
            return QuickEngine(directory, contract, name, before_tensorflow)
    if runtime in _FILES:
        if obstacle := _obstacle(directory, contract, runtime):
            raise ExportError(
                f"The export must hold {_FILES[runtime]}, compared with the Keras model. Received: "
                f"{directory}, {obstacle}. Make it with kresnet export, or take --runtime auto."
            )
        if not find_spec(runtime):
            extra = "onnx" if runtime == "onnxruntime" else runtime
            raise ResourceError(
                "The runtime needs a package that is not installed. Received: --runtime "
                f"{runtime}. Install it: pip install 'kresnet[{extra}]'"
            )
        return QuickEngine(directory, contract, runtime, before_tensorflow)
    before_tensorflow()
    from kresnet.serve.engine import Engine

    return Engine(directory)


def _obstacle(directory: Path, contract: Contract, runtime: str) -> str:
    """Return why the export's file for a runtime cannot answer; "" if it can."""
    file = _FILES[runtime]
    check = contract.formats.get(file)
    if check is None or not (directory / file).is_file():
        return "without one"
    if not check.max_difference <= TOLERANCE:
        return f"whose differs by {check.max_difference:.1e}"
    if runtime == "onnxruntime" and (directory / file).stat().st_size != check.bytes:
        return "whose is not the one that was compared"
    return "" if check.input == "pixels" else f"whose takes {check.input}"


class QuickEngine(Answering):
    """Answers with a file of an export that takes pixels.

    Attributes:
        name: As "onnxruntime: model.onnx".
        contract: Of the export.

    Args:
        directory: One version of an export.
        contract: Of the export.
        runtime: "onnxruntime" or "openvino".
        before_tensorflow: Called before TensorFlow is loaded, if it has to be.

    Raises:
        ExportError: The file does not load.
    """

    def __init__(
        self,
        directory: Path,
        contract: Contract,
        runtime: str,
        before_tensorflow: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = f"{runtime}: {_FILES[runtime]}"
        self.contract = contract
        self._before_tensorflow = before_tensorflow
        path = directory / _FILES[runtime]
        try:
            self._score = (_onnx if runtime == "onnxruntime" else _openvino)(path)
        except Exception as error:
            reason = (str(error).splitlines() or [repr(error)])[0][:200]
            raise ExportError(
                f"The file must load in its runtime. Received: {path} ({reason}). Export again, or "
                "take --runtime tensorflow."
            ) from None

    def answer_files(
        self,
        paths: Sequence[str | Path],
        *,
        mirror: bool = False,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Answer | None]:
        """Answer for image files, in order, with a few of them in memory at a time.

        None stands for a file that is no image. `mirror` averages the scores with those of the
        mirror images.

        Raises:
            DataError: A file cannot be read.
        """
        answers: list[Answer | None] = []
        for start in range(0, len(paths), _AT_ONCE):
            contents = [read_image(path) for path in paths[start : start + _AT_ONCE]]
            for answer in self._answers(contents, mirror):
                answers.append(answer)
                progress(len(answers))
        return answers

    def answer(self, images: Sequence[bytes], *, mirror: bool = False) -> list[Answer | None]:
        """Answer for encoded images, all of them in memory; None for one that is no image."""
        return list(self._answers(images, mirror))

    def _answers(self, images: Sequence[bytes], mirror: bool) -> Iterator[Answer | None]:
        with ThreadPoolExecutor(cores()) as pool:
            for encoded, found in zip(images, pool.map(light.decode, images), strict=True):
                image = self._decoded(encoded) if found is None else found
                yield None if image is None else self._answer(image, mirror)

    def _decoded(self, contents: bytes) -> np.ndarray | None:
        """Decode by TensorFlow what cannot be done without it; None for what is no image."""
        self._before_tensorflow()
        import tensorflow as tf

        from kresnet.data import pixels

        try:
            decoded: np.ndarray = pixels.decode(tf.constant(contents)).numpy()
        except tf.errors.InvalidArgumentError:
            return None
        return decoded

    def _answer(self, image: np.ndarray, mirror: bool) -> Answer:
        scores = self._score(image[np.newaxis])[0]
        if mirror:
            other = self._score(np.ascontiguousarray(image[np.newaxis, :, ::-1]))[0]
            scores = (scores + other) / 2
        return named(scores, self.contract)


def _onnx(path: Path) -> Score:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def score(images: np.ndarray) -> np.ndarray:
        (scores,) = session.run(["scores"], {"images": images})
        return np.asarray(scores)

    return score


def _openvino(path: Path) -> Score:
    import openvino

    # In its own precision, bfloat16 on some processors, it would not answer the same.
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(str(path), "CPU", options)

    def score(images: np.ndarray) -> np.ndarray:
        return np.asarray(compiled({"images": images})["scores"])

    return score
