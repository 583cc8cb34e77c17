"""What took long to compute, kept under a name that says everything it depends on.

The name of a file is a hash of all that decides its content: weights and layers, the bytes of the
images, preprocessing, augmentation, seed, numeric type, the code that computes and the machine. A
change of any of them is another name, so what is found is never stale; what is no longer asked for
is forgotten when room is needed. Every file ends with its checksum, and a damaged one is no file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np

import kresnet
from kresnet.data.items import Place, read_bytes
from kresnet.train.state import Circumstances

_CODE: Final = ("data", "train", "zoo")  # packages that take part in what is computed
_SETTINGS: Final = ("ONEDNN_", "DNNL_", "TF_ENABLE_", "NVIDIA_TF32")  # of the environment
_SUM: Final = 32  # bytes of a checksum
_BLOCK: Final = 2**20


class Kept:
    """A folder of arrays, a file for each key.

    Args:
        folder: Made when something is first kept.
        most: Bytes from which on what was not asked for the longest is forgotten; None never does.
    """

    def __init__(self, folder: Path, *, most: int | None = None) -> None:
        self._folder, self._most = folder, most

    def find(self, key: str, shape: tuple[int, int]) -> np.ndarray | None:
        """Return what is kept under a key, uint8 of that shape; None if nothing whole is.

        It is read from the file where it is looked at, and takes no memory of the process.
        """
        path = self._folder / key
        try:
            with path.open("rb") as file:
                total, left = sha256(key.encode()), shape[0] * shape[1]
                if os.fstat(file.fileno()).st_size != left + _SUM:
                    raise ValueError
                while left:
                    block = file.read(min(left, _BLOCK))
                    total.update(block)
                    left -= len(block)
                if file.read() != total.digest():
                    raise ValueError
                os.utime(path)
                return np.memmap(file, np.uint8, "r", shape=shape)
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            with suppress(OSError):
                path.unlink()
            return None

    @contextmanager
    def keeping(self, key: str) -> Iterator[Callable[[np.ndarray], None]]:
        """Give what keeps one array after the other under a key, whole or, on an error, not at all.

        Raises:
            OSError: The folder cannot be written, or the disk is full.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._folder / f".{key}.{os.getpid()}"
        total = sha256(key.encode())
        try:
            with partial.open("wb") as file:

                def write(part: np.ndarray) -> None:
                    contents = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
                    total.update(contents)
                    file.write(contents)

                yield write
                file.write(total.digest())
            partial.replace(self._folder / key)
        finally:
            partial.unlink(missing_ok=True)
        self._forget(key)

    def _forget(self, latest: str) -> None:
        """Make room, if there is too much, by removing what was not used the longest."""
        if self._most is None:
            return
        known = {path: path.stat() for path in self._folder.iterdir()}
        total = sum(one.st_size for one in known.values())
        for path in sorted(known, key=lambda path: known[path].st_mtime_ns):
            if total <= self._most:
                return
            if path.name != latest:
                path.unlink(missing_ok=True)
                total -= known[path].st_size


def key_of(**parts: Any) -> str:
    """Return the name of what follows from the parts, which are JSON types.

    The code that computes and the machine are a part of every name.
    """
    known = {
        "parts": parts,
        "code": _code(),
        "machine": asdict(Circumstances.here()),
        "devices": _devices(),
        "settings": {k: v for k, v in os.environ.items() if k.startswith(_SETTINGS)},
        "keras": keras.__version__,
    }
    return sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def network_of(model: keras.Model) -> str:
    """Return a hash of what a model computes: its layers, their settings and their weights."""
    total = sha256(f"{model.inputs[0].shape} {model.outputs[0].shape}".encode())
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue  # its name is counted through the process
        settings = {k: v for k, v in layer.get_config().items() if k != "trainable"}
        total.update(json.dumps([type(layer).__name__, settings], default=str).encode())
        for variable in layer.weights:
            value = keras.ops.convert_to_numpy(variable)
            total.update(f"{variable.name} {value.dtype} {value.shape}".encode())
            total.update(np.ascontiguousarray(value).data)
    return total.hexdigest()


def contents_of(images: Sequence[Place]) -> list[str]:
    """Return the SHA-256 of images as they are at this moment, whatever an index says of them.

    Raises:
        OSError: One cannot be read.
    """
    return [sha256(read_bytes(image)).hexdigest() for image in images]


@cache
def _code() -> str:
    """Return a hash of the modules that take part."""
    home, total = Path(kresnet.__file__).parent, sha256(kresnet.__version__.encode())
    for file in sorted(file for part in _CODE for file in (home / part).rglob("*.py")):
        total.update(file.read_bytes())
    return total.hexdigest()


def _devices() -> list[str]:
    import tensorflow as tf

    return [
        str(tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name))
        for gpu in tf.config.list_physical_devices("GPU")
    ]
