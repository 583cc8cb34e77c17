"""What a search is begun with: settings that make one, a recipe to search around, a directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

import kresnet
from kresnet.console import Console, duration
from kresnet.data.scan import Index
from kresnet.errors import ConfigError, ResourceError
from kresnet.train.disk import check_room, disk_needed
from kresnet.train.estimate import estimated
from kresnet.train.recipe import Recipe, probe_alone, rerun
from kresnet.train.run import check_name, new_folder
from kresnet.tune.oracles import ALGORITHMS, hyperband_budget, keras_tuner
from kresnet.tune.space import Space
from kresnet.tune.trials import Ledger
from kresnet.zoo.download import find_weights


def check_limits(
    algorithm: str, *, trials: int | None, keep: int, retries: int, factor: int
) -> None:
    """Refuse settings that make no search; they are those of `kresnet.tune.job.tune`.

    Raises:
        ConfigError: The message names the setting.
    """
    if algorithm not in ALGORITHMS:
        raise ConfigError(
            f"`algorithm` must be one of {', '.join(ALGORITHMS)}. Received: "
            f"algorithm={algorithm!r}."
        )
    for name, value, least in (
        ("trials", trials, 1),
        ("keep", keep, 1),
        ("retries", retries, 0),
        ("factor", factor, 2),
    ):
        if value is not None and value < least:
            raise ConfigError(f"`{name}` must be {least} or more. Received: {name}={value}.")


def head_alone(recipe: Recipe) -> Recipe:
    """Return the recipe without fine-tuning.

    Raises:
        ConfigError: It has no pretrained weights.
    """
    if recipe.weights is None:
        raise ConfigError(
            "A head is searched for on a pretrained network. Received: random weights. "
            "Choose --weights, or leave --only out."
        )
    return rerun(probe_alone(recipe), {"budget_s": None})


def unhurried(recipe: Recipe, index: Index, *, given: bool, console: Console) -> Recipe:
    """Return the recipe with a number of epochs in place of a time.

    A time allows each trial other epochs, and the same trial others on another day; so the epochs
    that the planner's time allows on this machine are taken for all.

    Args:
        recipe: The planner's.
        index: The images and their split.
        given: Whether the user has said how many epochs it shall be.
        console: Where to report.
    """
    if recipe.budget_s is None:
        return recipe
    epochs = recipe.epochs
    if not given and epochs:
        console.status("measuring the speed of this machine")
        expected = estimated(recipe, index)
        if expected is not None:
            epochs = max(min(epochs, expected.epochs), 1)
            console.line(
                "epochs",
                f"{epochs} a trial: what fits into the {duration(recipe.budget_s)} of a training "
                "here; --epochs changes that",
            )
    return rerun(recipe, {"budget_s": None, "epochs": epochs})


def fetch_weights(space: Space, recipe: Recipe, console: Console) -> None:
    """Have the weights of every variant in the space here before trials want them.

    Raises:
        ConfigError: A variant has none of that tag.
        ResourceError: They cannot be downloaded.
        WeightsError: There is no file at that path.
    """
    entry = space.entries.get("variant")
    if entry is None or recipe.weights is None:
        return
    for variant in entry.choice or ():
        console.status(f"weights of {variant}")
        find_weights(variant, recipe.weights)


def check_disk(recipe: Recipe, index: Index, *, runs: int, studies: Path, exports: Path) -> None:
    """Refuse to begin where not even the best trials and one under way fit on the disk.

    Args:
        recipe: Of a trial.
        index: The images and their split.
        runs: How many are kept at a time.
        studies: Where the study will be.
        exports: Where the export of the winner will be.

    Raises:
        ResourceError: They do not.
    """
    one = disk_needed(recipe, index.select("train"), num_classes=len(index.classes))
    check_room(replace(one, run=runs * one.run), out=studies, exports=exports)


def new_study(
    folder: Path,
    name: str,
    recipe: Recipe,
    index: Index,
    space: Space,
    settings: Mapping[str, Any],
) -> Ledger:
    """Make the directory of a study; a name in use gets a number behind it.

    Args:
        folder: Of the studies.
        name: Of the study.
        recipe: To search around.
        index: The images and their split; those of the test are kept apart from the others.
        space: What to search.
        settings: What else the study file keeps.

    Raises:
        ConfigError: The name is none of a folder.
        ResourceError: The directory cannot be written.
    """
    check_name(name)
    try:
        path = new_folder(folder, name)
        recipe.save(path / "recipe.yaml")
        text = yaml.safe_dump(space.as_dict(), sort_keys=False)
        (path / "space.yaml").write_text(text, encoding="utf-8")
        trained_on = replace(index, rows=tuple(r for r in index.rows if r.split != "test"))
        for part, content in (("index", index), ("images", trained_on)):
            (path / part).mkdir()
            content.save(path / part)
    except OSError as error:
        raise ResourceError(
            f"The study's directory must be writable. Received: {error}. Choose another with "
            "--studies."
        ) from None
    counts = {part: len(index.select(part)) for part in ("train", "val", "test")}
    return Ledger.create(
        path,
        {
            "name": path.name,
            "recipe": recipe.model_dump(mode="json"),
            "space": space.as_dict(),
            "seed": recipe.seed,
            "images": counts,
            "versions": {"kresnet": kresnet.__version__, "keras_tuner": keras_tuner().__version__},
            **settings,
        },
    )


def expected_work(settings: Mapping[str, Any], recipe: Recipe) -> str:
    """Return in words how much a search will do at most, as "random, 20 trials".

    Args:
        settings: Of a study.
        recipe: Which it searches around.
    """
    algorithm, trials, budget_s = (settings[n] for n in ("algorithm", "trials", "budget_s"))
    parts = [algorithm]
    if trials is not None:
        parts.append(f"{trials} trials")
    elif algorithm == "hyperband" and budget_s is None:
        count, epochs = hyperband_budget(recipe.epochs, settings["factor"])
        parts.append(f"1 + {count} trials of {recipe.epochs} + {epochs} epochs")
    if budget_s is not None:
        parts.append(f"at most {duration(budget_s)}")
    return ", ".join(parts)
