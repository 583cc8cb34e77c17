"""The main job from end to end: a folder of images in, a verified export out.

Scan, split, plan, train, evaluate, export. The command line and the recipe scripts call this and
nothing else.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

import kresnet
from kresnet.console import Console
from kresnet.data.arrays import channels
from kresnet.data.items import WHOLE, as_files
from kresnet.data.lost import lost_images
from kresnet.data.prepare import prepare
from kresnet.data.scan import Index, Row, scan
from kresnet.data.sheet import batches_sheet
from kresnet.data.sources import absolute, listing, name_of
from kresnet.errors import ConfigError, DataError, Interrupted, ResourceError
from kresnet.evaluate.held_out import score
from kresnet.evaluate.metrics import Evaluation, evaluation
from kresnet.evaluate.report import Published, write_report
from kresnet.export.contract import Contract
from kresnet.export.formats import choose_formats
from kresnet.export.publish import MAX_ACCURACY_LOSS, Exported, export
from kresnet.export.reference import Sample
from kresnet.export.versions import latest_version
from kresnet.serve.engine import Answer, Engine
from kresnet.train.disk import check_room, disk_needed
from kresnet.train.estimate import Estimate, estimated, remember
from kresnet.train.lr_find import RateTest, range_test
from kresnet.train.plan import Plan, again, direction_matters, explained
from kresnet.train.presets import PRESETS, check_preset
from kresnet.train.recipe import Recipe, rerun
from kresnet.train.run import Run
from kresnet.train.signals import terminable
from kresnet.train.stages import Trained, train, training_data
from kresnet.train.trackers import Trackers, check_trackers
from kresnet.zoo import Preprocessing, build
from kresnet.zoo.cards import card_for, split_name
from kresnet.zoo.download import TAGS, check_license, find_weights
from kresnet.zoo.variants import variant_config

_SAMPLES = 64  # images that an export is checked on after training
_MOST_SAMPLES = 500  # and when it is made again, at leisure
_CALIBRATION = 200  # images that set the ranges of 8-bit files
_ARRAYS = "images that are more than 8-bit RGB cannot be exported"
_ANSWERED = 32  # images in memory while an export is scored


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
    console: Console | None = None,
    **settings: Any,
) -> Result:
    """Train a classifier on a folder of images and export it.

    Args:
        data: A folder with one folder of images for each class, or with such folders under
            train, val and test, or another source of `kresnet.data.sources.listing`. It is only
            read. None is that of `recipe`.
        variant: A key of `kresnet.VARIANTS`, or one with a tag, as "resnet50.a1_in1k"; None is
            that of `recipe`, else "resnet50".
        weights: A tag, as "imagenet", the path of a checkpoint, or None to train from scratch. Of
            no account where the variant has a tag. "auto" is that of `recipe`, else "imagenet", or
            None where the preset is one of random weights.
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
        console: Where to report; None reports to standard error.
        **settings: Fields of `kresnet.Recipe` that are not to be planned, as `epochs=10`;
            `precision` may be "auto".

    Returns:
        Where everything is, and how good it is.

    Raises:
        ConfigError: A setting is wrong.
        DataError: The images cannot be used.
        ResourceError: Weights, disk or memory are missing.
        Interrupted: It was stopped, and can be resumed.
        ExportError: The export did not agree with the model.
    """
    console = console or Console()
    trackers = check_trackers(tracker)
    choice = _Choice(data, variant, weights, preset, recipe, settings)
    name = name or name_of(choice.source)
    if name.startswith(".") or Path(name).name != name:
        raise ConfigError(f"`name` must be the plain name of a folder. Received: name={name!r}.")
    planned, index = _planned(choice, console, out=Path(out), exports=Path(exports))
    chosen = planned.recipe
    if chosen.weights is not None:
        find_weights(
            chosen.variant,
            chosen.weights,
            lambda done, _: console.status(f"weights: {done / 1e6:.0f} MB"),
        )
    run = Run.create(Path(out), name, chosen, index)
    run.update(name=name, exports=str(Path(exports).resolve()), keep_photos=keep_photos)
    run.update(trackers=trackers)
    run.write_json("plan.json", planned.as_dict())
    _tell_data(console, index, f"see {run.path / 'problems.csv'}")
    _tell_plan(console, planned, index.classes)
    if explain:
        for line in planned.lines():
            console.line("why", line)
    return _finish(run, console, planned.estimate)


def preview(
    data: str | Path | None = None,
    *,
    variant: str | None = None,
    weights: str | None = "auto",
    preset: str = "default",
    recipe: str | Path | None = None,
    out: str | Path = "runs",
    exports: str | Path = "saved_models",
    console: Console | None = None,
    **settings: Any,
) -> Plan:
    """Plan what `fit` would do with the same arguments, and leave it at that.

    The images are read, nothing is downloaded, and no run is made.

    Raises:
        ConfigError: A setting is wrong.
        DataError: The images cannot be used.
        ResourceError: The disk has no room for the run.
    """
    console = console or Console()
    choice = _Choice(data, variant, weights, preset, recipe, settings)
    planned, index = _planned(choice, console, out=Path(out), exports=Path(exports))
    _tell_data(console, index, "kresnet check names them")
    _tell_plan(console, planned, index.classes)
    return planned


def choose(
    data: str | Path | None = None,
    *,
    variant: str | None = None,
    weights: str | None = "auto",
    preset: str = "default",
    recipe: str | Path | None = None,
    console: Console,
    **settings: Any,
) -> tuple[Plan, Index]:
    """Decide what `fit` would do with the same arguments, and have the weights here for it.

    Returns:
        The plan, without an estimate, and the images with their split.

    Raises:
        ConfigError: A setting is wrong.
        DataError: The images cannot be used.
        ResourceError: The weights are not to be had.
    """
    choice = _Choice(data, variant, weights, preset, recipe, settings)
    planned, index = _chosen(choice, console)
    if planned.recipe.weights is not None:
        find_weights(
            planned.recipe.variant,
            planned.recipe.weights,
            lambda done, _: console.status(f"weights: {done / 1e6:.0f} MB"),
        )
    _tell_data(console, index, "kresnet check names them")
    return planned, index


def find_rate(
    data: str | Path,
    *,
    out: str | Path,
    variant: str | None = None,
    weights: str | None = "auto",
    preset: str = "default",
    console: Console | None = None,
    **settings: Any,
) -> RateTest:
    """Find a learning rate for what `fit` would train with the same arguments.

    Args:
        data: As in `fit`.
        out: The plot to write; its suffix is the format, as .png or .svg.
        variant: As in `fit`.
        weights: As in `fit`.
        preset: As in `fit`.
        console: Where to report; None reports to standard error.
        **settings: As in `fit`.

    Raises:
        ConfigError: A setting is wrong.
        DataError: The images cannot be used.
        ResourceError: The weights are not to be had, or the plot cannot be written.
    """
    console = console or Console()
    folder = Path(out).absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"The folder of the plot must exist. Received: {out}. Make {folder}.")
    planned, index = _chosen(_Choice(data, variant, weights, preset, None, settings), console)
    _tell_data(console, index, "kresnet check names them")
    _tell_plan(console, planned, index.classes)
    found = range_test(planned.recipe, index, console)
    console.status("drawing")
    found.save_picture(out)
    return found


def resume(path: str | Path, *, console: Console | None = None) -> Result:
    """Go on with a run that was stopped; a run that is complete is exported again.

    Raises:
        ConfigError: There is no run at `path`.
    """
    run = Run.open(path)
    _restore(run)
    run.update(resumed=True)  # the time that it says at the end is that of this process alone
    return _finish(run, console or Console())


def evaluate_export(
    model: str | Path,
    data: str | Path,
    *,
    mirror: bool = False,
    console: Console | None = None,
) -> Evaluation:
    """Score an export on labelled images, every image once.

    Args:
        model: An export, `NAME` or `NAME/VERSION`.
        data: As for `fit`; its splits, if any, are taken together. Classes are matched by name.
        mirror: Average the scores with those of the mirror images.
        console: Where to report; None reports to standard error.

    Raises:
        ConfigError: `mirror`, and the export's training did not mirror.
        DataError: The images cannot be used, or have a class that the export does not know.
        ExportError: There is no readable export.
    """
    console = console or Console()
    engine = Engine(latest_version(Path(model)))
    if mirror:
        engine.check_mirrors()
    classes = engine.contract.classes
    index = scan(
        data, progress=lambda done, total: console.status(f"reading {done} / {total} images")
    )
    if channels(index.rows) is not None:
        raise DataError(f"An export takes photos. Received: source={str(data)!r}, and {_ARRAYS}.")
    unknown = [name for name in index.classes if name not in classes]
    if unknown:
        raise DataError(
            f"Every class must be one of the export's {len(classes)}. Received: "
            f"{', '.join(map(repr, unknown[:3]))} in {data}. Rename or remove its folder."
        )
    answers: list[Answer | None] = []
    for start in range(0, len(index.rows), _ANSWERED):
        images = [_contents(row) for row in index.rows[start : start + _ANSWERED]]
        answers += engine.answer(images, mirror=mirror)
        console.status(f"scoring {len(answers)} / {len(index.rows)} images")
    probabilities = np.array(
        [[a.scores[name] for name in classes] for a in answers if a is not None]
    )
    labels = np.array(
        [
            classes.index(index.classes[row.label])
            for row, a in zip(index.rows, answers, strict=True)
            if a is not None
        ]
    )
    return evaluation(probabilities, labels, classes)


def show_batches(
    data: str | Path,
    out: str | Path,
    *,
    variant: str = "resnet50",
    images: int = 48,
    console: Console | None = None,
    **settings: Any,
) -> Path:
    """Save a contact sheet of the first batches that a training on a folder would see.

    Args:
        data: As in `fit`.
        out: The picture to write; its suffix is the format, as .png or .jpg.
        variant: As in `fit`, for the size of the images.
        images: How many to show.
        console: Where to report; None reports to standard error.
        **settings: As in `fit`.

    Returns:
        `out`.

    Raises:
        ConfigError: A setting is wrong.
        DataError: The images cannot be used.
        ResourceError: The picture cannot be written.
    """
    console = console or Console()
    variant, tag = split_name(variant)
    preprocessing = card_for(variant, tag).preprocessing if tag else Preprocessing()
    planned = partial(
        explained,
        data=str(Path(data).resolve()),
        variant=variant,
        weights=tag or "imagenet",
        image_size=variant_config(variant).image_size,
        overrides=settings,
    )
    draft = planned(num_images=1, classes=())
    index = _prepared(data, draft.recipe, console)
    rows = index.select("train")
    counts = list(index.counts()["train"].values())
    chosen = planned(num_images=len(rows), classes=index.classes, counts=counts)
    recipe = chosen.recipe
    preprocessing = replace(preprocessing, image_size=recipe.image_size)
    console.status("drawing")
    sheet = batches_sheet(
        training_data(recipe, rows, preprocessing, num_classes=len(index.classes)),
        index.classes,
        preprocessing,
        images=images,
    )
    try:
        sheet.save(out)
    except (OSError, ValueError) as error:  # Pillow's for a suffix that it does not know
        raise ResourceError(
            f"The sheet must be a picture that can be written, as batches.png. Received: {error}."
        ) from None
    _tell_plan(console, chosen, index.classes)
    return Path(out)


def export_run(
    path: str | Path,
    *,
    formats: Sequence[str] = ("all",),
    int8: bool = False,
    max_accuracy_loss: float = MAX_ACCURACY_LOSS,
    exports: str | Path | None = None,
    keep_photos: bool | None = None,
    console: Console | None = None,
) -> Exported:
    """Export a finished run again, as a new version with more formats.

    Args:
        path: Directory of the run.
        formats: Keys of `kresnet.export.formats.FORMATS`, or "all" that can be made here.
        int8: Make 8-bit files too.
        max_accuracy_loss: What 8 bits may cost on the validation images, in percentage points.
        exports: Folder of the exports; None is where the run's own export is.
        keep_photos: Store small copies of four validation images in the export; None as in
            training.
        console: Where to report; None reports to standard error.

    Raises:
        ConfigError: There is no finished run at `path`, or a setting is wrong.
        DataError: The run's images are no longer where they were.
        ResourceError: A package for a format is not installed, or the disk is full.
        ExportError: A file did not agree with the model; nothing is published.
    """
    console = console or Console()
    chosen, hints = choose_formats(formats)
    if not max_accuracy_loss >= 0:
        raise ConfigError(
            "`max_accuracy_loss` must be percentage points from 0 on. "
            f"Received: max_accuracy_loss={max_accuracy_loss}."
        )
    run = Run.open(path)
    info = run.info
    if info.get("status") != "complete":
        raise ConfigError(
            f"Only a finished run can be exported. Received: {path}, with the status "
            f"{info.get('status')!r}. Finish it with: kresnet resume {path}"
        )
    if channels(run.index.rows) is not None:
        raise ConfigError(f"A run on photos can be exported. Received: {path}, and {_ARRAYS}.")
    _restore(run)
    rows = _spread(run, _MOST_SAMPLES)
    calibration = _spread(run, _CALIBRATION, "train") if int8 else []
    lost = [row.path for row in (*rows, *calibration) if not tf.io.gfile.exists(row.path)]
    if lost:
        raise DataError(
            "The run's images must be where they were in training. "
            f"Received: {lost[0]} and {len(lost) - 1} more are gone. Put them back."
        )
    console.status("building the model")
    contract = _contract(run)
    model = build(
        run.recipe.variant,
        num_classes=len(contract.classes),
        input_shape=(contract.preprocessing.image_size, contract.preprocessing.image_size),
        dtype="float32",
        weights=run.weights,
    )
    with tempfile.TemporaryDirectory() as folder:
        exported = export(
            model,
            contract,
            Path(info["exports"] if exports is None else exports),
            samples=_samples(rows, Path(folder)),
            formats=chosen,
            int8=int8,
            calibration=[s.path for s in _samples(calibration, Path(folder) / "calibration")],
            max_accuracy_loss=max_accuracy_loss,
            keep_photos=info.get("keep_photos", True) if keep_photos is None else keep_photos,
            progress=console.status,
        )
    exported = replace(exported, path=_short(exported.path), remarks=(*hints, *exported.remarks))
    for remark in exported.remarks:
        console.line("omitted", remark)
    return exported


def report_run(path: str | Path, *, console: Console | None = None) -> Path:
    """Write the report of a finished run again: one HTML file that shows all there is to know.

    Args:
        path: Directory of the run.
        console: Where to report; None reports to standard error.

    Returns:
        The file, `report.html` in the run.

    Raises:
        ConfigError: There is no finished run at `path`.
        ExportError: Its export cannot be loaded.
    """
    run = Run.open(path)
    (console or Console()).status("drawing the report")
    export = (run.info.get("result") or {}).get("export")
    if export is None:
        return write_report(run, None)
    # The result may tell a path relative to where training ran.
    home = Path(run.info["exports"]) / run.info["name"]
    version = home / Path(export).name
    if not version.is_dir():
        return write_report(run, None)
    engine = Engine(version)
    checks = {name: str(check) for name, check in engine.contract.formats.items()}
    return write_report(run, Published(str(_short(version)), checks, engine.heatmaps))


@dataclass(frozen=True, slots=True)
class _Choice:
    """What a user says of a training; the arguments of `fit` by the same names."""

    data: str | Path | None
    variant: str | None
    weights: str | None
    preset: str
    recipe: str | Path | None
    settings: dict[str, Any]

    @property
    def stored(self) -> Recipe | None:
        """The recipe that is run again."""
        return None if self.recipe is None else Recipe.load(Path(self.recipe))

    @property
    def source(self) -> str | Path:
        """The images."""
        data = self.data or (self.stored.data if self.stored else None)
        if data is None:
            raise ConfigError(
                "There must be images or a recipe that names them. Received: neither."
            )
        return data

    def network(self) -> tuple[str, str | None]:
        """Return the variant and its weights, a tag or a path."""
        variant, weights, stored = self.variant, self.weights, self.stored
        if variant is None:
            variant = stored.variant if stored else "resnet50"
        if weights == "auto" and stored:
            weights = stored.weights
        elif weights == "auto":
            weights = (
                None if self.preset in PRESETS and PRESETS[self.preset].scratch else "imagenet"
            )
        variant, tag = split_name(variant)
        variant_config(variant)
        weights = tag or weights
        if weights == "none":
            weights = None
        elif weights in TAGS:
            check_license(card_for(variant, weights))
        elif weights is not None:
            weights = str(find_weights(variant, weights).resolve())
        return variant, weights


def _planned(choice: _Choice, console: Console, *, out: Path, exports: Path) -> tuple[Plan, Index]:
    """Read the images, decide everything, and see whether there is room and time for it."""
    chosen, index = _chosen(choice, console)
    need = disk_needed(
        chosen.recipe,
        index.select("train"),
        num_classes=len(index.classes),
        exported=channels(index.rows) is None,
    )
    check_room(need, out=out, exports=exports)
    console.status("measuring the speed of this machine")
    spent = time.monotonic() - console.started
    expected = estimated(chosen.recipe, index, spent_s=spent)
    return replace(chosen, estimate=expected, disk=need), index


def _chosen(choice: _Choice, console: Console) -> tuple[Plan, Index]:
    """Read the images and decide everything."""
    check_preset(choice.preset)
    stored, source, settings = choice.stored, choice.source, choice.settings
    variant, weights = choice.network()
    known: dict[str, Any] = {"data": absolute(source), "variant": variant, "weights": weights}
    if stored:
        chosen = again(
            rerun(stored, known | settings), source=str(choice.recipe), overrides=settings
        )
        index = _prepared(source, chosen.recipe, console)
    else:
        planned = partial(
            explained,
            **known,
            image_size=variant_config(variant).image_size,
            overrides=settings,
            preset=choice.preset,
        )
        draft = planned(num_images=1, classes=())  # tells wrong settings before images are read
        index = _prepared(source, draft.recipe, console)
        rows = index.select("train")
        chosen = planned(
            num_images=len(rows),
            classes=index.classes,
            counts=list(index.counts()["train"].values()),
            side=int(np.median([min(row.height, row.width) for row in rows])),
        )
    return chosen, index


@terminable()
def _finish(run: Run, console: Console, expected: Estimate | None = None) -> Result:
    """Do all that comes after the plan, and learn from the time it took if one was expected."""
    with Trackers(run, console.line) as trackers:
        result = _finished(replace(run, watch=trackers.epochs), console, trackers)
    if expected:
        remember(run, expected, result.seconds - expected.spent_s)
    return result


def _finished(run: Run, console: Console, trackers: Trackers) -> Result:
    try:
        trained = train(run, console)
        console.line("best", _best(run, trained))
        scored = score(run, trained.model, tell=console.line, status=console.status)
        if channels(run.index.rows) is None:
            exported = _export(run, trained, console, Path(run.info["exports"]))
        else:
            exported = None
            console.line("export", f"none: {_ARRAYS}; the weights are {run.weights}")
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


def _export(run: Run, trained: Trained, console: Console, exports: Path) -> Path:
    with tempfile.TemporaryDirectory() as folder:
        exported = export(
            trained.model,
            _contract(run),
            exports,
            samples=_samples(_spread(run, _SAMPLES), Path(folder)),
            keep_photos=run.info.get("keep_photos", True),
            progress=console.status,
        )
    path = _short(exported.path)
    console.line("export", str(path))
    console.line("check", str(exported.contract.formats["saved_model"]))
    return path


def _contract(run: Run) -> Contract:
    """Return what an export of the run promises, before anything is compared."""
    info = run.info
    return Contract(
        name=info["name"],
        variant=run.recipe.variant,
        classes=run.index.classes,
        preprocessing=run.preprocessing,
        versions={
            "kresnet": kresnet.__version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
        },
        temperature=info.get("temperature", 1.0),
        threshold=info.get("threshold"),
        mirrored=run.recipe.flip,
        weights_sha256=sha256(run.weights.read_bytes()).hexdigest(),
    )


def _restore(run: Run) -> None:
    """Unpack the run's images again where they have been removed from the cache."""
    paths = {row.path for row in run.index.rows if row.size != WHOLE}
    if not all(tf.io.gfile.exists(path) for path in paths):
        listing(run.recipe.data)


def _contents(row: Row) -> bytes:
    try:
        return row.read()
    except OSError as error:
        raise DataError(
            f"Images must stay where they are. Received: {row.name!r} ({error.strerror}). Put it "
            "back."
        ) from None


def _spread(run: Run, count: int, split: Literal["train", "val"] = "val") -> list[Row]:
    """Return up to `count` images of a split, spread over the classes, which come in order."""
    rows = run.index.select(split)
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return [rows[k] for k in places]


def _samples(rows: Sequence[Row], folder: Path) -> list[Sample]:
    """Return images as files for other processes; those inside of large files are copied out."""
    folder.mkdir(exist_ok=True)
    paths = as_files(rows, folder)
    return [Sample(path, row.label) for path, row in zip(paths, rows, strict=True)]


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _prepared(data: str | Path, recipe: Recipe, console: Console) -> Index:
    """Scan and divide the images as a recipe says."""
    return prepare(
        data,
        val=recipe.val,
        test=recipe.test,
        seed=recipe.seed,
        group_by=recipe.group_by,
        keep_split=recipe.keep_split,
        exclude=recipe.exclude,
        max_bad=recipe.max_bad,
        progress=console.progress,
        tell=lambda text: console.line("data", text),
    )


def _tell_data(console: Console, index: Index, where: str) -> None:
    sizes = [sum(row.label == k for row in index.rows) for k in range(len(index.classes))]
    bad = f"; {len(index.problems)} files or folders left out, {where}" if index.problems else ""
    console.line(
        "data",
        f"{len(index.rows)} images, {len(index.classes)} classes of {min(sizes)} to {max(sizes)}"
        f"{bad}",
    )
    parts = " / ".join(
        f"{name} {len(rows)}" for name in ("train", "val", "test") if (rows := index.select(name))
    )
    console.line("split", parts)


def _tell_plan(console: Console, planned: Plan, classes: Sequence[str]) -> None:
    recipe = planned.recipe
    stages = ["probe"] if recipe.weights is not None else []
    if recipe.epochs:
        stages.append(f"{'fine-tune' if stages else 'train'} up to {recipe.epochs} epochs")
    console.line(
        "plan",
        f"{recipe.variant} at {recipe.image_size} px, {recipe.precision}, "
        f"{' then '.join(stages)}, batch {recipe.batch_size}, {recipe.optimizer} "
        f"{recipe.lr:g} x {recipe.layer_decay:g} a stage, norms "
        f"{'frozen' if recipe.norms == 'frozen' else 'learned'}, "
        f"{'mirrored' if recipe.flip else 'not mirrored'}"
        + (f", average over {recipe.ema:.0%} of the steps" if recipe.ema else "")
        + (f", each batch in {recipe.accumulate} parts" if recipe.accumulate > 1 else "")
        + (f", until {recipe.patience} epochs bring nothing" if recipe.patience else ""),
    )
    mixing = [f"{kind} {a:g}" for kind in ("mixup", "cutmix") if (a := getattr(recipe, kind))]
    console.line(
        "views",
        ", ".join(
            [
                f"crops from {recipe.min_area:.0%}",
                f"{recipe.augment} augmentation",
                *mixing,
                *([f"classes balanced ({recipe.balance})"] if recipe.balance != "none" else []),
            ]
        ),
    )
    if direction_matters(classes):
        console.line(
            "mirror",
            "the class names look like left and right, letters or digits: "
            + ("mirrored all the same" if recipe.flip else "not mirrored; --flip if that is wrong"),
        )
    if planned.estimate:
        console.line("time", str(planned.estimate))
    if planned.disk:
        console.line("disk", f"up to {planned.disk}")
