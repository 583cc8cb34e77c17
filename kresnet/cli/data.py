"""The commands on images: check, and the group data."""

from __future__ import annotations

import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from kresnet.cli.options import (
    Augment,
    Balance,
    Cutmix,
    Data,
    Exclude,
    Flip,
    GroupBy,
    Json,
    KeepSplit,
    KnownVariant,
    Mixup,
    Seed,
)
from kresnet.cli.output import print_json, reporting
from kresnet.errors import ConfigError
from kresnet.machine import own_address

group = typer.Typer(
    no_args_is_help=True,
    help="The images: see what a training sees, pack them into large files, serve batches of them.",
)


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
    with reporting() as console:
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
        print_json(report.as_dict() | ({"labels": judged.as_dict()} if judged else {}))
    else:
        typer.echo(str(report))
    raise typer.Exit(report.exit_code)


@group.command()
def pack(
    data: Data,
    out: Annotated[Path, typer.Argument(help="Folder to be made; its name is the data set's.")],
    shards: Annotated[
        int | None, typer.Option(help="Files a split; without it they are of 128 MiB.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write images as TFRecord shards with checksums, which kresnet and TFDS read."""
    with reporting() as console:
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
        print_json({**asdict(packed), "path": str(packed.path), "left_out": len(index.problems)})
        return
    for split, count in packed.images.items():
        typer.echo(f"{split}\t{count} images\t{packed.shards[split]} shards")
    for problem in index.problems:
        typer.echo(f"left out\t{problem.path}\t{problem.reason}", err=True)


@group.command(name="serve")
def serve_batches(
    dispatcher: Annotated[
        str | None,
        typer.Option(help="Be a worker of this one, as host:5050; else be one, with a worker."),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="What others call this machine; else its address.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Where to listen; else 5050, as a worker anywhere."),
    ] = None,
) -> None:
    """Make batches for trainings elsewhere: a tf.data service, or one more of its workers."""
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # in all threads to come; they are waited for
    with reporting():
        from kresnet.data.service import serve

        if port is None:
            port = 5050 if dispatcher is None else 0
        address, _kept = serve(dispatcher, host=host or own_address(), port=port)
    typer.echo(f"kresnet train photos/ --data-service {address}")
    signal.sigwait(ends)
    os._exit(0)  # else TensorFlow waits for whoever still asks for batches, now and then for ever


@group.command(name="split")
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
    with reporting() as console:
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


@group.command(name="show")
def show_data(
    data: Annotated[Path, typer.Argument(help="Folder with a folder of images for each class.")],
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("batches.png"),
    variant: KnownVariant = "resnet50",
    images: Annotated[int, typer.Option(min=1, help="How many to show.")] = 48,
    augment: Augment = None,
    flip: Flip = None,
    mixup: Mixup = None,
    cutmix: Cutmix = None,
    balance: Balance = None,
    seed: Seed = None,
) -> None:
    """Save a contact sheet of the first augmented images of a training, with their labels."""
    with reporting() as console:
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
