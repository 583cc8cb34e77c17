"""From rows of an index to batches of model input.

Training: read, decode and shrink, keep, shuffle, augment, batch, mix, prefetch. Evaluation: read,
decode, the centred square, batch, prefetch.

Legend of shapes: b images a batch, s side of the model input, k classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf

from kresnet.data import arrays, balance, items, lost, pixels, remote, service, shrinking
from kresnet.data.augment import STREAMS, Augmentation
from kresnet.data.augment.mixing import mix
from kresnet.data.scan import Problem, Row
from kresnet.data.store import Cache, store_for
from kresnet.errors import ConfigError
from kresnet.machine import cores
from kresnet.zoo.cards import Preprocessing

Batch = tuple[tf.Tensor, tf.Tensor, tf.Tensor]

_THREADS: Final = cores()


def evaluation_batches(
    rows: Sequence[Row],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    worker: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """Return every row once, in order, as `(images float32 (b, s, s, 3), labels int32 (b,))`.

    The last batch holds what is left, so no image is dropped or counted twice.

    Args:
        rows: What to score.
        preprocessing: Size and normalisation of the model input.
        batch_size: Images a batch.
        worker: Number of this worker, from 0, and of all; each has its share of the rows.
    """
    rows = rows[worker[0] :: worker[1]]
    decode = arrays.decoder(rows)

    def load(
        path: tf.Tensor, offset: tf.Tensor, size: tf.Tensor, label: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        image = decode(items.read(path, offset, size))
        return pixels.prepare_pixels(image, preprocessing), label

    labels = np.array([row.label for row in rows], np.int32)
    dataset = tf.data.Dataset.from_tensor_slices((*items.places(rows), labels))
    threads = _threads(rows)
    return _prefetched(dataset.map(_plain(load), threads).batch(batch_size), threads)


class TrainingData:
    """An endless stream of augmented batches, each a pure function of the seed and its number.

    Every image comes once before any comes again, in an order that is new each time. Batches are
    all of one size, so one may end a pass over the images and begin the next. What is kept in
    memory or on the disk changes nothing but the speed.

    An image that cannot be read any more is left out, and the next one takes its place wherever
    it would have come.

    Args:
        rows: The training rows.
        preprocessing: Size and normalisation of the model input.
        num_classes: k.
        batch_size: Images a batch of all workers; all views there are if there are fewer.
        augmentation: What happens to the images.
        seed: Of the order, the views and the mixing.
        balancing: How much rare classes are raised, see `balance.sample_weights`.
        cache: Where decoded images are kept; "auto" is memory, if they need little of it.
        folder: Of the file that `cache="disk"` keeps them in.
        max_bad: Largest share of the rows that may turn out to be unreadable, 0..1.
        worker: Number of this worker, from 0, and of all. Each has a slice of every batch; joined
            in the order of the workers, the slices are the batch that one worker would have.
        views: Each image has so many views, and pass n over the images shows number n modulo them;
            None makes a new one in each pass. Not with `repeats`.
        served_by: Makes the batches, in other processes, which see the images at the same paths;
            with a `cache` of "auto" they are not kept. None makes them here.
        tell: Called with each image that is left out, once.

    Attributes:
        preprocessing: As given.
        augmentation: As given; for arrays without what is meant for colours.

    Raises:
        ConfigError: Batch size, repeats and workers do not go together, or images with a service.
        ResourceError: There is no room for the decoded images.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        preprocessing: Preprocessing,
        *,
        num_classes: int,
        batch_size: int,
        augmentation: Augmentation,
        seed: int,
        balancing: balance.Balance = "none",
        cache: Cache = "none",
        folder: Path | None = None,
        max_bad: float = 0.05,
        worker: tuple[int, int] = (0, 1),
        views: int | None = None,
        served_by: service.Service | None = None,
        tell: Callable[[Problem], None] = lambda problem: None,
    ) -> None:
        self._views, self._service = views, served_by
        self._rows, self._num_classes = rows, num_classes
        if served_by:
            service.check_served(rows, cache)
            cache = "none"
        self._threads = _threads(rows)
        self.preprocessing = preprocessing
        self._decode = arrays.decoder(rows) if arrays.channels(rows) else None
        if self._decode:  # what is made for photos of 8 bits is not for arrays
            augmentation, cache = replace(augmentation, policy="none", erase=0.0), "none"
        self.augmentation, self._seed = augmentation, seed
        self._batch_size = min(batch_size, len(rows) * augmentation.repeats)
        self._first, self._last = _slice(self._batch_size, augmentation.repeats, worker)
        self._labels = np.array([row.label for row in rows], np.int32)
        self._weights = balance.sample_weights(rows, num_classes, balancing)
        self._reduce, self._shapes = shrinking.reduced(
            rows, preprocessing.image_size, augmentation.min_area
        )
        self._sizes = np.array([(row.height, row.width) for row in rows], np.int32)
        self._store = store_for(self._shapes, cache, folder)
        self._lost = lost.Lost(rows, max_bad, tell)

    @property
    def batch_size(self) -> int:
        """Images a batch of all workers."""
        return self._batch_size

    @property
    def steps(self) -> int:
        """Batches that hold every image at least once."""
        return -(-len(self._rows) * self.augmentation.repeats // self._batch_size)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Yield the batches from number `start` on, without end.

        Setting the pipeline up takes most of a second, so a training asks for one stream.

        Yields:
            Images float32 `(b, s, s, 3)`, targets float32 `(b, k)` that sum to 1, and weights
            float32 `(b,)` whose mean over the training rows is 1: a loss is
            `mean(weights * cross_entropy)`.

        Raises:
            DataError: More images than `max_bad` cannot be read.
        """
        while True:
            batches = (
                self._served(start, self._service) if self._service else iter(self.dataset(start))
            )
            try:
                for batch in batches:
                    yield batch
                    start += 1
            except tf.errors.OpError:
                if not self._lost.search(self._which(start)):
                    raise

    def rows_of(self, number: int) -> list[Row]:
        """Return the rows whose views make up a batch, in order; mixing adds them to each other."""
        return [self._rows[k] for k in self._which(number)]

    def _which(self, batch: int) -> list[int]:
        numbers = batch * self._batch_size + np.arange(self._first, self._last)
        passes, places = self._place_of(numbers)
        which = np.empty_like(places)
        for number in np.unique(passes):
            which[passes == number] = self._shuffled(places[passes == number], number)
        found: list[int] = self._lost.instead[which].tolist()
        return found

    def dataset(self, start: int = 0) -> tf.data.Dataset:
        """Return the stream of `batches` as a dataset, which ends with an error where they go on.

        The error is that of TensorFlow and names no file.
        """
        positions = tf.data.Dataset.range(start * (self._last - self._first), 2**60)
        return _prefetched(self._batching()(positions, self._threads), self._threads)

    def _served(self, start: int, served_by: service.Service) -> Iterator[Batch]:
        """Yield the same batches, that a service makes."""
        batched, size = self._batching(), self._last - self._first

        def one(number: tf.Tensor) -> tf.data.Dataset:
            positions = tf.data.Dataset.range(number * size, (number + 1) * size)
            return batched(positions, tf.data.AUTOTUNE)

        return served_by.batches(one, start, self.rows_of)

    def _batching(self) -> Callable[[tf.data.Dataset, int], tf.data.Dataset]:
        """Return what makes batches.

        It takes the positions of views among all of this worker, in order and from the first of a
        batch on, and how many images are made at once.
        """
        places = self._places()
        labels, weights = tf.constant(self._labels), tf.constant(self._weights)
        augmentation = self.augmentation
        size = self._last - self._first

        def load(position: tf.Tensor) -> tuple[tf.Tensor, ...]:
            number = position // size * self._batch_size + self._first + position % size
            which = self._image_of(number)
            seed = self._seed_of(number, which)
            target = tf.one_hot(labels[which], self._num_classes)
            return self._shown(which, seed, places), target, weights[which], seed

        def mixed(*batch: tf.Tensor) -> Batch:
            images, targets, weights, seeds = batch
            seeds += tf.constant([0, STREAMS - 1], tf.int64)
            images, targets, weights = mix(
                images,
                targets,
                weights,
                seeds,
                mixup=augmentation.mixup,
                cutmix=augmentation.cutmix,
            )
            smooth = augmentation.smoothing
            return images, targets * (1.0 - smooth) + smooth / self._num_classes, weights

        def batched(positions: tf.data.Dataset, threads: int) -> tf.data.Dataset:
            views = positions.map(_plain(load), threads)
            return views.batch(size, drop_remainder=True).map(_plain(mixed))

        return batched

    def view(self, view: int, batch_size: int) -> Iterator[tf.Tensor]:
        """Yield every image once, in the order of the rows, as one of its `views` shows it.

        Where an image cannot be read any more, the one that takes its place is shown.

        Args:
            view: Number of the view, from 0.
            batch_size: Images at a time; the last batch holds what is left.

        Yields:
            Images float32 `(b, s, s, 3)`.

        Raises:
            DataError: More images than `max_bad` cannot be read.
        """
        places = self._places()
        count, start = len(self._rows), 0

        def load(row: tf.Tensor) -> tf.Tensor:
            which = tf.constant(self._lost.instead)[row]
            return self._shown(which, self._seed_of(view * count + row, which), places)

        while start < count:
            shown = tf.data.Dataset.range(start, count).map(_plain(load), self._threads)
            try:
                for images in _prefetched(shown.batch(batch_size), self._threads):
                    yield images
                    start += len(images)
            except tf.errors.OpError:
                if not self._lost.search(range(start, min(start + batch_size, count))):
                    raise

    def shown(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return which rows batch `number` shows, and in which pass; int64 `(b,)` each."""
        numbers = number * self._batch_size + np.arange(self._first, self._last)
        return np.array(self._which(number)), self._place_of(numbers)[0]

    def passes(self, start: int, count: int) -> range:
        """Return the passes over the images that batches show a part of.

        Args:
            start: Number of the first batch.
            count: Of the batches.
        """
        first = start * self._batch_size + self._first
        last = (start + count - 1) * self._batch_size + self._last - 1
        return range(self._place_of(first)[0], self._place_of(last)[0] + 1)

    def answers(self, which: np.ndarray) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the targets `(b, k)` and weights `(b,)` of rows, as in `batches` unmixed."""
        smooth = self.augmentation.smoothing
        targets = tf.one_hot(self._labels[which], self._num_classes)
        return targets * (1.0 - smooth) + smooth / self._num_classes, self._weights[which]

    def _places(self) -> list[tf.Tensor]:
        """Return where the images are, as what reads them takes it."""
        columns = [*items.places(self._rows)]
        if self._service:
            columns.append(items.bytes_behind(self._rows))
        return [tf.constant(column) for column in columns]

    def _shown(self, which: tf.Tensor, seed: tf.Tensor, places: Sequence[tf.Tensor]) -> tf.Tensor:
        """Return model input: a random view of an image."""
        view = self.augmentation.view(
            self._pixels(which, places),
            seed,
            size=self.preprocessing.image_size,
            interpolation=self.preprocessing.interpolation,
        )
        return pixels.normalize(view, self.preprocessing)

    def _seed_of(self, number: int | tf.Tensor, which: tf.Tensor) -> tf.Tensor:
        """Return the seed of view `number`, which shows image `which`."""
        if self._views is not None:
            number = number // len(self._rows) % self._views * len(self._rows) + which
        return tf.stack([self._seed, STREAMS * number])

    def _image_of(self, number: tf.Tensor) -> tf.Tensor:
        """Return which row view `number` shows."""
        number, place = self._place_of(number)
        return tf.constant(self._lost.instead)[self._shuffled(place, number)]

    def _place_of(self, number: Any) -> tuple[Any, Any]:
        """Return the pass over the images that views belong to, and their places in it.

        The views of one image are apart in the batch.
        """
        different = self._batch_size // self.augmentation.repeats
        place = number // self._batch_size * different + number % self._batch_size % different
        return place // len(self._rows), place % len(self._rows)

    def _shuffled(self, place: Any, number: Any) -> tf.Tensor:
        """Return which rows are at places of pass `number`, of which each has its own order."""
        seed = tf.stack([tf.constant(self._seed, tf.int64), number])
        return tf.random.experimental.index_shuffle(place, seed, len(self._rows) - 1)

    def _pixels(self, which: tf.Tensor, places: Sequence[tf.Tensor]) -> tf.Tensor:
        """Return the decoded and shrunk image, uint8, from the store if there is one.

        Arrays come as they are, float32.
        """

        def made() -> tf.Tensor:
            read = items.read_natively if self._service else items.read
            contents = read(*(column[which] for column in places))
            if self._decode:
                return self._decode(contents)
            shape, reduce = tf.constant(self._shapes)[which], tf.constant(self._reduce)[which]
            return shrinking.decoded(contents, tf.constant(self._sizes)[which], reduce, shape)

        return self._store.load(which, made) if self._store else made()


def _slice(batch_size: int, repeats: int, worker: tuple[int, int]) -> tuple[int, int]:
    """Return where a worker's slice of each batch begins and ends, with pairs kept together."""
    index, count = worker
    pairs = (batch_size + 1) // 2
    if batch_size % repeats or pairs < count:
        raise ConfigError(
            "A batch must hold every repeat of its images, and two images for each worker. "
            f"Received: batch_size={batch_size}, repeats={repeats}, workers={count}. Change one."
        )
    first, last = (2 * (pairs * k // count) for k in (index, index + 1))
    return first, min(last, batch_size)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep AutoGraph from rewriting a function that has nothing to rewrite: tracing is faster."""
    return tf.autograph.experimental.do_not_convert(function)


def _threads(rows: Sequence[Row]) -> int:
    """Return how many images are made at once: more than cores where most of it is waiting."""
    return remote.READERS if any(remote.is_url(row.path) for row in rows) else _THREADS


def _prefetched(dataset: tf.data.Dataset, threads: int) -> tf.data.Dataset:
    options = tf.data.Options()
    if threads != _THREADS:  # the others' pool has as many as there are cores
        options.threading.private_threadpool_size = threads
    # Its optimiser runs on for seconds after the last batch, and freeing the iterator waits for it.
    options.autotune.enabled = False
    return dataset.prefetch(2).with_options(options)
