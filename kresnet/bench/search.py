"""Compare searches: kresnet's beside keras_tuner used directly and Optuna.

    python -m kresnet.bench.search FOLDER --budget 300 --seeds 3

All search the same space around the same plan, on the same images with the same split, for the same
time from the start of their process, and are then killed. On a machine that others use, too, the
time can be the processor's (`--processor-time`), of a search and all that it has started. A score
is the accuracy on the validation images after a trial's best epoch. kresnet trains each trial in a
process of its own; the others train in one, by `ResNetHyperModel`, so that networks, batches and
schedule are the same. What a search had finished when it was killed counts.

A search takes its turn on the whole machine, one after the other, seed by seed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from kresnet.bench.facts import missing, version
from kresnet.errors import ConfigError
from kresnet.tune.space import Entry, Space

if TYPE_CHECKING:
    import keras

SPACE: Final[Mapping[str, Any]] = {
    "lr": {"float": [1e-4, 3e-2], "log": True},
    "weight_decay": {"float": [1e-3, 1.0], "log": True},
    "batch_size": {"choice": [16, 32, 64]},
    "min_area": {"float": [0.2, 1.0]},
    "label_smoothing": {"float": [0.0, 0.2]},
    "augment": {"choice": ["none", "light", "trivial"]},
    "color": {"float": [0.0, 0.4], "when": {"augment": "light"}},
}
"""What all of them search."""

_MANY: Final = 10_000  # trials: the time ends the search before
_TRIED_AGAIN: Final = 100
_LOOK_S: Final = 0.5  # between two looks at the time


@dataclass(frozen=True, slots=True)
class Task:
    """What is searched for.

    Attributes:
        data: Folder of the images.
        variant: Network, trained from random weights.
        image_size: Side of its input in pixels.
        epochs: Of a whole training.
        seed: Of the split, the networks and the search.
    """

    data: str
    variant: str
    image_size: int
    epochs: int
    seed: int

    def settings(self) -> dict[str, Any]:
        """Return it as arguments of `kresnet.fit`."""
        return {
            "data": self.data,
            "variant": self.variant,
            "weights": "none",
            "image_size": self.image_size,
            "epochs": self.epochs,
            "seed": self.seed,
            "precision": "float32",
            "cache": "memory",
        }


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial that was finished.

    Attributes:
        seconds: When, since the start of the search's process.
        score: Validation accuracy in 0..1.
        epochs: Epochs trained, without those of trials that it went on from.
    """

    seconds: float
    score: float
    epochs: int


@dataclass(frozen=True, slots=True)
class Contender:
    """A search.

    Attributes:
        name: What the table calls it.
        package: What it needs.
    """

    name: str
    package: str

    @property
    def is_installed(self) -> bool:
        """Whether it can take part."""
        return missing([self.package]) is None


CONTENDERS: Final[Mapping[str, Contender]] = {
    "kresnet-hyperband": Contender("kresnet tune, hyperband", "keras_tuner"),
    "kresnet-bayesian": Contender("kresnet tune, bayesian", "keras_tuner"),
    "keras_tuner-hyperband": Contender("keras_tuner.Hyperband", "keras_tuner"),
    "keras_tuner-bayesian": Contender("keras_tuner.BayesianOptimization", "keras_tuner"),
    "optuna": Contender("Optuna, TPE with median pruning", "optuna"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a Markdown table, or be one of the searches."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", help="folder with a folder of images for each class")
    parser.add_argument("--variant", default="resnet8_cifar", help="network, from random weights")
    parser.add_argument("--image-size", type=int, default=32, help="side of its input in pixels")
    parser.add_argument("--epochs", type=int, default=9, help="of a whole training")
    parser.add_argument("--budget", type=float, default=300.0, help="seconds of each search")
    parser.add_argument(
        "--processor-time", action="store_true", help="count the processor's seconds, not a clock's"
    )
    parser.add_argument("--seeds", type=int, default=3, help="searches of each kind")
    parser.add_argument("--only", nargs="*", choices=CONTENDERS, help="which; all by default")
    parser.add_argument("--out", type=Path, help="folder that keeps what was measured")
    parser.add_argument("--be", nargs=2, metavar=("CONTENDER", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    data = str(Path(given.data).resolve())

    def task(seed: int) -> Task:
        return Task(data, given.variant, given.image_size, given.epochs, seed)

    if given.be:
        search(given.be[0], task(given.seed), Path(given.be[1]))
        return
    out = given.out or Path(tempfile.mkdtemp(prefix="kresnet-search-"))
    found = compare(
        [task(seed) for seed in range(given.seeds)],
        names=given.only or list(CONTENDERS),
        budget_s=given.budget,
        processor_time=given.processor_time,
        out=out,
    )
    print(table(found, given.budget, processor_time=given.processor_time))


def compare(
    tasks: Sequence[Task],
    *,
    names: Sequence[str],
    budget_s: float,
    processor_time: bool = False,
    out: Path,
) -> dict[str, list[list[Trial]]]:
    """Let searches take turns; what is in `out` already is not measured again.

    Returns:
        For each contender that is installed, the finished trials of each task.
    """
    found: dict[str, list[list[Trial]]] = {}
    for task in tasks:
        for name in names:
            if not CONTENDERS[name].is_installed:
                continue
            file = out / f"{name}-{task.seed}.json"
            conditions = {"task": asdict(task), "budget_s": budget_s,
                          "processor_time": processor_time}  # fmt: skip
            if not file.exists():
                trials = measured(
                    name, task, budget_s, out / f"{name}-{task.seed}", processor_time=processor_time
                )
                measurement = conditions | {"trials": [asdict(trial) for trial in trials]}
                file.write_text(json.dumps(measurement, indent=2) + "\n", encoding="utf-8")
            stored = json.loads(file.read_text(encoding="utf-8"))
            if stored | conditions != stored:
                raise ConfigError(
                    f"What is kept must be of the same comparison. Received: {file}. "
                    "Choose another --out."
                )
            trials = [Trial(**fields) for fields in stored["trials"]]
            found.setdefault(name, []).append(trials)
            best = max((trial.score for trial in trials), default=0.0)
            print(f"{name}, seed {task.seed}: {len(trials)} trials, {best:.3f}", file=sys.stderr)
    return found


def measured(
    name: str, task: Task, budget_s: float, folder: Path, *, processor_time: bool = False
) -> list[Trial]:
    """Let one search run for its time, kill it with all that it has started, and read its trials.

    Raises:
        ConfigError: It ended by itself, before its time.
    """
    folder.mkdir(parents=True)
    command = [
        *(sys.executable, "-m", "kresnet.bench.search", task.data),
        *("--variant", task.variant, "--image-size", str(task.image_size)),
        *("--epochs", str(task.epochs), "--seed", str(task.seed)),
        *("--be", name, str(folder)),
    ]
    # What one has computed is no help to the next.
    environment = os.environ | {"KRESNET_KEEP_FEATURES": "0"}
    started = time.time()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, env=environment
        )
        try:
            while _spent(process.pid, started, processor_time=processor_time) < budget_s:
                time.sleep(_LOOK_S)
                if (code := process.poll()) is not None:
                    said = (folder / "log").read_text(encoding="utf-8", errors="replace")
                    raise ConfigError(
                        "A search must last as long as its time. Received: "
                        f"{name} ended with exit code {code} ({' '.join(said.split())[-300:]})."
                    )
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if name.startswith("kresnet"):
        return _of_study(folder, started)
    return _of_notes(folder / "trials", started)


def _spent(process: int, started: float, *, processor_time: bool) -> float:
    """Return the seconds that a process has had, of the clock or of the processor."""
    return processor_seconds(process) if processor_time else time.time() - started


def processor_seconds(process: int) -> float:
    """Return the processor time of a process, of all below it, and of those that have ended."""
    times: dict[int, tuple[int, int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):  # it has ended meanwhile
                fields = (entry / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                times[int(entry.name)] = (int(fields[1]), sum(map(int, fields[11:15])))
    family, ticks = {process}, times.get(process, (0, 0))[1]
    while more := {p for p, (parent, _) in times.items() if parent in family} - family:
        family |= more
        ticks += sum(times[p][1] for p in more)
    return ticks / os.sysconf("SC_CLK_TCK")


def table(
    found: Mapping[str, Sequence[Sequence[Trial]]], budget_s: float, *, processor_time: bool = False
) -> str:
    """Return a Markdown table: medians over the seeds, and their range."""
    kind = " of the processor" if processor_time else ""
    lines = [
        f"| search, {budget_s:.0f} s{kind} | trials finished | epochs | best validation accuracy |",
        "|---|---|---|---|",
    ]
    for name, contender in CONTENDERS.items():
        if name in found:
            runs = found[name]
            counts = [len(trials) for trials in runs]
            epochs = [sum(trial.epochs for trial in trials) for trials in runs]
            best = [100 * max((t.score for t in trials), default=0.0) for trials in runs]
            lines.append(
                f"| {contender.name}{_version(contender)} | {_spread(counts, '.0f')} "
                f"| {_spread(epochs, '.0f')} | {_spread(best, '.1f')} % |"
            )
        elif not contender.is_installed:
            lines.append(f"| {contender.name} | not installed: {contender.package} | - | - |")
    return "\n".join(lines)


def _version(contender: Contender) -> str:
    if contender.name.startswith("kresnet"):
        return ""
    return f" {version(contender.package)}"


def _spread(values: Sequence[float], form: str) -> str:
    low, middle, high = (f"{f(values):{form}}" for f in (min, median, max))
    return middle if len(values) == 1 else f"{middle} ({low}-{high})"


def _of_notes(file: Path, started: float) -> list[Trial]:
    """Return the trials that a process has noted, one line each."""
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").splitlines()
    notes = [json.loads(line) for line in lines if line.endswith("}")]
    return [Trial(note["time"] - started, note["score"], note["epochs"]) for note in notes]


def _of_study(folder: Path, started: float) -> list[Trial]:
    """Return the trials that are done in kresnet's study file."""
    from kresnet.tune.trials import FILE, Ledger

    found = []
    for file in folder.glob(f"studies/*/{FILE}"):
        ledger = Ledger(file.parent)
        trials = {trial.number: trial for trial in ledger.trials()}
        ledger.close()
        for trial in trials.values():
            if trial.status == "done" and trial.score is not None:
                before = trials[trial.parent].epochs_done if trial.parent is not None else 0
                outcome = file.parent / trial.directory / "outcome.json"
                at = outcome.stat().st_mtime - started
                found.append(Trial(at, trial.score, trial.epochs_done - before))
    return sorted(found, key=lambda trial: trial.seconds)


# ---------------------------------------------------------------- the searches


def search(name: str, task: Task, folder: Path) -> None:
    """Search without end.

    Args:
        name: A key of `CONTENDERS`.
        task: What for.
        folder: For all that is written.
    """
    kind, _, algorithm = name.partition("-")
    if kind == "kresnet":
        _kresnet(task, algorithm, folder)
    elif kind == "keras_tuner":
        _keras_tuner(task, algorithm, folder)
    else:
        _optuna(task, folder)


def _kresnet(task: Task, algorithm: Any, folder: Path) -> None:
    import yaml

    from kresnet.tune.job import tune

    space = folder / "space.yaml"
    space.write_text(yaml.safe_dump(dict(SPACE)), encoding="utf-8")
    settings = task.settings()
    tune(
        settings.pop("data"),
        trials=_MANY,
        algorithm=algorithm,
        space=space,
        jobs=1,
        studies=folder / "studies",
        refit=False,
        **settings,
    )


def _noting_hypermodel(task: Task, folder: Path) -> Any:
    """Return a hypermodel that notes each trial that its `fit` has finished."""
    import keras
    import keras_tuner

    from kresnet.tune.hypermodel import ResNetHyperModel

    class Noting(ResNetHyperModel):
        def fit(
            self, hp: keras_tuner.HyperParameters, model: keras.Model, *args: Any, **kwargs: Any
        ) -> keras.callbacks.History:
            history = super().fit(hp, model, *args, **kwargs)
            scores = history.history["val_accuracy"]
            note(folder, max(scores), len(scores))
            return history

    settings = task.settings()
    keras.utils.set_random_seed(task.seed)
    return Noting(settings.pop("data"), space=SPACE, **settings)


def note(folder: Path, score: float, epochs: int) -> None:
    """Write a finished trial down."""
    with (folder / "trials").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": time.time(), "score": score, "epochs": epochs}) + "\n")


def _keras_tuner(task: Task, algorithm: str, folder: Path) -> None:
    import keras_tuner

    common: dict[str, Any] = {
        "hypermodel": _noting_hypermodel(task, folder),
        "objective": "val_accuracy",
        "seed": task.seed + 1,
        "directory": folder,
        "project_name": "tuner",
        "max_consecutive_failed_trials": _TRIED_AGAIN,
    }
    if algorithm == "hyperband":
        tuner = keras_tuner.Hyperband(
            max_epochs=task.epochs, hyperband_iterations=_TRIED_AGAIN, **common
        )
    else:
        tuner = keras_tuner.BayesianOptimization(max_trials=_MANY, **common)
    tuner.search(verbose=0)


def _optuna(task: Task, folder: Path) -> None:
    import keras
    import keras_tuner
    import optuna

    hypermodel = _noting_hypermodel(task, folder)

    def objective(trial: Any) -> float:
        hp = keras_tuner.HyperParameters()
        hp.values = suggested(trial, hypermodel.space)
        keras.backend.clear_session()
        model = hypermodel.build(hp)
        pruning = _pruning(trial)
        history = hypermodel.fit(hp, model, callbacks=[pruning], verbose=0).history
        if pruning.pruned:
            raise optuna.TrialPruned
        return float(max(history["val_accuracy"]))

    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=task.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=task.epochs // 3),
    )
    study.optimize(objective)


def _pruning(trial: Any) -> Any:
    import keras

    class Pruning(keras.callbacks.Callback):
        pruned = False

        def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
            trial.report((logs or {})["val_accuracy"], epoch)
            if trial.should_prune():
                self.pruned = self.model.stop_training = True

    return Pruning()


def suggested(trial: Any, space: Space) -> dict[str, Any]:
    """Return what an Optuna trial suggests of a space, inactive fields left out."""
    values: dict[str, Any] = {}
    for name, entry in space.entries.items():
        if all(values.get(parent) in allowed for parent, allowed in entry.when.items()):
            values[name] = _suggested(trial, name, entry)
    return values


def _suggested(trial: Any, name: str, entry: Entry) -> Any:
    if entry.choice is not None:
        return trial.suggest_categorical(name, list(entry.choice))
    if entry.ints is not None:
        return trial.suggest_int(name, *entry.ints, log=entry.log)
    low, high = entry.floats or (0.0, 1.0)
    return trial.suggest_float(name, low, high, log=entry.log)


if __name__ == "__main__":
    main()
