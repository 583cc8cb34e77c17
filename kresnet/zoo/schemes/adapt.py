"""A checkpoint for other images or other classes: fewer or more channels, a choice of classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kresnet.errors import ConfigError
from kresnet.zoo.cards import Preprocessing

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Adaptation:
    """How a checkpoint's first and last layer become ours.

    Attributes:
        channels: Of our images.
        bands: As in `load_weights`.
        keep_classes: As in `load_weights`.
    """

    channels: int
    bands: Sequence[int | None] | None = None
    keep_classes: Sequence[int | None] | None = None

    def check(self, head: keras.Layer | None, classes: int | None) -> None:
        """Refuse lists of the wrong length and classes that do not exist.

        Args:
            head: Our head, if there is one.
            classes: Of the checkpoint's head, if it has one.

        Raises:
            ConfigError: See above.
        """
        if self.bands is not None and len(self.bands) != self.channels:
            raise ConfigError(
                "`bands` must have one entry for each channel of the images. "
                f"Received: bands={list(self.bands)}, for {self.channels} channels."
            )
        if self.keep_classes is None:
            return
        units = 0 if head is None else int(head.units)
        if len(self.keep_classes) != units:
            raise ConfigError(
                "`keep_classes` must have one entry for each output of the model's head. "
                f"Received: {len(self.keep_classes)} entries, for {units} outputs."
            )
        for kept in self.keep_classes:
            if kept is not None and classes is not None and not 0 <= kept < classes:
                raise ConfigError(
                    f"`keep_classes` must be classes of the checkpoint, 0 to {classes - 1}, "
                    f"or None. Received: {kept}."
                )

    def fits(self, head: keras.Layer, classes: int | None) -> bool:
        """Return whether our head can take the checkpoint's."""
        if classes is None:
            return False
        if self.keep_classes is not None:
            return any(kept is not None for kept in self.keep_classes)
        return classes == int(head.units)

    def stem(self, kernel: np.ndarray) -> np.ndarray:
        """Make the first kernel `(h, w, in, out)` take our channels, at the same output scale."""
        if kernel.ndim != 4:
            return kernel
        adapted: np.ndarray
        if self.bands is not None:
            uses = Counter(self.bands)
            parts = [self._channel(kernel, band) / uses[band] for band in self.bands]
            adapted = np.stack(parts, axis=2)
        elif kernel.shape[2] != 3 or self.channels == 3:
            adapted = kernel
        elif self.channels == 1:
            adapted = kernel.sum(axis=2, keepdims=True)
        else:
            adapted = kernel[:, :, np.arange(self.channels) % 3] * (3 / self.channels)
        return adapted

    def _channel(self, kernel: np.ndarray, band: int | None) -> np.ndarray:
        if band is None:
            return kernel.mean(axis=2)
        if not 0 <= band < kernel.shape[2]:
            raise ConfigError(
                f"`bands` must be channels of the checkpoint, 0 to {kernel.shape[2] - 1}, or None. "
                f"Received: bands={list(self.bands or ())}."
            )
        return kernel[:, :, band]

    def head(self, value: np.ndarray, variable: Any) -> np.ndarray | None:
        """Choose the kept classes of the head's kernel `(features, classes)` or bias."""
        if self.keep_classes is None:
            return value
        chosen = np.asarray(variable.numpy(), np.float64).copy()
        if value.shape[:-1] != chosen.shape[:-1]:
            return None
        for output, kept in enumerate(self.keep_classes):
            if kept is not None:
                chosen[..., output] = value[..., kept]
        return chosen

    def preprocessing(self, theirs: Preprocessing) -> Preprocessing:
        """Return what our images need: one mean and standard deviation for each channel."""
        if self.bands is None and len(theirs.mean) == self.channels:
            return theirs
        bands = self.bands
        if bands is None:
            one: list[int | None] = [None]
            bands = one if self.channels == 1 else [i % 3 for i in range(self.channels)]
        return replace(theirs, mean=_choose(theirs.mean, bands), std=_choose(theirs.std, bands))


def _choose(values: Sequence[float], bands: Sequence[int | None]) -> tuple[float, ...]:
    average = sum(values) / len(values)
    return tuple(average if band is None else values[band % len(values)] for band in bands)
