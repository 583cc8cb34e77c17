"""What a naming scheme tells: which arrays each of our variables is made of, and how."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from kresnet.zoo.cards import CIFAR10, IMAGENET, Preprocessing

if TYPE_CHECKING:
    import keras

# A checkpoint's arrays by its own names, and our layers that have weights by ours.
Arrays = Mapping[str, np.ndarray]
Layers = Mapping[str, "keras.Layer"]


class Source(NamedTuple):
    """One variable of ours: the arrays it is made of, all of one shape, and how."""

    keys: tuple[str, ...]
    transform: Callable[..., np.ndarray] = np.asarray

    def compute(self, arrays: Arrays) -> np.ndarray | None:
        """Return the variable in float64, or None where the arrays do not go together."""
        values = [arrays[key].astype(np.float64) for key in self.keys]
        if any(value.shape != values[0].shape for value in values):
            return None
        try:
            return self.transform(*values)
        except (ValueError, IndexError):  # of other dimensions than the transform is for
            return None


def _fits(layers: Layers, source: str) -> None:
    """Accept any model."""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """One way to name the arrays of a ResNet.

    Attributes:
        name: What reports call it.
        recognises: Whether a checkpoint's arrays are named this way.
        sources: From the name of our layer, our layers and the arrays to the source of each of
            the layer's variables. "head" is asked for also where the model has none.
        preprocessing: What such weights expect of their input, given our model and the arrays.
        is_spare: Whether an array of this name is something no variable needs.
        check: Refuses a model whose shapes are those of the checkpoint but not its structure, given
            our layers and the checkpoint's file; raises WeightsError.
    """

    name: str
    recognises: Callable[[Arrays], bool]
    sources: Callable[[str, Layers, Arrays], Mapping[str, Source]]
    preprocessing: Callable[[keras.Model, Arrays], Preprocessing]
    is_spare: Callable[[str], bool] = lambda key: False
    check: Callable[[Layers, str], None] = _fits


class Place(NamedTuple):
    """Where in the network a layer of ours is: "stage2_block1_conv3" is (2, 1, "conv3")."""

    stage: int
    block: int
    part: str


_PLACE = re.compile(r"stage(\d+)_block(\d+)_(\w+)")


def place(layer: str) -> Place | None:
    """Read the name of a layer in a residual block; None for stem, head and final norm."""
    match = _PLACE.fullmatch(layer)
    return Place(int(match[1]), int(match[2]), match[3]) if match else None


def is_cifar(model: keras.Model) -> bool:
    """Return whether the model is one for small images."""
    return any(layer.name == "stem_conv" and layer.kernel_size == 3 for layer in model.layers)


def usual_preprocessing(model: keras.Model, arrays: Arrays) -> Preprocessing:
    """Return what weights for this size of images are usually trained with."""
    return CIFAR10 if is_cifar(model) else IMAGENET


def keras_sources(
    conv: str | None,
    norm: str | None = None,
    *,
    epsilon: float = 0.0,
    ours: keras.Layer | None = None,
    biased: bool = False,
    kernel: Callable[..., np.ndarray] = np.asarray,
) -> dict[str, Source]:
    """Map a Keras convolution or dense layer and the BatchNormalization behind it, exactly.

    With norm, another epsilon goes into gamma and the convolution's bias into the mean.

    Args:
        conv: Name of the convolution, or None for a norm alone.
        norm: Name of the norm, or None for a convolution alone.
        epsilon: Of their norm.
        ours: The layer of ours that takes it; None where the model has none.
        biased: Their convolution has a bias that goes into the norm.
        kernel: What to do with the kernel.
    """
    sources = {}
    if conv is not None:
        sources = {"kernel": Source((f"{conv}/kernel",), kernel), "bias": Source((f"{conv}/bias",))}
    if norm is None:
        return sources
    mean, variance = f"{norm}/moving_mean", f"{norm}/moving_variance"
    new = getattr(ours, "epsilon", epsilon)
    sources |= {
        "gamma": Source((f"{norm}/gamma",)),
        "beta": Source((f"{norm}/beta",)),
        "moving_mean": Source((mean,)),
        "moving_variance": Source((variance,)),
    }
    if new != epsilon:
        sources["gamma"] = Source(
            (f"{norm}/gamma", variance), lambda g, v: g * np.sqrt((v + new) / (v + epsilon))
        )
    if biased:
        sources["moving_mean"] = Source((mean, f"{conv}/bias"), np.subtract)
    return sources
