"""The commands on what was trained: runs, compare, report and evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kresnet.cli.options import Data, Json, Out, Tta
from kresnet.cli.output import print_json, reporting


def runs(
    out: Out = Path("runs"),
    as_json: Json = False,
) -> None:
    """List the runs with how good they are."""
    from kresnet.evaluate.runs import as_table, list_runs

    found = list_runs(out)
    if as_json:
        print_json([one.as_dict() for one in found])
    elif found:
        typer.echo(as_table(found))
    else:
        typer.echo(f"kresnet: there is no run in {out}.", err=True)


def compare(
    first: Annotated[Path, typer.Argument(help="Directory of a finished run.")],
    second: Annotated[Path, typer.Argument(help="Directory of another.")],
    as_json: Json = False,
) -> None:
    """Tell whether one run is better than another, on the held-out images that they share."""
    from kresnet.evaluate.runs import compare as compare_runs

    result = compare_runs(first, second)
    if as_json:
        print_json(result.as_dict())
    else:
        typer.echo(str(result))


def report(
    run: Annotated[Path, typer.Argument(help="Directory of a finished run.")],
    as_json: Json = False,
) -> None:
    """Write a run's report again, as one page to read: report.html in the run."""
    with reporting() as console:
        from kresnet.workflow import report_run

        path = report_run(run, console=console)
    if as_json:
        print_json({"report": str(path)})
    else:
        typer.echo(path)


def evaluate(
    model: Annotated[Path, typer.Argument(help="An export: NAME or NAME/VERSION.")],
    data: Data,
    tta: Tta = False,
    as_json: Json = False,
) -> None:
    """Score an export on labelled images, every image once."""
    with reporting() as console:
        from kresnet.workflow import evaluate_export

        result = evaluate_export(model, data, mirror=tta, console=console)
    if as_json:
        print_json(result.as_dict())
    else:
        typer.echo(f"{result}\n\n{result.table()}")
