"""The backbone inside of the package: transfer learning on a machine that can reach nothing.

One file beside this one, written by `recipes/embedded_backbone.py`; its metadata are its card.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kresnet.errors import ConfigError, ResourceError
from kresnet.zoo.cards import EMBEDDED, Preprocessing, WeightsCard

if TYPE_CHECKING:
    import keras

VARIANT: Final = "resnet10t"
"""The network that it is."""

_MOST_BYTES: Final = 2**20  # of a card


def path() -> Path:
    """Return the file.

    Raises:
        ResourceError: This installation carries none.
    """
    file = Path(__file__).with_name("embedded.safetensors")
    if not file.is_file():
        raise ResourceError(
            f"The embedded backbone must be in the package. Received: no {str(file)!r}. "
            "Install kresnet from its wheel, or make the file with recipes/embedded_backbone.py."
        )
    return file


def is_there() -> bool:
    """Return whether this installation carries it."""
    try:
        return path().is_file()
    except ResourceError:
        return False


def read_card(file: Path) -> dict[str, Any]:
    """Return what the file says of itself: images, teacher, time, measured accuracies, and so on.

    Raises:
        ResourceError: It is not such a file.
    """
    try:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            if not 0 < size <= _MOST_BYTES:
                raise ValueError(f"a header of {size} bytes")
            card: dict[str, Any] = json.loads(json.loads(opened.read(size))["__metadata__"]["card"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResourceError(
            "The embedded backbone must be a file that recipes/embedded_backbone.py wrote. "
            f"Received: {str(file)!r}, {type(error).__name__}: {error}. Install kresnet again."
        ) from error
    return card


def embedded_card(variant: str = VARIANT) -> WeightsCard:
    """Return what the weights expect of their input, as of published ones.

    Raises:
        ConfigError: `variant` is another network.
        ResourceError: This installation carries none.
    """
    if variant != VARIANT:
        raise ConfigError(
            f"The embedded weights are those of {VARIANT}. Received: variant={variant!r}. "
            f"Leave the variant out, or say --variant {VARIANT}."
        )
    file = path()
    said = read_card(file)
    seen = Preprocessing(image_size=said["image_size"])
    return WeightsCard(
        variant=VARIANT,
        tag=EMBEDDED,
        url=file.as_uri(),
        checksum=f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}",
        license=said["licence"],
        num_classes=len(said["classes"]),
        train_size=said["train_size"],
        preprocessing=seen,
        top1=None,
        top5=None,
        test_preprocessing=seen,
        test_top1=None,
        test_top5=None,
        source="recipes/embedded_backbone.py",
    )


def write_embedded(
    model: keras.Model, file: Path, *, image_size: int, card: Mapping[str, Any]
) -> None:
    """Write a model's weights as int8, with their card.

    Args:
        model: A kresnet model of `VARIANT`.
        file: Where to; replaced if it is there.
        image_size: Side in pixels of the images that the weights are best at.
        card: `classes`, `train_size`, `licence`, and what else there is to know, as JSON types.

    Raises:
        ResourceError: The file cannot be written.
    """
    import numpy as np

    from kresnet.zoo.convert import write_arrays
    from kresnet.zoo.int8 import FORMAT, packed

    arrays = {
        f"{layer.name}/{variable.name}": np.asarray(variable)
        for layer in model.layers
        for variable in layer.weights
    }
    said = json.dumps(dict(card) | {"variant": VARIANT, "image_size": image_size})
    write_arrays(file, packed(arrays), {"format": FORMAT, "card": said})
