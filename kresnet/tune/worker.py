"""One trial in a process of its own: python -m kresnet.tune.worker JOB.json [--leash].

It trains as `kresnet train` does, without the test images and without an export, and leaves
outcome.json in the run. With `--leash` it ends when its standard input does, so that nothing is
left running of a search that was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kresnet.errors import ConfigError, DataError, Interrupted, KresnetError
from kresnet.machine import end_with_input, stay_on_cores
from kresnet.tune.executors import Job, Kind, Outcome

if TYPE_CHECKING:
    from kresnet.console import Console
    from kresnet.train.run import Run

OUTCOME: Final = "outcome.json"
"""Name of the file that a worker leaves in the run."""


def work(job: Job, console: Console) -> Outcome:
    """Do a job in this process, from where its run stands.

    Raises:
        KresnetError: It failed, or was interrupted.
    """
    from kresnet.train.stages import train

    started = time.monotonic()
    run = _prepared(job, console)
    try:
        train(replace(run, pause_after=job.stop_after), console)
    except Interrupted:
        if job.stop_after is None or len(run.metrics) < job.stop_after:
            raise
        finished = False
    else:
        finished = True
    score, loss = _score(run, finished=finished)
    return Outcome(
        ok=True,
        score=score,
        loss=loss,
        epochs=len(run.metrics),
        seconds=round(time.monotonic() - started, 3),
    )


def outcome_of(directory: str | Path) -> Outcome | None:
    """Return what a worker left in a run; None if it left nothing that can be read."""
    try:
        fields = json.loads((Path(directory) / OUTCOME).read_text(encoding="utf-8"))
        return Outcome(**fields)
    except (OSError, ValueError, TypeError):
        return None


def failure(error: BaseException, run: Path) -> Outcome:
    """Return the outcome of a job that raised `error`."""
    kind: Kind = "crash"
    said = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, KresnetError):
        said = str(error)
    if isinstance(error, ConfigError):
        kind = "nan" if _diverged(run) else "config"
    elif isinstance(error, DataError):
        kind = "data"
    elif isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":
        kind, said = "memory", f"Out of memory. {said}"
    return Outcome(ok=False, error=said[:500], kind=kind)


def _prepared(job: Job, console: Console) -> Run:
    """Return the job's run: as it is, as a copy of the one it goes on from, or new."""
    from kresnet.data.scan import Index
    from kresnet.train.recipe import Recipe
    from kresnet.train.run import Run

    path = Path(job.directory)
    if not (path / "run.json").is_file():  # what a run is created with in the end
        shutil.rmtree(path, ignore_errors=True)
        if job.go_on_from and Path(job.go_on_from, "state").is_dir():
            _copy_run(Path(job.go_on_from), path)
            return Run.open(path)
        recipe, index = Recipe.model_validate(job.recipe), Index.load(Path(job.index))
        if index.select("test"):
            raise ConfigError(
                "A trial gets the images of train and val alone. Received: an index with test "
                "images. Take them out."
            )
        Run.create(path.parent, path.name, recipe, index)
    run = Run.open(path)
    if run.recipe.weights is not None and "probe" not in run.info:
        _start_from_probe(run, Path(job.index) / "probes", console)
    return run


def _copy_run(source: Path, path: Path) -> None:
    """Make a run that stands where another one does; it appears whole or not at all.

    Files are linked, which costs no room: a run replaces its files and never writes into one.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    left_out = shutil.ignore_patterns(".*", OUTCOME, "*.log", "job.json")
    shutil.copytree(source, partial, ignore=left_out, copy_function=_link)
    partial.rename(path)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


def _start_from_probe(run: Run, folder: Path, console: Console) -> None:
    """Give a run the probe that all trials on the same network have in common.

    Whoever needs it first computes it, as a run of no epochs, while the others wait.
    """
    from kresnet.train.recipe import probe_alone, probe_settings
    from kresnet.train.run import Run
    from kresnet.train.stages import train

    known = json.dumps(probe_settings(run.recipe), sort_keys=True)
    shared = folder / sha256(known.encode()).hexdigest()[:16]
    with _alone(shared.with_suffix(".lock")):
        if not (shared / "model.weights.safetensors").is_file():
            partial = folder / f".{shared.name}.partial"
            for old in (partial, shared):
                shutil.rmtree(old, ignore_errors=True)
            probe = Run.create(folder, partial.name, probe_alone(run.recipe), run.index)
            train(probe, console)
            partial.rename(shared)
    probe = Run.open(shared)
    run.weights.unlink(missing_ok=True)
    _link(str(probe.weights), str(run.weights))
    run.save_preprocessing(probe.preprocessing)
    info = probe.info
    run.update(**{name: info[name] for name in ("probe", "kept", "validation")})


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Wait until no other process holds a lock, and hold it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _score(run: Run, *, finished: bool) -> tuple[float, float]:
    """Return accuracy and loss on the validation images.

    They are those of the fine-tuning where there is one, also where the probe is better: else all
    trials that do not beat it would look the same.
    """
    info = run.info
    kept = info.get("validation", {})
    if finished and (info.get("kept") != "probe" or not run.recipe.epochs):
        return float(kept["accuracy"]), float(kept["loss"])
    found = [
        (float(row[f"{kind}val_accuracy"]), -float(row[f"{kind}val_loss"]))
        for row in run.metrics
        for kind in ("", "average_")
        if f"{kind}val_accuracy" in row
    ]
    accuracy, minus_loss = max(found)
    return accuracy, -minus_loss


def _diverged(run: Path) -> bool:
    """Tell whether a run's last trouble was a loss that is not finite."""
    try:
        info = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    troubles = info.get("troubles", [])
    return bool(troubles) and troubles[-1]["kind"] == "not finite"


# ---------------------------------------------------------------- the process


def _follow_the_search() -> None:
    """End this process at once when its standard input ends: whoever started it is gone."""
    end_with_input(Interrupted.exit_code)


def main(arguments: list[str]) -> int:
    """Do the job of a file, write its outcome, and return the exit code."""
    if "--leash" in arguments:
        _follow_the_search()
    stay_on_cores()  # before TensorFlow counts them
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    fields: dict[str, Any] = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    job = Job(**fields)
    from kresnet.console import Console

    try:
        outcome, code = work(job, Console()), 0
    except (Interrupted, KeyboardInterrupt):
        return Interrupted.exit_code  # not an outcome: it is to go on
    except BaseException as error:
        traceback.print_exc()
        outcome = failure(error, Path(job.directory))
        code = error.exit_code if isinstance(error, KresnetError) else 1
    write_outcome(job.directory, outcome)
    return code


def write_outcome(directory: str | Path, outcome: Outcome) -> None:
    """Leave an outcome in a run, whole or not at all."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{OUTCOME}.partial"
    partial.write_text(json.dumps(outcome.as_dict()) + "\n", encoding="utf-8")
    os.replace(partial, folder / OUTCOME)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
