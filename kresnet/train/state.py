"""Exact, crash-safe state of a training: all variables and where it stood.

A state is a directory that appears whole or not at all: it is written under another name, synced
to disk and renamed. A process killed at any moment leaves the previous state intact. Every file is
in SHA256SUMS (`sha256sum -c` reads it, too), and the newest two states are kept: where a disk has
damaged the last one, the one before it is gone back to.

What a resumed training needs to be the same bit for bit is written in `Circumstances`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from kresnet.errors import ResourceError
from kresnet.machine import cores, processor

_PREFIX: Final = "step-"
_SUMS: Final = "SHA256SUMS"
_FILES: Final = ("variables.safetensors", "meta.json")
_KEPT: Final = 2


def save_state(directory: Path, step: int, variables: Sequence[Any], meta: dict[str, Any]) -> None:
    """Write the state of `step`; keep the one before it and remove the older ones.

    Args:
        directory: Where a run keeps its states.
        step: Updates done so far.
        variables: Keras variables of the model, its random seeds and the optimizer.
        meta: What else resuming needs, as JSON types.

    Raises:
        ResourceError: The disk is full or not writable; the previous states are untouched.
    """
    final = directory / f"{_PREFIX}{step:08d}"
    partial = directory / f".{final.name}.partial"
    try:
        for remains in directory.glob(f".{_PREFIX}*.partial"):
            shutil.rmtree(remains, ignore_errors=True)
        partial.mkdir(parents=True)
        values = (np.asarray(keras.ops.convert_to_numpy(v), order="C") for v in variables)
        arrays = dict(zip(_keys(variables), values, strict=True))
        save_file(arrays, partial / _FILES[0])
        (partial / _FILES[1]).write_text(json.dumps(meta), encoding="utf-8")
        (partial / _SUMS).write_text(_sums(partial), encoding="ascii")
        for file in partial.iterdir():
            _sync(file)
        _sync(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync(directory)
    except (OSError, SafetensorError) as error:  # the latter for what fails in save_file
        shutil.rmtree(partial, ignore_errors=True)
        raise ResourceError(
            f"The training state must be writable. Received: {error}. "
            f"Make room or rights in {directory} and resume; the last saved state is intact."
        ) from error
    # Of a training that went back, states of later steps are of a path that was not gone on with.
    others = sorted((path for path in _states(directory) if path != final), reverse=True)
    before = [path for path in others if path < final]
    for old in {*others} - {*before[: _KEPT - 1]}:
        shutil.rmtree(old, ignore_errors=True)


def load_state(
    directory: Path, tell: Callable[[str], None] = lambda text: None
) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Return arrays for `restore` and the meta data of the newest undamaged state.

    Args:
        directory: Where a run keeps its states.
        tell: Called with a line about each state that is damaged.

    Returns:
        None if no state was ever saved.

    Raises:
        ResourceError: There are states, and each is damaged.
    """
    states = sorted(_states(directory), reverse=True)
    damaged = ""
    for state in states:
        try:
            if (state / _SUMS).read_text(encoding="ascii") != _sums(state):
                raise ValueError("its checksums do not match")
            meta = json.loads((state / _FILES[1]).read_text(encoding="utf-8"))
            return load_file(state / _FILES[0]), meta
        except (OSError, ValueError, SafetensorError) as error:
            damaged = f"{state.name} is damaged ({_brief(error)})"
            if state != states[-1]:
                tell(f"{damaged}: going back to the state before it")
    if states:
        raise ResourceError(
            f"A saved state must be whole to be resumed. Received: {len(states)} in {directory}, "
            f"and {damaged}. Remove {directory} to train from the beginning."
        )
    return None


def restore(variables: Sequence[Any], arrays: dict[str, np.ndarray]) -> None:
    """Give every variable its saved value.

    Raises:
        ResourceError: The state is of another model or optimizer.
    """
    keys = _keys(variables)
    wrong = sorted(set(keys) ^ set(arrays))
    if wrong:
        raise ResourceError(
            "The saved state must hold exactly this run's variables. "
            f"Received: {len(wrong)} that differ, as {wrong[0]!r}. "
            "Resume with the kresnet version that saved it."
        )
    for key, variable in zip(keys, variables, strict=True):
        variable.assign(arrays[key])


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the last bits of a training depend on, beside the run.

    Sums of floating point numbers depend on their order. Measured with TensorFlow 2.21 on a
    processor: two trainings are equal bit for bit with the same number of threads an operation,
    one or two, without `enable_op_determinism`; how many operations run side by side is of no
    account. Another number of threads an operation, or other instructions (AVX2 in place of the
    processor's best), changes the last bits.

    Attributes:
        threads: Threads that share one operation.
        processor: Its model, as Linux names it.
        tensorflow: Version.
        devices: That share each batch, and sum its gradient.
    """

    threads: int
    processor: str
    tensorflow: str
    devices: int = 1

    @classmethod
    def here(cls) -> Circumstances:
        """Return those of this process."""
        import tensorflow as tf

        threads = tf.config.threading.get_intra_op_parallelism_threads() or int(
            os.environ.get("TF_NUM_INTRAOP_THREADS", "0")
        )
        return cls(threads or cores(), processor(), tf.__version__)

    def differences(self, saved: dict[str, Any]) -> list[str]:
        """Return what is not as it was saved by `asdict`, as "threads 2, now 4"."""
        return [
            f"{name} {saved[name]}, now {value}"
            for name, value in asdict(self).items()
            if name in saved and saved[name] != value
        ]


def _states(directory: Path) -> list[Path]:
    return list(directory.glob(f"{_PREFIX}*"))


def _sums(directory: Path) -> str:
    """Return the contents of SHA256SUMS for the files of a state."""
    lines = []
    for name in _FILES:
        with (directory / name).open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)


def _brief(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{Path(error.filename).name} is missing"
    return str(error)


def _keys(variables: Sequence[Any]) -> list[str]:
    """Name variables by position: Keras counts some paths, as "adam_2", through a process."""
    return [f"{k:05d}/{variable.name}" for k, variable in enumerate(variables)]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
