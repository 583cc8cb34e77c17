"""What happens in the processes of contenders that answer for images.

Heavy libraries are imported inside the functions, since each process needs one of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from kresnet.bench.speed.work import Work, timed

_NARROW: Final = {"bfloat16": "saved_model_bfloat16", "int8": "saved_model_int8"}
"""Folders of our SavedModels that compute in these."""

_CLASSES: Final = 1000
_SAMPLES: Final = 8  # that the export is checked with
_HEIGHT, _WIDTH = 256, 341  # of the photos
_SPREAD: Final = 2.0  # standard deviation of the logits of random weights


def prepare(
    *,
    folder: str,
    variant: str,
    weights: str | None,
    image_size: int,
    batch: int,
    data: str | None,
    formats: Sequence[str] = ("onnx", "openvino"),
) -> dict[str, Any]:
    """Publish an export, and write the same weights for the others, with images and answers.

    Returns:
        `version`, the published directory, `photo`, an image file, and `integers`, whether there is
        a SavedModel in int8.
    """
    import tensorflow as tf

    from kresnet.bench.speed.pictures import written
    from kresnet.data import pixels
    from kresnet.errors import ExportError
    from kresnet.export.contract import Contract
    from kresnet.export.formats import FORMATS
    from kresnet.export.integers import in_integers
    from kresnet.export.publish import export
    from kresnet.export.reference import Sample
    from kresnet.export.rounding import rounded
    from kresnet.export.saved_model import write_saved_model
    from kresnet.zoo import build, fold, to_keras, to_torch

    home = Path(folder)
    model = build(
        variant,
        num_classes=_CLASSES,
        input_shape=(image_size, image_size),
        weights=weights,
        dtype="float32",
    )
    preprocessing = replace(model.preprocessing, image_size=image_size)
    files = written(data, home / "photos", max(batch, _SAMPLES), size=(_WIDTH, _HEIGHT))
    photos = np.stack([pixels.decode(tf.io.read_file(file)).numpy() for file in files])
    ready = pixels.prepare_pixels(photos, preprocessing).numpy()
    if weights is None:  # else all images would get much the same answer
        logits = model.predict_on_batch(ready[:_SAMPLES])
        kernel, bias = model.get_layer("head").get_weights()
        model.get_layer("head").set_weights([kernel * _SPREAD / logits.std(axis=0).mean(), bias])
    scores = tf.nn.softmax(model.predict_on_batch(ready)).numpy()
    for name, array in (("photos", photos), ("prepared", ready), ("scores", scores)):
        np.save(home / f"{name}.npy", array)
    arrays: dict[str, Any] = to_torch(model)
    np.savez(home / "torch.npz", **arrays)
    for policy in ("float32", "mixed_bfloat16"):
        to_keras(model, dtype=policy).export(home / policy, verbose=False)
    contract = Contract(
        name="speed",
        variant=variant,
        classes=tuple(f"class {k}" for k in range(_CLASSES)),
        preprocessing=preprocessing,
        versions={},
    )
    made = export(
        model,
        contract,
        home / "exports",
        samples=[Sample(file) for file in files[:_SAMPLES]],
        formats=[name for name in formats if not FORMATS[name].missing],
    )
    folded = fold(model, portable=False)
    images = list(ready[:_SAMPLES])
    networks: dict[str, Any] = {"bfloat16": None}
    with suppress(ExportError):  # which says that TensorFlow cannot
        networks["int8"] = in_integers(rounded(folded, images), images)
    for precision, network in networks.items():
        narrow = home / _NARROW[precision]
        narrow.mkdir()
        promise = contract.model_copy(update={"precision": precision})
        write_saved_model(model, promise, narrow, network=network)
    said = {"version": str(made.path), "photo": files[0], "integers": "int8" in networks}
    (home / "prepared.json").write_text(json.dumps(said), encoding="utf-8")
    return said


def saved_model(*, folder: str, batch: int, steps: int, precision: str = "float32") -> Work:
    """Run the SavedModel on decoded photos."""
    import tensorflow as tf

    path = _version(folder) if precision == "float32" else Path(folder) / _NARROW[precision]
    module = tf.saved_model.load(str(path))
    serve = module.signatures["serving_default"]
    photos = tf.constant(np.load(Path(folder) / "photos.npy")[:batch])
    return _work(folder, lambda: serve(images=photos)["scores"].numpy(), steps)


def keras_export(*, folder: str, batch: int, policy: str, steps: int) -> Work:
    """Run what `model.export` wrote, on prepared images; its outputs are logits."""
    import tensorflow as tf

    module = tf.saved_model.load(str(Path(folder) / policy))
    images = tf.constant(prepared(folder, batch))
    return _work(folder, lambda: tf.nn.softmax(module.serve(images)).numpy(), steps)


def onnx(*, folder: str, batch: int, steps: int) -> Work:
    """Run our ONNX file on decoded photos."""
    import onnxruntime

    path = _version(folder) / "model.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    photos = np.load(Path(folder) / "photos.npy")[:batch]
    return _work(folder, lambda: session.run(["scores"], {"images": photos})[0], steps)


def openvino(*, folder: str, batch: int, steps: int, precision: str | None = None) -> Work:
    """Run our OpenVINO file on decoded photos, in a precision, or the one that OpenVINO chooses."""
    import openvino as ov

    hints: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    compiled = ov.Core().compile_model(_version(folder) / "openvino" / "model.xml", "CPU", hints)
    photos = np.load(Path(folder) / "photos.npy")[:batch]
    return _work(folder, lambda: compiled({"images": photos})["scores"], steps)


def prepared(folder: str, batch: int) -> np.ndarray:
    """Return the prepared images, float32 `(b, s, s, 3)`."""
    images: np.ndarray = np.load(Path(folder) / "prepared.npy")[:batch]
    return images


def difference(folder: str, scores: np.ndarray) -> float:
    """Return the largest difference of a probability from the float32 Keras model's."""
    expected = np.load(Path(folder) / "scores.npy")[: len(scores)]
    return float(np.abs(scores.astype(np.float32) - expected).max())


def _work(folder: str, answer: Callable[[], np.ndarray], steps: int) -> Work:
    return Work(timed(answer, steps), {"differs_by": difference(folder, answer())})


def _version(folder: str) -> Path:
    said = json.loads((Path(folder) / "prepared.json").read_text(encoding="utf-8"))
    return Path(said["version"])
