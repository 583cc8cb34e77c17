"""One run, as one story: probe, fine-tune, refine, keep whichever validates better."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import keras
import tensorflow as tf

from kresnet.console import Console
from kresnet.data.arrays import channels, measured
from kresnet.data.pipeline import TrainingData, evaluation_batches
from kresnet.data.scan import Index, Problem, Row
from kresnet.data.service import Service
from kresnet.errors import ConfigError, DataError
from kresnet.train.cut import FOLDER, CutData, Looked, cut_data, divided
from kresnet.train.distribute import ALONE, Team, check_service, check_team, service_of
from kresnet.train.hardware import policy_name
from kresnet.train.judge import Judge
from kresnet.train.loop import fine_tune
from kresnet.train.optimizer import freeze_before, last_stage
from kresnet.train.probe import fit_probe
from kresnet.train.recipe import Recipe
from kresnet.train.refine import better_size, refine
from kresnet.train.run import Run
from kresnet.train.score import Score
from kresnet.train.statistics import Recalibration
from kresnet.zoo import Preprocessing, build, freeze_norms, load_weights

RECALIBRATION = 2_000  # training images that the norms' statistics are computed from


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training leaves behind.

    Attributes:
        model: The kept model.
        preprocessing: What it expects of its input.
        kept: The stage that won: "probe" or "fine-tune".
        validation: The kept model's score on the validation images.
        probe: The probe's `accuracy`, `loss`, `n` and `seconds`; None when training from scratch.
    """

    model: keras.Model
    preprocessing: Preprocessing
    kept: str
    validation: Score
    probe: dict[str, float] | None


def train(run: Run, console: Console) -> Trained:
    """Train a run to its end, from the beginning or from where it was stopped.

    Raises:
        As `train_in`.
    """
    trained = train_in(ALONE, run, console)
    if trained is None:
        raise RuntimeError("a team of one has a chief")
    return trained


def train_in(team: Team, run: Run, console: Console) -> Trained | None:
    """Train a run as all processes of a team do, each with a `Run` of its own.

    Args:
        team: The devices that train together. When this returns, the chief has left it.
        run: The chief's, or a `Guest` of it.
        console: Where to report.

    Returns:
        What the chief has; None for the others, for whom nothing is left to do.

    Raises:
        Interrupted: Ctrl-C or SIGTERM, also at another process; the state is saved.
        Lost: Another process is gone.
        WeightsError: The recipe's weights do not fit the variant.
        DataError: The train or the validation split is empty.
        ConfigError: The team, or the run's data service, cannot do it.
    """
    recipe, index = run.recipe, run.index
    check_team(recipe, team)
    fit_rows, val_rows = index.select("train"), index.select("val")
    if served_by := service_of(run.info.get("data_service")):
        check_service(recipe, fit_rows)
    if not fit_rows or not val_rows:
        raise DataError(
            "Training needs images in the train and val splits. "
            f"Received: {len(fit_rows)} train, {len(val_rows)} val."
        )
    console.status("building the model")
    keras.utils.set_random_seed(recipe.seed)
    complete = run.info.get("status") == "complete"
    # Weights without their score are those of a probe that was killed between the two.
    started = run.weights.exists() and (recipe.weights is None or "probe" in run.info)
    started = team.told(started)
    size = None if recipe.progressive else recipe.image_size
    weights = recipe.weights if team.is_chief and not started else None
    with team.scope():
        model = build_for(recipe, index, size=size, weights=weights)
    if team.is_chief and not started:
        run.save_preprocessing(preprocessing_for(recipe, index, model))
    run.write_json(
        "preprocessing.json", team.told(asdict(run.preprocessing) if team.is_chief else None)
    )
    # What is kept may be of another size, see `better_size`.
    preprocessing = replace(run.preprocessing, image_size=recipe.image_size)
    fits = -(-recipe.batch_size // recipe.accumulate)  # images at a time

    def validation(team: Team) -> tf.data.Dataset:
        """Return the images that a process of a team judges by."""
        return evaluation_batches(
            val_rows, preprocessing, batch_size=fits, worker=team.worker
        ).cache()

    val_batches = validation(team)
    judge = Judge(model, val_batches, team=team, count=len(val_rows))

    if started:
        if team.is_chief:
            load_weights(model, run.weights)
        probe = run.info.get("probe")
    elif recipe.weights is not None:
        probe = _probe(run, model, preprocessing, fit_rows, judge, console, team)
    else:
        probe = None
    best = Score(probe["accuracy"], probe["loss"], probe.get("n")) if probe else None
    if complete:  # its states are gone, and nothing is left to train
        best = Score(**run.info["validation"])
    elif recipe.epochs:
        prepare_layers(model, recipe)
        cut = divided(model) if recipe.cut_cache != "none" else None

        @lru_cache(maxsize=1)  # what is decoded once stays so
        def data(size: int) -> TrainingData | CutData:
            shown = training_data(
                recipe,
                fit_rows,
                replace(preprocessing, image_size=size),
                num_classes=len(index.classes),
                folder=run.path,
                worker=team.worker,
                views=recipe.cut_views if cut else None,
                served_by=served_by,
                tell=lambda problem: console.line("lost", f"{problem.path} {problem.reason}"),
            )
            return shown if cut is None else cut_data(recipe, shown, cut, fit_rows, run.path)

        learner = None
        if cut is not None:
            looked, learner = Looked(cut.front, val_batches), cut.tail
            judge = Judge(learner, looked, team=team, count=len(val_rows))
        with team.scope():
            best = fine_tune(run, model, data, judge, best, console, learner=learner, team=team)
        shutil.rmtree(run.path / FOLDER, ignore_errors=True)
    team.leave()
    if not team.is_chief:
        return None
    if best is None:
        raise ConfigError(
            "Without pretrained weights there is nothing to keep before the first epoch. "
            f"Received: epochs={recipe.epochs}, budget_s={recipe.budget_s}. Raise them."
        )
    if not complete:
        judge = Judge(model, val_batches if team.size == 1 else validation(ALONE))
        best = _refined(run, model, judge, preprocessing, fits, best, console)
    kept = run.preprocessing
    if model.input_shape[1] != kept.image_size:
        model = build_for(recipe, index, size=kept.image_size, weights=None)
    load_weights(model, run.weights)
    return Trained(model, kept, run.info["kept"], best, probe)


def _refined(
    run: Run,
    model: keras.Model,
    judge: Judge,
    preprocessing: Preprocessing,
    batch_size: int,
    best: Score,
    console: Console,
) -> Score:
    """Improve what the run keeps, as its recipe says; return the score."""
    recipe, index = run.recipe, run.index

    def batches(rows: Sequence[Row], size: int) -> tf.data.Dataset:
        expected = replace(preprocessing, image_size=size)
        return evaluation_batches(rows, expected, batch_size=batch_size)

    def judge_at(size: int) -> Judge:
        kept = build_for(recipe, index, size=size, weights=None)
        load_weights(kept, run.weights)
        return Judge(kept, batches(index.select("val"), size))

    recalibrate = None
    if recipe.recalibrate and recipe.norms == "train" and recipe.epochs:
        rows = index.select("train")
        some = batches(rows[:: -(-len(rows) // RECALIBRATION)], recipe.image_size)
        recalibrate = Recalibration(model, lambda: iter(some))
    best = refine(run, model, judge, recalibrate, best, console)
    if recipe.larger_test:
        images = len(index.select("val"))
        size, best = better_size(run, judge_at, best, images=images, console=console)
        run.save_preprocessing(replace(preprocessing, image_size=size))
    return best


def build_for(
    recipe: Recipe, index: Index, *, size: int | None, weights: str | None
) -> keras.Model:
    """Build a recipe's network for images of `size` px, or of any size."""
    return build(
        recipe.variant,
        num_classes=len(index.classes),
        input_shape=(size, size, channels(index.rows) or 3),
        dtype=policy_name(recipe.precision),
        drop_rate=recipe.drop_rate,
        drop_path_rate=recipe.drop_path_rate,
        weights=weights,
    )


def preprocessing_for(recipe: Recipe, index: Index, model: keras.Model) -> Preprocessing:
    """Return what a recipe's network expects; of arrays, mean and std are those to train on."""
    expected = replace(model.preprocessing, image_size=recipe.image_size)
    if channels(index.rows) is None:
        return expected
    return measured(expected, index.select("train"))


def training_data(
    recipe: Recipe,
    rows: Sequence[Row],
    preprocessing: Preprocessing,
    *,
    num_classes: int,
    folder: Path | None = None,
    worker: tuple[int, int] = (0, 1),
    views: int | None = None,
    served_by: Service | None = None,
    tell: Callable[[Problem], None] = lambda problem: None,
) -> TrainingData:
    """Return the stream of batches that a recipe trains on; see `TrainingData`."""
    return TrainingData(
        rows,
        preprocessing,
        num_classes=num_classes,
        batch_size=recipe.batch_size,
        augmentation=recipe.augmentation,
        seed=recipe.seed,
        balancing=recipe.balance,
        cache=recipe.cache,
        folder=folder,
        max_bad=recipe.max_bad,
        worker=worker,
        views=views,
        served_by=served_by,
        tell=tell,
    )


def _probe(
    run: Run,
    model: keras.Model,
    preprocessing: Preprocessing,
    rows: Sequence[Row],
    judge: Judge,
    console: Console,
    team: Team,
) -> dict[str, float]:
    """Give the model the best linear head on its frozen features, and keep it in the run.

    The chief finds it, and the others wait.
    """
    started = time.monotonic()
    recipe = run.recipe
    looked = "images" if recipe.probe_views == "center" else "views"
    if team.is_chief:
        kernel, bias = fit_probe(
            model,
            recipe,
            rows,
            preprocessing,
            progress=lambda done, of: console.status(f"probe: features of {done} / {of} {looked}"),
        )
        model.get_layer("head").set_weights([kernel, bias])
    team.share(model.variables)
    score = judge()
    seconds = team.told(round(time.monotonic() - started, 2))
    probe = {**asdict(score), "seconds": seconds}
    run.save_weights(model)
    run.update(probe=probe, kept="probe", validation=asdict(score))
    console.line("probe", f"val {score} in {probe['seconds']:.1f} s")
    return probe


def prepare_layers(model: keras.Model, recipe: Recipe) -> None:
    """Decide which layers learn, and whether norms keep their statistics."""
    last = last_stage(model)
    if recipe.train_from > last:
        raise ConfigError(
            f"`train_from` must be a stage of the model. Received: train_from={recipe.train_from}, "
            f"and {recipe.variant} has {last} stages. For the probe alone, use --epochs 0."
        )
    freeze_before(model, recipe.train_from)
    if recipe.norms == "frozen":
        freeze_norms(model)
