"""How long a run will take: its arithmetic, at the speed at which this machine was seen to work.

Speeds are measured once and kept in `KRESNET_HOME/speed.json`: of a network cut to one block a
stage, which costs seconds, and scaled to the whole by its multiplications; and of the input, on
some of the images. A run that has trained the network corrects them, and what else it took, to
build, export and check, is what the next is expected to take. Where something cannot be measured,
there is no estimate.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import tensorflow as tf

from kresnet.data.arrays import channels
from kresnet.data.pipeline import TrainingData
from kresnet.data.scan import Index, Row
from kresnet.data.shrinking import reduced
from kresnet.data.store import keeps
from kresnet.errors import DataError, ResourceError
from kresnet.machine import cores, processor
from kresnet.train.cut_plan import front_share
from kresnet.train.hardware import has_gpu, policy_name
from kresnet.train.loop import FINISHING_S
from kresnet.train.optimizer import optimizer_of
from kresnet.train.probe import views_of
from kresnet.train.recipe import Recipe
from kresnet.train.run import Run
from kresnet.train.schedule import size_at, test_sizes
from kresnet.train.stages import RECALIBRATION, prepare_layers
from kresnet.train.step import train_step
from kresnet.zoo import Preprocessing, build
from kresnet.zoo.download import kresnet_home
from kresnet.zoo.size import measure
from kresnet.zoo.variants import ResNetConfig, variant_config

_TIMES: Final = 3  # each is measured; the shortest is that of an idle machine
_MACS: Final = 5e10  # of one measurement, about
_SAMPLE: Final = 40  # images that the input is measured on
_RUNS: Final = 5  # runs that are remembered of each network


@dataclass(frozen=True, slots=True)
class Estimate:
    """How long a run is going to take, in seconds, from the plan to the report.

    Attributes:
        probe_s: The linear probe; 0 without pretrained weights.
        epoch_s: Of one epoch and its validation.
        judge_s: Of the validation alone.
        epochs: How many there will be, at most; fewer than planned where there is a budget.
        planned: How many the recipe has.
        once_s: What is done once: decoding, timing, scoring the held-out images.
        rest_s: Building, export and its check, report.
        seconds: All of it.
        spent_s: How long the job had been going on when this was estimated.
    """

    probe_s: float
    epoch_s: float
    judge_s: float
    epochs: int
    planned: int
    once_s: float
    rest_s: float
    seconds: float
    spent_s: float = 0.0

    def __str__(self) -> str:
        parts = [f"probe {about(self.probe_s)}"] if self.probe_s else []
        if self.epochs:
            of = "" if self.epochs == self.planned else f" of {self.planned}"
            parts.append(f"up to {self.epochs}{of} epochs of {about(self.epoch_s)}")
        elif self.planned:
            parts.append(f"no time for an epoch of {about(self.epoch_s)}")
        parts.append(f"the rest {about(self.once_s + self.rest_s)}")
        return f"about {about(self.seconds)}: {', '.join(parts)}"

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types, in tenths of a second."""
        return {
            name: round(value, 1) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


def about(seconds: float) -> str:
    """Format a time no more exactly than it is known: two digits, as 4.2 s, 45 s, 4 min, 2.5 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 3570:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def estimated(recipe: Recipe, index: Index, *, spent_s: float = 0.0) -> Estimate | None:
    """Estimate how long a run takes on this machine.

    Args:
        recipe: The settings.
        index: The images and their split.
        spent_s: How long the job has been going on, which counts in its budget.

    Returns:
        The estimate, or None where nothing could be measured, as on images that are gone.

    Raises:
        ConfigError: The recipe trains from a stage that the network does not have.
    """
    train, val, test = (len(index.select(split)) for split in ("train", "val", "test"))
    if not train:
        return None
    try:
        learn_s, look_s = _network_speed(recipe, len(index.classes), channels(index.rows) or 3)
        fresh_s, kept_s = _input_speed(recipe, index.select("train"), len(index.classes))
    except (tf.errors.OpError, DataError, ResourceError):
        return None
    # A GPU computes while the processor reads; a processor does one after the other.
    both: Callable[[float, float], float] = max if has_gpu() else lambda a, b: a + b
    looks = train * len(views_of(recipe.probe_views, flip=recipe.flip)) + val
    probe_s = looks * both(look_s, fresh_s) if recipe.weights is not None else 0.0
    front = front_share(recipe.model_dump())  # is looked at once a view, not in each epoch
    judged = val * look_s * (1.0 - front) * (2 if recipe.ema else 1)
    epoch_s = train * recipe.repeats * both(learn_s * _grown(recipe), 0.0 if front else kept_s)
    epoch_s += judged
    once_s = (val + test) * both(look_s, fresh_s)
    if recipe.epochs:
        views = min(recipe.cut_views, recipe.epochs) if front else 0
        once_s += views * train * both(look_s * front, kept_s) + val * look_s * front
        once_s += train * (fresh_s - kept_s) + _refining(recipe, train, val, look_s, fresh_s)
        if recipe.budget_s:  # the first steps and two validations are timed
            once_s += 3 * recipe.batch_size * learn_s + 2 * judged
    rests = _kept().get(_network(recipe, "rest"))
    rest_s = max(median(rests), 0.0) if rests else FINISHING_S
    epochs = recipe.epochs
    if recipe.budget_s and epochs:
        left = recipe.budget_s - spent_s - probe_s - once_s - FINISHING_S
        epochs = min(epochs, max(int(left / epoch_s), 0 if probe_s else 1))
    seconds = probe_s + once_s + epochs * epoch_s + rest_s
    return Estimate(
        probe_s, epoch_s, judged, epochs, recipe.epochs, once_s, rest_s, seconds, spent_s
    )


def _grown(recipe: Recipe) -> float:
    """Return the mean area of the training images as a share of the last epochs'."""
    sides = [
        size_at(k / recipe.epochs, recipe.image_size, growing=recipe.progressive)
        for k in range(recipe.epochs)
    ]
    return float(np.mean(np.square(sides)) / recipe.image_size**2) if sides else 1.0


def _refining(recipe: Recipe, train: int, val: int, look_s: float, fresh_s: float) -> float:
    """Return the seconds of what is tried after the last epoch."""
    again = min(train, RECALIBRATION) if recipe.recalibrate and recipe.norms == "train" else 0
    tries = (again > 0) + (recipe.soup + (recipe.ema > 0) if recipe.soup else 0)
    larger = test_sizes(recipe.image_size) if recipe.larger_test else ()
    return tries * (val + again) * look_s + sum(
        val * (look_s * (side / recipe.image_size) ** 2 + fresh_s) for side in larger
    )


def remember(run: Run, estimate: Estimate, seconds: float) -> None:
    """Learn from a run that was not interrupted how fast it was, and what else it took.

    Args:
        run: It is complete.
        estimate: What was expected of it.
        seconds: How long it took, from the plan to the report.
    """
    recipe, rows = run.recipe, run.index.select("train")
    speeds = [speed for line in run.metrics if (speed := float(line["images_per_s"]))]
    trained_s = sum(len(rows) * recipe.repeats / speed for speed in speeds)
    probe_s = (run.info.get("probe") or {}).get("seconds", 0.0)
    rest_s = seconds - probe_s - trained_s - len(speeds) * estimate.judge_s - estimate.once_s
    rests = [*_kept().get(_network(recipe, "rest"), []), round(rest_s, 1)]
    _keep(_network(recipe, "rest"), rests[-_RUNS:])
    name, size = _speed_name(recipe, channels(rows) or 3), len(run.index.classes)
    speeds = speeds[math.ceil(recipe.progressive * recipe.epochs) :]  # before, images were small
    if speeds and name in _kept():
        learn_s, look_s = _kept()[name]
        _, kept_s = _input_speed(recipe, rows, size)
        found = 1.0 / max(speeds) - (0.0 if has_gpu() or recipe.cut_cache != "none" else kept_s)
        if found > 0:  # what slows one down slows the other
            _keep(name, [found, look_s * found / learn_s])


# ---------------------------------------------------------------- measuring


def _network_speed(recipe: Recipe, num_classes: int, num_channels: int) -> tuple[float, float]:
    """Return the seconds to learn from an image, and those to look at one."""
    name = _speed_name(recipe, num_channels)
    if (known := _kept().get(name)) is None:
        config = variant_config(recipe.variant)
        cut = replace(config, depths=(1,) * len(config.depths))
        measured = _timed_network(recipe, cut, num_classes, num_channels)
        whole, part = (_macs(one, recipe, num_classes) for one in (config, cut))
        known = [s * w / p for s, w, p in zip(measured, whole, part, strict=True)]
        front = front_share(recipe.model_dump())
        known[0] = max(known[0] - known[1] * front, known[0] * (1.0 - front))
        _keep(name, known)
    return known[0], known[1]


def _macs(config: ResNetConfig, recipe: Recipe, num_classes: int) -> tuple[float, float]:
    """Return the multiplications to learn from an image, and those to look at one.

    The gradient takes as many again for the inputs of a layer and for its kernel, and ends at the
    first stage that is trained.
    """
    look = measure(config, image_size=recipe.image_size, num_classes=num_classes).macs
    frozen = 0
    if recipe.train_from > 1:
        before = replace(config, depths=config.depths[: recipe.train_from - 1])
        frozen = measure(before, image_size=recipe.image_size, num_classes=0).macs
    return look + 2.0 * (look - frozen), float(look)


def _timed_network(
    recipe: Recipe, config: ResNetConfig, num_classes: int, num_channels: int
) -> tuple[float, float]:
    """Return what `_network_speed` does, of a small network, by running it."""
    model = build(
        config,
        num_classes=num_classes,
        input_shape=(recipe.image_size, recipe.image_size, num_channels),
        dtype=policy_name(recipe.precision),
    )
    prepare_layers(model, recipe)
    optimizer = optimizer_of(recipe, model)  # its rate is 0
    step = train_step(model, optimizer, loss=recipe.loss)
    look = tf.function(lambda images: model(images, training=False), autograph=False)
    at_once = -(-recipe.batch_size // recipe.accumulate)
    count = int(np.clip(_MACS / _macs(config, recipe, num_classes)[0], 1, at_once))
    rng = np.random.default_rng(0)
    images = tf.constant(rng.normal(size=(count, *model.input_shape[1:])), tf.float32)
    targets = tf.one_hot(rng.integers(num_classes, size=count), num_classes)
    weights = tf.ones(count)
    return (
        _shortest(lambda: float(step(images, targets, weights))) / count,
        _shortest(lambda: look(images).numpy()) / count,
    )


def _shortest(run: Callable[[], object]) -> float:
    run()  # traces and compiles
    times = []
    for _ in range(_TIMES):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def _input_speed(recipe: Recipe, rows: Sequence[Row], num_classes: int) -> tuple[float, float]:
    """Return the seconds that an image takes the first time and later, when it may be kept."""
    spread = np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE)).round().astype(int)
    sample = [rows[k] for k in spread]
    _, shapes = reduced(rows, recipe.image_size, recipe.min_area)
    kept = keeps(shapes, recipe.cache)
    pixels = np.mean([row.height * row.width for row in sample])
    views = f"{recipe.image_size} px, {recipe.augment}, crops {recipe.min_area:g}"
    # Images of about one size take about the same time.
    name = f"{_machine()}, input: {views}, of 2^{round(math.log2(pixels))} pixels, kept {kept}"
    if (known := _kept().get(name)) is None:
        size = channels(rows) or 3
        data = TrainingData(
            sample,
            Preprocessing(image_size=recipe.image_size, mean=(0.0,) * size, std=(1.0,) * size),
            num_classes=num_classes,
            batch_size=max(len(sample) // 5, 1),
            augmentation=replace(recipe.augmentation, repeats=1, mixup=0.0, cutmix=0.0),
            seed=recipe.seed,
            cache="memory" if kept else "none",
        )
        known = list(_timed_input(data.batches(), data.steps))
        _keep(name, known)
    return known[0], known[1]


def _timed_input(batches: Iterator[tuple[tf.Tensor, ...]], steps: int) -> tuple[float, float]:
    """Return the seconds an image in the first pass and in the second."""
    size = len(next(batches)[1])  # what is set up for it is not timed
    times = []
    for count in (max(steps - 1, 1), steps):
        started = time.perf_counter()
        for _ in range(count):
            next(batches)
        times.append((time.perf_counter() - started) / (count * size))
    return times[0], min(times)


# ---------------------------------------------------------------- remembering


def _machine() -> str:
    """Name what the speed depends on, apart from the network."""
    gpus = [
        tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    threads = tf.config.threading.get_intra_op_parallelism_threads() or os.environ.get(
        "TF_NUM_INTRAOP_THREADS", "all"
    )
    return ", ".join(
        [
            processor(),
            f"{cores()} cores",
            f"{threads} threads",
            *gpus,
            f"TensorFlow {tf.__version__}",
        ]
    )


def _network(recipe: Recipe, what: str) -> str:
    return (
        f"{_machine()}, {recipe.variant} at {recipe.image_size} px, {recipe.precision}, from stage "
        f"{recipe.train_from}, norms {recipe.norms}, "
        f"{'' if recipe.cut_cache == 'none' else 'cut, '}{what}"
    )


def _speed_name(recipe: Recipe, num_channels: int) -> str:
    return _network(recipe, f"{recipe.loss}, {num_channels} channels")


def _file() -> Path:
    return kresnet_home() / "speed.json"


def _kept() -> dict[str, list[float]]:
    """Return what is known; a file that is absent or damaged knows nothing."""
    try:
        found = dict(json.loads(_file().read_text("utf-8")))
        return {name: [float(value) for value in values] for name, values in found.items()}
    except (OSError, ValueError, TypeError):
        return {}


def _keep(name: str, values: Sequence[float]) -> None:
    """Remember it; where that is not possible, it is measured again the next time."""
    text = json.dumps(_kept() | {name: list(values)}, indent=1)
    partial = _file().with_name(f".speed-{os.getpid()}")
    with suppress(OSError):
        _file().parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, "utf-8")
        partial.replace(_file())
