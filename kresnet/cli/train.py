"""The commands that train: train, lr-find, resume and demo."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kresnet.cli.launch import handed_over
from kresnet.cli.options import (
    DATA_HELP,
    Augment,
    Balance,
    Cutmix,
    Data,
    DataService,
    Exclude,
    Exports,
    Flip,
    GroupBy,
    Json,
    KeepSplit,
    Mixup,
    NoPhotos,
    Out,
    RayWorkers,
    Seed,
    Set,
    Variant,
    Weights,
    WorkerCpus,
    WorkerGpus,
    read_fields,
    read_seconds,
)
from kresnet.cli.output import print_json, reporting

if TYPE_CHECKING:
    from kresnet.workflow import Result


class Precision(StrEnum):
    """Choices of --precision."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


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


def train(
    context: typer.Context,
    data: Annotated[str | None, typer.Argument(help=DATA_HELP)] = None,
    variant: Variant = None,
    weights: Weights = None,
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
    augment: Augment = None,
    flip: Flip = None,
    mixup: Mixup = None,
    cutmix: Cutmix = None,
    balance: Balance = None,
    cache: Annotated[Cache | None, typer.Option(help="Where decoded images are kept.")] = None,
    seed: Seed = None,
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
    data_service: DataService = None,
    ray: RayWorkers = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --ray: processes that train together; else 2.")
    ] = None,
    worker_cpus: WorkerCpus = 1,
    worker_gpus: WorkerGpus = 0,
    as_json: Json = False,
) -> None:
    """Train a classifier on a folder of images, evaluate it and export it."""
    if handed_over(context, ray, workers=workers, cpus=worker_cpus, gpus=worker_gpus):
        return
    with reporting() as console:
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
            "budget_s": read_seconds(budget),
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
            **read_fields(set_ or []),
        }
        if dry_run:
            planned = preview(**job)
        else:
            result = fit(
                name=name,
                keep_photos=not no_photos,
                explain=explain,
                tracker=tracker,
                data_service=data_service,
                **job,
            )
    if not dry_run:
        _show(result, as_json)
    elif as_json:
        print_json(planned.as_dict())
    else:
        typer.echo("\n".join(planned.lines()))


def lr_find(
    data: Data,
    picture: Annotated[
        Path, typer.Option("--out", help="The plot to write; its suffix is the format.")
    ] = Path("lr.png"),
    variant: Variant = None,
    weights: Weights = "auto",
    preset: Annotated[
        str, typer.Option(help="As in `train`: fast, default, best, or a published recipe.")
    ] = "default",
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Find a learning rate: up to 100 steps at growing rates, a plot, and what they suggest."""
    with reporting() as console:
        from kresnet.workflow import find_rate

        job = {"variant": variant, "weights": weights, "preset": preset, **read_fields(set_ or [])}
        found = find_rate(**{"data": data} | job, out=picture, console=console)
    if as_json:
        print_json(found.as_dict() | {"picture": str(picture)})
        return
    typer.echo(f"{found}\n{picture}")
    if found.valley is not None:
        typer.echo(f"next    kresnet train {shlex.quote(data)} --lr {found.valley:.2g}")


def resume(
    run: Annotated[Path, typer.Argument(help="Directory of the run.")],
    data_service: Annotated[
        str | None, typer.Option(help="As in `train`, or none; else that of the run.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Go on with a run that was interrupted."""
    with reporting() as console:
        from kresnet.workflow import resume as go_on

        result = go_on(run, data_service=data_service, console=console)
    _show(result, as_json)


def demo(
    out: Out = Path("runs"),
    exports: Exports = Path("saved_models"),
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 6,
    as_json: Json = False,
) -> None:
    """Do the whole job, offline, on handwritten digits: a probe, then fine-tuning."""
    with reporting() as console:
        from kresnet.data.demo import write_digits
        from kresnet.workflow import fit
        from kresnet.zoo.download import kresnet_home

        data = write_digits(kresnet_home() / "demo" / "digits")
        result = fit(
            data,
            weights="embedded",
            name="digits",
            out=out,
            exports=exports,
            console=console,
            image_size=64,
            epochs=epochs,
            lr=3e-4,  # of scanned ink, photos teach little: the network has to move
            min_area=0.7,  # a part of a digit may be another one
        )
        photo = str(sorted(data.glob("7/*.png"))[0])
    _show(result, as_json, photo)


def _show(result: Result, as_json: bool, photo: str = "PHOTO.jpg") -> None:
    if as_json:
        print_json(result.as_dict())
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
