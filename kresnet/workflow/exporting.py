"""From a run to an export: at the end of training, and again at leisure."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Literal

import keras
import numpy as np
import tensorflow as tf

import kresnet
from kresnet.console import Console
from kresnet.data.arrays import channels
from kresnet.data.items import as_files, exists
from kresnet.data.scan import Row
from kresnet.errors import ConfigError, DataError
from kresnet.export.contract import TOLERANCES, Contract, Precision
from kresnet.export.formats import choose_formats
from kresnet.export.publish import MAX_ACCURACY_LOSS, Exported, export
from kresnet.export.reference import Sample
from kresnet.train.run import Run
from kresnet.train.stages import Trained
from kresnet.workflow.images import ARRAYS, restore
from kresnet.zoo import build

_SAMPLES = 64  # images that an export is checked on after training
_MOST_SAMPLES = 500  # and when it is made again, at leisure
_CALIBRATION = 200  # images that set the ranges of 8-bit files


def export_trained(run: Run, trained: Trained, console: Console, exports: Path) -> Path:
    """Export what was just trained, and return where it is."""
    with tempfile.TemporaryDirectory() as folder:
        exported = export(
            trained.model,
            _contract(run),
            exports,
            samples=_samples(_spread(run, _SAMPLES), Path(folder)),
            keep_photos=run.info.get("keep_photos", True),
            progress=console.status,
        )
    path = short(exported.path)
    console.line("export", str(path))
    console.line("check", str(exported.contract.formats["saved_model"]))
    return path


def export_run(
    path: str | Path,
    *,
    formats: Sequence[str] = ("all",),
    int8: bool = False,
    precision: Precision = "float32",
    max_accuracy_loss: float = MAX_ACCURACY_LOSS,
    exports: str | Path | None = None,
    keep_photos: bool | None = None,
    console: Console | None = None,
) -> Exported:
    """Export a finished run again, as a new version with more formats.

    Args:
        path: Directory of the run.
        formats: Keys of `kresnet.export.formats.FORMATS`, or "all" that can be made here.
        int8: Make 8-bit files too.
        precision: What the SavedModel computes in. "bfloat16" is for processors with AMX, where it
            is several times as fast; it moves probabilities by about 1e-2, and other processors
            are slower with it. "int8" is for x86 processors with VNNI or AMX, and moves them more.
        max_accuracy_loss: What 8 bits, or bfloat16, may cost on the validation images, in
            percentage points, or one image where that is more and it is not 0.
        exports: Folder of the exports; None is where the run's own export is.
        keep_photos: Store small copies of four validation images in the export; None as in
            training.
        console: Where to report; None reports to standard error.

    Raises:
        ConfigError: There is no finished run at `path`, or a setting is wrong.
        DataError: The run's images are no longer where they were.
        ResourceError: A package for a format is not installed, or the disk is full.
        ExportError: A file did not agree with the model; nothing is published.
    """
    console = console or Console()
    chosen, hints = choose_formats(formats)
    if not max_accuracy_loss >= 0:
        raise ConfigError(
            "`max_accuracy_loss` must be percentage points from 0 on. "
            f"Received: max_accuracy_loss={max_accuracy_loss}."
        )
    if precision not in TOLERANCES:
        raise ConfigError(
            f"`precision` of an export must be one of {', '.join(TOLERANCES)}. "
            f"Received: precision={precision!r}."
        )
    run = Run.open(path)
    info = run.info
    if info.get("status") != "complete":
        raise ConfigError(
            f"Only a finished run can be exported. Received: {path}, with the status "
            f"{info.get('status')!r}. Finish it with: kresnet resume {path}"
        )
    if channels(run.index.rows) is not None:
        raise ConfigError(f"A run on photos can be exported. Received: {path}, and {ARRAYS}.")
    restore(run)
    rows = _spread(run, _MOST_SAMPLES)
    calibration = _spread(run, _CALIBRATION, "train") if int8 or precision == "int8" else []
    paths = dict.fromkeys(row.path for row in (*rows, *calibration))
    lost = [path for path in paths if not exists(path)]
    if lost:
        raise DataError(
            "The run's images must be where they were in training. "
            f"Received: {lost[0]} and {len(lost) - 1} more are gone. Put them back."
        )
    console.status("building the model")
    contract = _contract(run).model_copy(update={"precision": precision})
    model = build(
        run.recipe.variant,
        num_classes=len(contract.classes),
        input_shape=(contract.preprocessing.image_size, contract.preprocessing.image_size),
        dtype="float32",
        weights=run.weights,
    )
    with tempfile.TemporaryDirectory() as folder:
        exported = export(
            model,
            contract,
            Path(info["exports"] if exports is None else exports),
            samples=_samples(rows, Path(folder)),
            formats=chosen,
            int8=int8,
            calibration=[s.path for s in _samples(calibration, Path(folder) / "calibration")],
            max_accuracy_loss=max_accuracy_loss,
            keep_photos=info.get("keep_photos", True) if keep_photos is None else keep_photos,
            progress=console.status,
        )
    exported = replace(exported, path=short(exported.path), remarks=(*hints, *exported.remarks))
    for remark in exported.remarks:
        console.line("omitted", remark)
    return exported


def _contract(run: Run) -> Contract:
    """Return what an export of the run promises, before anything is compared."""
    info = run.info
    return Contract(
        name=info["name"],
        variant=run.recipe.variant,
        classes=run.index.classes,
        preprocessing=run.preprocessing,
        versions={
            "kresnet": kresnet.__version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
        },
        temperature=info.get("temperature", 1.0),
        threshold=info.get("threshold"),
        mirrored=run.recipe.flip,
        weights_sha256=sha256(run.weights.read_bytes()).hexdigest(),
    )


def _spread(run: Run, count: int, split: Literal["train", "val"] = "val") -> list[Row]:
    """Return up to `count` images of a split, spread over the classes, which come in order."""
    rows = run.index.select(split)
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return [rows[k] for k in places]


def _samples(rows: Sequence[Row], folder: Path) -> list[Sample]:
    """Return images as files for other processes; those inside of large files are copied out."""
    folder.mkdir(exist_ok=True)
    paths = as_files(rows, folder)
    return [Sample(path, row.label) for path, row in zip(paths, rows, strict=True)]


def short(path: Path) -> Path:
    """Return a path as seen from the working directory, if it is in there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
