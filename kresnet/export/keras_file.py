"""Write a `.keras` file of built-in layers only: it loads without kresnet, safe mode on."""

from __future__ import annotations

from pathlib import Path

import keras

from kresnet.export.contract import Contract
from kresnet.zoo import fold
from kresnet.zoo.graph import deep_graph


def scoring_model(model: keras.Model, contract: Contract) -> keras.Model:
    """Return the model from pixels to scores, with its norms folded.

    Args:
        model: Gives logits.
        contract: Preprocessing and temperature.

    Returns:
        A model from `images` float32 `(n, s, s, 3)`, RGB in 0..255, cropped and resized as
        `contract.preprocessing` says, to `scores` float32 `(n, k)`.
    """
    preprocessing = contract.preprocessing
    size = preprocessing.image_size
    images = keras.Input((size, size, 3), dtype="float32", name="images")
    x = keras.layers.Normalization(
        mean=[255 * mean for mean in preprocessing.mean],
        variance=[(255 * std) ** 2 for std in preprocessing.std],
        dtype="float32",
        name="normalize",
    )(images)
    x = fold(model, dtype="float32", portable=True)(x)
    if contract.temperature != 1:
        x = keras.layers.Rescaling(
            1 / contract.temperature, dtype="float32", name="divide_by_temperature"
        )(x)
    scores = keras.layers.Softmax(dtype="float32", name="scores")(x)
    with deep_graph():
        return keras.Model(images, scores, name=contract.variant)


def write_keras(model: keras.Model, contract: Contract, path: Path) -> None:
    """Write `scoring_model` to a file."""
    with deep_graph():
        scoring_model(model, contract).save(path)
