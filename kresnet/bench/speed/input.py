"""From files to batches with the default augmentation, beside other input pipelines.

Everyone reads the same 500x375 JPEGs, which are made of given photos: drawn ones would decode
faster. A crop of 35 to 100 % of the area, mirrored or not, with brightness, contrast and saturation
changed by up to a fifth, normalised. Keras has no layer for such a crop: a random zoom into the
middle comes nearest. The layers of its guides squeeze instead, which is less work.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from kresnet.bench.speed.rotation import Contender, once
from kresnet.bench.speed.topics import Group, Options
from kresnet.errors import ConfigError

WIDTH, HEIGHT = 500, 375
_STEPS: Final = "kresnet.bench.speed.input_steps"
_BATCHES: Final = 8  # timed in a turn


def groups(options: Options, work: Path) -> Iterator[Group]:
    """Compare streams that decode each time, then streams that keep decoded images in memory."""
    folder = photos(options, work)
    common = {
        "folder": folder,
        "image_size": options.image_size,
        "batch": options.batch,
        "batches": _BATCHES,
    }
    for kept in (False, True):
        by_peer = {"keras": tuple(_keras(common, kept, zoomed) for zoomed in (True, False))}
        if not kept:
            by_peer |= {"torchvision": (_torchvision(common),), "timm": (_timm(common),)}
        yield Group(
            f"Input, {options.images} JPEGs of {WIDTH}x{HEIGHT} px{', kept in memory' * kept}",
            "images/s",
            _contender("kresnet, light", "kresnet", {"": common | {"kept": kept}}, "tensorflow"),
            options.chosen(by_peer),
            images=_BATCHES * options.batch,
            notes=(f"{options.image_size} px, batches of {options.batch}.",),
        )


def photos(options: Options, work: Path) -> str:
    """Write the photos that all read, and return their folder.

    Raises:
        ConfigError: There are none to make them of.
    """
    if options.data is None:
        raise ConfigError(
            "This bench needs photos to read. Received: data=None. Name a folder with --data."
        )
    folder = work / "photos"
    arguments = {
        "data": options.data,
        "folder": str(folder),
        "count": options.images,
        "width": WIDTH,
        "height": HEIGHT,
    }
    once("kresnet.bench.speed.pictures:photos", arguments, logs=work / "logs")
    return str(folder)


def _keras(common: dict[str, Any], kept: bool, zoomed: bool) -> Contender:
    layers = "zoom, mirror, color jitter" if zoomed else "squeezed, no crop, no saturation"
    return _contender(
        f"image_dataset_from_directory, Keras layers; {layers}",
        "keras",
        {"": common | {"kept": kept, "zoomed": zoomed}},
        "tensorflow",
        "keras",
    )


def _torchvision(common: dict[str, Any]) -> Contender:
    return _contender(
        "PyTorch DataLoader, torchvision",
        "torchvision",
        {
            "transforms on PIL images": common | {"v2": False},
            "transforms.v2 on tensors": common | {"v2": True},
        },
        "torch",
        "torchvision",
    )


def _timm(common: dict[str, Any]) -> Contender:
    return _contender("PyTorch DataLoader, timm", "timm", {"": common}, "torch", "timm")


def _contender(
    name: str, make: str, settings: dict[str, dict[str, Any]], *packages: str
) -> Contender:
    return Contender(name, f"{_STEPS}:{make}", settings, packages)
