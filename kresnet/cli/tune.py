"""The commands that search: tune, and the group study."""

from __future__ import annotations

import os
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from kresnet.cli.options import (
    DATA_HELP,
    Exports,
    Json,
    Out,
    Set,
    Variant,
    Weights,
    read_fields,
    read_jobs,
    read_seconds,
)
from kresnet.cli.output import print_json, reporting
from kresnet.errors import ConfigError

group = typer.Typer(
    no_args_is_help=True,
    help="The searches: list them, look at one.",
)


class Algorithm(StrEnum):
    """Choices of --algorithm."""

    hyperband = "hyperband"
    bayesian = "bayesian"
    random = "random"
    grid = "grid"


class Only(StrEnum):
    """Choices of --only."""

    head = "head"


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
    variant: Variant = None,
    weights: Weights = None,
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
        "budget_s": read_seconds(budget),
        "jobs": read_jobs(jobs),
        "trial_s": read_seconds(trial_budget, option="--trial-budget"),
        "memory_bytes": None if trial_memory is None else int(trial_memory * 1e9),
        "keep": keep,
        "retries": retries,
        "refit": refit,
    }
    limits = {field: value for field, value in limits.items() if value is not None}
    with reporting() as console:
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
                **read_fields(set_ or ()),
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
        print_json(known | {"result": found.as_dict()})
    else:
        typer.echo("\n\n".join((text, "\n".join(found.lines()))))


@group.command(name="list")
def list_searches(
    studies: Annotated[Path, typer.Argument(help="Folder of the studies.")] = Path("studies"),
    as_json: Json = False,
) -> None:
    """List the studies with the best of each."""
    from kresnet.tune.board import as_list, list_studies

    found = list_studies(studies)
    if as_json:
        print_json(found)
    elif found:
        typer.echo(as_list(found))
    else:
        typer.echo(f"kresnet: there is no study in {studies}.", err=True)


@group.command(name="show")
def show_study(
    path: Annotated[Path, typer.Argument(help="Directory of a study; it may be under way.")],
    as_json: Json = False,
) -> None:
    """Show a study: every trial, the best first, and the page study.html in it."""
    with reporting():
        text, known = _of_study(path)
    if as_json:
        print_json(known)
    else:
        typer.echo(text)


def _of_study(path: Path) -> tuple[str, dict[str, Any]]:
    """Return what is known of a study in words and as JSON types, and draw its page."""
    from kresnet.tune.results import findings, in_words, leaderboard, write_page
    from kresnet.tune.trials import Ledger

    found = findings(Ledger(path, read_only=True))
    page = write_page(found, path)
    words = "\n".join(in_words(found))
    return f"{leaderboard(found)}\n\n{words}\n{page}", found.as_dict() | {"study": str(path)}
