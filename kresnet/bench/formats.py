"""Compare the files of an export: size, time, agreement, accuracy.

    python -m kresnet.bench.formats saved_models/flowers/2 saved_models/flowers/3 runs/flowers

Of the first version all files take part, of others their SavedModels, as one in another precision.
The last argument is a run, whose test images are taken (its validation images if it has none), or a
folder of images by class. Every file runs on the same images and on all processors. The calls
alternate between the files, so that whatever else the machine does hits all of them; medians are
printed, and the ratio to the SavedModel is the median of the ratios of neighbouring calls.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kresnet.data.scan import Index, Row, scan
from kresnet.errors import ConfigError
from kresnet.export.contract import Contract
from kresnet.export.reference import prepared_pixels
from kresnet.export.versions import latest_version
from kresnet.machine import cores

Run = Callable[[np.ndarray], np.ndarray]


class Contender(NamedTuple):
    """One file in one runtime.

    Attributes:
        name: As in the table.
        size: Of the file, in bytes.
        run: From uint8 images `(n, h, w, 3)` to scores `(n, k)`.
        prepared: Whether it takes images already cropped and resized.
        batches: Whether it takes more than one image at a time.
    """

    name: str
    size: int
    run: Run
    prepared: bool = False
    batches: bool = True


def contenders(directory: Path) -> Iterator[Contender]:
    """Load every file of a version in every runtime that is installed."""
    contract = Contract.load(directory)
    formats = contract.formats
    for name, check in formats.items():
        path, prepared = str(directory / name), check.input == "prepared pixels"
        for label, load in _LOADERS.items():
            suffix, _, runtime = label.partition(" ")
            if name == suffix or (suffix.startswith(".") and name.endswith(suffix)):
                try:
                    run = load(str(directory) if name == "saved_model" else path)
                except ImportError:
                    continue
                shown = f"{name} in {contract.precision}" if name == "saved_model" else name
                yield Contender(
                    f"{shown}, {runtime}", check.bytes, run, prepared, suffix != ".tflite"
                )


def _saved_model(path: str) -> Run:
    import tensorflow as tf

    module = tf.saved_model.load(path)
    return lambda images: module.signatures["serving_default"](images=tf.constant(images))[
        "scores"
    ].numpy()


def _keras(path: str) -> Run:
    import keras

    model = keras.saving.load_model(path, compile=False)
    return lambda images: np.asarray(model.predict_on_batch(images.astype(np.float32)))


def _onnxruntime(path: str) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["scores"], {"images": images})[0]


def _openvino(hint: str | None) -> Callable[[str], Run]:
    def load(path: str) -> Run:
        import openvino

        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint} if hint else {}
        compiled = openvino.Core().compile_model(path, "CPU", options)
        return lambda images: compiled({"images": images})["scores"]

    return load


def _litert(path: str) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(path, num_threads=cores()).get_signature_runner("serving_default")
    return lambda images: runner(images=images)["scores"]


_LOADERS: dict[str, Callable[[str], Run]] = {
    "saved_model TensorFlow": _saved_model,
    ".onnx ONNX Runtime": _onnxruntime,
    ".int8.onnx OpenVINO": _openvino("f32"),
    ".xml OpenVINO": _openvino("f32"),
    ".xml OpenVINO, its own precision": _openvino(None),
    ".tflite LiteRT": _litert,
    ".keras Keras predict_on_batch": _keras,
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("exports", type=Path, nargs="+", help="NAME or NAME/VERSION")
    parser.add_argument("data", type=Path, help="a run, or a folder of images by class")
    parser.add_argument("--rounds", type=int, default=30, help="calls of each with one image")
    parser.add_argument("--batch", type=int, default=16, help="images of a larger batch")
    options = parser.parse_args()
    directory, *others = (latest_version(path) for path in options.exports)
    contract = Contract.load(directory)
    rows, labels = _images(options.data, contract.classes)
    found = [*contenders(directory), *(next(contenders(path)) for path in others)]
    scores = _scores(found, rows, contract)
    single, single_ratio = _times(found, _batch(rows, 1), contract, options.rounds)
    many, _ = _times(
        [c for c in found if c.batches],
        _batch(rows, options.batch),
        contract,
        max(options.rounds // 5, 3),
    )
    print(f"{directory}, {len(rows)} labelled images, {cores()} cores\n")
    print(
        f"| file | MB | 1 image, ms | times SavedModel's speed | {options.batch} images, images/s "
        "| top-1 as SavedModel | max dp | accuracy |\n|---|---|---|---|---|---|---|---|"
    )
    expected = scores[0]
    for c, answer in zip(found, scores, strict=True):
        rate = f"{options.batch / many[c.name]:.0f}" if c.name in many else "-"
        print(
            f"| {c.name} | {c.size / 1e6:.1f} | {1e3 * single[c.name]:.1f} "
            f"| {single_ratio[c.name]:.2f} | {rate} "
            f"| {(answer.argmax(axis=1) == expected.argmax(axis=1)).mean():.1%} "
            f"| {np.abs(answer - expected).max():.1e} "
            f"| {(answer.argmax(axis=1) == labels).mean():.1%} |"
        )


def _images(data: Path, classes: Sequence[str]) -> tuple[Sequence[Row], np.ndarray]:
    is_run = (data / "index.csv").is_file()
    index = Index.load(data) if is_run else scan(data)
    rows = (index.select("test") or index.select("val")) if is_run else index.rows
    if unknown := [name for name in index.classes if name not in classes]:
        raise ConfigError(
            f"Every class must be one of the export's. Received: {unknown[0]!r} in {data}."
        )
    return rows, np.array([classes.index(index.classes[row.label]) for row in rows])


def _decoded(row: Row) -> np.ndarray:
    import tensorflow as tf

    from kresnet.data import pixels

    image: np.ndarray = pixels.decode(tf.io.read_file(row.path)).numpy()
    return image


def _scores(
    found: Sequence[Contender], rows: Sequence[Row], contract: Contract
) -> list[np.ndarray]:
    """Return the scores of every image, `(rows, k)` for each contender."""
    answers: list[list[np.ndarray]] = [[] for _ in found]
    for row in rows:
        image = _decoded(row)
        square = prepared_pixels(image, contract)
        for c, answer in zip(found, answers, strict=True):
            answer.append(c.run((square if c.prepared else image)[np.newaxis])[0])
    return [np.stack(answer) for answer in answers]


def _batch(rows: Sequence[Row], count: int) -> np.ndarray:
    """Return the image of the middle size, `count` times."""
    middle = sorted(rows, key=lambda row: row.height * row.width)[len(rows) // 2]
    return np.repeat(_decoded(middle)[np.newaxis], count, axis=0)


def _times(
    found: Sequence[Contender], images: np.ndarray, contract: Contract, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return median seconds of a call, and median speed relative to the first, by name."""
    squares = np.stack([prepared_pixels(image, contract) for image in images])
    taken: dict[str, list[float]] = {c.name: [] for c in found}
    for number in range(-2, rounds):  # two to warm up
        for c in found:
            batch = squares if c.prepared else images
            time.sleep(0.05)  # the threads of the one before spin for a while
            started = time.perf_counter()
            c.run(batch)
            if number >= 0:
                taken[c.name].append(time.perf_counter() - started)
    first = np.array(taken[found[0].name])
    medians = {name: float(np.median(times)) for name, times in taken.items()}
    ratios = {name: float(np.median(first / np.array(times))) for name, times in taken.items()}
    return medians, ratios


if __name__ == "__main__":
    main()
