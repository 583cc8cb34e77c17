"""The job itself: from the arguments of `fit` to a finished run, or on from where one stopped."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, takewhile
from pathlib import Path
from typing import Any, NoReturn

import tensorflow as tf

from kresnet.console import Console
from kresnet.data.arrays import channels
from kresnet.data.lost import lost_images
from kresnet.data.service import Gone
from kresnet.data.sources import absolute, name_of
from kresnet.errors import Interrupted
from kresnet.evaluate.held_out import score
from kresnet.evaluate.metrics import Evaluation
from kresnet.train.distribute import (
    VARIABLE,
    Lost,
    Team,
    assembled,
    check_service,
    check_team,
    service_of,
)
from kresnet.train.estimate import Estimate, remember
from kresnet.train.run import Run, as_guest, check_name, told_of
from kresnet.train.signals import terminable
from kresnet.train.stages import Trained, train_in
from kresnet.train.trackers import Trackers, check_trackers
from kresnet.workflow.afterwards import report_run
from kresnet.workflow.choice import Choice, plan_job, tell_plan, with_weights
from kresnet.workflow.exporting import export_trained
from kresnet.workflow.images import ARRAYS, restore, tell_data


@dataclass(frozen=True, slots=True)
class Result:
    """What `fit` leaves behind.

    Attributes:
        run: Directory of the run.
        export: The published SavedModel, `saved_models/NAME/VERSION`; None for images that are
            more than 8-bit RGB, which cannot be exported.
        validation: Evaluation on the images that the kept stage was chosen by.
        test: Evaluation on images that nothing was chosen by; None if there are none.
        probe: The probe's `accuracy`, `loss`, `n` and `seconds`; None when training from scratch.
        kept: "probe" or "fine-tune", whichever validated better.
        seconds: How long the job took.
    """

    run: Path
    export: Path | None
    validation: Evaluation
    test: Evaluation | None
    probe: dict[str, float] | None
    kept: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the result as JSON types."""

        def brief(result: Evaluation | None) -> dict[str, Any] | None:
            if result is None:
                return None
            return {
                "accuracy": result.accuracy,
                "n": result.n,
                "interval": list(result.interval),
                "balanced_accuracy": result.balanced_accuracy,
            }

        return {
            "run": str(self.run),
            "export": str(self.export) if self.export else None,
            "validation": brief(self.validation),
            "test": brief(self.test),
            "probe": self.probe,
            "kept": self.kept,
            "seconds": round(self.seconds, 1),
        }


def fit(
    data: str | Path | None = None,
    *,
    variant: str | None = None,
    weights: str | None = "auto",
    preset: str = "default",
    recipe: str | Path | None = None,
    name: str | None = None,
    out: str | Path = "runs",
    exports: str | Path = "saved_models",
    keep_photos: bool = True,
    explain: bool = False,
    tracker: str | Sequence[str] = (),
    data_service: str | None = None,
    console: Console | None = None,
    **settings: Any,
) -> Result:
    """Train a classifier on a folder of images and export it.

    Args:
        data: A folder with one folder of images for each class, or with such folders under
            train, val and test, or another source of `kresnet.data.sources.listing`. It is only
            read. None is that of `recipe`.
        variant: A key of `kresnet.VARIANTS`, or one with a tag, as "resnet50.a1_in1k"; None is
            that of `recipe`, else "resnet50", or that of the embedded weights.
        weights: A tag, as "imagenet" or "embedded", the path of a checkpoint, or None to train from
            scratch. Of no account where the variant has a tag. "auto" is that of `recipe`, else
            "imagenet", or None where the preset is one of random weights. Where neither it nor the
            variant is given and the download fails, "embedded" stands in, and that is said.
        preset: What is planned: "fast", "default" or "best", or a published recipe of
            `kresnet.train.presets.PRESETS`. Of no account with `recipe`, which leaves nothing open.
        recipe: File of a recipe to run again; what else is given changes it.
        name: Of the run and the export; None is the name of the folder.
        out: Folder of the runs.
        exports: Folder of the exports.
        keep_photos: Store small copies of four validation images in the export, for later checks;
            else drawn ones.
        explain: Report the reason for every setting, too.
        tracker: "tensorboard", "mlflow", or both, with a comma or as a sequence.
        data_service: Address of a tf.data service that makes the batches, as "grpc://host:5050";
            they are the same as without it.
        console: Where to report; None reports to standard error.
        **settings: Fields of `kresnet.Recipe` that are not to be planned, as `epochs=10`;
            `precision` may be "auto".

    Returns:
        Where everything is, and how good it is.

    Raises:
        ConfigError: A setting is wrong.
        DataError: The images cannot be used.
        ResourceError: Weights, disk, memory or the data service are missing.
        Interrupted: It was stopped, and can be resumed.
        SystemExit: TF_CONFIG makes this process another worker than the chief, which has ended as
            it should: with code 0, or 5 where all were stopped.
        ExportError: The export did not agree with the model.
    """
    console = console or Console()
    trackers, served_by = check_trackers(tracker), service_of(data_service)
    choice = Choice(data, variant, weights, preset, recipe, settings)
    name = name or name_of(choice.source)
    check_name(name)
    team = assembled()
    if not team.is_chief:
        _help(team)
    if served_by:
        served_by.reach()
    again = VARIABLE in os.environ  # of one worker, too: who starts workers starts them again
    if again and (run := unfinished(Path(out), name, choice.source)):
        console.line("resume", f"{run.path}, which is not finished; another --name begins anew")
        run.update(data_service=data_service)
        return _finish(run, console, team=team)
    plan = partial(plan_job, console=console, out=Path(out), exports=Path(exports))
    planned, index = with_weights(choice, console, plan)
    chosen = planned.recipe
    check_team(chosen, team)
    if served_by:
        check_service(chosen, index.select("train"))
    run = Run.create(Path(out), name, chosen, index)
    run.update(name=name, exports=str(Path(exports).resolve()), keep_photos=keep_photos)
    run.update(trackers=trackers, data_service=data_service)
    run.write_json("plan.json", planned.as_dict())
    tell_data(console, index, f"see {run.path / 'problems.csv'}")
    tell_plan(console, planned, index.classes)
    if explain:
        for line in planned.lines():
            console.line("why", line)
    return _finish(run, console, planned.estimate, team=team)


def resume(
    path: str | Path, *, data_service: str | None = None, console: Console | None = None
) -> Result:
    """Go on with a run that was stopped; a run that is complete is exported again.

    Args:
        path: Directory of the run.
        data_service: As in `fit`, or "none"; None is that of the run.
        console: Where to report; None reports to standard error.

    Raises:
        ConfigError: There is no run at `path`.
        ResourceError: The data service is missing.
    """
    team = assembled()
    if not team.is_chief:
        _help(team)
    run = Run.open(path)
    if data_service is None:
        data_service = run.info.get("data_service")
    elif data_service == "none":
        data_service = None
    if (served_by := service_of(data_service)) and run.info.get("status") != "complete":
        served_by.reach()
    run.update(data_service=data_service)
    return _finish(run, console or Console(), team=team)


def unfinished(out: Path, name: str, source: str | Path) -> Run | None:
    """Return the last run of a name, if it is of these images and not complete.

    What starts the workers of a cluster again, as Kubernetes does, says what it said at first.
    """
    names = chain([name], (f"{name}-{k}" for k in count(2)))
    last = list(takewhile(Path.is_dir, (out / one for one in names)))[-1:]
    if not last or not (last[0] / "run.json").is_file():
        return None
    run = Run.open(last[0])
    info = run.info
    begun = "trackers" in info and info.get("status") != "complete"
    return run if begun and run.recipe.data == absolute(source) else None


@terminable()
def _help(team: Team) -> NoReturn:
    """Train with a chief, as one of its workers, and end this process with it.

    Raises:
        SystemExit: All is done, or the chief was asked to stop.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = as_guest(Path(folder), team.told(None))
        restore(run)
        try:
            train_in(team, run, Console(quiet=True))
        except (Lost, Gone):
            raise
        except (Interrupted, KeyboardInterrupt):
            raise SystemExit(Interrupted.exit_code) from None
        except tf.errors.OpError as error:
            raise lost_images(run.index.rows, error) from error
    raise SystemExit(0)


@terminable()
def _finish(run: Run, console: Console, expected: Estimate | None = None, *, team: Team) -> Result:
    """Do all that comes after the plan, and learn from the time it took if one was expected."""
    if expected is None:
        restore(run)
        run.update(resumed=True)  # the time that it says at the end is that of this process alone
    if team.size > 1:
        team.told(told_of(run))
    if team.replicas > 1:
        console.line("devices", str(team))
    if address := run.info.get("data_service"):
        console.line("service", f"{address} makes the batches")
    with Trackers(run, console.line) as trackers:
        result = _finished(replace(run, watch=trackers.epochs), console, trackers, team)
    if expected and team.replicas == 1 and not run.info.get("data_service"):  # of one machine
        remember(run, expected, result.seconds - expected.spent_s)
    return result


def _finished(run: Run, console: Console, trackers: Trackers, team: Team) -> Result:
    try:
        trained = train_in(team, run, console)
        if trained is None:
            raise RuntimeError("the chief is given what was trained")
        console.line("best", _best(run, trained))
        scored = score(run, trained.model, tell=console.line, status=console.status)
        if channels(run.index.rows) is None:
            exported = export_trained(run, trained, console, Path(run.info["exports"]))
        else:
            exported = None
            console.line("export", f"none: {ARRAYS}; the weights are {run.weights}")
    except tf.errors.OpError as error:
        raise lost_images(run.index.rows, error) from error
    except KeyboardInterrupt:
        raise Interrupted(
            f"Stopped, and what was done is saved. Continue with: kresnet resume {run.path}"
        ) from None
    seconds = time.monotonic() - console.started
    validation, test = scored["val"], scored.get("test")
    result = Result(run.path, exported, validation, test, trained.probe, trained.kept, seconds)
    run.update(status="complete", result=result.as_dict())
    shutil.rmtree(run.states, ignore_errors=True)  # nothing is left to resume
    console.line("report", str(report_run(run.path, console=console)))
    trackers.finish(trained.model)
    return result


def _best(run: Run, trained: Trained) -> str:
    """Say which weights are kept, and how they validate."""
    said = f"val {trained.validation}"
    if trained.kept == "probe":
        better = ", which no epoch beats" if run.recipe.epochs else ""
        return f"the probe{better}: {said}"
    info = run.info
    average = {"weights": "", "average": " (average)"}.get(info.get("kept_weights", ""))
    where = (
        trained.kept
        if average is None or "kept_epoch" not in info
        else f"epoch {info['kept_epoch']}{average}"
    )
    probe = f"; the probe {trained.probe['accuracy']:.3f}" if trained.probe else ""
    return f"{where}: {said}{probe}"
