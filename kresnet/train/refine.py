"""What is tried once a training has ended: each kept only where it validates better.

All of it follows from the files of the run, so a job that is killed here does it again with the
same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

import keras

from kresnet.console import Console
from kresnet.train.judge import Judge
from kresnet.train.run import Run
from kresnet.train.schedule import test_sizes
from kresnet.train.score import Score
from kresnet.train.soup import from_meta, greedy, pour, ranked, read
from kresnet.train.statistics import Recalibration
from kresnet.zoo import load_weights

_MARGIN: Final = 0.5
"""Standard errors of the accuracy that larger images must bring: they cost time in service."""


def refine(
    run: Run,
    model: keras.Model,
    judge: Judge,
    recalibrate: Recalibration | None,
    best: Score,
    console: Console,
) -> Score:
    """Try a soup of weights and exact statistics of the norms, as the run's recipe says.

    Args:
        run: Keeps weights that scored `best`.
        model: As it was trained; in the end it has the weights that the run keeps.
        judge: Scores `model` on the validation images.
        recalibrate: Of `model`'s norms; None leaves them as they are.
        best: See `run`.
        console: Where to report.

    Returns:
        The score of the weights that the run keeps in the end.
    """
    best = _soup(run, model, judge, recalibrate, best, console)
    load_weights(model, run.weights)
    if recalibrate is None:
        return best
    console.status("computing the statistics of the norms anew")
    images = recalibrate()
    score = judge()
    kept = score.beats(best)
    if kept:
        run.save_weights(model)
        best = score
    _remember(
        run, best, "statistics", {"images": images, "validation": asdict(score), "kept": kept}
    )
    console.line("norms", f"statistics of {images} images: {_said(score, kept)}")
    if not kept:
        load_weights(model, run.weights)
    return best


def _soup(
    run: Run,
    model: keras.Model,
    judge: Judge,
    recalibrate: Recalibration | None,
    best: Score,
    console: Console,
) -> Score:
    known = ranked(from_meta(run.info.get("ingredients", [])))
    values = {one: found for one in known if (found := read(run.states, one)) is not None}
    if len(values) < 2:
        return best

    def score_of(parts: Sequence[Any]) -> Score:
        console.status(f"tasting a soup of {len(parts)}")
        pour(model, [values[part] for part in parts])
        if recalibrate is not None:
            recalibrate()
        return judge()

    chosen, score = greedy(list(values), score_of)
    kept = len(chosen) > 1 and score.beats(best)
    if kept:
        score_of(chosen)  # the last that was tasted may have been another
        run.save_weights(model)
        run.update(kept="fine-tune", kept_weights="soup")
        best = score
    names = [str(one) for one in chosen]
    _remember(run, best, "soup", {"of": names, "validation": asdict(score), "kept": kept})
    of = f"mean of {', '.join(names)}" if len(names) > 1 else "no two weights are better than one"
    console.line("soup", f"{of}: {_said(score, kept)}")
    return best


def better_size(
    run: Run,
    judge_at: Callable[[int], Judge],
    best: Score,
    *,
    images: int,
    console: Console,
) -> tuple[int, Score]:
    """Find the image size at which the kept weights validate best.

    Random crops show objects larger in training than the centre crop does afterwards, and a
    somewhat larger image makes up for it (Touvron et al. 2019, arXiv:1906.06423).

    Args:
        run: Keeps the weights.
        judge_at: Returns a judge of the kept weights on images of a side in pixels.
        best: Their score at the size of the training.
        images: Number of validation images.
        console: Where to report.

    Returns:
        The side and its score; that of the training unless a larger one is better by a margin.
    """
    trained = run.recipe.image_size
    margin = _MARGIN * math.sqrt(best.accuracy * (1.0 - best.accuracy) / images)
    found: dict[int, Score] = {}
    for size in test_sizes(trained):
        console.status(f"validating at {size} px")
        found[size] = judge_at(size)()
    enough = {
        size: score
        for size, score in found.items()
        if score.beats(best) and score.accuracy >= best.accuracy + margin
    }
    side, top = trained, best
    for size, score in enough.items():
        if score.beats(top):
            side, top = size, score
    tried = {str(size): asdict(score) for size, score in found.items()}
    _remember(run, top, "size", {"image_size": side, "tried": tried, "kept": side != trained})
    said = ", ".join(f"{size} px {score.accuracy:.3f}" for size, score in found.items())
    console.line("size", f"{said}; {trained} px {best.accuracy:.3f}: {side} px is kept")
    return side, top


def _remember(run: Run, best: Score, name: str, found: dict[str, Any]) -> None:
    refined = run.info.get("refined", {}) | {name: found}
    run.update(refined=refined, validation=asdict(best))


def _said(score: Score, kept: bool) -> str:
    verdict = "kept" if kept else "not better, not kept"
    return f"val {score.accuracy:.3f} (loss {score.loss:.3f}), {verdict}"
