"""Exact, crash-safe state of a training: all variables and where it stood.

A state is a directory that appears whole or not at all: it is written under another name, synced
to disk and renamed. A process killed at any moment leaves the previous state intact.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from kresnet.errors import ResourceError

_PREFIX = "step-"


def save_state(directory: Path, step: int, variables: Sequence[Any], meta: dict[str, Any]) -> None:
    """Write the state of `step` and remove the older ones.

    Args:
        directory: Where a run keeps its states.
        step: Updates done so far.
        variables: Keras variables of the model, its random seeds and the optimizer.
        meta: What else resuming needs, as JSON types.

    Raises:
        ResourceError: The disk is full or not writable; the previous state is untouched.
    """
    final = directory / f"{_PREFIX}{step:08d}"
    partial = directory / f".{final.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        values = (np.asarray(keras.ops.convert_to_numpy(v), order="C") for v in variables)
        arrays = dict(zip(_keys(variables), values, strict=True))
        save_file(arrays, partial / "variables.safetensors")
        (partial / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
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
    for old in directory.glob(f"{_PREFIX}*"):
        if old != final:
            shutil.rmtree(old, ignore_errors=True)


def load_state(directory: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Return arrays for `restore` and the meta data of the last state, if there is one."""
    states = sorted(directory.glob(f"{_PREFIX}*"))
    if not states:
        return None
    meta = json.loads((states[-1] / "meta.json").read_text(encoding="utf-8"))
    return load_file(states[-1] / "variables.safetensors"), meta


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


def _keys(variables: Sequence[Any]) -> list[str]:
    """Name variables by position: Keras counts some paths, as "adam_2", through a process."""
    return [f"{k:05d}/{variable.name}" for k, variable in enumerate(variables)]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
