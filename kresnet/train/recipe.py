"""Every setting of a run, and the plan that fills in what the user left open."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kresnet.data.augment import Augmentation, Policy
from kresnet.data.balance import Balance
from kresnet.data.store import Cache
from kresnet.errors import ConfigError
from kresnet.train.hardware import Precision, has_gpu, resolve_precision
from kresnet.train.optimizer import Name as Optimizer
from kresnet.train.presets import PRESETS, check_preset
from kresnet.train.schedule import Schedule
from kresnet.train.step import Loss
from kresnet.zoo.variants import variant_config

Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0)]


_MIXUP_FROM = 20_000  # images, as in BiT's HyperRule (Kolesnikov et al. 2020, arXiv:1912.11370)
# Seconds on a processor, which fine-tunes slowly: by default a model within five minutes.
_BUDGETS = {"fast": 90.0, "default": 270.0, "best": None}
# Rate and decay of an optimizer that is not the planned one, and whether weights are random: the
# same for Adam's kin, but L2 in place of decay; for SGD those of BiT's rule and of He et al. 2015.
_OPTIMIZERS: dict[tuple[Any, bool], dict[str, float]] = {
    ("sgd", False): {"lr": 3e-3, "weight_decay": 1e-4},
    ("sgd", True): {"lr": 0.05, "weight_decay": 1e-4},
    ("adam", False): {"weight_decay": 1e-5},
    ("adam", True): {"weight_decay": 1e-5},
    ("rmsprop", False): {"weight_decay": 1e-5},
    ("rmsprop", True): {"weight_decay": 1e-5},
}
# What is tried beside the training where time is no matter, and kept where it validates better.
_BEST = {"progressive": 0.4, "soup": 3, "recalibrate": True, "larger_test": True}
_UNEVEN = 3  # largest class by smallest class, from which on rare classes are raised


class Recipe(BaseModel):
    """A complete, validated, re-runnable description of a training.

    Attributes:
        data: Folder of the images.
        variant: A key of `kresnet.VARIANTS`.
        weights: "imagenet", "cifar10", the path of a checkpoint, or None to train from scratch.
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
        label_smoothing: Share of each label spread over all classes.
        drop_rate: Dropout before the head.
        drop_path_rate: Stochastic depth of the last block.
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
    label_smoothing: Rate = 0.0
    drop_rate: Rate = 0.0
    drop_path_rate: Rate = 0.0
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
        return _validated(fields)


def rerun(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """Return a stored recipe with some fields changed; `precision` may be "auto".

    Raises:
        ConfigError: A field is unknown or out of range.
    """
    fields = recipe.model_dump() | dict(overrides)
    if fields["precision"] == "auto":
        fields["precision"] = resolve_precision("auto")
    return _validated(fields)


def plan(
    *,
    data: str,
    num_images: int,
    classes: Sequence[str],
    variant: str,
    weights: str | None,
    image_size: int,
    overrides: Mapping[str, Any],
    counts: Sequence[int] = (),
    preset: str = "default",
) -> Recipe:
    """Fill every setting that `overrides` leaves open, from the data's size and the hardware.

    Args:
        data: Folder of the images.
        num_images: Number of training images.
        classes: Names of the classes.
        variant: A key of `kresnet.VARIANTS`.
        weights: As in `Recipe`; None trains from scratch.
        image_size: What the weights, or the variant, were made for.
        overrides: Recipe fields the user has set; they win. `precision` may be "auto".
        counts: Training images of each class.
        preset: "fast", "default" or "best", or a key of `presets.PRESETS`.

    Raises:
        ConfigError: A field or the preset is unknown, or a field is out of range.
    """
    variant_config(variant)
    check_preset(preset)
    fields: dict[str, Any] = {
        "data": data,
        "variant": variant,
        "weights": weights,
        "image_size": image_size,
        "batch_size": 32 if num_images < 2000 else 64,
        "flip": not direction_matters(classes),
        "mixup": 0.1 if num_images >= _MIXUP_FROM else 0.0,
        "balance": "sqrt" if counts and max(counts) > _UNEVEN * min(counts) else "none",
        **(_from_scratch if weights is None else _transfer)(num_images, effort=preset),
        **(_BEST if preset == "best" else {}),
    }
    if preset in PRESETS:
        fields |= PRESETS[preset].fields(num_images=num_images, overrides=overrides)
    elif not {"epochs", "budget_s"} & set(overrides) and not has_gpu():
        fields["budget_s"] = _BUDGETS[preset]
    if preset not in PRESETS:
        fields |= _OPTIMIZERS.get((overrides.get("optimizer"), weights is None), {})
    fields |= overrides
    precision: Precision = fields.get("precision", "auto")
    if precision in ("auto", "float32", "bfloat16", "float16"):
        fields["precision"] = resolve_precision(precision)
    return _validated(fields)


def _transfer(num_images: int, *, effort: str) -> dict[str, Any]:
    """Settings for pretrained weights: keep what they know, more so the fewer the images."""
    seen, least, most = {"fast": (8_000, 2, 5), "best": (60_000, 15, 40)}.get(
        effort, (20_000, 5, 15)
    )
    epochs = _epochs(images_seen=seen, num_images=num_images, least=least, most=most)
    # Fine-tuning the last two stages is as good on hundreds of images, and 1.7 times as fast.
    first = 3 if num_images < 5_000 else 1
    return {
        "epochs": epochs,
        "lr": 5e-5,
        "layer_decay": 0.5,
        "weight_decay": 0.05,
        "train_from": 4 if effort == "fast" else first,
        "norms": "frozen",
        "min_area": 0.35,
        "ema": 0.1 if effort == "best" else 0.0,
        # On few images a training soon knows them by heart: the rest of its epochs are for nothing.
        "patience": max(5, -(-epochs // 5)) if num_images < 5_000 else None,
    }


def _from_scratch(num_images: int, *, effort: str) -> dict[str, Any]:
    """Settings for random weights: every layer learns, norms included, at one high rate."""
    seen, least, most = {"fast": (20_000, 8, 30), "best": (200_000, 60, 300)}.get(
        effort, (60_000, 20, 100)
    )
    return {
        "epochs": _epochs(images_seen=seen, num_images=num_images, least=least, most=most),
        "lr": 3e-3,
        "layer_decay": 1.0,
        "weight_decay": 0.05,
        "norms": "train",
        "min_area": 0.6,
        "ema": 0.1 if effort == "best" else 0.0,
    }


def _epochs(*, images_seen: int, num_images: int, least: int, most: int) -> int:
    return min(max(images_seen // max(num_images, 1), least), most)


_SIDES = re.compile(r"\b(left|right|links|rechts|gauche|droite|izquierda|derecha)\b", re.IGNORECASE)


def direction_matters(classes: Sequence[str]) -> bool:
    """Tell digits, letters and left/right, whose mirror images are something else."""
    single = all(len(name) == 1 or name.isdigit() for name in classes)
    return single or any(_SIDES.search(re.sub(r"[_\W]+", " ", name)) for name in classes)


def _validated(fields: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise ConfigError(_unknown(name)) from None
        raise ConfigError(
            f"`{name}` is wrong: {first['msg'].lower()}. Received: {name}={first['input']!r}."
        ) from None


def _unknown(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, Recipe.model_fields, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else "Known: " + ", ".join(Recipe.model_fields)
    return f"A recipe has no such field. Received: {name!r}. {hint}"
