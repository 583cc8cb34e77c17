"""The commands that measure: the group bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kresnet.cli.options import Json, KnownVariant, read_seconds
from kresnet.cli.output import print_json, reporting
from kresnet.cli.speed import add_to as add_speed_to
from kresnet.errors import ConfigError

group = typer.Typer(
    no_args_is_help=True,
    help="Measurements beside others; they take long and want a machine to themselves.",
)
add_speed_to(group)


@group.command()
def accuracy(
    data: Annotated[list[str], typer.Option(help="NAME=DATA, as often as you like.")],
    weights: Annotated[
        str, typer.Option(help="Checkpoint that all start from, or a tag, as embedded.")
    ],
    variant: KnownVariant = "resnet50",
    budget: Annotated[str, typer.Option(help="Time for each training, as 90s or 5m.")] = "270s",
    seeds: Annotated[int, typer.Option(min=1, help="Splits and trainings of each.")] = 3,
    presets: Annotated[
        str, typer.Option(help="Of ours: probe, fast, fast-uncut, default, best.")
    ] = "probe,default",
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
    with reporting() as console:
        from kresnet.bench.accuracy.compare import compare
        from kresnet.bench.accuracy.results import table

        found = compare(
            sources,
            weights=weights,
            variant=variant,
            budget_s=read_seconds(budget) or 0.0,
            seeds=seeds,
            presets=[name for name in presets.split(",") if name],
            against=[name for name in against.split(",") if name],
            out=out,
            tell=console.line,
        )
    if as_json:
        print_json(found)
    else:
        typer.echo(table(found))
