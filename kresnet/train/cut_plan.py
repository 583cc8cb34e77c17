"""Whether keeping what frozen stages say of each image pays: its work and its room, by arithmetic.

An epoch on the images is a forward pass through all of the network and a backward pass through what
learns, which is twice as much again as that part's forward pass. With the cut, each view takes one
forward pass through the front, and an epoch is the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kresnet.machine import memory
from kresnet.train.recipe import uncuttable
from kresnet.zoo.size import measure, measure_front
from kresnet.zoo.variants import variant_config

PRESETS: Final = ("fast",)
"""Presets whose plans may cut; the accuracy of the others was measured without."""

_VIEWS: Final = (8, 6, 4, 3, 2)  # of each image; more are more like new ones in each epoch
_WORTH: Final = 0.75  # of the work without it, at most
_SHARE: Final = 0.25  # of the machine's memory, as for decoded images
_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}


def cut_choices(
    fields: Mapping[str, Any], num_images: int, *, preset: str
) -> dict[str, tuple[Any, str]]:
    """Decide on `cut_cache` and `cut_views`; for each, the value and why.

    Args:
        fields: Of the recipe, otherwise decided.
        num_images: Number of training images.
        preset: Of the plan.
    """
    if preset not in PRESETS:
        return {"cut_cache": ("none", f"preset {preset}: a new view of each image in each epoch")}
    if not fields["epochs"]:
        return {}
    if obstacles := uncuttable(fields):
        return {"cut_cache": ("none", f"{obstacles[0]}: frozen stages do not say the same again")}
    before = cut_work(fields, 0)
    found = [views for views in _VIEWS if cut_work(fields, views) <= _WORTH * before]
    if not found:
        return {"cut_cache": ("none", f"{fields['epochs']} epochs: too few to pay for two views")}
    one = num_images * cut_bytes(fields)
    fitting = [views for views in found if views * one <= _SHARE * memory()]
    if not fitting:
        return {
            "cut_cache": ("none", f"two views of {num_images:,} images take {2 * one / 1e9:.1f} GB")
        }
    views = fitting[0]
    share = cut_work(fields, views) / before
    return {
        "cut_cache": (
            "memory",
            f"the stages before {fields['train_from']} are computed once a view: {share:.0%} of "
            f"the work of {fields['epochs']} epochs, in {views * one / 1e6:,.0f} MB",
        ),
        "cut_views": (views, f"the most that leave at most {_WORTH:.0%} of the work"),
    }


def front_share(fields: Mapping[str, Any]) -> float:
    """Return the share of a forward pass that is before the cut; 0 where there is none."""
    if fields["cut_cache"] == "none":
        return 0.0
    config, size = variant_config(fields["variant"]), fields["image_size"]
    front = measure_front(config, fields["train_from"], image_size=size).macs
    return front / measure(config, image_size=size, num_classes=0).macs


def cut_work(fields: Mapping[str, Any], views: int) -> float:
    """Return the multiplications for an image in all epochs; 0 views are those of no cut."""
    config, size = variant_config(fields["variant"]), fields["image_size"]
    whole = measure(config, image_size=size, num_classes=0).macs
    front = measure_front(config, fields["train_from"], image_size=size).macs
    tail, epochs = whole - front, fields["epochs"]
    if not views:
        return float(epochs * (whole + 2 * tail))
    return float(min(views, epochs) * front + epochs * 3 * tail)


def cut_bytes(fields: Mapping[str, Any]) -> int:
    """Return the bytes that a view of an image takes at the cut."""
    config, size = variant_config(fields["variant"]), fields["image_size"]
    front = measure_front(config, fields["train_from"], image_size=size)
    return front.values * _BYTES[fields["precision"]]
