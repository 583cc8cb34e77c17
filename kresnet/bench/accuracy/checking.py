"""Whether a contender has the weights that it should have: its features beside ours.

Without TensorFlow, so that a process that does not need it does not wait for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

KERAS: Final = "base.keras"
"""Of the folder of starting weights: a plain Keras model from images to features."""
TORCH: Final = "state.npz"
"""Arrays by torch's names."""
CHECK: Final = "check.npz"
"""A few images, the features that they must give, and the mean and std that images are given."""

_SAME: Final = 1e-3  # largest difference of a feature; a rounded network differs by 1e-5


def check(folder: str, features: np.ndarray) -> float:
    """Compare a contender's features of the images to check by with ours.

    Args:
        folder: Of the starting weights.
        features: float `(n, c)`, computed in float32 with the stored statistics.

    Returns:
        The largest difference.

    Raises:
        ValueError: It is more than rounding; the weights were not loaded as they should be.
    """
    expected = np.load(Path(folder) / CHECK)["features"]
    difference = float(np.abs(features - expected).max())
    if not difference < _SAME:
        raise ValueError(f"Features must agree with ours within {_SAME}. Received: {difference}.")
    return difference


def images_to_check(folder: str) -> np.ndarray:
    """Return the images for `check`: normalised RGB, float32 `(n, s, s, 3)`."""
    images: np.ndarray = np.load(Path(folder) / CHECK)["images"]
    return images


def normalization(folder: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of each channel, for pixels in 0..1, that the weights were made with."""
    with np.load(Path(folder) / CHECK) as arrays:
        mean, std = (tuple(float(x) for x in arrays[name]) for name in ("mean", "std"))
    return mean, std
