"""From rows of an index to batches of model input."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from kresnet.data import arrays, augment, items, pixels
from kresnet.data.scan import Row
from kresnet.zoo.cards import Preprocessing

_THREADS = os.cpu_count() or 1


def evaluation_batches(
    rows: Sequence[Row], preprocessing: Preprocessing, *, batch_size: int
) -> tf.data.Dataset:
    """Return every row once, in order, as `(images float32 (b, s, s, 3), labels int32 (b,))`.

    The last batch holds what is left, so no image is dropped or counted twice.
    """
    decode = arrays.decoder(rows)

    def load(place: tuple[tf.Tensor, ...], label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return pixels.prepare_pixels(decode(items.read(*place)), preprocessing), label

    dataset = tf.data.Dataset.from_tensor_slices((items.places(rows), _labels(rows)))
    return _batched(dataset.map(load, _THREADS), batch_size)


class TrainingData:
    """An endless stream of augmented batches, each a pure function of the seed and its number.

    Every image comes once before any comes again, in an order that is new each time. Batches are
    all of one size, so one may end a pass over the images and begin the next.

    Args:
        rows: The training rows.
        preprocessing: Size and normalisation of the model input.
        batch_size: Images a batch; all of them if there are fewer.
        min_area: Smallest share of an image that a random crop covers.
        flip: Mirror half of the images left to right.
        seed: Of the order and the views.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        min_area: float,
        flip: bool,
        seed: int,
    ) -> None:
        self._decode = arrays.decoder(rows)
        self._places, self._labels = items.places(rows), _labels(rows)
        self._batch_size = min(batch_size, len(rows))
        self._preprocessing = preprocessing
        self._min_area, self._flip, self._seed = min_area, flip, seed

    @property
    def steps(self) -> int:
        """Batches that hold every image at least once."""
        return -(-len(self._labels) // self._batch_size)

    def batches(self, start: int = 0) -> tf.data.Dataset:
        """Return the batches from number `start` on, without end.

        Setting the pipeline up takes most of a second, so a training asks for one stream.

        Returns:
            A dataset of `(images float32 (b, s, s, 3), labels int32 (b,))`.
        """
        places = [tf.constant(part) for part in self._places]
        labels = tf.constant(self._labels)
        count, preprocessing = len(self._labels), self._preprocessing

        def load(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            which = tf.random.experimental.index_shuffle(
                number % count, tf.stack([self._seed, number // count]), count - 1
            )
            image = self._decode(items.read(*(part[which] for part in places)))
            shape = tf.shape(image)
            seed = tf.stack([self._seed, 2 * number])
            box = augment.random_box(shape[0], shape[1], seed, min_area=self._min_area)
            view = pixels.resample(
                image,
                box,
                preprocessing.image_size,
                preprocessing.interpolation,
                augment.random_flip(seed) if self._flip else False,
            )
            return pixels.normalize(view, preprocessing), labels[which]

        numbers = tf.data.Dataset.range(start * self._batch_size, 2**62)
        return _batched(numbers.map(load, _THREADS), self._batch_size)


def _batched(dataset: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    options = tf.data.Options()
    # Its optimiser runs on for seconds after the last batch, and freeing the iterator waits for it.
    options.autotune.enabled = False
    return dataset.batch(batch_size).prefetch(2).with_options(options)


def _labels(rows: Sequence[Row]) -> np.ndarray:
    return np.array([row.label for row in rows], dtype=np.int32)
