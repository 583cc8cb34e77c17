"""What the machine can do in hardware, and the precision that follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Precision = Literal["auto", "float32", "bfloat16", "float16"]

_POLICIES = {
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
    "float16": "mixed_float16",
}


def resolve_precision(precision: Precision) -> Literal["float32", "bfloat16", "float16"]:
    """Return the precision to compute in.

    "auto" is bfloat16 where the processor has tiles for it (AMX) or the GPU is of compute
    capability 8.0 or newer, float16 on GPUs of 7.x, and float32 elsewhere. AVX-512 BF16 alone is
    not enough: with it, a step of a ResNet-50 in bfloat16 takes 1.3 times as long as in float32.
    """
    if precision != "auto":
        return precision
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "bfloat16" if "amx_bf16" in _cpu_flags() else "float32"
    capability = min(
        tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
        for gpu in gpus
    )
    if capability >= (8, 0):
        return "bfloat16"
    return "float16" if capability >= (7, 0) else "float32"


def policy_name(precision: Literal["float32", "bfloat16", "float16"]) -> str:
    """Return the Keras policy that computes in `precision` and keeps variables in float32."""
    return _POLICIES[precision]


def has_gpu() -> bool:
    """Return whether TensorFlow sees a GPU."""
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="ignore")
    except OSError:
        return set()  # not Linux: no cheap and sure way to know
    return {
        flag
        for line in text.splitlines()
        if line.startswith("flags")
        for flag in line.split(":", 1)[1].split()
    }
