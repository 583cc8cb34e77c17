"""Run the files of an export in a process of its own, without kresnet: what it can do, anyone can.

    python -I replay.py RUNTIME FILE REQUEST.json ANSWERS.npz < ARRAYS

It imports nothing but NumPy and the runtime asked for, and its neighbour c_api.py.

RUNTIME "savedmodel" and "c_api" take a SavedModel. The request names image files (`paths`), the
stored golden images (`golden`, and `pixels`: the same decoded, as .npy) and the names of the
tensors (`signatures`). The answers are `scores` of the image files, and every output of every
signature for the golden images as `LOADER/SIGNATURE/OUTPUT`.

The other runtimes take one file, read uint8 arrays `(h, w, 3)` in NumPy's format from standard
input until it ends, and answer with `scores`.
"""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Run = Callable[[str, Mapping[str, np.ndarray]], Arrays]
BROKEN = b"\xff\xd8\xff not an image"
"""Stands last among the golden images: it must not cost the others their answers."""


def main(runtime: str, file: str, request_file: str, answer_file: str) -> None:
    """Answer one request."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    if runtime == "savedmodel":
        serve = tensorflow_2(file)
        answers = _golden("tf.saved_model.load", serve, request)
        answers["scores"] = _scores_of_files(serve, request["paths"])
        del serve
        answers |= _golden("session loader", session(file, request["signatures"]), request)
    elif runtime == "c_api":
        answers = _golden("C API", c_api(file, request["signatures"]), request)
    else:
        score = FILES[runtime](file)
        answers = {"scores": np.stack([score(image) for image in _from_stdin()])}
    np.savez(answer_file, **answers)  # type: ignore[arg-type]


def _golden(loader: str, run: Run, request: Mapping[str, Any]) -> Arrays:
    """Put the golden images through every signature, with a broken one at their end."""
    contents = _strings([Path(path).read_bytes() for path in request["golden"]] + [BROKEN])
    answers = {
        "serving_bytes": run("serving_bytes", {"image_bytes": contents}),
        "explain": run(
            "explain",
            {"image_bytes": contents, "class_index": np.full(len(contents), -1, np.int32)},
        ),
        "classify": run("classify", {"inputs": _strings(map(_example, contents))}),
    }
    images = [
        run("serving_default", {"images": np.load(path)[np.newaxis]}) for path in request["pixels"]
    ]
    answers["serving_default"] = {
        key: np.concatenate([image[key] for image in images]) for key in images[0]
    }
    return {
        f"{loader}/{signature}/{key}": value.astype("S") if value.dtype == object else value
        for signature, outputs in answers.items()
        for key, value in outputs.items()
    }


def _scores_of_files(run: Run, paths: list[str]) -> np.ndarray:
    batches = [paths[start : start + 16] for start in range(0, len(paths), 16)]
    return np.concatenate(
        [
            run("serving_bytes", {"image_bytes": _strings(Path(p).read_bytes() for p in batch)})[
                "scores"
            ]
            for batch in batches
        ]
    )


def _strings(contents: Any) -> np.ndarray:
    contents = list(contents)
    array = np.empty(len(contents), object)
    array[:] = contents
    return array


def _example(contents: bytes) -> bytes:
    """Write a tf.train.Example with the bytes feature `image_bytes`, by hand."""

    def field(number: int, content: bytes) -> bytes:  # of wire type 2, "length-delimited"
        length, size = len(content), b""
        while length > 0x7F:
            size += bytes([length & 0x7F | 0x80])
            length >>= 7
        return bytes([number << 3 | 2]) + size + bytes([length]) + content

    feature = field(1, field(1, contents))  # Feature.bytes_list.value
    entry = field(1, b"image_bytes") + field(2, feature)
    return field(1, field(1, entry))  # Example.features.feature


def tensorflow_2(directory: str) -> Run:
    """Load as TensorFlow 2's users do."""
    import tensorflow as tf

    module = tf.saved_model.load(directory)

    def run(signature: str, inputs: Mapping[str, np.ndarray]) -> Arrays:
        tensors = {key: tf.constant(_plain(value)) for key, value in inputs.items()}
        return {k: v.numpy() for k, v in module.signatures[signature](**tensors).items()}

    return run


def session(directory: str, signatures: Mapping[str, Any]) -> Run:
    """Load as servers do that go by tag and tensor names."""
    import tensorflow as tf

    graph = tf.Graph()
    with graph.as_default():
        opened = tf.compat.v1.Session(graph=graph)
        tf.compat.v1.saved_model.load(opened, ["serve"], directory)

    def run(signature: str, inputs: Mapping[str, np.ndarray]) -> Arrays:
        names = signatures[signature]
        feed = {names["inputs"][key]: value for key, value in inputs.items()}
        return dict(opened.run(names["outputs"], feed))

    return run


def c_api(directory: str, signatures: Mapping[str, Any]) -> Run:
    """Load through TensorFlow's C API."""
    spec = importlib.util.spec_from_file_location("c_api", Path(__file__).with_name("c_api.py"))
    if spec is None or spec.loader is None:
        raise ImportError("c_api.py must stand beside this file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    run: Run = module.Session(directory, signatures).run
    return run


def _plain(value: np.ndarray) -> Any:
    return value.tolist() if value.dtype == object else value


def _from_stdin() -> Iterator[np.ndarray]:
    while header := sys.stdin.buffer.read(8):
        yield np.load(io.BytesIO(sys.stdin.buffer.read(int.from_bytes(header, "little"))))


Score = Callable[[np.ndarray], np.ndarray]


def onnxruntime(path: str) -> Score:
    """Load an ONNX file."""
    import onnxruntime as ort

    opened = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: opened.run(["scores"], {"images": image[np.newaxis]})[0][0]


def openvino(path: str) -> Score:
    """Load an OpenVINO file, in the precision that it was written in."""
    import openvino as ov

    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda image: compiled({"images": image[np.newaxis]})["scores"][0]


def litert(path: str) -> Score:
    """Load a LiteRT file."""
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(path).get_signature_runner("serving_default")
    return lambda image: run(images=image[np.newaxis])["scores"][0]


def keras(path: str) -> Score:
    """Load a `.keras` file."""
    import keras as k

    model = k.saving.load_model(path, compile=False, safe_mode=True)
    return lambda image: np.asarray(model.predict_on_batch(image[np.newaxis].astype(np.float32)))[0]


FILES: dict[str, Callable[[str], Score]] = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "litert": litert,
    "keras": keras,
}


if __name__ == "__main__":
    main(*sys.argv[1:])
