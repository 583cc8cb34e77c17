"""The plan: every setting that the user left open, each with the reason for it in words.

What is decided follows from the number of images, the classes, the hardware and the preset alone,
so that the same data on the same machine have the same plan.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from kresnet.train.cut_plan import cut_choices
from kresnet.train.disk import Disk
from kresnet.train.estimate import Estimate
from kresnet.train.hardware import Precision, has_gpu, resolve_precision
from kresnet.train.presets import PRESETS, check_preset
from kresnet.train.recipe import Recipe, validated
from kresnet.zoo.variants import variant_config

YOURS: Final = "yours"
"""The reason of what the user has set."""

_MIXUP_FROM: Final = 20_000  # images, as in BiT's rule (Kolesnikov et al. 2020, arXiv:1912.11370)
_FEW_TO_PROBE: Final = 1_000  # images below which six views of each take seconds
_FEW: Final = 5_000  # images below which a training soon knows them by heart
_SMALL_BATCH_BELOW: Final = 2_000  # images
_UNEVEN: Final = 3  # largest class by smallest class, from which on rare classes are raised
# Seconds on a processor, which fine-tunes slowly: by default a model within five minutes.
_BUDGETS: Final[Mapping[str, float | None]] = {"fast": 90.0, "default": 270.0, "best": None}

_Choices = dict[str, tuple[Any, str]]
"""For a field of the recipe, its value and why."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe, and how it came about.

    Attributes:
        recipe: Every setting.
        reasons: For each field that was decided, why, in a few words; `YOURS` where the user did.
        estimate: How long it will take; None where that is not known.
        disk: What it will take of the disk; None before the images are known.
    """

    recipe: Recipe
    reasons: Mapping[str, str]
    estimate: Estimate | None = None
    disk: Disk | None = None

    def lines(self) -> list[str]:
        """Return a line for each decision: the field, its value and why."""
        values = {name: _text(getattr(self.recipe, name)) for name in self.reasons}
        wide = max(map(len, values), default=0)
        wide_value = min(max(map(len, values.values()), default=0), 16)
        return [
            f"{name:<{wide}}  {values[name]:<{wide_value}}  {why}"
            for name, why in self.reasons.items()
        ]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "reasons": dict(self.reasons),
            "estimate": self.estimate.as_dict() if self.estimate else None,
            "disk": asdict(self.disk) if self.disk else None,
        }


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
    """Fill every setting that `overrides` leaves open; see `explained`."""
    return explained(
        data=data,
        num_images=num_images,
        classes=classes,
        variant=variant,
        weights=weights,
        image_size=image_size,
        overrides=overrides,
        counts=counts,
        preset=preset,
    ).recipe


def explained(
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
    side: int | None = None,
) -> Plan:
    """Fill every setting that `overrides` leaves open, and say why.

    Args:
        data: Folder of the images.
        num_images: Number of training images.
        classes: Names of the classes.
        variant: A key of `kresnet.VARIANTS`.
        weights: As in `Recipe`; None trains from scratch.
        image_size: What the weights, or the variant, were made for, in pixels.
        overrides: Recipe fields the user has set; they win. `precision` may be "auto".
        counts: Training images of each class.
        preset: "fast", "default" or "best", or a key of `presets.PRESETS`.
        side: Median of the shorter sides of the images in pixels; None where it is not known.

    Raises:
        ConfigError: A field or the preset is unknown, or a field is out of range.
    """
    last = len(variant_config(variant).depths)
    check_preset(preset)
    choices: _Choices = {
        "image_size": (image_size, _why_size(image_size, side)),
        **_batch(num_images),
        **(
            _from_scratch(num_images, effort=preset)
            if weights is None
            else _transfer(num_images, last, effort=preset)
        ),
        **_views(num_images, classes, counts),
        **({} if weights is None else _probed(num_images, overrides.get("epochs"))),
        **(_refined(weights) if preset == "best" else {}),
    }
    if preset in PRESETS:
        choices |= _published(preset, num_images, overrides)
    else:
        choices |= _budget(preset, overrides) | _of_optimizer(overrides.get("optimizer"), weights)
    precision: Precision = overrides.get("precision") or choices.get("precision", ("auto",))[0]
    if precision == "auto":
        found = resolve_precision("auto")
        choices["precision"] = (found, _why_precision(found))
        overrides = {name: value for name, value in overrides.items() if name != "precision"}
    known = {"data": data, "variant": variant, "weights": weights}
    recipe = validated(known | _values(choices) | dict(overrides))
    if weights is not None:
        choices |= cut_choices(recipe.model_dump(), num_images, preset=preset)
        recipe = validated(known | _values(choices) | dict(overrides))
    reasons = {name: why for name, (_, why) in choices.items()} | dict.fromkeys(overrides, YOURS)
    return Plan(recipe, {name: reasons[name] for name in Recipe.model_fields if name in reasons})


def _values(choices: _Choices) -> dict[str, Any]:
    return {name: value for name, (value, _) in choices.items()}


def again(recipe: Recipe, *, source: str, overrides: Mapping[str, Any]) -> Plan:
    """Return the plan of a stored recipe, in which nothing is open.

    Args:
        recipe: The recipe, with the overrides in it.
        source: Where it was stored.
        overrides: What the user has changed.
    """
    stored = dict.fromkeys(Recipe.model_fields, f"as in {source}")
    for name in ("data", "variant", "weights"):
        del stored[name]
    return Plan(recipe, stored | {name: YOURS for name in overrides if name in stored})


# ---------------------------------------------------------------- what is decided


def _batch(num_images: int) -> _Choices:
    size = 32 if num_images < _SMALL_BATCH_BELOW else 64
    steps = -(-num_images // size)
    side = "fewer than" if num_images < _SMALL_BATCH_BELOW else "at least"
    why = (
        f"{num_images:,} images, {side} {_SMALL_BATCH_BELOW:,}: {steps:,} step"
        f"{'s' * (steps != 1)} an epoch"
    )
    return {"batch_size": (size, why)}


def _transfer(num_images: int, last: int, *, effort: str) -> _Choices:
    """Settings for pretrained weights: keep what they know, more so the fewer the images.

    Args:
        num_images: Number of training images.
        last: Number of the network's last stage.
        effort: The preset.
    """
    seen, least, most = {"fast": (8_000, 2, 5), "best": (60_000, 15, 40)}.get(
        effort, (20_000, 5, 15)
    )
    epochs = _epochs(images_seen=seen, num_images=num_images, least=least, most=most)
    few = num_images < _FEW
    amount = f"{num_images:,} images, {'fewer than' if few else 'at least'} {_FEW:,}"
    if effort == "fast":
        stages = (last, "preset fast: the last stage alone")
    elif few:
        # Fine-tuning the last two stages is as good on hundreds of images, and 1.7 times as fast.
        stages = (max(last - 1, 1), f"{amount}: the last two stages, as good as all and faster")
    else:
        stages = (1, f"{amount}: enough for the whole network to learn from")
    return {
        "epochs": (epochs, _why_epochs(seen, num_images, least, most)),
        "optimizer": ("adamw", "needs no search of its rate, whatever the network"),
        "lr": (5e-5, "of the head and the last stage: pretrained weights are changed gently"),
        "layer_decay": (0.5, "each stage before at half the rate: early features fit as they are"),
        "weight_decay": (0.05, "of AdamW, apart from the gradient"),
        "ema": _average(effort),
        # On few images a training soon knows them by heart: the rest of its epochs are for nothing.
        "patience": (
            (stale := max(5, -(-epochs // 5)), f"{amount}: {stale} epochs without a better one end")
            if few
            else (None, f"{amount}: later epochs still teach something new")
        ),
        "train_from": stages,
        "norms": ("frozen", "statistics of the pretraining are better than those of small batches"),
        "min_area": (0.35, "crops that still show the object; 0.08 is for millions of images"),
    }


def _from_scratch(num_images: int, *, effort: str) -> _Choices:
    """Settings for random weights: every layer learns, norms included, at one high rate."""
    seen, least, most = {"fast": (20_000, 8, 30), "best": (200_000, 60, 300)}.get(
        effort, (60_000, 20, 100)
    )
    epochs = _epochs(images_seen=seen, num_images=num_images, least=least, most=most)
    return {
        "epochs": (epochs, _why_epochs(seen, num_images, least, most)),
        "optimizer": ("adamw", "needs no search of its rate, whatever the network"),
        "lr": (3e-3, "random weights: there is nothing to lose"),
        "layer_decay": (1.0, "random weights: every layer has as much to learn"),
        "weight_decay": (0.05, "of AdamW, apart from the gradient"),
        "ema": _average(effort),
        "patience": (None, "random weights: late epochs, at low rates, are the best"),
        "train_from": (1, "random weights: every layer learns"),
        "norms": ("train", "random weights: there are no statistics yet"),
        "min_area": (0.6, "crops that still show the object; 0.08 is for millions of images"),
    }


def _average(effort: str) -> tuple[float, str]:
    if effort == "best":
        return 0.1, "preset best: the average of the weights is scored beside them, and may be kept"
    return 0.0, f"preset {effort}: scoring an average, too, would take time from the epochs"


def _views(num_images: int, classes: Sequence[str], counts: Sequence[int]) -> _Choices:
    """How training images are shown, and how much each counts."""
    mixed = num_images >= _MIXUP_FROM
    amount = f"{num_images:,} images, {'at least' if mixed else 'fewer than'} {_MIXUP_FROM:,}"
    telling = direction_words(classes)
    uneven = bool(counts) and max(counts) > _UNEVEN * min(counts)
    spread = f"classes of {min(counts)} to {max(counts)} images" if counts else "classes not known"
    return {
        "flip": (
            not telling,
            f"the names of classes tell directions, letters or digits: {telling}"
            if telling
            else "no class is told by its direction, so a mirror image is as good",
        ),
        "augment": ("light", "changes of colour that no class depends on much"),
        "mixup": (0.1, f"{amount}: BiT's rule")
        if mixed
        else (0.0, f"{amount}: BiT's rule mixes none"),
        "balance": ("sqrt", f"{spread}, more than {_UNEVEN} to 1: rare ones count more")
        if uneven
        else ("none", f"{spread}: about even" if counts else spread),
    }


def _probed(num_images: int, epochs: Any) -> _Choices:
    """What the probe sees of each image."""
    if epochs != 0:
        return {"probe_views": ("center", "epochs show the images in other ways")}
    if num_images < _FEW_TO_PROBE:
        amount = f"{num_images:,} images, fewer than {_FEW_TO_PROBE:,}"
        return {"probe_views": ("crops", f"{amount}: other crops are worth more than time")}
    amount = f"{num_images:,} images, at least {_FEW_TO_PROBE:,}"
    return {"probe_views": ("center", f"{amount}: enough for one look at each")}


def _refined(weights: str | None) -> _Choices:
    """What is tried beside the training where time is no matter."""
    tried = "preset best: tried in the end, and kept if it validates better"
    learned = weights is None  # as the norms are
    return {
        "progressive": (0.4, "preset best: the first epochs on smaller images are quicker"),
        "soup": (3, tried),
        "recalibrate": (learned, tried if learned else "the norms are frozen"),
        "larger_test": (True, tried),
    }


def _published(preset: str, num_images: int, overrides: Mapping[str, Any]) -> _Choices:
    """What a published recipe decides: all of it, also what it does not speak of."""
    chosen = PRESETS[preset]
    fields = {"train_from": 1, "patience": None} | chosen.fields(
        num_images=num_images, overrides=overrides
    )
    return {name: (value, f"{preset}: {chosen.source}") for name, value in fields.items()}


def _budget(preset: str, overrides: Mapping[str, Any]) -> _Choices:
    if "budget_s" in overrides:
        return {}
    seconds = _BUDGETS[preset]
    if "epochs" in overrides:
        return {"budget_s": (None, "the number of epochs says how long it takes")}
    if has_gpu():
        return {"budget_s": (None, "a GPU: the planned epochs do not take long")}
    if seconds is None:
        return {"budget_s": (None, f"preset {preset}: as long as the epochs take")}
    return {"budget_s": (seconds, f"preset {preset} without a GPU: a model within minutes")}


# Rate and decay of an optimizer that is not the planned one, and whether weights are random: the
# same for Adam's kin, but L2 in place of decay; for SGD those of BiT's rule and of He et al. 2015.
_OPTIMIZERS: Final[Mapping[tuple[Any, bool], Mapping[str, float]]] = {
    ("sgd", False): {"lr": 3e-3, "weight_decay": 1e-4},
    ("sgd", True): {"lr": 0.05, "weight_decay": 1e-4},
    ("adam", False): {"weight_decay": 1e-5},
    ("adam", True): {"weight_decay": 1e-5},
    ("rmsprop", False): {"weight_decay": 1e-5},
    ("rmsprop", True): {"weight_decay": 1e-5},
}


def _of_optimizer(name: Any, weights: str | None) -> _Choices:
    fields = _OPTIMIZERS.get((name, weights is None), {}) if isinstance(name, str) else {}
    start = "random" if weights is None else "pretrained"
    return {field: (value, f"for {name} on {start} weights") for field, value in fields.items()}


def _epochs(*, images_seen: int, num_images: int, least: int, most: int) -> int:
    return min(max(images_seen // max(num_images, 1), least), most)


# ---------------------------------------------------------------- in words


def _why_epochs(seen: int, num_images: int, least: int, most: int) -> str:
    return f"to see about {seen:,} of {num_images:,} images, within {least} to {most} epochs"


def _why_size(image_size: int, side: int | None) -> str:
    made = "what the network was made for"
    if side is None:
        return made
    if side < 0.75 * image_size:
        return (
            f"{made}; the images, of {side} px, are magnified {image_size / side:.1f} times, so a "
            "smaller size is quicker"
        )
    return f"{made}; the images are of {side} px"


def _why_precision(found: str) -> str:
    where = "the GPU" if has_gpu() else "the processor"
    if found == "float32":
        return f"{where} computes nothing shorter faster"
    return f"{where} computes it in hardware; variables stay float32"


_SIDES = re.compile(r"\b(left|right|links|rechts|gauche|droite|izquierda|derecha)\b", re.IGNORECASE)


def direction_words(classes: Sequence[str]) -> str:
    """Return some names of classes whose mirror images are something else; "" if there are none.

    These are left and right, letters and digits.
    """
    if classes and all(len(name) == 1 or name.isdigit() for name in classes):
        named = list(classes)
    else:
        named = [name for name in classes if _SIDES.search(re.sub(r"[_\W]+", " ", name))]
    return ", ".join(map(repr, named[:3])) + (", ..." if len(named) > 3 else "")


def direction_matters(classes: Sequence[str]) -> bool:
    """Tell digits, letters and left/right, whose mirror images are something else."""
    return bool(direction_words(classes))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return "-" if value is None else str(value)
