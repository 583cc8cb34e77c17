"""A run: one directory a training, every file in it written whole or not at all.

recipe.yaml         every setting, re-runnable
plan.json           why each setting is as it is, and how long it was to take
environment.json    versions, hardware, command
index.csv ...       the images with their split, the classes, the unreadable files
preprocessing.json  what the model expects of its input
metrics.csv         one line an epoch
state/              exact state to resume from; removed when the run is complete
model.weights.safetensors   the kept weights, by layer and variable name
run.json            status and results so far
evaluation.json     every number of the evaluation; confusion.png shows the mistakes
calibration.json    the temperature, how well scores agree with accuracy, when to abstain
predictions.csv     what was said of every held-out image
report.html         all of this, to read
"""

from __future__ import annotations

import csv
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
from safetensors import SafetensorError
from safetensors.numpy import save_file

import kresnet
from kresnet.data.scan import Index
from kresnet.errors import ConfigError, ResourceError
from kresnet.files import whole_file
from kresnet.train.recipe import Recipe
from kresnet.zoo import Preprocessing

Rows = Sequence[Mapping[str, Any]]


def _unwatched(rows: Rows) -> None:
    """Watch nothing."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run's directory and what is in it.

    Attributes:
        path: The directory.
        watch: Called with all rows of metrics.csv whenever there is a new one.
        pause_after: Epochs after which this process leaves the training as if it was interrupted,
            to be gone on with; None is its end.
    """

    path: Path
    watch: Callable[[Rows], None] = field(default=_unwatched, repr=False, compare=False)
    pause_after: int | None = field(default=None, repr=False, compare=False)

    @classmethod
    def create(cls, out: Path, name: str, recipe: Recipe, index: Index) -> Run:
        """Make a new directory for a run; a name in use gets a number behind it.

        Raises:
            ResourceError: The directory cannot be written.
        """
        try:
            run = cls(new_folder(out, name))
            recipe.save(run.path / "recipe.yaml")
            index.save(run.path)
            run.write_json("environment.json", environment())
            run.update(status="created", name=name)
        except OSError as error:
            raise ResourceError(
                f"The run's directory must be writable. Received: {error}. "
                "Choose another with --out."
            ) from error
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open an existing run.

        Raises:
            ConfigError: There is no run at `path`.
        """
        run = cls(Path(path))
        if not (run.path / "recipe.yaml").is_file():
            raise ConfigError(
                "A run is a directory that `kresnet train` has written. "
                f"Received: {str(path)!r}, which holds no recipe.yaml."
            )
        return run

    @property
    def recipe(self) -> Recipe:
        """The settings, complete."""
        return Recipe.load(self.path / "recipe.yaml")

    @property
    def index(self) -> Index:
        """The images and their split."""
        return Index.load(self.path)

    @property
    def states(self) -> Path:
        """Where the states to resume from are kept."""
        return self.path / "state"

    @property
    def weights(self) -> Path:
        """The kept weights."""
        return self.path / "model.weights.safetensors"

    @property
    def preprocessing(self) -> Preprocessing:
        """What the run's model expects of its input."""
        fields = json.loads((self.path / "preprocessing.json").read_text(encoding="utf-8"))
        return Preprocessing(**fields | {k: tuple(fields[k]) for k in ("mean", "std")})

    def save_preprocessing(self, preprocessing: Preprocessing) -> None:
        """Keep what the run's model expects of its input."""
        self.write_json("preprocessing.json", asdict(preprocessing))

    @property
    def info(self) -> dict[str, Any]:
        """What is known of the run so far: status, results, timings."""
        file = self.path / "run.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    @property
    def metrics(self) -> list[dict[str, str]]:
        """The lines of metrics.csv, one for each epoch that is complete."""
        path = self.path / "metrics.csv"
        if not path.exists():
            return []
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def update(self, **fields: Any) -> None:
        """Add to what is known of the run."""
        self.write_json("run.json", self.info | fields)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file in one step: a reader sees the old or the new, never half."""
        text = json.dumps(content, indent=2, ensure_ascii=False)
        self.write_text(name, text + "\n")

    def write_table(self, name: str, lines: Iterable[Sequence[object]]) -> None:
        """Write a CSV file in one step, the names of the columns first."""
        with (
            whole_file(self.path / name) as partial,
            partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            csv.writer(file).writerows(lines)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file in one step."""
        with whole_file(self.path / name) as partial:
            partial.write_text(text, encoding="utf-8")

    def save_weights(self, model: keras.Model) -> None:
        """Keep the model's weights, by layer and variable name."""
        arrays = {
            f"{layer.name}/{v.name}": keras.ops.convert_to_numpy(v)
            for layer in model.layers
            for v in layer.weights
        }
        try:
            with whole_file(self.weights) as partial:
                save_file(arrays, partial)
        except (OSError, SafetensorError) as error:
            raise ResourceError(
                f"The weights must be writable. Received: {error}. Make room and resume."
            ) from error

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Write one line an epoch."""
        if not rows:
            return
        with (
            whole_file(self.path / "metrics.csv") as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        self.watch(rows)


class Guest(Run):
    """What a process that is not the chief has of a run: a copy, in a folder that nobody reads.

    It reads the recipe and the images from it, and keeps no weights: they are the chief's.
    """

    __slots__ = ()

    def save_weights(self, model: keras.Model) -> None:
        """Keep nothing."""


_TOLD = ("recipe.yaml", "index.csv", "problems.csv", "classes.json", "run.json")


def told_of(run: Run) -> dict[str, str]:
    """Return what a guest must have of a run, by the names of the files."""
    names = [name for name in _TOLD if (run.path / name).exists()]
    return {
        name: (run.path / name).read_bytes().decode("utf-8", "surrogateescape") for name in names
    }


def as_guest(folder: Path, files: Mapping[str, str]) -> Guest:
    """Write what `told_of` has returned elsewhere into a folder, and open it."""
    for name, text in files.items():
        (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    return Guest(folder)


def environment() -> dict[str, Any]:
    """Return versions, hardware and command, for whoever asks later how a result came about."""
    import numpy
    import tensorflow as tf

    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "kresnet": kresnet.__version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "gpus": [device.name for device in tf.config.list_physical_devices("GPU")],
    }


def check_name(name: str) -> None:
    """Refuse a name that would be a hidden folder, or one elsewhere.

    Raises:
        ConfigError: It is none of a folder.
    """
    if name.startswith(".") or Path(name).name != name:
        raise ConfigError(f"`name` must be the plain name of a folder. Received: name={name!r}.")


def new_folder(parent: Path, name: str) -> Path:
    """Make a folder, with its parents; a name in use gets a number behind it.

    Args:
        parent: Where to make it.
        name: See `check_name`.

    Raises:
        OSError: It cannot be made.
    """
    number = 1
    while True:
        path = parent / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1
