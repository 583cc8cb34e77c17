"""A search from end to end: plan, search, and the winner as a recipe, refitted and exported.

studies/NAME/
  study.sqlite     settings and trials, see `kresnet.tune.trials`
  recipe.yaml      the planner's recipe, which is trial 0
  space.yaml       what is searched
  index/           all images and their split
  images/          the same without the test images: all that a trial is given
  head.log         what the process says that fits heads, in a search for a head
  trials/0007/     the run of a trial, its log and its job beside it
  best.yaml        the recipe of the best trial
  study.html       all of this, to read; tensorboard/ has it for TensorBoard's HParams
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from kresnet.console import Console, duration
from kresnet.data.scan import Index
from kresnet.data.sources import name_of
from kresnet.errors import ConfigError, ResourceError
from kresnet.evaluate.calibrate import probabilities
from kresnet.evaluate.metrics import Evaluation, evaluation
from kresnet.evaluate.predict import predict_logits
from kresnet.train.hardware import has_gpu
from kresnet.train.recipe import Recipe, rerun, validated
from kresnet.train.run import Run
from kresnet.train.stages import build_for
from kresnet.tune import begin, board
from kresnet.tune.executors import Executor
from kresnet.tune.head import HeadWorker
from kresnet.tune.local import Local
from kresnet.tune.oracles import Algorithm, keras_tuner
from kresnet.tune.results import findings, write_hparams, write_page
from kresnet.tune.space import Space
from kresnet.tune.study import Ending, Study
from kresnet.tune.trials import Ledger, Trial
from kresnet.workflow import Result, choose, fit
from kresnet.zoo import load_weights

_TRIALS: Final = 20  # where neither trials nor a budget are given
_REASONS: Final = {
    "trials": "all trials are done",
    "budget": "the budget is spent",
    "space": "there is nothing left to try",
}


@dataclass(frozen=True, slots=True)
class Found:
    """What a search leaves behind.

    Attributes:
        study: Its directory.
        trials: How many there are of each status.
        epochs: Epochs trained by all of them together.
        seconds: How long the search took.
        best: The best trial.
        planned: Trial 0, the planner's recipe; None if it failed.
        images: How many validation images the trials are scored on.
        probe: Accuracy of the probe on them; None without one.
        recipe: File with the recipe of the best trial.
        test: `accuracy`, `n`, `interval` and more of the winner on images that neither it nor the
            search has seen; None if there are none, or it has no weights.
        run: Directory of the refitted winner; None without.
        export: Its export; None without.
    """

    study: Path
    trials: Mapping[str, int]
    epochs: int
    seconds: float
    best: Trial
    planned: Trial | None
    images: int
    probe: float | None
    recipe: Path
    test: Mapping[str, Any] | None = None
    run: Path | None = None
    export: Path | None = None

    @property
    def gain(self) -> float | None:
        """Validation accuracy of the best trial minus that of the planner's recipe."""
        return board.gain(self.best, self.planned)

    def lines(self) -> list[str]:
        """Return what is beside the table of the trials to know, a line each."""
        best = self.best.score or 0.0
        count, failed = sum(self.trials.values()), self.trials.get("failed", 0)
        lines = [
            f"trials  {count}, of which {failed} failed, {self.epochs} epochs, "
            f"{duration(self.seconds)}"
        ]
        if self.probe is not None and self.probe > best:
            lines.append(f"probe   {self.probe:.3f}: better than any fine-tuning of this search")
        lines.append(f"recipe  {self.recipe}")
        if self.export is not None:
            lines.append(f"export  {self.export}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {
            "study": str(self.study),
            "trials": dict(self.trials),
            "epochs": self.epochs,
            "seconds": round(self.seconds, 1),
            "best": self.best.as_dict(),
            "planned": self.planned.as_dict() if self.planned else None,
            "gain": self.gain,
            "images": self.images,
            "probe": self.probe,
            "recipe": str(self.recipe),
            "test": None if self.test is None else dict(self.test),
            "run": str(self.run) if self.run else None,
            "export": str(self.export) if self.export else None,
        }


def tune(
    data: str | Path | None = None,
    *,
    trials: int | None = None,
    budget_s: float | None = None,
    algorithm: Algorithm | None = None,
    only: Literal["head"] | None = None,
    space: str | Path | None = None,
    jobs: int | None = None,
    trial_s: float | None = None,
    memory_bytes: int | None = None,
    keep: int = 3,
    retries: int = 1,
    factor: int = 3,
    name: str | None = None,
    studies: str | Path = "studies",
    refit: bool = True,
    out: str | Path = "runs",
    exports: str | Path = "saved_models",
    executor: Callable[[], Executor] | None = None,
    console: Console | None = None,
    **job: Any,
) -> Found:
    """Search for a recipe that is better than the planner's.

    Args:
        data: As in `kresnet.fit`.
        trials: How many, the planner's recipe included; None is one sweep of hyperband, as many as
            the budget allows, or 20.
        budget_s: Seconds for the search; what is under way then is ended and can be resumed. None
            is no limit. Refitting the winner comes after it.
        algorithm: A key of `kresnet.tune.oracles.ALGORITHMS`; None is "hyperband", or "random" for
            a head.
        only: "head" searches for a head on the features of the pretrained network, which are
            computed once; many trials take a second.
        space: File of the space, see `kresnet.tune.space`; None is the default around the plan.
        jobs: Trials side by side; None is one for each GPU, or for every four cores.
        trial_s: Seconds after which a trial counts as hanging; None is never.
        memory_bytes: Resident memory above which a trial is ended; None is no limit.
        keep: Of how many trials, the best ones, the weights are kept.
        retries: How often a trial that crashed is tried again.
        factor: Of hyperband: one in so many trials is promoted, to so many times the epochs.
        name: Of the study; None is that of the images.
        studies: Folder of the studies.
        refit: Train the winner anew and export it, as `kresnet.fit` does.
        out: Folder of the runs, for the refitted winner.
        exports: Folder of its export.
        executor: Makes what runs the trials, as a Ray cluster; None is this machine.
        console: Where to report; None reports to standard error.
        **job: What else `kresnet.fit` is told: `variant`, `weights`, `preset`, `recipe`, and fields
            of the recipe.

    Returns:
        The winner, and how good it is.

    Raises:
        ConfigError: A setting is wrong.
        DataError: The images cannot be used.
        ResourceError: keras_tuner is not installed, or no trial was successful.
        Interrupted: It was stopped, and can be resumed.
    """
    console = console or Console()
    keras_tuner()
    algorithm = algorithm or ("random" if only else "hyperband")
    begin.check_limits(algorithm, trials=trials, keep=keep, retries=retries, factor=factor)
    asked = Space.load(space) if space is not None else None  # told wrong before images are read
    if only:
        job["epochs"] = 0  # so that the probe is planned as one that is all there is
    planned, index = choose(data, console=console, **job)
    if only:
        recipe = begin.head_alone(planned.recipe)
    else:
        recipe = planned.recipe
        if "cut_cache" not in job:  # what is tried may forbid it, and trials share the memory
            recipe = rerun(recipe, {"cut_cache": "none"})
        recipe = begin.unhurried(recipe, index, given="epochs" in job, console=console)
    kind = only or "train"
    searched = asked or (Space.head(recipe) if only else Space.default(recipe))
    searched.check(recipe, algorithm=algorithm, kind=kind)
    if algorithm == "hyperband" and recipe.epochs < 2:
        raise ConfigError(
            f"Hyperband needs 2 epochs or more to stop early. Received: epochs={recipe.epochs}. "
            "Raise --epochs or choose another --algorithm."
        )
    begin.fetch_weights(searched, recipe, console)
    if not only:
        begin.check_disk(recipe, index, runs=keep + 1, studies=Path(studies), exports=Path(exports))
    if trials is None and budget_s is None and algorithm != "hyperband":
        trials = _TRIALS
    ledger = begin.new_study(
        Path(studies),
        name or name_of(data if data is not None else recipe.data),
        recipe,
        index,
        searched,
        {
            "kind": kind,
            "algorithm": algorithm,
            "trials": trials,
            "budget_s": budget_s,
            "trial_s": trial_s,
            "memory_bytes": memory_bytes,
            "keep": keep,
            "retries": retries,
            "factor": factor,
            "jobs": jobs,
            "refit": refit,
            "out": str(Path(out).absolute()),
            "exports": str(Path(exports).absolute()),
        },
    )
    console.line("study", f"{ledger.folder}: {begin.expected_work(ledger.settings, recipe)}")
    console.line("space", ", ".join(searched.entries))
    return _searched(ledger, executor, console)


def resume_study(
    path: str | Path,
    *,
    executor: Callable[[], Executor] | None = None,
    console: Console | None = None,
    **changes: Any,
) -> Found:
    """Go on with a study that was stopped, or has a limit that is raised.

    Args:
        path: Its directory.
        executor: Makes what runs the trials; None is this machine. It need not be what it was.
        console: Where to report; None reports to standard error.
        **changes: Of the settings `trials`, `budget_s`, `trial_s`, `memory_bytes`, `keep`,
            `retries`, `jobs` and `refit` those that are not as they were; None is as it was.

    Raises:
        ConfigError: There is no study at `path`, or a setting is wrong.
    """
    console = console or Console()
    ledger = Ledger(path)
    ledger.update(**{name: value for name, value in changes.items() if value is not None})
    settings = ledger.settings
    begin.check_limits(
        settings["algorithm"],
        **{name: settings[name] for name in ("trials", "keep", "retries", "factor")},
    )
    done = Counter(trial.status for trial in ledger.trials())
    said = ", ".join(f"{count} {status}" for status, count in sorted(done.items()))
    console.line("resume", f"{ledger.folder}: {said or 'no trial yet'}")
    return _searched(ledger, executor, console)


def _searched(ledger: Ledger, executor: Callable[[], Executor] | None, console: Console) -> Found:
    settings = ledger.settings
    if executor is not None:
        running: Executor = executor()
    elif settings["kind"] == "head":
        running = HeadWorker(ledger.folder)
    else:
        running = Local(settings["jobs"], gpus=_gpus(), memory_bytes=settings["memory_bytes"])
    ending = Study(ledger, running, tell=console.line, status=console.status).search()
    console.line("ended", f"{_REASONS[ending.reason]} after {duration(ending.seconds)}")
    found = _found(ledger, ending)
    console.line("best", f"trial {found.best.number}: {board.in_words(found.best)}")
    found = _finished(ledger, found, console)
    known = findings(ledger)
    write_hparams(known, ledger.folder)
    console.line("report", str(write_page(known, ledger.folder)))
    ledger.close()
    return found


def _finished(ledger: Ledger, found: Found, console: Console) -> Found:
    """Give the winner its one look at the test images, refitted and exported if wanted."""
    settings = ledger.settings
    known = settings.get("finished") or {}
    if known.get("trial") != found.best.number or known["refit"] != settings["refit"]:
        known = {
            "trial": found.best.number,
            "refit": settings["refit"],
            "run": None,
            "export": None,
        }
        if settings["refit"]:
            result = _refitted(ledger, found, console)
            known |= {"run": str(result.run), "export": result.export and str(result.export)}
            test = result.test
        else:
            test = _tested(ledger, found.best, console)
        ledger.update(finished=known, test=test.as_dict() if test else None)
    return replace(
        found,
        test=ledger.settings["test"],
        run=_path(known["run"]),
        export=_path(known["export"]),
    )


def _refitted(ledger: Ledger, found: Found, console: Console) -> Result:
    """Train, score and export the best recipe as `kresnet train` does, on the study's split."""
    settings, recipe = ledger.settings, Recipe.load(found.recipe)
    return fit(
        recipe=found.recipe,
        name=settings["name"],
        out=settings["out"],
        exports=settings["exports"],
        keep_split=recipe.keep_split or str((ledger.folder / "index" / "index.csv").absolute()),
        console=console,
    )


def _tested(ledger: Ledger, best: Trial, console: Console) -> Evaluation | None:
    """Score the weights that the best trial kept on the test images, if there are any."""
    index = Index.load(ledger.folder / "index")
    rows = index.select("test")
    run = Run(ledger.folder / best.directory)
    if not rows or not run.weights.is_file():
        return None
    console.status(f"scoring {len(rows)} test images")
    preprocessing = run.preprocessing
    model = build_for(run.recipe, index, size=preprocessing.image_size, weights=None)
    load_weights(model, run.weights)
    scores = probabilities(predict_logits(model, rows, preprocessing), 1.0)
    return evaluation(scores, np.array([row.label for row in rows]), index.classes)


def _found(ledger: Ledger, ending: Ending) -> Found:
    """Write the winner's recipe, and return what is known of it.

    Raises:
        ResourceError: No trial was successful.
    """
    trials = ledger.trials()
    best = board.winner(trials)
    if best is None:
        errors = [trial.error for trial in trials if trial.error]
        raise ResourceError(
            f"A search needs a trial that comes to its end. Received: {len(trials)} without one"
            f"{f'; the first: {errors[0]}' if errors else ''} See {ledger.folder / 'trials'}."
        )
    settings = ledger.settings
    recipe = rerun(validated(settings["recipe"]), best.fields)
    path = ledger.folder / "best.yaml"
    recipe.save(path)
    return Found(
        study=ledger.folder,
        trials=dict(Counter(trial.status for trial in trials)),
        epochs=board.epochs_trained(trials),
        seconds=ending.seconds,
        best=best,
        planned=board.planned(trials),
        images=settings["images"]["val"],
        probe=_probe(ledger.folder / best.directory),
        recipe=path,
    )


def _probe(run: Path) -> float | None:
    info = Run(run).info
    return info["probe"]["accuracy"] if info.get("probe") else None


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _gpus() -> int:
    import tensorflow as tf

    return len(tf.config.list_physical_devices("GPU")) if has_gpu() else 0
