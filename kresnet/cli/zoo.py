"""The commands on models: the group zoo."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from kresnet.cli.options import Json
from kresnet.cli.output import print_json

group = typer.Typer(
    no_args_is_help=True,
    help="The models: list them, look one up, fetch weights.",
)


class Order(StrEnum):
    """Choices of --sort."""

    name = "name"
    params = "params"
    macs = "macs"
    top1 = "top1"


@group.command(name="list")
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
        print_json([asdict(entry) for entry in entries])
    elif entries:
        typer.echo(as_table(entries))
    else:
        typer.echo("kresnet: no model is like that.", err=True)


@group.command()
def show(
    name: Annotated[str, typer.Argument(help="A variant, or variant.tag, as resnet50.a1_in1k.")],
    as_json: Json = False,
) -> None:
    """Show a model: parameters, operations, features, and the card of its weights."""
    from kresnet.zoo.catalog import as_text, describe

    if as_json:
        print_json(describe(name))
    else:
        typer.echo(as_text(name))


@group.command()
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
        print_json(
            [
                {"name": card.name, "path": str(path)}
                for card, path in zip(cards, paths, strict=True)
            ]
        )
    else:
        for path in paths:
            typer.echo(path)
