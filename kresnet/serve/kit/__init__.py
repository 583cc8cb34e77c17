"""What other servers need to serve an export: TensorFlow Serving, Docker, Kubernetes, KServe.

The templates beside this file are what is written, with `$name` where a value comes in. They say
in comments why each value is what it is.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import textwrap
from importlib import resources
from pathlib import Path
from string import Template
from typing import Final

import yaml

from kresnet.errors import ConfigError, ExportError, ResourceError
from kresnet.export.contract import Contract

IMAGE: Final = "tensorflow/serving:2.20.0"
"""The newest release, https://github.com/tensorflow/serving/issues/4129."""

FILES: Final = (
    "models.config",
    "batching.config",
    "monitoring.config",
    "docker-compose.yaml",
    "Dockerfile",
    "kubernetes.yaml",
    "kserve.yaml",
)

_MIB: Final = 2**20
_DECODED_PHOTO_MIB: Final = 36  # twelve megapixels of three bytes
_DECODED_AT_A_TIME: Final = 8  # images of a batch, in the graph of an export


def write_kit(export: Path, directory: Path, *, cpus: int = 4, max_batch: int = 32) -> list[Path]:
    """Write the files that serve an export elsewhere.

    Args:
        export: Folder of an export, as "saved_models/flowers": its newest version is served and
            newer ones follow. Or one version of it, which then is the only one.
        directory: Where to write; made if need be. "-" prints to standard output instead.
        cpus: Cores that a server may use.
        max_batch: Images that a server computes at a time.

    Returns:
        The files written, in the order of `FILES`; none when printing.

    Raises:
        ConfigError: `cpus` or `max_batch` is below one.
        ExportError: There is no readable export.
        ResourceError: The folder cannot be written.
    """
    texts = kit(export, cpus=cpus, max_batch=max_batch)
    if str(directory) == "-":
        for name, text in texts.items():
            sys.stdout.write(f"# ---------- {name}\n{text}\n")
        return []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (directory / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResourceError(
            f"The folder for the files must be writable. Received: {error}. Choose another."
        ) from error
    return [directory / name for name in texts]


def kit(export: Path, *, cpus: int = 4, max_batch: int = 32) -> dict[str, str]:
    """Return the files of `write_kit`, each name with its text."""
    for name, value in (("cpus", cpus), ("max_batch", max_batch)):
        if value < 1:
            raise ConfigError(f"`{name}` must be at least 1. Received: {name}={value}.")
    is_version = (export / "saved_model.pb").is_file()
    version_directory = export if is_version else _newest(export)
    version_directory = version_directory.resolve()
    values = _values(version_directory, is_version, cpus, max_batch)
    texts: dict[str, str] = {}
    for name in FILES:
        template = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
        texts[name] = Template(template).substitute(values)
        # kubernetes.yaml holds the three configurations that come before it.
        values[name.replace(".", "_")] = textwrap.indent(texts[name].rstrip("\n"), "    ")
    return texts


def model_name(name: str) -> str:
    """Return the name that an export is served under: letters, digits and . _ - only.

    TensorFlow Serving compares the path of a request as it comes, without decoding %20.
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def resource_name(name: str) -> str:
    """Return `name` as a DNS label (RFC 1035), which is what Kubernetes allows for a service."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    label = label if label[:1].isalpha() else f"m-{label}".strip("-")
    return label[:50].strip("-")  # what Kubernetes makes of it must stay below 64


def memory_mib(
    parameter_bytes: int, image_size: int, *, cpus: int, max_batch: int
) -> tuple[int, int]:
    """Estimate the memory of a server.

    The figures were measured with TensorFlow 2.21 in Python, exports of ResNet-18 and ResNet-50
    at 224 pixels, two threads: loading took 85 to 110 MiB and 1.0 to 1.3 times the parameters,
    each batch that was computed at the same time 9 MiB an image. What TensorFlow Serving itself
    takes is allowed for with 512 MiB and was not measured.

    Args:
        parameter_bytes: Of the weights.
        image_size: Side of the model input.
        cpus: Batches at a time.
        max_batch: Images in each.

    Returns:
        MiB to reserve, with two versions loaded as during a change, and MiB to allow, with
        photos of twelve megapixels being decoded by every thread as well.
    """
    version = 110 + 1.3 * parameter_bytes / _MIB
    batches = cpus * max_batch * 9 * (image_size / 224) ** 2
    reserve = 512 + 2 * version + batches
    photos = cpus * min(max_batch, _DECODED_AT_A_TIME) * _DECODED_PHOTO_MIB
    return _round_up(reserve), _round_up(reserve + photos)


def _values(directory: Path, is_version: bool, cpus: int, max_batch: int) -> dict[str, str]:
    contract = Contract.load(directory)
    version, home = directory.name, directory.parent
    model = model_name(home.name)
    parameter_bytes = sum(f.stat().st_size for f in (directory / "variables").glob("*.data-*"))
    size = contract.preprocessing.image_size
    request, limit = memory_mib(parameter_bytes, size, cpus=cpus, max_batch=max_batch)
    policy = f"specific {{ versions: {version} }}" if is_version else "latest { num_versions: 1 }"
    return {
        "model": model,
        "resource": resource_name(home.name),
        "version": version,
        "base_path": f"/models/{model}",
        "policy": f"model_version_policy {{ {policy} }}",
        "export_shell": shlex.quote(str(home)) if str(home).isprintable() else "EXPORT",
        # Compose replaces $NAME, and reads $$ as one $.
        "export_compose": _yaml_string(str(home).replace("$", "$$")),
        "image": IMAGE,
        "image_tag": IMAGE.rpartition(":")[2],
        "tensorflow": contract.versions.get("tensorflow", "2"),
        "summary": _summary(contract, version, parameter_bytes),
        "cpus": str(cpus),
        "max_batch": str(max_batch),
        "memory_request": str(request),
        "memory_limit": str(limit),
        "memory_reason": (
            f"An estimate from {parameter_bytes / 1e6:.0f} MB of parameters: two versions at a "
            f"change, {cpus} x {max_batch} images at work. Watch it, and adapt."
        ),
    }


def _summary(contract: Contract, version: str, parameter_bytes: int) -> str:
    """Return one line about the export, safe in any comment."""
    names = ", ".join(json.dumps(name, ensure_ascii=True) for name in contract.classes[:4])
    more = ", ..." if len(contract.classes) > 4 else ""
    size = contract.preprocessing.image_size
    return (
        f"Export {json.dumps(contract.name)}, version {version}: {contract.variant}, "
        f"{len(contract.classes)} classes ({names}{more}), {size} x {size} pixels, "
        f"{parameter_bytes / 1e6:.1f} MB of parameters."
    )


def _newest(home: Path) -> Path:
    found = home.iterdir() if home.is_dir() else ()
    versions = [p for p in found if re.fullmatch("[0-9]+", p.name) and p.is_dir()]
    if not versions:
        raise ExportError(
            "An export is a folder NAME or NAME/VERSION with a SavedModel. "
            f"Received: {str(home)!r}. `kresnet train` writes one under saved_models/."
        )
    return max(versions, key=lambda path: int(path.name))


def _yaml_string(text: str) -> str:
    dumped: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10**9)
    return dumped.strip()


def _round_up(mib: float, step: int = 128) -> int:
    return -int(-mib // step) * step
