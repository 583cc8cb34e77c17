"""What computes: the SavedModel in TensorFlow, or its ONNX or OpenVINO file.

Every runtime answers the same signatures with the same outputs, so a client cannot tell which
one is behind the server. A request passes three steps: `prepare` (a thread for each request),
`run` (whole batches, from one or several requests) and `finish`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from kresnet.data import pixels
from kresnet.errors import ExportError, ResourceError
from kresnet.export.contract import Contract
from kresnet.machine import cores
from kresnet.serve.signatures import CLASSIFY, Arrays, Signature
from kresnet.serve.status import RequestError, Status, invalid

PREPARED = "prepared"
"""The tensor of normalised model input inside the ONNX graph, where a runtime here enters it."""


class Runtime(Protocol):
    """Answers the signatures of one export.

    Attributes:
        name: As "onnxruntime: model.onnx".
        contract: Labels and preprocessing.
        signatures: What can be asked.
        prepares: Whether `prepare` does any work, which is worth a thread.
    """

    prepares: bool
    name: str
    contract: Contract
    signatures: Mapping[str, Signature]

    def prepare(self, signature: str, inputs: Arrays) -> tuple[str, Arrays]:
        """Do what can be done for one request alone; returns what to `run`, and on what."""

    def run(self, function: str, inputs: Arrays) -> Arrays:
        """Compute for the rows of one or several requests; the first axis is the batch.

        Raises:
            RequestError: The inputs are at fault.
        """

    def finish(self, signature: str, outputs: Arrays) -> Arrays:
        """Turn what `run` returned into the outputs of the signature."""


def answer(runtime: Runtime, signature: str, inputs: Arrays) -> Arrays:
    """Do the three steps at once."""
    return runtime.finish(signature, runtime.run(*runtime.prepare(signature, inputs)))


class TensorFlowRuntime:
    """The SavedModel itself.

    Args:
        directory: One version of an export.
        contract: Of the export.
        signatures: Of the export.

    Raises:
        ExportError: It does not load.
    """

    prepares = False

    def __init__(
        self, directory: Path, contract: Contract, signatures: Mapping[str, Signature]
    ) -> None:
        self.name = "tensorflow: saved_model"
        self.contract = contract
        self.signatures = signatures
        try:
            self._module = tf.saved_model.load(str(directory))
            self._functions = {name: self._module.signatures[name] for name in signatures}
        except (OSError, KeyError, ValueError, AttributeError, tf.errors.OpError) as error:
            reason = (str(error).splitlines() or [repr(error)])[0]
            raise ExportError(
                f"The export must load. Received: {directory} ({reason}). Export again."
            ) from None

    def prepare(self, signature: str, inputs: Arrays) -> tuple[str, Arrays]:
        """Return the inputs as they are: everything is inside the graph."""
        return signature, inputs

    def run(self, function: str, inputs: Arrays) -> Arrays:
        """Run the signature `function`."""
        specs = self.signatures[function].inputs
        with _blaming_the_inputs():
            tensors = {
                name: tf.constant(
                    array.tolist() if specs[name].is_text else array, specs[name].dtype
                )
                for name, array in inputs.items()
            }
            outputs = self._functions[function](**tensors)
            return {name: tensor.numpy() for name, tensor in outputs.items()}

    def finish(self, signature: str, outputs: Arrays) -> Arrays:
        """Return the outputs as they are."""
        return outputs


class PreparedRuntime:
    """A file that is fed what `data.pixels` prepared, so images of all sizes make one batch.

    What the file cannot answer, as `explain`, the SavedModel does.

    Args:
        name: Of the runtime and the file.
        compute: float32 `(n, s, s, 3)`, normalised -> float32 `(n, classes)`, probabilities.
        whole: The SavedModel.
    """

    prepares = True

    def __init__(
        self, name: str, compute: Callable[[np.ndarray], np.ndarray], whole: TensorFlowRuntime
    ) -> None:
        self.name = name
        self.contract = whole.contract
        self.signatures = whole.signatures
        self._compute = compute
        self._whole = whole
        self._names = np.array([label.encode() for label in self.contract.classes], object)
        preprocessing = self.contract.preprocessing
        self._from_bytes = tf.function(
            lambda contents: pixels.prepare(contents, preprocessing),
            input_signature=[tf.TensorSpec((), tf.string)],
        )
        self._from_pixels = tf.function(
            lambda images: pixels.prepare_pixels(images, preprocessing),
            input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)],
        )

    def prepare(self, signature: str, inputs: Arrays) -> tuple[str, Arrays]:
        """Decode, resize and normalise, unless the signature is none of prediction."""
        names = set(inputs)
        if names == {"images"}:
            with _blaming_the_inputs():
                images = self._from_pixels(tf.constant(inputs["images"])).numpy()
            return PREPARED, {"images": images, "ok": np.ones(len(images), bool)}
        if names == {"image_bytes"}:
            return self._decoded(inputs["image_bytes"])
        if self.signatures[signature].method == CLASSIFY and names == {"inputs"}:
            return self._decoded([image_of_example(text) for text in inputs["inputs"]])
        return signature, inputs

    def _decoded(self, contents: Any) -> tuple[str, Arrays]:
        size = self.contract.preprocessing.image_size
        images = np.zeros((len(contents), size, size, 3), np.float32)
        ok = np.zeros(len(contents), bool)
        for k, content in enumerate(contents):
            with contextlib.suppress(tf.errors.InvalidArgumentError):
                images[k] = self._from_bytes(tf.constant(content)).numpy()
                ok[k] = True
        return PREPARED, {"images": images, "ok": ok}

    def run(self, function: str, inputs: Arrays) -> Arrays:
        """Compute what was prepared; images that could not be take no time."""
        if function != PREPARED:
            return self._whole.run(function, inputs)
        ok, images = inputs["ok"], inputs["images"]
        scores = np.zeros((len(ok), len(self._names)), np.float32)
        if ok.any():
            scores[ok] = self._compute(images if ok.all() else images[ok])
        best, score = scores.argmax(axis=1), scores.max(axis=1)
        threshold = self.contract.threshold
        return {
            "label": np.where(ok, self._names[best], b""),
            "score": score,
            "labels": np.broadcast_to(self._names, scores.shape),
            "scores": scores,
            "ok": ok,
            "abstain": ~ok | (score < threshold if threshold is not None else False),
        }

    def finish(self, signature: str, outputs: Arrays) -> Arrays:
        """Keep what the signature promises; `classes` of classify are the labels."""
        promised = self.signatures[signature].outputs
        known = outputs | ({"classes": outputs["labels"]} if "labels" in outputs else {})
        return {name: known[name] for name in promised}


def onnx_compute(path: Path, size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Load an ONNX file in ONNX Runtime, entered at the tensor `prepared`.

    Raises:
        ResourceError: A package is missing.
        ExportError: The file has no such tensor, or does not load.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise _missing("ONNX Runtime", error, "onnx") from None
    try:
        model = onnx.load(str(path))
        session = onnxruntime.InferenceSession(
            _cut(onnx, model, size).SerializeToString(), _onnx_options(onnxruntime)
        )
    except Exception as error:
        raise _unusable(path, error) from None

    def compute(images: np.ndarray) -> np.ndarray:
        (scores,) = session.run(["scores"], {PREPARED: images})
        return np.asarray(scores)

    return compute


def _onnx_options(onnxruntime: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    # Idle threads that spin would take the cores that decode the next images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def _cut(onnx: Any, model: Any, size: int) -> Any:
    """Keep what lies between `prepared` and `scores`."""
    shape = ["batch", size, size, 3]
    entry = onnx.helper.make_tensor_value_info(PREPARED, onnx.TensorProto.FLOAT, shape)
    makers = {name: node for node in model.graph.node for name in node.output}
    if PREPARED not in makers:
        raise KeyError(f"no tensor {PREPARED!r}")
    kept, wanted = set(), [output.name for output in model.graph.output]
    while wanted:
        name = wanted.pop()
        if name == PREPARED or name not in makers or id(makers[name]) in kept:
            continue
        kept.add(id(makers[name]))
        wanted += makers[name].input
    nodes = [node for node in model.graph.node if id(node) in kept]
    used = {name for node in nodes for name in node.input}
    if PREPARED not in used or "images" in used:
        raise KeyError(f"{PREPARED!r} does not separate the scores from the images")
    initializers = [tensor for tensor in model.graph.initializer if tensor.name in used]
    graph = onnx.helper.make_graph(
        nodes, "prepared", [entry], list(model.graph.output), initializers
    )
    return onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version
    )


def openvino_compute(path: Path, size: int, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    """Load an ONNX or OpenVINO file in OpenVINO, entered at the tensor `prepared`.

    Args:
        path: Of `model.onnx` or `model.xml`.
        size: Side of the model input, in pixels.
        precision: "f32", or "auto" for what the processor is quickest at.

    Raises:
        ResourceError: A package is missing.
        ExportError: The file has no such tensor, or does not load.
    """
    try:
        import openvino as ov
        from openvino import opset13
    except ImportError as error:
        raise _missing("OpenVINO", error, "openvino") from None
    try:
        core = ov.Core()
        model = core.read_model(str(path))
        inner = next(
            output
            for op in model.get_ordered_ops()
            for output in op.outputs()
            if PREPARED in output.get_names()
        )
        entry = opset13.parameter([-1, size, size, 3], ov.Type.f32, name=PREPARED)
        for reader in inner.get_target_inputs():
            reader.replace_source_output(entry.output(0))
        cut = ov.Model(model.get_results(), [entry], "prepared")
        hints = {"PERFORMANCE_HINT": "LATENCY"}
        if precision != "auto":
            hints["INFERENCE_PRECISION_HINT"] = precision
        compiled = core.compile_model(cut, "CPU", hints)
    except Exception as error:
        raise _unusable(path, error) from None
    request = compiled.create_infer_request()

    def compute(images: np.ndarray) -> np.ndarray:
        result = request.infer({0: images}, share_inputs=True)
        return np.array(result[compiled.output(0)])

    return compute


def image_of_example(serialized: bytes) -> bytes:
    """Return the image of a serialised `tf.train.Example`; b"" where there is none."""
    try:
        features = tf.train.Example.FromString(serialized).features.feature
    except Exception:
        return b""
    for name in ("image_bytes", "image/encoded"):
        if name in features and features[name].bytes_list.value:
            return bytes(features[name].bytes_list.value[0])
    return b""


def example_of_image(contents: bytes) -> bytes:
    """Return a serialised `tf.train.Example` that holds an image."""
    example = tf.train.Example()
    example.features.feature["image_bytes"].bytes_list.value.append(contents)
    serialized: bytes = example.SerializeToString()
    return serialized


@contextlib.contextmanager
def _blaming_the_inputs() -> Iterator[None]:
    """Tell faults of the inputs from faults of the server."""
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError) as error:
        raise invalid(_first_line(error)) from None
    except tf.errors.ResourceExhaustedError as error:
        raise RequestError(Status.UNAVAILABLE, _first_line(error), retry_after_s=1) from None


def _first_line(error: Any) -> str:
    return (str(error.message).splitlines() or ["invalid input"])[0][:300]


def _missing(what: str, error: ImportError, extra: str) -> ResourceError:
    return ResourceError(
        f"The runtime {what} needs a package that is not installed. Received: {error.name!r} "
        f"missing. Install it: pip install 'kresnet[{extra}]'"
    )


def _unusable(path: Path, error: Exception) -> ExportError:
    reason = (str(error).splitlines() or [repr(error)])[0][:200]
    return ExportError(
        f"The file must load in its runtime. Received: {path} ({reason}). Export again."
    )
