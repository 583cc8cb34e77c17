"""Checkpoint files into arrays by name. What is in a file decides its format, not its name.

No file runs code by design of its format: torch pickles are read by `torch_file`, npz without
pickles, HDF5 without links to other files and without filters that would be loaded as plugins.
A file that claims far more data than it has is refused before memory is taken for it.
HDF5's C library, though, can crash on a malformed file: verify the checksum of one from strangers.
"""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kresnet.errors import WeightsError
from kresnet.zoo import int8
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

# What HDF5 filters may do to data: deflate, shuffle, checksum, LZF. Others would be loaded as code.
_HDF5_FILTERS = {1, 2, 3, 32000}

_BY_NAME = (
    "Load it into the Keras model that wrote it and save that with `model.save('weights.h5')`, "
    "which stores every array by name."
)


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of a checkpoint.

    Formats: torch (zip and legacy), safetensors, also of our int8 kernels, npz, and Keras' legacy
    HDF5 ("model.h5").
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
    with reading(path):
        return _without_module_prefix(_reader(path)(path))


class StoredLayer(NamedTuple):
    """A layer in a file that keeps arrays by position.

    Attributes:
        name: Its name, or None where the file does not say.
        arrays: Its variables in their order.
    """

    name: str | None
    arrays: tuple[np.ndarray, ...]


def read_positions(path: Path) -> dict[str, StoredLayer]:
    """Read a Keras 3 .weights.h5 file, which keeps arrays as "layers/conv2d_3/vars/0".

    Only the layers of the outermost model are read.

    Args:
        path: The file.

    Returns:
        The layers that have arrays, as "conv2d_3".

    Raises:
        WeightsError: The file is damaged or asks for more than arrays.
    """
    import h5py

    with reading(path), h5py.File(path, "r") as file:
        layers = _h5_child(file, "layers")
        names: dict[str, str | None] = {}
        datasets: dict[str, list[Any]] = {}
        for layer in layers.id:  # names in bytes
            group = _h5_child(layers, layer.decode())
            if not _h5_has(group, "vars"):
                continue
            variables = _h5_child(group, "vars")
            found = [_h5_dataset(variables, str(i)) for i in range(len(variables))]
            if found:
                name = variables.attrs.get("name")
                names[layer.decode()] = name if isinstance(name, str) else None
                datasets[layer.decode()] = found
        _check_size(
            {f"{k}/{i}": d for k, found in datasets.items() for i, d in enumerate(found)}, path
        )
        return {
            layer: StoredLayer(names[layer], tuple(np.asarray(d[()]) for d in found))
            for layer, found in datasets.items()
        }


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while reading `path` into a WeightsError."""
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:  # a hostile file can fail its library in any way
        reason = f"{type(error).__name__}: {error}" if not isinstance(error, Damaged) else error
        raise WeightsError(
            "The checkpoint must be whole and hold arrays by name. "
            f"Received: path={str(path)!r}, error={_one_line(reason)!r}. "
            "Download or copy it again, or save it anew as safetensors."
        ) from error


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
        for entry in archive.infolist():
            _check_npy(archive, entry)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _check_npy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Refuse an array whose header claims more than there is: NumPy would allocate it first."""
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise Damaged(f"{entry.filename!r} is of an unknown version of the npy format")
        old = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise Damaged(f"{entry.filename!r} is a pickle, and NumPy runs with allow_pickle=False")
        if any(side < 0 for side in shape) or (
            math.prod(shape) * dtype.itemsize > entry.file_size - file.tell()
        ):
            raise Damaged(f"{entry.filename!r} claims more numbers than it has")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        is_int8 = (file.metadata() or {}).get("format") == int8.FORMAT
    return int8.expanded(arrays) if is_int8 else arrays


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
        _check_size(datasets, path)
        return {name: np.asarray(dataset[()]) for name, dataset in datasets.items()}


def _short_names(layer: str, names: list[str]) -> list[str]:
    """Name arrays "layer/variable", or, in the group of a nested model, by its inner layers.

    Where inner layers share their names, arrays have the whole path that leads to them.
    """
    paths = [name.removesuffix(":0").split("/") for name in names]
    variables = [path[-1] for path in paths]
    if len(set(variables)) == len(variables):
        return [f"{layer}/{variable}" for variable in variables]
    inner = ["/".join(path[-2:]) for path in paths]
    if len(set(inner)) == len(inner):
        return inner
    return ["/".join(path if layer in path else [layer, *path]) for path in paths]


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
    creation = dataset.id.get_create_plist()
    filters = {creation.get_filter(i)[0] for i in range(creation.get_nfilters())}
    if not filters <= _HDF5_FILTERS:
        raise Damaged(f"{path!r} is compressed in an unusual way")
    return dataset


def _check_size(datasets: Mapping[str, Any], path: Path) -> None:
    sizes = (math.prod(d.shape) * d.dtype.itemsize for d in datasets.values())
    _check_expansion(sum(sizes), path)


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
