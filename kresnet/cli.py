"""The command line: one short function for each command, with heavy imports inside it.

Results go to standard output, all else to standard error. Exit codes: 0 done, 2 usage, 3 data,
4 resources, 5 interrupted and resumable, 6 an export that failed its check, 7 a check that found
warnings only.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kresnet.errors import ConfigError, DataError, KresnetError, ResourceError

if TYPE_CHECKING:
    from kresnet.workflow import Result

app = typer.Typer(
    name="kresnet",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="The ResNet workbench for Keras 3 and TensorFlow: a folder of images in, a verified "
    "classifier out.",
    epilog="Exit codes: 0 done, 2 usage, 3 data, 4 resources, 5 interrupted and resumable, "
    "6 an export that failed its check, 7 a check that found warnings only.",
)


zoo = typer.Typer(
    no_args_is_help=True,
    help="The models: list them, look one up, fetch weights.",
)
app.add_typer(zoo, name="zoo")
data_app = typer.Typer(
    no_args_is_help=True,
    help="The images: see what a training sees, pack them into large files.",
)
app.add_typer(data_app, name="data")
study = typer.Typer(
    no_args_is_help=True,
    help="The searches: list them, look at one.",
)
app.add_typer(study, name="study")
bench = typer.Typer(
    no_args_is_help=True,
    help="Measurements beside others; they take long and want a machine to themselves.",
)
app.add_typer(bench, name="bench")


class Precision(StrEnum):
    """Choices of --precision."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Augment(StrEnum):
    """Choices of --augment."""

    none = "none"
    light = "light"
    trivial = "trivial"
    rand = "rand"


class Balance(StrEnum):
    """Choices of --balance."""

    none = "none"
    sqrt = "sqrt"
    full = "full"


class Cache(StrEnum):
    """Choices of --cache."""

    auto = "auto"
    memory = "memory"
    disk = "disk"
    none = "none"


class Optimizer(StrEnum):
    """Choices of --optimizer."""

    adamw = "adamw"
    adam = "adam"
    sgd = "sgd"
    lamb = "lamb"
    rmsprop = "rmsprop"


class Algorithm(StrEnum):
    """Choices of --algorithm."""

    hyperband = "hyperband"
    bayesian = "bayesian"
    random = "random"
    grid = "grid"


class Only(StrEnum):
    """Choices of --only."""

    head = "head"


class Order(StrEnum):
    """Choices of --sort."""

    name = "name"
    params = "params"
    macs = "macs"
    top1 = "top1"


Json = Annotated[
    bool, typer.Option("--json", help="Print exactly one JSON value on standard output.")
]
DATA_HELP = (
    "Folder with a folder of images for each class, a zip or tar file of it, a manifest "
    "(.csv, .jsonl, .parquet), shards, or tfds:NAME."
)
Data = Annotated[str, typer.Argument(help=DATA_HELP)]
GroupBy = Annotated[
    str | None,
    typer.Option(
        help="Keep together what shares this column of a manifest, or this regular expression of "
        "the path."
    ),
]
KeepSplit = Annotated[
    Path | None, typer.Option(help="An earlier split or index.csv; its images keep their places.")
]
Exclude = Annotated[
    Path | None, typer.Option(help="A CSV of images to leave out, as `check --labels` writes.")
]
Tta = Annotated[
    bool, typer.Option("--tta", help="Average with the mirror image, if training mirrored.")
]
Out = Annotated[Path, typer.Option(help="Folder of the runs.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Set any field of recipe.yaml, as --set drop_rate=0.2; may be given more than once.",
    ),
]
Exports = Annotated[Path, typer.Option(help="Folder of the exports.")]

NoPhotos = Annotated[
    bool,
    typer.Option(
        "--no-photos", help="Store drawn images in the export, not four small validation photos."
    ),
]


@app.command()
def check(
    data: Data,
    html: Annotated[
        Path | None, typer.Option(help="Write the report with thumbnails to this HTML file, too.")
    ] = None,
    labels: Annotated[
        bool, typer.Option("--labels", help="Look for wrong labels and outliers, too.")
    ] = False,
    labels_out: Annotated[
        Path,
        typer.Option(
            help="With --labels: the CSV to write, for `train --exclude`; a contact sheet is drawn "
            "beside it."
        ),
    ] = Path("labels.csv"),
    variant: Annotated[str, typer.Option(help="With --labels: the network that looks.")] = (
        "resnet50"
    ),
    weights: Annotated[
        str, typer.Option(help="With --labels: a tag, as imagenet, or the path of a checkpoint.")
    ] = "imagenet",
    as_json: Json = False,
) -> None:
    """Decode every image and report what is wrong: files, classes, duplicates, leaks.

    Exit codes: 0 clean, 7 warnings, 3 errors. Nothing of yours is changed.
    """
    for option, path in (("--html", html), ("--labels-out", labels_out if labels else None)):
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(
                f"The folder of `{option}` must exist. Received: {path}. Make the folder."
            )
    with _reporting() as console:
        from kresnet.data.check import check as find_trouble

        report = find_trouble(data, progress=console.progress)
        judged = None
        if labels:
            from kresnet.evaluate.labels import judge_source

            judged = judge_source(
                data, variant=variant, weights=weights, max_bad=1.0, progress=console.progress
            )
            judged.save(labels_out)
            if judged.suspects or judged.outliers:
                judged.sheet().save(labels_out.with_suffix(".png"))
            report = report.also(*judged.findings(labels_out))
        if html is not None:
            from kresnet.data.check_page import page

            console.status("drawing the page")
            html.write_text(page(report), encoding="utf-8")
    if as_json:
        _print_json(report.as_dict() | ({"labels": judged.as_dict()} if judged else {}))
    else:
        typer.echo(str(report))
    raise typer.Exit(report.exit_code)


@app.command()
def train(
    data: Annotated[str | None, typer.Argument(help=DATA_HELP)] = None,
    variant: Annotated[
        str | None, typer.Option(help="A name that `kresnet zoo list` prints; else resnet50.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="imagenet, cifar10, a tag as a1_in1k, the path of a checkpoint, or none."
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help="What is planned: fast, default or best; or a published recipe: he-cifar, "
            "bag-of-tricks, torchvision-v2, rsb-a1, rsb-a2, rsb-a3, bit-hyperrule."
        ),
    ] = "default",
    recipe: Annotated[
        Path | None,
        typer.Option(help="Run the recipe.yaml of a run again; other options change it."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Fine-tuning epochs; 0 keeps the linear probe.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the input in pixels.")] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Parts that a batch is computed in, for less memory.")
    ] = None,
    optimizer: Annotated[
        Optimizer | None, typer.Option(help="adamw, adam, sgd (Nesterov), lamb or rmsprop.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of the head.")] = None,
    ema: Annotated[
        float | None,
        typer.Option(help="Share of the steps that the average of the weights reaches back."),
    ] = None,
    val: Annotated[float | None, typer.Option(help="Share of images to validate on.")] = None,
    test: Annotated[float | None, typer.Option(help="Share of images to hold out.")] = None,
    group_by: GroupBy = None,
    keep_split: KeepSplit = None,
    exclude: Exclude = None,
    augment: Annotated[
        Augment | None,
        typer.Option(help="Random views: none, light (colours), trivial or rand operations."),
    ] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Mirror half of the images.")
    ] = None,
    mixup: Annotated[float | None, typer.Option(help="Mixup's parameter, as 0.2.")] = None,
    cutmix: Annotated[float | None, typer.Option(help="CutMix's parameter, as 1.")] = None,
    balance: Annotated[Balance | None, typer.Option(help="How rare classes are raised.")] = None,
    cache: Annotated[Cache | None, typer.Option(help="Where decoded images are kept.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    precision: Annotated[Precision | None, typer.Option(help="What to compute in.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run and the export.")] = None,
    out: Out = Path("runs"),
    exports: Exports = Path("saved_models"),
    budget: Annotated[
        str | None, typer.Option(help="Time for the whole job, as 90s, 10m or 2h.")
    ] = None,
    target_precision: Annotated[
        float | None,
        typer.Option(help="Share of the answers given that shall be right, as 0.95; else abstain."),
    ] = None,
    no_photos: NoPhotos = False,
    set_: Set = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say why every setting is as it is.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan with its reasons, and stop there.")
    ] = False,
    tracker: Annotated[
        str,
        typer.Option(help="Show the training in tensorboard, mlflow, or both, with a comma, too."),
    ] = "",
    as_json: Json = False,
) -> None:
    """Train a classifier on a folder of images, evaluate it and export it."""
    with _reporting() as console:
        from kresnet.workflow import fit, preview

        settings: dict[str, Any] = {
            "epochs": epochs,
            "batch_size": batch_size,
            "accumulate": accumulate,
            "optimizer": optimizer and optimizer.value,
            "ema": ema,
            "image_size": image_size,
            "lr": lr,
            "val": val,
            "test": test,
            "group_by": group_by,
            "keep_split": keep_split and str(keep_split.absolute()),
            "exclude": exclude and str(exclude.absolute()),
            "augment": augment and augment.value,
            "flip": flip,
            "mixup": mixup,
            "cutmix": cutmix,
            "balance": balance and balance.value,
            "cache": cache and cache.value,
            "seed": seed,
            "precision": precision and precision.value,
            "budget_s": _seconds(budget),
            "target_precision": target_precision,
        }
        job: dict[str, Any] = {
            "data": data,
            "variant": variant,
            "weights": weights or "auto",
            "preset": preset,
            "recipe": recipe,
            "out": out,
            "exports": exports,
            "console": console,
            **{field: value for field, value in settings.items() if value is not None},
            **_fields(set_ or []),
        }
        if dry_run:
            planned = preview(**job)
        else:
            result = fit(
                name=name, keep_photos=not no_photos, explain=explain, tracker=tracker, **job
            )
    if not dry_run:
        _show(result, as_json)
    elif as_json:
        _print_json(planned.as_dict())
    else:
        typer.echo("\n".join(planned.lines()))


@app.command(name="lr-find")
def lr_find(
    data: Data,
    picture: Annotated[
        Path, typer.Option("--out", help="The plot to write; its suffix is the format.")
    ] = Path("lr.png"),
    variant: Annotated[str, typer.Option(help="A name that `kresnet zoo list` prints.")] = (
        "resnet50"
    ),
    weights: Annotated[
        str,
        typer.Option(
            help="imagenet, cifar10, a tag as a1_in1k, the path of a checkpoint, or none."
        ),
    ] = "auto",
    preset: Annotated[
        str, typer.Option(help="As in `train`: fast, default, best, or a published recipe.")
    ] = "default",
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Find a learning rate: up to 100 steps at growing rates, a plot, and what they suggest."""
    with _reporting() as console:
        from kresnet.workflow import find_rate

        job = {"variant": variant, "weights": weights, "preset": preset, **_fields(set_ or [])}
        found = find_rate(**{"data": data} | job, out=picture, console=console)
    if as_json:
        _print_json(found.as_dict() | {"picture": str(picture)})
        return
    typer.echo(f"{found}\n{picture}")
    if found.valley is not None:
        typer.echo(f"next    kresnet train {shlex.quote(data)} --lr {found.valley:.2g}")


@app.command()
def tune(
    data: Annotated[str | None, typer.Argument(help=DATA_HELP)] = None,
    trials: Annotated[
        int | None,
        typer.Option(help="How many, the planner's recipe included; else one sweep, or 20."),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Time for the search, as 30m or 2h; the refit comes after.")
    ] = None,
    algorithm: Annotated[
        Algorithm | None,
        typer.Option(help="hyperband, bayesian, random or grid; else hyperband, a head random."),
    ] = None,
    only: Annotated[
        Only | None,
        typer.Option(help="head: on features that are computed once, many trials a second."),
    ] = None,
    space: Annotated[
        Path | None, typer.Option(help="YAML of what to search; else around the planner's recipe.")
    ] = None,
    jobs: Annotated[
        str, typer.Option(help="Trials side by side; auto is one a GPU, or for every four cores.")
    ] = "auto",
    resume: Annotated[Path | None, typer.Option(help="Directory of a study to go on with.")] = None,
    ray: Annotated[
        str | None,
        typer.Option(help="Address of a Ray cluster for the trials, as auto; local starts one."),
    ] = None,
    trial_cpus: Annotated[
        int | None, typer.Option(help="With --ray: cores of a trial; else up to four.")
    ] = None,
    trial_gpus: Annotated[
        float | None, typer.Option(help="With --ray: GPUs of a trial; else one, if there are any.")
    ] = None,
    trial_budget: Annotated[
        str | None, typer.Option(help="Time after which a trial counts as hanging, as 20m.")
    ] = None,
    trial_memory: Annotated[
        float | None, typer.Option(help="Gigabytes of memory above which a trial is ended.")
    ] = None,
    keep: Annotated[
        int | None, typer.Option(help="Keep the weights of so many of the best; else 3.")
    ] = None,
    retries: Annotated[
        int | None, typer.Option(help="Tries again for a trial that crashed; else 1.")
    ] = None,
    refit: Annotated[
        bool | None,
        typer.Option(
            "--refit/--no-refit",
            help="Train the winner anew and export it, as is done; or stop at its recipe.",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of a whole training.")] = None,
    variant: Annotated[
        str | None, typer.Option(help="A name that `kresnet zoo list` prints; else resnet50.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="imagenet, cifar10, a tag as a1_in1k, the path of a checkpoint, or none."
        ),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="As in `train`: what is planned, and searched around.")
    ] = "default",
    recipe: Annotated[
        Path | None, typer.Option(help="Search around the recipe.yaml of a run.")
    ] = None,
    set_: Set = None,
    name: Annotated[str | None, typer.Option(help="Name of the study and the export.")] = None,
    studies: Annotated[Path, typer.Option(help="Folder of the studies.")] = Path("studies"),
    out: Out = Path("runs"),
    exports: Exports = Path("saved_models"),
    as_json: Json = False,
) -> None:
    """Search for a better recipe: a process a trial, and the winner trained and exported."""
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # the trials want the memory
    limits: dict[str, Any] = {
        "trials": trials,
        "budget_s": _seconds(budget),
        "jobs": _jobs(jobs),
        "trial_s": _seconds(trial_budget, option="--trial-budget"),
        "memory_bytes": None if trial_memory is None else int(trial_memory * 1e9),
        "keep": keep,
        "retries": retries,
        "refit": refit,
    }
    limits = {field: value for field, value in limits.items() if value is not None}
    with _reporting() as console:
        from kresnet.tune.job import resume_study
        from kresnet.tune.job import tune as search

        cluster = None
        if ray is not None:
            from kresnet.tune.ray_executor import Ray

            address = None if ray == "local" else ray
            memory = limits.get("memory_bytes")
            cluster = partial(
                Ray,
                address,
                jobs=limits.get("jobs"),
                cpus=trial_cpus,
                gpus=trial_gpus,
                memory_bytes=memory,
            )
        if resume is not None:
            fixed: dict[str, Any] = {
                "DATA": data,
                "--space": space,
                "--algorithm": algorithm,
                "--only": only,
            }
            fixed |= {"--recipe": recipe, "--variant": variant, "--set": set_, "--epochs": epochs}
            if given := [option for option, value in fixed.items() if value]:
                raise ConfigError(
                    "A study is gone on with as it was begun. Received: --resume with "
                    f"{', '.join(given)}. Leave them out, or begin another study."
                )
            found = resume_study(resume, executor=cluster, console=console, **limits)
        else:
            job: dict[str, Any] = {
                "algorithm": algorithm and algorithm.value,
                "only": only and only.value,
                "variant": variant,
                "weights": weights or "auto",
                "preset": preset,
                "recipe": recipe,
                **({} if epochs is None else {"epochs": epochs}),
                **_fields(set_ or ()),
            }
            found = search(
                data,
                space=space,
                name=name,
                studies=studies,
                out=out,
                exports=exports,
                executor=cluster,
                console=console,
                **limits,
                **job,
            )
        text, known = _of_study(found.study)
    if as_json:
        _print_json(known | {"result": found.as_dict()})
    else:
        typer.echo("\n\n".join((text, "\n".join(found.lines()))))


@study.command(name="list")
def list_searches(
    studies: Annotated[Path, typer.Argument(help="Folder of the studies.")] = Path("studies"),
    as_json: Json = False,
) -> None:
    """List the studies with the best of each."""
    from kresnet.tune.board import as_list, list_studies

    found = list_studies(studies)
    if as_json:
        _print_json(found)
    elif found:
        typer.echo(as_list(found))
    else:
        typer.echo(f"kresnet: there is no study in {studies}.", err=True)


@study.command(name="show")
def show_study(
    path: Annotated[Path, typer.Argument(help="Directory of a study; it may be under way.")],
    as_json: Json = False,
) -> None:
    """Show a study: every trial, the best first, and the page study.html in it."""
    with _reporting():
        text, known = _of_study(path)
    if as_json:
        _print_json(known)
    else:
        typer.echo(text)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="Directory of the run.")],
    as_json: Json = False,
) -> None:
    """Go on with a run that was interrupted."""
    with _reporting() as console:
        from kresnet.workflow import resume as go_on

        result = go_on(run, console=console)
    _show(result, as_json)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Directory of a finished run.")],
    formats: Annotated[
        str,
        typer.Option(help="saved_model, onnx, openvino, litert, keras with commas, or all."),
    ] = "all",
    int8: Annotated[
        bool, typer.Option("--int8", help="Make 8-bit ONNX and LiteRT files too.")
    ] = False,
    max_accuracy_loss: Annotated[
        float, typer.Option(help="Points of validation accuracy that 8 bits may cost.")
    ] = 0.5,
    exports: Annotated[
        Path | None, typer.Option(help="Folder of the exports; else where the run's own is.")
    ] = None,
    no_photos: NoPhotos = False,
    as_json: Json = False,
) -> None:
    """Export a finished run again, as a new version with more formats."""
    with _reporting() as console:
        from kresnet.export.versions import Version
        from kresnet.workflow import export_run

        exported = export_run(
            run,
            formats=[name.strip() for name in formats.split(",") if name.strip()],
            int8=int8,
            max_accuracy_loss=max_accuracy_loss,
            exports=exports,
            keep_photos=False if no_photos else None,
            console=console,
        )
        version = Version(exported.path, exported.contract)
    if as_json:
        _print_json(version.as_dict() | {"left_out": exported.remarks})
    else:
        typer.echo(f"{version.path}\n\n{version.table()}")


@app.command(name="exports")
def list_exports(
    name: Annotated[str | None, typer.Argument(help="One export; else all.")] = None,
    version: Annotated[
        int | None, typer.Argument(help="With --rollback: the version to go back to.")
    ] = None,
    rollback: Annotated[
        bool,
        typer.Option(
            "--rollback",
            help="Publish an older version again as the newest, which servers follow: VERSION, or "
            "the one before the newest.",
        ),
    ] = False,
    exports: Exports = Path("saved_models"),
    as_json: Json = False,
) -> None:
    """List the exports with what was checked of each, or go back to an older version."""
    from kresnet.export.versions import list_versions, roll_back

    if version is not None and not rollback:
        raise ConfigError(
            f"A VERSION is for going back to. Received: {version} without --rollback. Add it."
        )
    if rollback and name is None:
        raise ConfigError("`--rollback` needs the NAME of an export. Received: none.")
    versions = (
        [roll_back(exports, name, version)] if rollback and name else list_versions(exports, name)
    )
    if as_json:
        _print_json([v.as_dict() for v in versions])
        return
    for found in versions:
        typer.echo(f"{found}\n{found.table()}\n")
    if not versions:
        typer.echo(f"kresnet: there is no export in {exports}.", err=True)


@app.command()
def runs(
    out: Out = Path("runs"),
    as_json: Json = False,
) -> None:
    """List the runs with how good they are."""
    from kresnet.evaluate.runs import as_table, list_runs

    found = list_runs(out)
    if as_json:
        _print_json([one.as_dict() for one in found])
    elif found:
        typer.echo(as_table(found))
    else:
        typer.echo(f"kresnet: there is no run in {out}.", err=True)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Directory of a finished run.")],
    second: Annotated[Path, typer.Argument(help="Directory of another.")],
    as_json: Json = False,
) -> None:
    """Tell whether one run is better than another, on the held-out images that they share."""
    from kresnet.evaluate.runs import compare as compare_runs

    result = compare_runs(first, second)
    if as_json:
        _print_json(result.as_dict())
    else:
        typer.echo(str(result))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Directory of a finished run.")],
    as_json: Json = False,
) -> None:
    """Write a run's report again, as one page to read: report.html in the run."""
    with _reporting() as console:
        from kresnet.workflow import report_run

        path = report_run(run, console=console)
    if as_json:
        _print_json({"report": str(path)})
    else:
        typer.echo(path)


@app.command()
def demo(
    out: Out = Path("runs"),
    exports: Exports = Path("saved_models"),
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 20,
    as_json: Json = False,
) -> None:
    """Do the whole job, offline, on handwritten digits: a ResNet-20 from scratch."""
    with _reporting() as console:
        from kresnet.data.demo import write_digits
        from kresnet.workflow import fit
        from kresnet.zoo.download import kresnet_home

        data = write_digits(kresnet_home() / "demo" / "digits")
        result = fit(
            data,
            variant="resnet20_cifar",
            weights=None,
            name="digits",
            out=out,
            exports=exports,
            console=console,
            epochs=epochs,
        )
        photo = str(sorted(data.glob("7/*.png"))[0])
    _show(result, as_json, photo)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="An export: NAME or NAME/VERSION.")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.")],
    tta: Tta = False,
    as_json: Json = False,
) -> None:
    """Print label and score of images, from the export alone."""
    with _reporting() as console:
        from kresnet.export.versions import latest_version
        from kresnet.serve.engine import Engine

        paths = list(_image_files(images))
        console.status("loading the export")
        engine = Engine(latest_version(model))
        if tta:
            engine.check_mirrors()
        answers = engine.answer_files(
            paths,
            mirror=tta,
            progress=lambda done: console.status(f"{done} / {len(paths)} images"),
        )
    good = [(path, a) for path, a in zip(paths, answers, strict=True) if a is not None]
    bad = [path for path, a in zip(paths, answers, strict=True) if a is None]
    if as_json:
        _print_json(
            [
                {
                    "path": str(path),
                    "label": a.label,
                    "score": a.score,
                    "scores": a.scores,
                    "abstain": a.abstain,
                }
                for path, a in good
            ]
        )
    else:
        for path, answer in good:
            unsure = "\tunsure" if answer.abstain else ""
            typer.echo(f"{path}\t{answer.label}\t{answer.score:.4f}{unsure}")
    if bad:
        raise DataError(
            f"An image must be a readable JPEG, PNG, BMP, GIF or WebP. "
            f"Received: {', '.join(map(str, bad[:3]))}{' ...' if len(bad) > 3 else ''} "
            f"({len(bad)} of {len(paths)} unreadable). The others were answered."
        )


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="An export: NAME or NAME/VERSION.")],
    data: Data,
    tta: Tta = False,
    as_json: Json = False,
) -> None:
    """Score an export on labelled images, every image once."""
    with _reporting() as console:
        from kresnet.workflow import evaluate_export

        result = evaluate_export(model, data, mirror=tta, console=console)
    if as_json:
        _print_json(result.as_dict())
    else:
        typer.echo(f"{result}\n\n{result.table()}")


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="An export: its name, or the path of its folder.")],
    exports: Exports = Path("saved_models"),
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port of HTTP; 0 takes a free one.")] = 8501,
    grpc_port: Annotated[int, typer.Option(help="Port of gRPC; -1 serves none.")] = 8500,
    runtime: Annotated[
        str,
        typer.Option(help="tensorflow, onnxruntime, openvino, or auto: the fastest that agrees."),
    ] = "auto",
    tolerance: Annotated[
        float, typer.Option(help="Difference of a probability that counts as agreement.")
    ] = 1e-3,
    max_batch: Annotated[int, typer.Option(help="Most images computed together.")] = 32,
    batch_timeout_ms: Annotated[
        float, typer.Option(help="How long an image waits for others, in milliseconds.")
    ] = 2.0,
    max_body_mb: Annotated[float, typer.Option(help="Longest body of a request.")] = 32,
    max_pixels: Annotated[
        int, typer.Option(help="Images of more pixels are not decoded.")
    ] = 50_000_000,
    max_concurrency: Annotated[
        int, typer.Option(help="Requests under way; more are told to come back.")
    ] = 256,
    timeout_s: Annotated[float, typer.Option(help="Longest time for a request.")] = 30,
    drain_s: Annotated[
        float, typer.Option(help="Longest time that accepted requests get after SIGTERM.")
    ] = 30,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token that clients must send.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Bind other than loopback without a token.")
    ] = False,
    poll_s: Annotated[float, typer.Option(help="How often new versions are looked for.")] = 1,
    keep: Annotated[int, typer.Option(help="How many of the newest versions are served.")] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="Log no requests.")] = False,
    print_config: Annotated[
        Path | None,
        typer.Option(
            help="Serve nothing: write to this folder, or to - for standard output, what "
            "TensorFlow Serving, Docker, Kubernetes and KServe need to serve the export."
        ),
    ] = None,
) -> None:
    """Serve an export over HTTP and gRPC, with TensorFlow Serving's and KServe's protocols."""
    from kresnet.serve.settings import Settings, find_export, read_token

    home = find_export(model, exports)
    if print_config is not None:
        from kresnet.serve.kit import write_kit

        for path in write_kit(home, print_config, max_batch=max_batch):
            typer.echo(path)
        return
    settings = Settings(
        host=host,
        port=port,
        grpc_port=grpc_port,
        runtime=runtime,
        tolerance=tolerance,
        max_batch=max_batch,
        batch_timeout_ms=batch_timeout_ms,
        max_body_bytes=int(max_body_mb * 2**20),
        max_pixels=max_pixels,
        max_concurrency=max_concurrency,
        timeout_s=timeout_s,
        drain_s=drain_s,
        poll_s=poll_s,
        keep=keep,
        token=read_token(token_file) if token_file else None,
        insecure=insecure,
        log_requests=not quiet,
    )
    out = sys.stdout
    with _reporting():
        try:
            from kresnet.serve.server import serve as run
        except ImportError as error:
            raise ResourceError(
                "The server needs packages that are not installed. "
                f"Received: {error.name!r} missing. Install them: pip install 'kresnet[serve]'"
            ) from None
        run(home, settings, lambda line: print(line, file=out, flush=True))


@app.command(name="variants", hidden=True, help="The same as `kresnet zoo list`.")
@zoo.command(name="list")
def list_zoo(
    pattern: Annotated[str, typer.Argument(help="Part of the name, as resnext or a1_in1k.")] = "",
    params: Annotated[
        str | None, typer.Option(help="Parameters, as '<30e6' or '<=30M'; mind the quotes.")
    ] = None,
    macs: Annotated[
        str | None, typer.Option(help="Multiply-accumulate operations, as '<5G'.")
    ] = None,
    top1: Annotated[
        str | None, typer.Option(help="Published top-1 accuracy in percent, as '>80'.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="Licence of the weights, as apache-2.0.")
    ] = None,
    sort: Annotated[Order, typer.Option(help="What to sort by.")] = Order.name,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of kresnet/zoo/README.md.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the ResNets that kresnet builds, with their published weights."""
    from kresnet.zoo.catalog import as_markdown, as_table, list_models

    if markdown:
        typer.echo(as_markdown())
        return
    entries = list_models(
        pattern, params=params, macs=macs, top1=top1, license=licence, sort=sort.value
    )
    if as_json:
        _print_json([asdict(entry) for entry in entries])
    elif entries:
        typer.echo(as_table(entries))
    else:
        typer.echo("kresnet: no model is like that.", err=True)


@zoo.command()
def show(
    name: Annotated[str, typer.Argument(help="A variant, or variant.tag, as resnet50.a1_in1k.")],
    as_json: Json = False,
) -> None:
    """Show a model: parameters, operations, features, and the card of its weights."""
    from kresnet.zoo.catalog import as_text, describe

    if as_json:
        _print_json(describe(name))
    else:
        typer.echo(as_text(name))


@zoo.command()
def fetch(
    names: Annotated[list[str], typer.Argument(help="variant.tag, as resnet50.a1_in1k.")],
    allow_noncommercial: Annotated[
        bool, typer.Option("--allow-noncommercial", help="Accept licences that forbid commerce.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Download weights, verify them and print where they are."""
    from kresnet.console import Console
    from kresnet.zoo.catalog import published
    from kresnet.zoo.download import fetch_weights

    cards = [published(name) for name in names]  # a wrong name is told before anything is fetched
    paths = []
    with Console() as console:
        for card in cards:

            def progress(received: int, total: int | None, name: str = card.name) -> None:
                end = f" / {total / 1e6:.0f}" if total else ""
                console.status(f"{name}: {received / 1e6:.0f}{end} MB")

            consent = allow_noncommercial or None  # without the option, the environment decides
            paths.append(fetch_weights(card, progress, allow_noncommercial=consent))
    if as_json:
        _print_json(
            [
                {"name": card.name, "path": str(path)}
                for card, path in zip(cards, paths, strict=True)
            ]
        )
    else:
        for path in paths:
            typer.echo(path)


@data_app.command()
def pack(
    data: Data,
    out: Annotated[Path, typer.Argument(help="Folder to be made; its name is the data set's.")],
    shards: Annotated[
        int | None, typer.Option(help="Files a split; without it they are of 128 MiB.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write images as TFRecord shards with checksums, which kresnet and TFDS read."""
    with _reporting() as console:
        from kresnet.data.pack import pack as write
        from kresnet.data.scan import scan

        index = scan(
            data, progress=lambda done, total: console.status(f"reading {done} / {total} images")
        )
        packed = write(
            index,
            out,
            shards=shards,
            progress=lambda done, total: console.status(f"packing {done} / {total} images"),
        )
    if as_json:
        _print_json({**asdict(packed), "path": str(packed.path), "left_out": len(index.problems)})
        return
    for split, count in packed.images.items():
        typer.echo(f"{split}\t{count} images\t{packed.shards[split]} shards")
    for problem in index.problems:
        typer.echo(f"left out\t{problem.path}\t{problem.reason}", err=True)


@data_app.command(name="split")
def split_data(
    data: Data,
    out: Annotated[Path, typer.Argument(help="The CSV to write.")],
    val: Annotated[float, typer.Option(help="Share of images to validate on.")] = 0.15,
    test: Annotated[
        float | None, typer.Option(help="Share to hold out; else 0.15 of 300 or more.")
    ] = None,
    group_by: GroupBy = None,
    keep_split: KeepSplit = None,
    exclude: Exclude = None,
    seed: Annotated[int, typer.Option(help="Seed of the choice.")] = 0,
) -> None:
    """Write which images train, validate and test, for `--keep-split`; nothing is copied."""
    with _reporting() as console:
        from kresnet.data.prepare import prepare
        from kresnet.data.split import save_split

        index = prepare(
            data,
            val=val,
            test=test,
            seed=seed,
            group_by=group_by,
            keep_split=keep_split,
            exclude=exclude,
            progress=console.progress,
            tell=lambda text: console.line("data", text),
        )
        save_split(index, out)
    for split, counts in index.counts().items():
        sizes = ", ".join(f"{name} {count}" for name, count in counts.items())
        typer.echo(f"{split}\t{sum(counts.values())} images\t{sizes}")


@data_app.command(name="show")
def show_data(
    data: Annotated[Path, typer.Argument(help="Folder with a folder of images for each class.")],
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("batches.png"),
    variant: Annotated[str, typer.Option(help="A name that `kresnet zoo list` prints.")] = (
        "resnet50"
    ),
    images: Annotated[int, typer.Option(min=1, help="How many to show.")] = 48,
    augment: Annotated[
        Augment | None,
        typer.Option(help="Random views: none, light (colours), trivial or rand operations."),
    ] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Mirror half of the images.")
    ] = None,
    mixup: Annotated[float | None, typer.Option(help="Mixup's parameter, as 0.2.")] = None,
    cutmix: Annotated[float | None, typer.Option(help="CutMix's parameter, as 1.")] = None,
    balance: Annotated[Balance | None, typer.Option(help="How rare classes are raised.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
) -> None:
    """Save a contact sheet of the first augmented images of a training, with their labels."""
    with _reporting() as console:
        from kresnet.workflow import show_batches

        settings = {
            "augment": augment and augment.value,
            "flip": flip,
            "mixup": mixup,
            "cutmix": cutmix,
            "balance": balance and balance.value,
            "seed": seed,
        }
        path = show_batches(
            data,
            out,
            variant=variant,
            images=images,
            console=console,
            **{field: value for field, value in settings.items() if value is not None},
        )
    typer.echo(path)


@bench.command()
def accuracy(
    data: Annotated[list[str], typer.Option(help="NAME=DATA, as often as you like.")],
    weights: Annotated[Path, typer.Option(help="Checkpoint that all start from.")],
    variant: Annotated[str, typer.Option(help="A name that `kresnet zoo list` prints.")] = (
        "resnet50"
    ),
    budget: Annotated[str, typer.Option(help="Time for each training, as 90s or 5m.")] = "270s",
    seeds: Annotated[int, typer.Option(min=1, help="Splits and trainings of each.")] = 3,
    presets: Annotated[str, typer.Option(help="Of ours: probe, fast, default, best.")] = (
        "probe,default"
    ),
    against: Annotated[str, typer.Option(help="Others: keras, fastai, timm.")] = "keras",
    out: Annotated[
        Path, typer.Option(help="Folder of the results; the same one again goes on.")
    ] = Path("bench"),
    as_json: Json = False,
) -> None:
    """Fine-tune beside others on the same weights, images and seconds, and print the table."""
    sources = dict(pair.partition("=")[::2] for pair in data)
    if not all(name and source for name, source in sources.items()):
        raise ConfigError(f"`--data` must be NAME=DATA, as flowers=photos. Received: {data}.")
    with _reporting() as console:
        from kresnet.bench.accuracy.compare import compare
        from kresnet.bench.accuracy.results import table

        found = compare(
            sources,
            weights=weights,
            variant=variant,
            budget_s=_seconds(budget) or 0.0,
            seeds=seeds,
            presets=[name for name in presets.split(",") if name],
            against=[name for name in against.split(",") if name],
            out=out,
            tell=console.line,
        )
    if as_json:
        _print_json(found)
    else:
        typer.echo(table(found))


def main() -> None:
    """Run the command line; a user's mistake ends in one line, not in a traceback."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    try:
        app()
    except KresnetError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("Stopped before there was anything to resume.", 130)
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except MemoryError:
        _fail("There is not enough memory. Lower --batch-size or --image-size.", 4)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _fail(f"The disk is full. Received: {error}. Make room and run again.", 4)


def _fail(message: str, code: int) -> None:
    print(f"kresnet: {message}", file=sys.stderr)
    sys.exit(code)


@contextlib.contextmanager
def _reporting() -> Iterator[Any]:
    """Give the command a console, and keep every stray print off standard output."""
    from kresnet.console import Console

    if os.environ["KERAS_BACKEND"] != "tensorflow":
        raise ConfigError(
            "Training and export need the TensorFlow backend. "
            f"Received: KERAS_BACKEND={os.environ['KERAS_BACKEND']}. Unset it."
        )
    with Console() as console, contextlib.redirect_stdout(sys.stderr):
        console.status("loading TensorFlow")
        _import_tensorflow_quietly()
        yield console


def _import_tensorflow_quietly() -> None:
    """Import TensorFlow without its start-up notices, which heed no log level."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        import tensorflow as tf

        tf.constant(0)  # the processor's notice comes with the first operation
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _show(result: Result, as_json: bool, photo: str = "PHOTO.jpg") -> None:
    if as_json:
        _print_json(result.as_dict())
        return
    final = result.test or result.validation
    split = "test" if result.test else "validation"
    minutes, seconds = divmod(round(result.seconds), 60)
    typer.echo(f"{split} accuracy {final} in {minutes}:{seconds:02d}\n")
    typer.echo(f"{final.table()}\n")
    if result.export is None:
        return
    home = result.export.parent
    typer.echo(
        f"next    kresnet predict {home} {photo}\n"
        f"        kresnet evaluate {home} FOLDER\n"
        f"        kresnet serve {home}\n"
        f"        tensorflow_model_server --rest_api_port=8501 --model_name={home.name} "
        f"--model_base_path={home.resolve()}"
    )


def _of_study(path: Path) -> tuple[str, dict[str, Any]]:
    """Return what is known of a study in words and as JSON types, and draw its page."""
    from kresnet.tune.results import findings, in_words, leaderboard, write_page
    from kresnet.tune.trials import Ledger

    found = findings(Ledger(path, read_only=True))
    page = write_page(found, path)
    words = "\n".join(in_words(found))
    return f"{leaderboard(found)}\n\n{words}\n{page}", found.as_dict() | {"study": str(path)}


def _jobs(text: str) -> int | None:
    """Read --jobs."""
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"`--jobs` must be 1 or more, or auto. Received: {text!r}.")
    return int(text)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False))


def _seconds(text: str | None, option: str = "--budget") -> float | None:
    """Read a time as 90s, 10m, 2h or plain seconds."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip().lower())
    if not match or float(match[1]) == 0:
        raise ConfigError(
            f"`{option}` must be a time above zero, as 90s, 10m or 2h. Received: {text!r}."
        )
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


# What `fit` takes beside the fields of a recipe.
_NO_FIELDS = (
    *("preset", "recipe", "name", "out", "exports", "keep_photos", "explain", "tracker"),
    "console",
)


def _fields(texts: Sequence[str]) -> dict[str, Any]:
    """Read FIELD=VALUE, whose values are as in recipe.yaml."""
    import yaml

    fields: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            fields[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals or not name.strip().isidentifier() or name.strip() in _NO_FIELDS:
            raise ConfigError(
                f"`--set` takes a field of recipe.yaml and its value. Received: {text!r}. "
                "Write it as --set drop_rate=0.2."
            )
    for name in ("keep_split", "exclude"):
        if isinstance(fields.get(name), str):
            fields[name] = str(Path(fields[name]).absolute())
    return fields


_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp"}


def _image_files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
            if not found:
                raise DataError(f"A folder must hold images. Received: {str(path)!r}, with none.")
            yield from found
        else:
            yield path
