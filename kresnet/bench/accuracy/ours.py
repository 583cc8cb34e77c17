"""`kresnet train`, the whole job: its seconds include the export, its check and the report."""

from __future__ import annotations

import csv
import hashlib
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from kresnet.bench.accuracy.task import Answer, Labelled, Task
from kresnet.console import Console
from kresnet.evaluate.predictions import Prediction, load_predictions
from kresnet.workflow import Result, fit


def contend(task: Task) -> Answer:
    """Train with a preset, or only its probe, and take the scores that the run has written."""
    folder = Path(task.folder)
    preset = task.method.removeprefix("kresnet ")
    settings: dict[str, Any] = {"budget_s": task.budget_s, "seed": task.seed}
    if preset == "probe":
        preset, settings["epochs"] = "default", 0
    elif preset == "fast-uncut":
        preset, settings["cut_cache"] = "fast", "none"
    console = Console()
    console.started -= time.time() - task.started
    result = fit(
        write_table(task, folder / "images.csv"),
        variant=task.variant,
        weights=task.weights,
        preset=preset,
        name="run",
        out=folder / "runs",
        exports=folder / "exports",
        console=console,
        **settings,
    )
    scores = scores_of(load_predictions(result.run), task.test, task.classes)
    return Answer(scores, _facts(result))


def write_table(task: Task, path: Path) -> Path:
    """Write the images as a source that says which are to train and which to test."""
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(("path", "label", "split"))
        for split, images in (("train", task.train), ("test", task.test)):
            lines.writerows((image, task.classes[label], split) for image, label in images)
    return path


def scores_of(
    predictions: list[Prediction], images: tuple[Labelled, ...], classes: tuple[str, ...]
) -> np.ndarray:
    """Return what was said of images, `(images, classes)`, in their order; equal files are one."""
    said = {one.digest: one.scores for one in predictions if one.split == "test"}
    digests = (hashlib.sha256(Path(image).read_bytes()).hexdigest() for image, _ in images)
    return np.array([[said[digest][name] for name in classes] for digest in digests])


def _facts(result: Result) -> dict[str, Any]:
    try:
        with (result.run / "metrics.csv").open(encoding="utf-8", newline="") as file:
            epochs = list(csv.DictReader(file))
    except FileNotFoundError:  # the probe alone
        epochs = []
    return {
        "epochs": len(epochs),
        "images_per_s": median(float(one["images_per_s"]) for one in epochs) if epochs else None,
        "kept": result.kept,
        "probe": result.probe,
        "validation": result.validation.accuracy,
        "curve": [(one["val_accuracy"], one["val_loss"]) for one in epochs],
    }
