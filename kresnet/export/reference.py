"""What the Keras model says: the truth that every file of an export is held to.

Legend of shapes: n images, k classes, s side of the model input, g side of the last features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kresnet.data import pixels
from kresnet.export.contract import Contract
from kresnet.export.golden import Golden
from kresnet.export.servable import with_features

Input = Literal["pixels", "prepared pixels"]

_BATCH = 16


class Sample(NamedTuple):
    """A real image file, and its class where that is known."""

    path: str
    label: int | None = None


class Reference:
    """Answers of a Keras model: the one to be exported in float32, neither folded nor converted.

    Args:
        model: Gives logits from its layers "pool" and "head", in float32.
        contract: Preprocessing and temperature.
        samples: Real images.
        goldens: The images stored in the export.
    """

    def __init__(
        self,
        model: keras.Model,
        contract: Contract,
        samples: Sequence[Sample],
        goldens: Sequence[Golden],
    ) -> None:
        self.model = model
        self._contract = contract
        self.samples = tuple(samples)
        self.goldens = tuple(goldens)
        self._run = tf.function(
            lambda images: tf.nn.softmax(self.model(images, training=False) / contract.temperature),
            input_signature=[tf.TensorSpec((None, *self._shape), tf.float32)],
        )

    @property
    def _shape(self) -> tuple[int, int, int]:
        size = self._contract.preprocessing.image_size
        return size, size, 3

    def decoded(self) -> Iterator[np.ndarray]:
        """Give the samples as uint8 `(h, w, 3)`."""
        return (pixels.decode(tf.io.read_file(s.path)).numpy() for s in self.samples)

    def prepared_pixels(self) -> Iterator[np.ndarray]:
        """Give the samples cropped, resized and rounded to whole grey levels, uint8 `(s, s, 3)`."""
        return (prepared_pixels(image, self._contract) for image in self.decoded())

    def inputs(self, kind: Input) -> Iterator[np.ndarray]:
        """Give the samples as a file of this kind of input wants them."""
        return self.decoded() if kind == "pixels" else self.prepared_pixels()

    def scores(self, kind: Input) -> np.ndarray:
        """Return the scores of the samples `(n, k)`, from the same input as `inputs` gives."""
        return self._scores_of_pixels if kind == "pixels" else self._scores_of_prepared

    @cached_property
    def _scores_of_pixels(self) -> np.ndarray:
        contract = self._contract
        return self._scores(
            pixels.prepare_pixels(image, contract.preprocessing) for image in self.decoded()
        )

    @cached_property
    def _scores_of_prepared(self) -> np.ndarray:
        contract = self._contract
        return self._scores(
            pixels.normalize(image, contract.preprocessing) for image in self.prepared_pixels()
        )

    @cached_property
    def golden_scores(self) -> np.ndarray:
        """The scores of the golden images `(n, k)`."""
        return self._scores(iter(self._prepared_goldens))

    @cached_property
    def golden_heatmaps(self) -> np.ndarray:
        """Grad-CAM of the best class of the golden images by automatic differentiation.

        float32 `(n, g, g)` in 0..1 (Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2).
        """
        images = tf.stack(self._prepared_goldens)
        features, _ = with_features(self.model)(images, training=False)
        with tf.GradientTape() as tape:
            tape.watch(features)
            logits = self.model.get_layer("head")(self.model.get_layer("pool")(features))
            best = tf.reduce_max(logits, axis=1)
        weights = tf.reduce_mean(tape.gradient(best, features), axis=(1, 2), keepdims=True)
        heat = tf.nn.relu(tf.reduce_sum(weights * features, axis=3))
        peak = tf.reduce_max(heat, axis=(1, 2), keepdims=True)
        return tf.math.divide_no_nan(heat, peak).numpy()

    @cached_property
    def _prepared_goldens(self) -> list[tf.Tensor]:
        preprocessing = self._contract.preprocessing
        return [pixels.prepare(golden.contents, preprocessing) for golden in self.goldens]

    def accuracy(self, scores: np.ndarray) -> float | None:
        """Return the share of the labelled samples whose best class is right."""
        hits = [
            int(row.argmax()) == sample.label
            for row, sample in zip(scores, self.samples, strict=True)
            if sample.label is not None
        ]
        return sum(hits) / len(hits) if hits else None

    def _scores(self, images: Iterator[tf.Tensor]) -> np.ndarray:
        waiting: list[tf.Tensor] = []
        done = [np.zeros((0, len(self._contract.classes)), np.float32)]
        for image in images:
            waiting.append(image)
            if len(waiting) == _BATCH:
                done.append(self._run(tf.stack(waiting)).numpy())
                waiting = []
        if waiting:
            done.append(self._run(tf.stack(waiting)).numpy())
        return np.concatenate(done)


def prepared_pixels(image: np.ndarray, contract: Contract) -> np.ndarray:
    """Crop and resize an image, uint8 `(h, w, 3)`, to the model's side, uint8 `(s, s, 3)`."""
    preprocessing = contract.preprocessing
    height, width, _ = image.shape
    box = pixels.center_box(height, width, preprocessing.crop_pct)
    side, kernel = preprocessing.image_size, preprocessing.interpolation
    resized = pixels.resample(image, box, side, kernel).numpy()
    return np.rint(resized).astype(np.uint8)
