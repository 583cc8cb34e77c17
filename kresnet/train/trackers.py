"""Where a run is shown beside its own files: TensorBoard and MLflow.

A tracker is a guest: whatever it fails with ends it and not the training. What it has been told is
asked of it and not of the run, so a run that was killed goes on where its tracker stands: no point
comes twice, and one that is another after a trouble takes the place of the first.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import keras
import tensorflow as tf
from PIL import Image

import kresnet
from kresnet.data.arrays import channels
from kresnet.data.sheet import batches_sheet
from kresnet.errors import ConfigError, DataError, Interrupted, ResourceError
from kresnet.train.run import Run
from kresnet.train.stages import training_data
from kresnet.zoo import Preprocessing

_SHOWN: Final = 16  # images of the first batch
_NO_STEP: Final = 0  # of what is known once
_FILES: Final = ("report.html", "recipe.yaml", "confusion.png", "evaluation.json", "metrics.csv")
_EXPERIMENT: Final = "kresnet"


class Tracker(Protocol):
    """What a tracker must be able to do; it may raise whatever it likes."""

    def told(self, name: str) -> Mapping[int, float]:
        """Return the values of a number that it knows already, by step."""

    def tell(self, step: int, values: Mapping[str, float]) -> None:
        """Take numbers of one step, all or none; they count instead of what is known from it on."""

    def show(self, name: str, picture: Image.Image) -> None:
        """Take a picture, in place of one of the same name."""

    def finish(self, run: Run, model: keras.Model) -> None:
        """Take what there is at the end: the network, and files of the run."""

    def close(self, status: str) -> None:
        """End, with "FINISHED", "KILLED" for what can be resumed, or "FAILED"."""


def check_trackers(names: str | Sequence[str]) -> list[str]:
    """Return the names of trackers, also from a list with commas.

    Raises:
        ConfigError: There is no such tracker.
        ResourceError: Its package is not installed.
    """
    parts = names.split(",") if isinstance(names, str) else names
    found = list(dict.fromkeys(name.strip() for name in parts if name.strip()))
    for name in found:
        if name not in _TRACKERS:
            near = get_close_matches(name, _TRACKERS, n=1)
            raise ConfigError(
                f"A tracker must be one of {', '.join(_TRACKERS)}. Received: tracker={name!r}."
                + (f" Did you mean {near[0]!r}?" if near else "")
            )
    if "mlflow" in found and find_spec("mlflow") is None:
        raise ResourceError(
            "The tracker mlflow needs a package. Received: no such package. "
            "Install it: pip install 'kresnet[mlflow]'"
        )
    return found


class Trackers:
    """The trackers of a run, those that its run.json names; each is dropped when it fails.

    Args:
        run: The run.
        say: Called with a topic of one word and a line about it.
    """

    def __init__(self, run: Run, say: Callable[[str, str], None]) -> None:
        self._run, self._say = run, say
        self._open: dict[str, Tracker] = {}
        for name in run.info.get("trackers", ()):
            with self._guarded(name):
                check_trackers([name])  # a run may be resumed where there is no such package
                self._open[name] = _TRACKERS[name](run, say)

    def __enter__(self) -> Trackers:
        if not (self._run.path / "metrics.csv").exists():
            self._show("first batch", self._sheet())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        resumable = kind is not None and issubclass(kind, (Interrupted, KeyboardInterrupt))
        status = "FINISHED" if kind is None else "KILLED" if resumable else "FAILED"
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                tracker.close(status)

    def epochs(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Tell the epochs that are new, from all rows of metrics.csv so far."""
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                for row in rows:
                    _tell(tracker, int(row["epoch"]), _numbers(row))

    def finish(self, model: keras.Model) -> None:
        """Tell the result of a finished run."""
        values = _results(self._run)
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                _tell(tracker, _NO_STEP, values)
        self._show("confusion", Image.open(self._run.path / "confusion.png").convert("RGB"))
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                tracker.finish(self._run, model)

    def _show(self, what: str, picture: Image.Image | None) -> None:
        for name, tracker in list(self._open.items()):
            with self._guarded(name):
                if picture:
                    tracker.show(what, picture)

    def _sheet(self) -> Image.Image | None:
        """Draw what the training sees first; None for arrays and for images that have gone."""
        recipe, index = self._run.recipe, self._run.index
        if not self._open or channels(index.rows) is not None:
            return None
        preprocessing = Preprocessing(image_size=recipe.image_size)  # it is undone for the eye
        data = training_data(
            recipe.model_copy(update={"cache": "none"}),
            index.select("train"),
            preprocessing,
            num_classes=len(index.classes),
        )
        try:
            return batches_sheet(data, index.classes, preprocessing, images=_SHOWN)
        except (DataError, tf.errors.OpError):  # the training itself will say so
            return None

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Drop a tracker that fails, in one line."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the tracker's own libraries
                yield
        except Exception as error:
            self._open.pop(name, None)
            reason = " ".join(str(error).split()) or "no reason given"
            self._say(
                "tracker", f"{name} failed ({type(error).__name__}: {reason[:200]}); on without it"
            )


def _tell(tracker: Tracker, step: int, values: Mapping[str, float]) -> None:
    """Tell numbers of one step, unless they are known; speeds are others in a resumed run."""
    mark = next(iter(values), None)
    if mark is None:
        return
    known = tracker.told(mark).get(step)
    if known is None or not math.isclose(known, values[mark], rel_tol=1e-6, abs_tol=1e-6):
        tracker.tell(step, values)


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row of metrics.csv, which are texts in part."""
    found = {}
    for name, value in row.items():
        with suppress(ValueError, TypeError):
            if name != "epoch":
                found[name] = float(value)
    return found


def _results(run: Run) -> dict[str, float]:
    """Return the numbers of a run's evaluation, the probe and the calibration."""
    evaluations, scores = (
        json.loads((run.path / name).read_text(encoding="utf-8"))
        for name in ("evaluation.json", "calibration.json")
    )
    found: dict[str, float] = {}
    for split, result in evaluations.items():
        low, high = result["interval"]
        found |= {
            f"final_{split}_accuracy": result["accuracy"],
            f"final_{split}_accuracy_low": low,
            f"final_{split}_accuracy_high": high,
            f"final_{split}_balanced_accuracy": result["balanced_accuracy"],
            f"final_{split}_loss": result["loss"],
            f"final_{split}_calibration_error": scores["splits"][split]["after"]["ece"],
        }
    if probe := run.info.get("probe"):
        found |= {"probe_val_accuracy": probe["accuracy"], "probe_val_loss": probe["loss"]}
    return found


# ---------------------------------------------------------------- TensorBoard

_TAGS: Final = {
    "loss": "loss/training",
    "val_loss": "loss/validation",
    "average_val_loss": "loss/validation of the average",
    "val_accuracy": "accuracy/validation",
    "average_val_accuracy": "accuracy/validation of the average",
    "lr": "learning rate/of the head",
    "images_per_s": "speed/images a second",
    "wait": "speed/share of waiting for data",
}


class TensorBoard:
    """Event files in `runs/NAME/tensorboard`, written by TensorFlow alone.

    `tf.summary` needs the package tensorboard, which TensorFlow no longer installs; to look at the
    files takes it, to write them does not. Each process writes a file of its own.
    """

    def __init__(self, run: Run, say: Callable[[str, str], None]) -> None:
        self._folder = run.path / "tensorboard"
        self._folder.mkdir(exist_ok=True)
        self._known: dict[str, dict[int, float]] = {}
        self._seen: set[str] = set()
        files = sorted(self._folder.glob("events.out.tfevents.*"))
        for file in files:
            for event in _events(file):
                self._take(event)
        # Their readers go on to the next file in the order of the names.
        path = self._folder / f"events.out.tfevents.{len(files):05d}.kresnet"
        self._writer = tf.io.TFRecordWriter(str(path))
        self._write(file_version="brain.Event:2")
        hint = "" if find_spec("tensorboard") else ", after pip install 'kresnet[tensorboard]'"
        say("tracker", f"tensorboard --logdir {self._folder}{hint}")

    def told(self, name: str) -> Mapping[int, float]:
        """Return the values of a number that the files hold, by step."""
        return self._known.get(_tag(name), {})

    def tell(self, step: int, values: Mapping[str, float]) -> None:
        """Take numbers of one step, all or none; they count instead of what is known from it on."""
        if step and any(step in steps for steps in self._known.values()):
            log = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
            self._write(step=step, session_log=log)
        value = tf.compat.v1.Summary.Value
        numbers = [value(tag=_tag(k), simple_value=v) for k, v in values.items()]
        self._write(step=step, summary=tf.compat.v1.Summary(value=numbers))

    def show(self, name: str, picture: Image.Image) -> None:
        """Take a picture, once."""
        if name in self._seen:
            return
        file = io.BytesIO()
        picture.save(file, "PNG")
        image = tf.compat.v1.Summary.Image(
            width=picture.width,
            height=picture.height,
            colorspace=3,
            encoded_image_string=file.getvalue(),
        )
        shown = tf.compat.v1.Summary.Value(tag=name, image=image)
        self._write(step=_NO_STEP, summary=tf.compat.v1.Summary(value=[shown]))

    def finish(self, run: Run, model: keras.Model) -> None:
        """Take the network's graph, once."""
        if "graph" not in self._seen:
            self._write(graph_def=_graph(model).SerializeToString())

    def close(self, status: str) -> None:
        """End the file."""
        self._writer.close()

    def _write(self, **fields: Any) -> None:
        event = tf.compat.v1.Event(wall_time=time.time(), **fields)
        self._writer.write(event.SerializeToString())
        self._writer.flush()
        self._take(event)

    def _take(self, event: Any) -> None:
        """Remember what an event says, as TensorBoard's reader does."""
        if event.HasField("session_log"):
            for steps in self._known.values():
                for step in [step for step in steps if step >= event.step]:
                    del steps[step]
        if event.HasField("graph_def"):
            self._seen.add("graph")
        for value in event.summary.value:
            if value.HasField("image"):
                self._seen.add(value.tag)
            else:
                self._known.setdefault(value.tag, {})[event.step] = value.simple_value


def _tag(name: str) -> str:
    return _TAGS.get(name, f"more/{name}")


def _graph(model: keras.Model) -> Any:
    """Return a network as one node for each layer, in boxes of stages and blocks.

    TensorFlow's own graph has dozens of nodes for each, without the names of the layers.
    """
    graph = tf.compat.v1.GraphDef()
    for layer in model.get_config()["layers"]:
        node = graph.node.add(name=_boxed(layer["name"]), op=layer["class_name"])
        node.input.extend(_boxed(name) for name in _inputs(layer["inbound_nodes"]))
        node.attr["parameters"].i = model.get_layer(layer["name"]).count_params()
    return graph


def _boxed(name: str) -> str:
    return re.sub(r"^(stage\d+)_(block\d+)_", r"\1/\2/", name)


def _inputs(nodes: Any) -> Iterator[str]:
    """Yield the names of the layers whose outputs a layer takes, from its stored calls."""
    if isinstance(nodes, Mapping):
        if "keras_history" in nodes:
            yield nodes["keras_history"][0]
        nodes = list(nodes.values())
    if isinstance(nodes, Sequence) and not isinstance(nodes, str):
        for node in nodes:
            yield from _inputs(node)


def _events(file: Path) -> Iterator[Any]:
    """Yield the events of a file, of which a killed process may have left the last one cut off."""
    records = iter(tf.data.TFRecordDataset(str(file)))
    while True:
        try:
            record = next(records)
        except (StopIteration, tf.errors.DataLossError):
            return
        yield tf.compat.v1.Event.FromString(record.numpy())


# ---------------------------------------------------------------- MLflow


class MLflow:
    """A run of the MLflow server or store that MLFLOW_TRACKING_URI names, else of MLflow's own.

    It is one run from the first start to the last resume: its address is in run.json, without
    passwords, which belong into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
    """

    def __init__(self, run: Run, say: Callable[[str, str], None]) -> None:
        # Of MLflow's own accord: two minutes of silence, seven times; and it reports its use.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        import mlflow

        stored = run.info.get("mlflow", {})
        address = os.environ.get("MLFLOW_TRACKING_URI") or stored.get("uri")
        address = address or mlflow.get_tracking_uri()
        self._client = mlflow.MlflowClient(tracking_uri=address)
        if "run" in stored:
            self._id = stored["run"]
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._created(run)
            run.update(mlflow={"run": self._id} | _to_keep(address))
        self._known: dict[str, dict[int, float]] = {}
        where = _to_keep(address).get("uri")
        say("tracker", f"mlflow run {self._id}" + (f" at {where}" if where else ""))

    def told(self, name: str) -> Mapping[int, float]:
        """Return the last value that the store knows of a number at each step."""
        if name not in self._known:
            history = self._client.get_metric_history(self._id, name)
            ordered = sorted(history, key=lambda metric: metric.timestamp)
            self._known[name] = {metric.step: metric.value for metric in ordered}
        return self._known[name]

    def tell(self, step: int, values: Mapping[str, float]) -> None:
        """Take numbers of one step in one request; the store keeps what it knew before."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)
        for name, value in values.items():
            self._known.setdefault(name, {})[step] = value

    def show(self, name: str, picture: Image.Image) -> None:
        """Take a picture as an artifact."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name.replace(' ', '_')}.png"
            picture.save(path)
            self._client.log_artifact(self._id, str(path))

    def finish(self, run: Run, model: keras.Model) -> None:
        """Take the report and what it rests on as artifacts."""
        for name in _FILES:
            if (run.path / name).exists():
                self._client.log_artifact(self._id, str(run.path / name))
        self._client.set_tag(self._id, "kept", run.info.get("kept", ""))

    def close(self, status: str) -> None:
        """Tell how the run ended."""
        self._client.set_terminated(self._id, status)

    def _created(self, run: Run) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        recipe = run.recipe
        tags = {
            "kresnet": kresnet.__version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "variant": recipe.variant,
            "data": recipe.data,
            "directory": str(run.path),
        }
        created = self._client.create_run(experiment, run_name=run.path.name, tags=tags)
        fields = recipe.model_dump(mode="json").items()
        params = [Param(field, str(value)) for field, value in fields if value is not None]
        self._client.log_batch(created.info.run_id, params=params)
        return str(created.info.run_id)


def _to_keep(address: str) -> dict[str, str]:
    """Return what a run may know of an address: nothing where there is a password in it."""
    return {} if urlsplit(address).password else {"uri": address}


_TRACKERS: Final[dict[str, Callable[[Run, Callable[[str, str], None]], Tracker]]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
}
