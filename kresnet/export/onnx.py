"""Write ONNX: uint8 images of any size in, scores out, with the preprocessing inside.

It is made of two halves that meet in the tensor `prepared`, float32 `(batch, s, s, 3)`: a server
that has prepared images by itself can cut there (`onnx.utils.extract_model`) and batch images of
different sizes, and quantization leaves the first half alone.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import keras
import tensorflow as tf

from kresnet.export.contract import Contract
from kresnet.export.resampling import prepare_by_matrices

OPSET: Final = 17  # tf2onnx 1.17 ends at 18, which turns average pooling into slower operations


def preparation(contract: Contract) -> Any:
    """Return the half from `images` to `prepared`, an onnx.ModelProto."""
    spec = tf.TensorSpec((None, None, None, 3), tf.uint8, "images")
    return _converted(
        lambda images: {"prepared": prepare_by_matrices(images, contract.preprocessing)},
        spec,
        {"images": ("batch", "height", "width"), "prepared": ("batch",)},
    )


def network(folded: keras.Model, contract: Contract) -> Any:
    """Return the half from `prepared` to `scores`, an onnx.ModelProto.

    Args:
        folded: Gives logits, in float32 with its norms folded.
        contract: Preprocessing and temperature.
    """
    size = contract.preprocessing.image_size
    return _converted(
        lambda prepared: {
            "scores": tf.nn.softmax(folded(prepared, training=False) / contract.temperature)
        },
        tf.TensorSpec((None, size, size, 3), tf.float32, "prepared"),
        {"prepared": ("batch",), "scores": ("batch",)},
    )


def write_onnx(first: Any, second: Any, contract: Contract, path: Path) -> None:
    """Join the halves, check the whole and write it.

    Args:
        first: From `preparation`.
        second: From `network`, or that quantized.
        contract: Goes into the file's metadata, labels included.
        path: The file.
    """
    import onnx

    first = onnx.compose.add_prefix(first, "prepare/", rename_inputs=False, rename_outputs=False)
    first.ir_version = second.ir_version = max(first.ir_version, second.ir_version)
    whole = onnx.compose.merge_models(
        first, second, io_map=[("prepared", "prepared")], name=contract.variant
    )
    opsets = {opset.domain: opset.version for opset in whole.opset_import}
    del whole.opset_import[:]  # it has those of both halves
    whole.opset_import.extend(onnx.helper.make_opsetid(*opset) for opset in opsets.items())
    whole.producer_name = "kresnet"
    onnx.helper.set_model_props(whole, {"kresnet": contract.model_dump_json()})
    onnx.checker.check_model(whole, full_check=True)
    onnx.save(whole, path)


def _converted(
    function: Callable[[tf.Tensor], dict[str, tf.Tensor]],
    spec: tf.TensorSpec,
    dimensions: dict[str, tuple[str, ...]],
) -> Any:
    """Convert a function of one tensor and name the dimensions that are free."""
    import tf2onnx

    # A dictionary gives the outputs their names; a bare tensor would be called "Identity:0".
    traced = tf.function(function, input_signature=[spec], autograph=False)
    with _quiet():
        model, _ = tf2onnx.convert.from_function(traced, input_signature=[spec], opset=OPSET)
    for value in (*model.graph.input, *model.graph.output):
        for place, name in enumerate(dimensions[value.name]):
            value.type.tensor_type.shape.dim[place].dim_param = name
    del model.graph.value_info[:]  # they name the free dimensions otherwise
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what tf2onnx and TensorFlow say of each other's innards."""
    loggers = [logging.getLogger(name) for name in ("tf2onnx", "tensorflow")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
