"""How much each image counts: rare classes more, if wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

from kresnet.data.scan import Row

Balance = Literal["none", "sqrt", "full"]

_POWERS: Final[dict[Balance, float]] = {"none": 0.0, "sqrt": 0.5, "full": 1.0}


def sample_weights(rows: Sequence[Row], num_classes: int, balance: Balance) -> np.ndarray:
    """Return the weight of each row, its own times that of its class.

    They are given with the images and not by class to the loss: of an image that is mixed from
    two classes, a loss could tell only one (Keras takes the larger, which is wrong).

    Args:
        rows: The training rows.
        num_classes: Number of classes.
        balance: A class of n images weighs 1 ("none"), 1 / sqrt(n) ("sqrt") or 1 / n ("full":
            every class counts the same), times a constant.

    Returns:
        float32 `(rows,)`, with a mean of 1: balancing leaves the scale of the loss alone.
    """
    labels = np.array([row.label for row in rows])
    counts = np.maximum(np.bincount(labels, minlength=num_classes), 1)
    weights = counts[labels] ** -_POWERS[balance] * [row.weight for row in rows]
    return (weights / weights.mean()).astype(np.float32)
