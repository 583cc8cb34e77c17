"""From what a user says of a training to its plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kresnet.console import Console
from kresnet.data.arrays import channels
from kresnet.data.scan import Index
from kresnet.data.sources import absolute
from kresnet.errors import ConfigError, ResourceError
from kresnet.train.disk import check_room, disk_needed
from kresnet.train.estimate import estimated
from kresnet.train.plan import Plan, again, direction_matters, explained
from kresnet.train.presets import PRESETS, check_preset
from kresnet.train.recipe import Recipe, rerun
from kresnet.workflow.images import prepared
from kresnet.zoo import embedded
from kresnet.zoo.cards import EMBEDDED, card_for, split_name
from kresnet.zoo.download import TAGS, check_license, find_weights
from kresnet.zoo.variants import variant_config

STANDS_IN = (
    f"the embedded {embedded.VARIANT} takes the place of the pretrained ResNet-50: it is much "
    "smaller, and the result will be less accurate; `--weights none` trains from scratch instead"
)


@dataclass(frozen=True, slots=True)
class Choice:
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

    @property
    def is_open(self) -> bool:
        """Whether the network and its weights are left to kresnet."""
        return self.variant is None and self.weights == "auto" and self.recipe is None

    def network(self) -> tuple[str, str | None]:
        """Return the variant and its weights, a tag or a path."""
        variant, weights, stored = self.variant, self.weights, self.stored
        if variant is None and weights == EMBEDDED:
            variant = embedded.VARIANT
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


def plan_job(choice: Choice, console: Console, *, out: Path, exports: Path) -> tuple[Plan, Index]:
    """Read the images, decide everything, and see whether there is room and time for it."""
    chosen, index = decide(choice, console)
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


def decide(choice: Choice, console: Console) -> tuple[Plan, Index]:
    """Read the images and decide everything."""
    check_preset(choice.preset)
    stored, source, settings = choice.stored, choice.source, choice.settings
    variant, weights = choice.network()
    known: dict[str, Any] = {"data": absolute(source), "variant": variant, "weights": weights}
    if stored:
        chosen = again(
            rerun(stored, known | settings), source=str(choice.recipe), overrides=settings
        )
        index = prepared(source, chosen.recipe, console)
    else:
        planned = partial(
            explained,
            **known,
            image_size=usual_side(variant, weights),
            overrides=settings,
            preset=choice.preset,
        )
        draft = planned(num_images=1, classes=())  # tells wrong settings before images are read
        index = prepared(source, draft.recipe, console)
        rows = index.select("train")
        chosen = planned(
            num_images=len(rows),
            classes=index.classes,
            counts=list(index.counts()["train"].values()),
            side=int(np.median([min(row.height, row.width) for row in rows])),
        )
    return chosen, index


def usual_side(variant: str, weights: str | None) -> int:
    """Return the side of the images that a network, or the embedded weights, are for."""
    if weights == EMBEDDED:
        return card_for(variant, EMBEDDED).preprocessing.image_size
    return variant_config(variant).image_size


def with_weights(
    choice: Choice, console: Console, planned: Callable[[Choice], tuple[Plan, Index]]
) -> tuple[Plan, Index]:
    """Plan, and have the weights here; what is embedded stands in for what cannot be downloaded.

    Only where the user named neither a network nor weights: a named one is a wish.

    Args:
        choice: What the user says.
        console: Where to say so.
        planned: Plans a choice, as `decide` does.

    Raises:
        ResourceError: The weights are not to be had.
    """
    plan, index = planned(choice)
    try:
        have_weights(plan.recipe, console)
    except ResourceError as error:
        if not choice.is_open or not embedded.is_there():
            raise
        console.line("WARNING", f"no download: {error}")
        console.line("WARNING", STANDS_IN)
        return planned(replace(choice, weights=EMBEDDED))
    return plan, index


def have_weights(recipe: Recipe, console: Console) -> None:
    """Download the weights that a recipe starts from, if any and if they are not here."""
    if recipe.weights is not None:
        find_weights(
            recipe.variant,
            recipe.weights,
            lambda done, _: console.status(f"weights: {done / 1e6:.0f} MB"),
        )


def tell_plan(console: Console, planned: Plan, classes: Sequence[str]) -> None:
    """Report the plan in a few lines, with the time and the room it takes where they are known."""
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
