"""Write OpenVINO's own format from an ONNX file: the same inputs, outputs and inner names.

The weights stay float32. On a processor with AMX or AVX512-BF16, OpenVINO computes in bfloat16
by itself; `compile_model(..., {"INFERENCE_PRECISION_HINT": "f32"})` keeps it from that.
"""

from __future__ import annotations

from pathlib import Path


def write_openvino(onnx_file: Path, path: Path) -> None:
    """Convert an ONNX file to `path`, an .xml, and the .bin beside it."""
    import openvino

    path.parent.mkdir(exist_ok=True)
    model = openvino.Core().read_model(onnx_file)
    openvino.save_model(model, path, compress_to_fp16=False)
