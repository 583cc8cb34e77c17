"""The last word on a run: its kept model on the images that it did not learn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

import keras
import numpy as np

from kresnet.data.items import Split
from kresnet.evaluate.calibrate import (
    Temperature,
    abstention,
    answered,
    calibration,
    fit_temperature,
    probabilities,
)
from kresnet.evaluate.metrics import Evaluation, evaluation, save_confusion_picture
from kresnet.evaluate.predict import predict_logits
from kresnet.evaluate.predictions import FILE, predictions, table
from kresnet.train.run import Run

_THRESHOLDS: Final = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def score(
    run: Run,
    model: keras.Model,
    *,
    tell: Callable[[str, str], None] = lambda topic, text: None,
    status: Callable[[str], None] = lambda text: None,
) -> dict[Split, Evaluation]:
    """Score a run's kept model on validation and, once, on the hold-out test images.

    The temperature, and the threshold if the recipe has a target precision, are chosen on the
    validation images, written to the run for its export, and part of every score from here on.
    The run gets evaluation.json, calibration.json, predictions.csv and confusion.png.

    Args:
        run: A trained run.
        model: Its kept model; gives logits.
        tell: Called with a topic of one word and a line about it.
        status: Called with what is going on.

    Returns:
        The evaluations of "val" and, where there is one, "test".
    """
    index = run.index
    labels: dict[Split, np.ndarray] = {}
    logits: dict[Split, np.ndarray] = {}
    splits: tuple[Split, ...] = ("val", "test")
    for name in splits:
        if rows := index.select(name):
            status(f"scoring {len(rows)} {name} images")
            logits[name] = predict_logits(model, rows, run.preprocessing)
            labels[name] = np.array([row.label for row in rows])
    temperature = fit_temperature(logits["val"], labels["val"], seed=run.recipe.seed)
    scores = {name: probabilities(values, temperature.value) for name, values in logits.items()}
    results = {name: evaluation(scores[name], labels[name], index.classes) for name in scores}
    for name, result in results.items():
        tell(name, str(result))
    found = _calibration(run, temperature, logits, scores, labels)
    _tell_calibration(found, temperature, tell)

    run.write_json("evaluation.json", {name: r.as_dict() for name, r in results.items()})
    run.write_json("calibration.json", found)
    said = (one for name in scores for one in predictions(index, name, scores[name]))
    run.write_table(FILE, table(said, index.classes))
    split: Split = "test" if "test" in results else "val"
    final = results[split]
    save_confusion_picture(
        final,
        run.path / "confusion.png",
        title=f"{'test' if split == 'test' else 'validation'}: {final.accuracy:.1%}",
    )
    mistakes = ", ".join(f"{t} as {p} {n}" for t, p, n in final.confusions(4))
    tell("worst", f"{mistakes or 'no mistakes'} (see {run.path / 'confusion.png'})")
    return results


def _calibration(
    run: Run,
    temperature: Temperature,
    logits: dict[Split, np.ndarray],
    scores: dict[Split, np.ndarray],
    labels: dict[Split, np.ndarray],
) -> dict[str, Any]:
    """Return all of calibration.json, and give the run what its export needs."""
    target = run.recipe.target_precision
    chosen = None if target is None else abstention(scores["val"], labels["val"], target)
    threshold = chosen.threshold if chosen else None
    run.update(temperature=temperature.value, threshold=threshold)
    return {
        "temperature": asdict(temperature),
        "abstention": asdict(chosen) if chosen else None,
        "abstention_in_words": str(chosen) if chosen else None,
        "splits": {
            name: {
                "before": asdict(calibration(probabilities(logits[name], 1.0), labels[name])),
                "after": asdict(calibration(scores[name], labels[name])),
                "thresholds": [
                    answered(scores[name], labels[name], level)
                    for level in sorted({*_THRESHOLDS, threshold or 0.0})
                ],
            }
            for name in scores
        },
    }


def _tell_calibration(
    found: dict[str, Any], temperature: Temperature, tell: Callable[[str, str], None]
) -> None:
    split = "test" if "test" in found["splits"] else "val"
    before, after = (found["splits"][split][when] for when in ("before", "after"))
    tell(
        "scores",
        f"temperature {temperature}; calibration error on {split} {before['ece']:.3f} -> "
        f"{after['ece']:.3f} (by chance alone up to {after['ece_by_chance']:.3f})",
    )
    if found["abstention_in_words"]:
        tell("abstain", found["abstention_in_words"])
