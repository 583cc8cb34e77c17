"""Every setting of a run, validated."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kresnet.data.augment import Augmentation, Policy
from kresnet.data.balance import Balance
from kresnet.data.store import Cache
from kresnet.errors import ConfigError
from kresnet.train.hardware import resolve_precision
from kresnet.train.optimizer import Name as Optimizer
from kresnet.train.schedule import Schedule
from kresnet.train.step import Loss

CutCache = Literal["none", "memory", "disk"]
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]


class Recipe(BaseModel):
    """A complete, validated, re-runnable description of a training.

    Attributes:
        data: Folder of the images.
        variant: A key of `kresnet.VARIANTS`.
        weights: "imagenet", "cifar10", "embedded", the path of a checkpoint, or None to train from
            scratch.
        image_size: Side of the model input in pixels.
        val: Share of the images for validation, where the folder does not say.
        test: Share for the hold-out test; None lets the number of images decide.
        group_by: Column of a manifest, or regular expression of the part of a path that names what
            belongs together; None groups by the column "group", if there is one.
        keep_split: File of an earlier split whose images keep their places; None is none.
        exclude: CSV of images to leave out; None is none.
        epochs: Passes over the training images in the fine-tuning stage; 0 is the probe alone.
        batch_size: Images a step.
        accumulate: In how many parts a batch is computed, for large batches in little memory.
        optimizer: "adamw", "adam", "sgd" (Nesterov), "lamb" or "rmsprop". In "adamw" and "lamb" the
            decay is apart from the gradient; in the others it is L2.
        lr: Peak learning rate, of the head and the last stage.
        layer_decay: Factor of the learning rate from one stage to the one before it.
        weight_decay: Of kernels; norms and biases have none.
        l1: Factor of the absolute values of the kernels in the loss.
        schedule: "cosine", "one-cycle", or "steps" that fall to a tenth at each of the drops.
        warmup: Share of the steps in which the learning rate rises.
        drops: Shares of the steps after which the learning rate falls to a tenth.
        clip_norm: Largest global norm of the gradient; None is no limit.
        ema: Share of the steps that the average of the weights reaches back, which is kept where it
            validates better than the weights; 0 is no average.
        progressive: Share of the epochs in which the images grow, from 0.6 of their size on.
        soup: Of how many epochs' weights, and their average, a mean is tried in the end.
        recalibrate: Compute the statistics of norms anew in the end, where they are learned.
        larger_test: Try larger images for validation and the export than for training.
        patience: Epochs without a better one after which the training ends; None is never.
        loss: "softmax" cross-entropy, or "sigmoid": a binary one for each class.
        train_from: First stage that is fine-tuned; 1 is the whole network.
        norms: "frozen" keeps the pretrained statistics, "train" learns them.
        min_area: Smallest share of an image that a random training crop covers.
        flip: Mirror half of the training images left to right.
        vertical_flip: Turn half of them upside down, as in a mirror: for views from above.
        augment: "none", "light" changes of colour, or "trivial" (TrivialAugment) or "rand"
            (RandAugment) operations.
        color: Strength of the changes of "light", 0..1.
        erase: Share of the training images that lose a random rectangle.
        mixup: Parameter of mixup's distribution; 0 is none.
        cutmix: Parameter of CutMix's distribution; 0 is none.
        repeats: Views of each image in a batch; an epoch has as many times the steps.
        balance: Weight of an image of a class of n: 1 ("none"), 1 / sqrt(n) or 1 / n ("full").
        cache: Where decoded images are kept; "auto" is memory, if they need little of it.
        cut_cache: Where is kept what the stages before `train_from` say of each image, so that an
            epoch computes only those behind: "memory", "disk" in the run's folder, or "none".
        cut_views: With it, how many views of each image there are: pass n over the images shows
            view n modulo this. What mixes or resizes images from step to step is refused.
        label_smoothing: Share of each label spread over all classes.
        drop_rate: Dropout before the head.
        drop_path_rate: Stochastic depth of the last block.
        probe_strength: Inverse strength of the probe's regularisation, for features of variance 1;
            None is chosen by cross-validation.
        probe_smoothing: Share of each label that the probe spreads over all classes.
        probe_views: What the probe learns from: "center" is each image as in evaluation, "mirror"
            its mirror image too, "crops" three crops and their mirror images. Without `flip` no
            image is mirrored.
        precision: What to compute in; variables are always float32.
        seed: Of the split, the initial weights, the order and the augmentation.
        budget_s: Seconds the whole job may take; fewer epochs are run to keep it. None is no limit.
        max_bad: Largest share of unreadable images that is tolerated, first when they are listed
            and again while training.
        target_precision: Share of the answers given that shall be right; below the score that it
            takes, on validation images, the export abstains. None always answers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    variant: str
    weights: str | None
    image_size: Annotated[int, Field(ge=32, le=4096)]
    val: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    test: Annotated[float | None, Field(ge=0.0, lt=1.0)] = None
    group_by: str | None = None
    keep_split: str | None = None
    exclude: str | None = None
    epochs: Annotated[int, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=1)]
    accumulate: Annotated[int, Field(ge=1)] = 1
    optimizer: Optimizer = "adamw"
    lr: Annotated[float, Field(gt=0.0)]
    layer_decay: Fraction
    weight_decay: Annotated[float, Field(ge=0.0)]
    l1: Annotated[float, Field(ge=0.0)] = 0.0
    schedule: Schedule = "cosine"
    warmup: Rate = 0.1
    drops: tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...] = ()
    clip_norm: Annotated[float | None, Field(gt=0.0)] = 1.0
    ema: Rate = 0.0
    progressive: Rate = 0.0
    soup: Annotated[int, Field(ge=0)] = 0
    recalibrate: bool = False
    larger_test: bool = False
    patience: Annotated[int | None, Field(ge=1)] = None
    loss: Loss = "softmax"
    train_from: Annotated[int, Field(ge=1)] = 1
    norms: Literal["frozen", "train"]
    min_area: Fraction
    flip: bool
    vertical_flip: bool = False
    augment: Policy = "light"
    color: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2
    erase: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    mixup: Annotated[float, Field(ge=0.0)] = 0.0
    cutmix: Annotated[float, Field(ge=0.0)] = 0.0
    repeats: Annotated[int, Field(ge=1)] = 1
    balance: Balance = "none"
    cache: Cache = "auto"
    cut_cache: CutCache = "none"
    cut_views: Annotated[int, Field(ge=1)] = 4
    label_smoothing: Rate = 0.0
    drop_rate: Rate = 0.0
    drop_path_rate: Rate = 0.0
    probe_strength: Annotated[float | None, Field(gt=0.0)] = None
    probe_smoothing: Rate = 0.0
    probe_views: Literal["center", "mirror", "crops"] = "center"
    precision: Literal["float32", "bfloat16", "float16"]
    seed: Annotated[int, Field(ge=0)] = 0
    budget_s: Annotated[float | None, Field(gt=0.0)] = None
    max_bad: Rate = 0.05
    target_precision: Annotated[float | None, Field(gt=0.0, lt=1.0)] = None

    @property
    def augmentation(self) -> Augmentation:
        """What happens to the training images."""
        return Augmentation(
            policy=self.augment,
            min_area=self.min_area,
            flip=self.flip,
            vertical_flip=self.vertical_flip,
            color=self.color,
            erase=self.erase,
            mixup=self.mixup,
            cutmix=self.cutmix,
            repeats=self.repeats,
            smoothing=self.label_smoothing,
        )

    def save(self, path: Path) -> None:
        """Write the recipe as YAML."""
        text = yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)
        path.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Recipe:
        """Read a recipe that `save` wrote.

        Raises:
            ConfigError: The file is absent or no recipe; the message names the wrong field.
        """
        try:
            fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(
                f"A recipe must be a readable YAML file. Received: {error}."
            ) from None
        if not isinstance(fields, dict):
            raise ConfigError(f"A recipe must hold `field: value` lines. Received: {path}.")
        return validated(fields)


def rerun(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """Return a stored recipe with some fields changed; `precision` may be "auto".

    Raises:
        ConfigError: A field is unknown or out of range.
    """
    fields = recipe.model_dump() | dict(overrides)
    if fields["precision"] == "auto":
        fields["precision"] = resolve_precision("auto")
    return validated(fields)


_OF_PROBE: Final = ("variant", "weights", "image_size", "precision", "seed", "data", "flip")


def probe_settings(recipe: Recipe) -> dict[str, Any]:
    """Return all fields that the probe depends on: recipes that share them share the probe."""
    return {
        name: value
        for name, value in recipe.model_dump().items()
        if name in _OF_PROBE or name.startswith("probe_")
    }


def probe_alone(recipe: Recipe) -> Recipe:
    """Return the recipe of the same probe without fine-tuning, and without what comes after it."""
    left_out = {"epochs": 0, "progressive": 0.0}
    return rerun(recipe, left_out | {"soup": 0, "recalibrate": False, "larger_test": False})


def validated(fields: Mapping[str, Any]) -> Recipe:
    """Return the recipe of fields that a person has written.

    Raises:
        ConfigError: A field is unknown, missing or out of range; the message says which is meant.
    """
    try:
        recipe = Recipe.model_validate(fields)
    except ValidationError as error:
        # A field that is misspelt is also missing; what is written there says more.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ConfigError(_unknown(name)) from None
        if first["type"] == "missing":
            raise ConfigError(
                f"A recipe must have every field without a default. Received: no {name!r}. Add it."
            ) from None
        hint = ""
        if first["type"] == "literal_error":
            words = re.findall(r"'([^']*)'", first.get("ctx", {}).get("expected", ""))
            near = difflib.get_close_matches(str(first["input"]).lower(), words, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"`{name}` is wrong: {first['msg'].lower()}. Received: {name}={first['input']!r}.{hint}"
        ) from None
    if recipe.cut_cache != "none" and (obstacles := uncuttable(fields)):
        raise ConfigError(
            "`cut_cache` keeps what frozen stages say of an image alone, the same in each pass. "
            f"Received: cut_cache={recipe.cut_cache!r} with {obstacles[0]}. Change one."
        )
    return recipe


def uncuttable(fields: Mapping[str, Any]) -> list[str]:
    """Return what makes stages before `train_from` say something else of an image each time.

    Args:
        fields: Of a recipe; those left out are as by default.
    """
    known = {name: field.default for name, field in Recipe.model_fields.items()} | dict(fields)
    changing = ("mixup", "cutmix", "progressive", "drop_path_rate")
    found = [f"train_from={known['train_from']}"] if known["train_from"] < 2 else []
    found += [f"{name}={known[name]}" for name in changing if known[name]]
    return found + ([f"repeats={known['repeats']}"] if known["repeats"] > 1 else [])


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, Recipe.model_fields, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else "Known: " + ", ".join(Recipe.model_fields)
    return f"A recipe has no such field. Received: {name!r}. {hint}"
