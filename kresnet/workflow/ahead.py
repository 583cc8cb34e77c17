"""What can be known of a job before it is done: its plan, its learning rate, what it would see."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kresnet.console import Console
from kresnet.data.scan import Index
from kresnet.data.sheet import batches_sheet
from kresnet.data.sources import absolute
from kresnet.errors import ConfigError, ResourceError
from kresnet.train.lr_find import RateTest, range_test
from kresnet.train.plan import Plan, explained
from kresnet.train.stages import training_data
from kresnet.workflow.choice import Choice, decide, plan_job, tell_plan, with_weights
from kresnet.workflow.images import prepared, tell_data
from kresnet.zoo import Preprocessing
from kresnet.zoo.cards import card_for, split_name
from kresnet.zoo.variants import variant_config


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
    choice = Choice(data, variant, weights, preset, recipe, settings)
    planned, index = plan_job(choice, console, out=Path(out), exports=Path(exports))
    tell_data(console, index, "kresnet check names them")
    tell_plan(console, planned, index.classes)
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
    choice = Choice(data, variant, weights, preset, recipe, settings)
    planned, index = with_weights(choice, console, partial(decide, console=console))
    tell_data(console, index, "kresnet check names them")
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
    choice = Choice(data, variant, weights, preset, None, settings)
    planned, index = with_weights(choice, console, partial(decide, console=console))
    tell_data(console, index, "kresnet check names them")
    tell_plan(console, planned, index.classes)
    found = range_test(planned.recipe, index, console)
    console.status("drawing")
    found.save_picture(out)
    return found


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
        data=absolute(data),
        variant=variant,
        weights=tag or "imagenet",
        image_size=variant_config(variant).image_size,
        overrides=settings,
    )
    draft = planned(num_images=1, classes=())
    index = prepared(data, draft.recipe, console)
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
    tell_plan(console, chosen, index.classes)
    return Path(out)
