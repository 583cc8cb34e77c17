"""Checkpoint files into arrays by name. What is in a file decides its format, not its name.

No file runs code by design of its format: torch pickles are read by `torch_file`, npz without
pickles, HDF5 without links to other files. A file that claims far more data than it has is refused.
HDF5's C library, though, can crash on a malformed file: verify the checksum of one from strangers.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kresnet.errors import WeightsError
from kresnet.zoo.torch_file import (
    LEGACY_MAGIC,
    Damaged,
    is_torch_program,
    read_torch_legacy,
    read_torch_zip,
)

# Compressed arrays may be this many times the size of their file, or 1 GiB whatever its size.
_MAX_EXPANSION = 100
_ALWAYS_ALLOWED_BYTES = 1024**3

_BY_NAME = (
    "Load it into the Keras model that wrote it and save that with `model.save('weights.h5')`, "
    "which stores every array by name."
)


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of a checkpoint.

    Formats: torch (zip and legacy), safetensors, npz, and Keras' legacy HDF5 ("model.h5").
    A state dict is found inside the usual wrappers of training scripts ("state_dict", "model");
    where there are averaged weights as well ("state_dict_ema", "model_ema"), it is those.
    The prefix "module." of data-parallel training is removed.

    Args:
        path: The file.

    Returns:
        Arrays by the name they have in the file; of an HDF5 file as "layer/variable". They are in
        the file's dtypes and layouts (bfloat16 as `ml_dtypes.bfloat16`), and may be read-only.

    Raises:
        WeightsError: There is no such file, its format is none of these, it is damaged, or it
            asks for more than arrays.
    """
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise WeightsError(
            f"The checkpoint must be a file. Received: path={str(path)!r}, which is {found}. "
            "Give the path of a .pth, .safetensors, .npz or .h5 file."
        )
    try:
        arrays = _reader(path)(path)
    except WeightsError:
        raise
    except Exception as error:  # a hostile file can fail its library in any way
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, Damaged) else error
        raise WeightsError(
            "The checkpoint must be whole and hold arrays by name. "
            f"Received: path={str(path)!r}, error={_one_line(reason)!r}. "
            "Download or copy it again, or save it anew as safetensors."
        ) from error
    return _without_module_prefix(arrays)


def _reader(path: Path) -> Callable[[Path], dict[str, np.ndarray]]:
    """Recognise the format."""
    with path.open("rb") as file:
        head = file.read(32)
    if head.startswith(b"PK"):
        return _zip_reader(path)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return _read_h5
    if LEGACY_MAGIC in head:
        return read_torch_legacy
    header_bytes = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header_bytes <= path.stat().st_size - 8:
        return _read_safetensors
    raise WeightsError(
        "The checkpoint must be a torch, safetensors, npz or Keras .h5 file. "
        f"Received: path={str(path)!r}, which begins with {head[:16]!r}. "
        "If it was downloaded, look whether it is an error page; else save it as safetensors."
    )


def _zip_reader(path: Path) -> Callable[[Path], dict[str, np.ndarray]]:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(is_torch_program(name) for name in names):
        return read_torch_zip
    if "model.weights.h5" in names:
        raise WeightsError(
            "The checkpoint must hold arrays by name; a .keras file stores them by position. "
            f"Received: path={str(path)!r}. {_BY_NAME}"
        )
    return _read_npz


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        _check_expansion(sum(entry.file_size for entry in archive.infolist()), path)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


def _read_h5(path: Path) -> dict[str, np.ndarray]:
    import h5py

    with h5py.File(path, "r") as file:
        root = _h5_child(file, "model_weights") if _h5_has(file, "model_weights") else file
        layers = _h5_names(root, "layer_names")
        if not layers and _h5_has(file, "layers"):
            raise WeightsError(
                "The checkpoint must hold arrays by name; Keras 3 .weights.h5 files store them by "
                f"position. Received: path={str(path)!r}. {_BY_NAME}"
            )
        datasets: dict[str, Any] = {}
        for layer in layers:
            group = _h5_child(root, layer)
            names = _h5_names(group, "weight_names")
            for name, short in zip(names, _short_names(layer, names), strict=True):
                if short in datasets:
                    raise Damaged(f"two arrays of the name {short!r}")
                datasets[short] = _h5_dataset(group, name)
        if not datasets:
            raise Damaged("it holds no arrays by name")
        sizes = (math.prod(d.shape) * d.dtype.itemsize for d in datasets.values())
        _check_expansion(sum(sizes), path)
        return {name: np.asarray(dataset[()]) for name, dataset in datasets.items()}


def _short_names(layer: str, names: list[str]) -> list[str]:
    """Name arrays "layer/variable", or, in the group of a nested model, by its inner layers."""
    paths = [name.removesuffix(":0").split("/") for name in names]
    variables = [path[-1] for path in paths]
    if len(set(variables)) == len(variables):
        return [f"{layer}/{variable}" for variable in variables]
    return ["/".join(path[-2:]) for path in paths]


def _h5_names(group: Any, attribute: str) -> list[str]:
    """Read a list of names; Keras splits a long one into `attribute0`, `attribute1`, ..."""
    if attribute in group.attrs:
        values = list(group.attrs[attribute])
    else:
        values = []
        while f"{attribute}{len(values)}" in group.attrs:
            values.append(group.attrs[f"{attribute}{len(values)}"])
        values = [value for part in values for value in part]
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _h5_has(group: Any, name: str) -> bool:
    return bool(group.id.links.exists(name.encode()))  # `name in group` would follow a link


def _h5_child(group: Any, path: str) -> Any:
    """Walk down `path` over real members only: a link may lead to any file of this machine."""
    import h5py

    for name in path.split("/"):
        if not _h5_has(group, name):
            raise Damaged(f"{path!r} is missing")
        if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
            raise Damaged(f"{path!r} is a link")
        group = group[name]
    return group


def _h5_dataset(group: Any, path: str) -> Any:
    """Find a dataset whose numbers are all in this file."""
    import h5py

    dataset = _h5_child(group, path)
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiub":
        raise Damaged(f"{path!r} is no array of numbers")
    if dataset.external or dataset.is_virtual:
        raise Damaged(f"the data of {path!r} is in another file")
    return dataset


def _check_expansion(total: int, path: Path) -> None:
    if total > max(_ALWAYS_ALLOWED_BYTES, _MAX_EXPANSION * path.stat().st_size):
        raise Damaged(f"it claims {total} bytes of arrays, far more than it can hold")


def _without_module_prefix(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Undo the naming of DataParallel; of an averaged model, also drop its counter."""
    averaged = {name: array for name, array in arrays.items() if name != "n_averaged"}
    if averaged and all(name.startswith("module.") for name in averaged):
        return {name.removeprefix("module."): array for name, array in averaged.items()}
    return arrays


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:300]
