"""The files that an export can hold, and what each of them needs to be made and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType
from typing import Final

from kresnet.errors import ConfigError, ResourceError
from kresnet.export.reference import Input


@dataclass(frozen=True, slots=True)
class Format:
    """One file of an export.

    Attributes:
        file: Its path in the version's directory.
        input: What is to be fed to it.
        runtime: What checks it, a key of `replay.FILES`.
        modules: What must be installed.
        extra: The extra of kresnet that installs them.
        int8_file: Of the same in 8 bits; "" where there is none.
    """

    file: str
    input: Input
    runtime: str
    modules: tuple[str, ...] = ()
    extra: str = ""
    int8_file: str = ""

    @property
    def missing(self) -> list[str]:
        """What is not installed of `modules`."""
        return [module for module in self.modules if find_spec(module) is None]


FORMATS: Final = MappingProxyType(
    {
        "onnx": Format(
            file="model.onnx",
            input="pixels",
            runtime="onnxruntime",
            modules=("tf2onnx", "onnx", "onnxruntime"),
            extra="onnx",
            int8_file="model.int8.onnx",
        ),
        "openvino": Format(
            file="openvino/model.xml",
            input="pixels",
            runtime="openvino",
            modules=("openvino", "tf2onnx", "onnx"),
            extra="openvino",
        ),
        "litert": Format(
            file="model.tflite",
            input="prepared pixels",
            runtime="litert",
            modules=("ai_edge_litert",),
            extra="litert",
            int8_file="model.int8.tflite",
        ),
        "keras": Format(file="model.keras", input="prepared pixels", runtime="keras"),
    }
)
"""What can stand beside the SavedModel, by the name that `kresnet export --formats` takes."""


def choose_formats(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the formats to make, in order, and a line for each that cannot be made.

    Args:
        names: Keys of `FORMATS`; "saved_model", which every export has, is passed over; "all" is
            what this machine has the packages for.

    Raises:
        ConfigError: A name is none of these.
        ResourceError: A format asked for by name needs a package that is not installed.
    """
    unknown = [name for name in names if name not in (*FORMATS, "saved_model", "all")]
    if unknown or not names:
        raise ConfigError(
            f"`--formats` must be all, or some of saved_model, {', '.join(FORMATS)} with commas "
            f"between. Received: {', '.join(map(repr, unknown)) or 'none'}."
        )
    chosen, hints = [], []
    for name, kind in FORMATS.items():
        if name not in names and "all" not in names:
            continue
        if not kind.missing:
            chosen.append(name)
            continue
        hint = (
            f"{kind.file} needs {' and '.join(kind.missing)}, not installed here. "
            f"Install: pip install 'kresnet[{kind.extra}]'"
        )
        if name in names:
            raise ResourceError(f"{hint}. Received: --formats {','.join(names)}.")
        hints.append(hint)
    return tuple(chosen), tuple(hints)
