"""Write a SavedModel that TensorFlow Serving polls: bytes in, labels and scores out.

Layout: `NAME/VERSION/` with the integer versions that TensorFlow Serving expects. A version is
written under a hidden name beside it, checked, and renamed, so a server never sees half of one.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import keras
import tensorflow as tf

from kresnet.errors import ExportError, ResourceError
from kresnet.export.contract import Contract
from kresnet.export.servable import Servable
from kresnet.export.verify import Check, verify
from kresnet.zoo import fold, with_dtype


def export_saved_model(
    model: keras.Model,
    contract: Contract,
    root: Path,
    *,
    samples: Sequence[str],
) -> tuple[Path, Check]:
    """Write, check and publish the next version of an export.

    Args:
        model: Gives logits; from `kresnet.build`.
        contract: Name, labels and preprocessing.
        root: Folder of all exports, as "saved_models".
        samples: Paths of real images; the export must agree with `model` on them.

    Returns:
        The published directory `root/NAME/VERSION`, and what was compared.

    Raises:
        ExportError: The export does not agree with the model; nothing is published.
        ResourceError: The folder cannot be written.
    """
    names = [name for name in contract.classes if "\n" in name or "\r" in name]
    if names:
        raise ExportError(f"A label must be one line. Received: {names[0]!r}. Rename that class.")
    home = root / contract.name
    partial = home / f".partial-{os.getpid()}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(model, contract, partial)
        check = verify(partial, with_dtype(model, "float32"), contract, samples)
        contract.model_copy(update={"check": check.as_dict()}).save(partial)
        return _publish(partial, home), check
    except OSError as error:
        raise ResourceError(
            f"The export folder must be writable. Received: {error}. Choose another, or make room."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def latest_version(path: Path) -> Path:
    """Return the newest version of an export, or `path` itself if it is a version.

    Raises:
        ExportError: There is no SavedModel at or below `path`.
    """
    if (path / "saved_model.pb").is_file():
        return path
    versions = _versions(path)
    if not versions:
        raise ExportError(
            "An export is a folder NAME or NAME/VERSION with a SavedModel. "
            f"Received: {str(path)!r}. `kresnet train` writes one under saved_models/."
        )
    return path / str(versions[-1])


def _versions(home: Path) -> list[int]:
    if not home.is_dir():
        return []
    return sorted(int(p.name) for p in home.iterdir() if p.name.isdigit() and p.is_dir())


def _publish(partial: Path, home: Path) -> Path:
    version = (_versions(home) or [0])[-1] + 1
    while True:
        target = home / str(version)
        if not target.exists():
            partial.rename(target)
            return target
        version += 1  # another process has just published this one


def _write(model: keras.Model, contract: Contract, directory: Path) -> None:
    labels = directory / "labels.txt"
    labels.write_text("\n".join(contract.classes) + "\n", encoding="utf-8")
    folded = fold(model, dtype="float32", portable=False)
    servable = Servable(folded, contract, labels)
    tf.saved_model.save(
        servable,
        str(directory),
        signatures={
            "serving_default": servable.serve_images,
            "serving_bytes": servable.serve_bytes,
            "explain": servable.explain,
            "classify": servable.classify,
        },
    )
    # Without this method name, TensorFlow Serving does not let Classify call it.
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(directory))
    updater.replace_method_name("classify", "tensorflow/serving/classify")
    updater.save()
    labels.unlink()  # the copy under assets/ stays
    contract.save(directory)
    _check_size(directory, folded)


def _check_size(directory: Path, model: keras.Model) -> None:
    stored = sum(file.stat().st_size for file in (directory / "variables").iterdir())
    needed = sum(4 * math.prod(variable.shape) for variable in model.variables)
    if stored > 1.1 * needed + 100_000:
        raise ExportError(
            f"An export stores each weight once. Received: {stored} bytes for {needed} bytes of "
            "weights. Report this."
        )
