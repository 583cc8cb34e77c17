"""Train the last stages alone, on what the frozen ones said of each image once.

Where nothing changes before some place of the network, the output at that place is the same in
every epoch that shows the same view of an image. It is computed once a view and kept, in the
network's own numeric type and so without any loss, and only what lies behind the place is trained.
Each image has a few views, and pass n over the images shows view n modulo their number.

Both parts are functional models on the layers and variables of the whole, so whatever scores,
averages, saves or exports the whole is none the wiser.

Legend of shapes: n images, b images a batch, h, w, f height, width and channels at the cut.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

from kresnet.data.augment import Augmentation
from kresnet.data.items import Place
from kresnet.data.pipeline import Batch, TrainingData
from kresnet.data.scan import Row
from kresnet.errors import ConfigError, DataError, ResourceError
from kresnet.train.kept import Kept, contents_of, key_of, network_of
from kresnet.train.recipe import Recipe
from kresnet.zoo import Preprocessing
from kresnet.zoo.graph import deep_graph

FOLDER: Final = "cut"
"""Where a run keeps features at the cut, on the disk."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A network in two parts.

    Attributes:
        front: Images `(b, s, s, c)` to features `(b, h, w, f)`; nothing in it learns or is random.
        tail: These features to logits `(b, k)`.
    """

    front: keras.Model
    tail: keras.Model


def divided(model: keras.Model) -> Cut:
    """Divide a network at the last place before anything that learns.

    It is a place that all of the network passes through, as the end of a stage.

    Args:
        model: A functional model, some of whose first layers are not trainable.

    Raises:
        ConfigError: There is no such place behind the input.
    """
    place = _place(model)
    if place is None:
        raise ConfigError(
            "A network can be cut behind layers that do not learn. Received: "
            f"model={model.name!r}, whose first layers do. Freeze them with train_from."
        )
    with deep_graph():
        front = keras.Model(model.inputs[0], place, name=f"{model.name}_front")
        tail = keras.Model(place, model.outputs[0], name=f"{model.name}_tail")
    return Cut(front, tail)


def _place(model: keras.Model) -> Any | None:
    """Return the tensor to cut at."""
    nodes = [
        node
        for depth in sorted(model._nodes_by_depth, reverse=True)
        for node in model._nodes_by_depth[depth]
    ]
    readers: dict[int, int] = {}
    for node in nodes:
        for tensor in node.input_tensors:
            readers[id(tensor)] = readers.get(id(tensor), 0) + 1
    waiting: dict[int, Any] = {}  # tensors that nodes to come will read
    place = None
    for node in nodes:
        layer = node.operation
        if getattr(layer, "trainable_variables", ()) or getattr(layer, "rate", 0):
            return place
        for tensor in node.input_tensors:
            readers[id(tensor)] -= 1
            if not readers[id(tensor)]:
                del waiting[id(tensor)]
        waiting |= {id(tensor): tensor for tensor in node.output_tensors if id(tensor) in readers}
        if len(waiting) == 1 and node.input_tensors:
            (place,) = waiting.values()
    return None  # nothing learns at all


class CutData:
    """The batches of a training, with features in place of the images.

    A view is computed when a batch first asks for it, or before, in the order of the rows and
    always as many images at a time: so a training that is gone on with has the same, bit for bit,
    whether the features were kept or not.

    Args:
        data: Of the same `views`; unmixed.
        cut: Divides the network.
        rows: Of `data`.
        views: Of each image.
        at_once: Images that the front sees at a time.
        kept: Where to keep features, under the names of `name_of`; None keeps them in memory.
        name_of: Gives the name of a view.
    """

    def __init__(
        self,
        data: TrainingData,
        cut: Cut,
        *,
        rows: int,
        views: int,
        at_once: int,
        kept: Kept | None = None,
        name_of: Callable[[int], str] = str,
    ) -> None:
        self._data, self._views, self._at_once = data, views, at_once
        self._kept, self._name_of = kept, name_of
        self._look = tf.function(
            lambda images: cut.front(images, training=False), reduce_retracing=True, autograph=False
        )
        self._dtype = tf.as_dtype(cut.front.outputs[0].dtype)
        self._shape = cut.front.output_shape[1:]
        self._room = (rows, prod(self._shape) * self._dtype.size)
        self._features: dict[int, np.ndarray] = {}
        self._view_s = 0.0

    @property
    def batch_size(self) -> int:
        """Images a batch of all workers."""
        return self._data.batch_size

    @property
    def steps(self) -> int:
        """Batches that hold every image at least once."""
        return self._data.steps

    def rows_of(self, number: int) -> list[Row]:
        """Return the rows whose views make up a batch, in order."""
        return self._data.rows_of(number)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Yield the batches from number `start` on, without end.

        Yields:
            Features `(b, h, w, f)`, targets float32 `(b, k)` and weights float32 `(b,)`.

        Raises:
            DataError: Too many images cannot be read any more.
            ResourceError: There is no room for the features.
        """
        while True:
            for _ in self.prepare(start, 1):
                pass
            which, passes = self._data.shown(start)
            features = np.empty((len(which), self._room[1]), np.uint8)
            for view in np.unique(passes % self._views):
                places = np.flatnonzero(passes % self._views == view)
                features[places] = self._features[int(view)][which[places]]
            shaped = features.view(self._dtype.as_numpy_dtype).reshape(-1, *self._shape)
            yield tf.constant(shaped), *self._data.answers(which)
            start += 1

    def prepare(self, start: int, count: int) -> Iterator[int]:
        """Compute the views that batches will show, if they are not there yet.

        Args:
            start: Number of the first batch.
            count: Of the batches.

        Yields:
            After each part, how many images of a view are done.

        Raises:
            DataError: Too many images cannot be read any more.
            ResourceError: There is no room for the features.
        """
        passes = self._data.passes(start, count)
        for view in dict.fromkeys(number % self._views for number in passes):
            if view not in self._features:
                yield from self._seen(view)

    def epochs_within(self, seconds: float, epoch_s: float) -> int:
        """Return how many more epochs fit into a time, with the views that they have to compute.

        Args:
            seconds: The time.
            epoch_s: Of an epoch whose views are there.
        """
        missing = self._views - len(self._features)
        few = int(seconds / (epoch_s + self._view_s))
        return few if few <= missing else int((seconds - missing * self._view_s) / epoch_s)

    def _seen(self, view: int) -> Iterator[int]:
        """Compute a view, or find it."""
        started, done = time.monotonic(), 0
        if self._kept is None:
            features = self._empty()
            for part in self._parts(view):
                features[done : done + len(part)] = part
                done += len(part)
                yield done
            self._features[view] = features
        else:
            name = self._name_of(view)
            found = self._kept.find(name, self._room)
            if found is None:
                with _named(), self._kept.keeping(name) as keep:
                    for part in self._parts(view):
                        keep(part)
                        done += len(part)
                        yield done
                found = self._kept.find(name, self._room)
            if found is None:
                raise ResourceError(
                    "What was kept must be found again. Received: features that another has "
                    "removed, or a disk that changes them. Use --set cut_cache=memory."
                )
            self._features[view] = found
        self._view_s = max(self._view_s, time.monotonic() - started)

    def _parts(self, view: int) -> Iterator[np.ndarray]:
        for images in self._data.view(view, self._at_once):
            yield self._look(images).numpy().reshape(len(images), -1).view(np.uint8)

    def _empty(self) -> np.ndarray:
        try:
            return np.empty(self._room, np.uint8)
        except MemoryError:
            raise ResourceError(
                "The features of a view must fit into memory. Received: "
                f"{prod(self._room) / 1e9:.1f} GB. Use --set cut_cache=disk, or none."
            ) from None


class Looked:
    """Batches of images, as `(features, labels)`; computed at the first pass, and kept.

    Args:
        front: Of a `Cut`; what it computes stays as it is.
        batches: `(images, labels)`, a finite number.
    """

    def __init__(self, front: keras.Model, batches: tf.data.Dataset) -> None:
        self._batches = batches
        self._look = tf.function(
            lambda images: front(images, training=False), reduce_retracing=True, autograph=False
        )
        self._kept: list[tuple[tf.Tensor, tf.Tensor]] = []

    def __iter__(self) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """Return an iterator over the batches."""
        if not self._kept:
            self._kept = [(self._look(images), labels) for images, labels in self._batches]
        return iter(self._kept)


def names_of(
    front: keras.Model,
    images: Sequence[Place],
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    *,
    seed: int,
    at_once: int,
) -> Callable[[int], str]:
    """Return what names the views of images; see `kept.key_of`.

    The images are read now, before any of them is decoded: what is decoded later, after a change,
    cannot pass for what they would be then.

    Args:
        front: Of a `Cut`.
        images: In order.
        preprocessing: Of the model input.
        augmentation: That makes the views.
        seed: Of the views.
        at_once: Images that the front sees at a time.

    Raises:
        DataError: An image cannot be read.
    """
    try:
        contents = contents_of(images)
    except OSError as error:
        raise DataError(
            f"Images must stay where they are. Received: {error}. Put it back."
        ) from None
    network = network_of(front)

    def name(view: int) -> str:
        return key_of(
            what="cut",
            network=network,
            dtype=str(front.outputs[0].dtype),
            images=contents,
            preprocessing=asdict(preprocessing),
            augmentation=asdict(augmentation),
            seed=seed,
            view=view,
            at_once=at_once,
        )

    return name


def cut_data(
    recipe: Recipe, data: TrainingData, cut: Cut, rows: Sequence[Row], folder: Path
) -> CutData:
    """Return the batches of a recipe's training on features; see `CutData`.

    Args:
        recipe: Says where features are kept.
        data: On the images, of the recipe's views.
        cut: Divides the network.
        rows: Of `data`.
        folder: Of the run.

    Raises:
        DataError: An image cannot be read.
    """
    common: dict[str, Any] = {
        "rows": len(rows),
        "views": recipe.cut_views,
        "at_once": -(-recipe.batch_size // recipe.accumulate),
    }
    if recipe.cut_cache == "memory":
        return CutData(data, cut, **common)
    name_of = names_of(
        cut.front,
        rows,
        data.preprocessing,
        data.augmentation,
        seed=recipe.seed,
        at_once=common["at_once"],
    )
    return CutData(data, cut, kept=Kept(folder / FOLDER), name_of=name_of, **common)


def preparing(data: TrainingData | CutData, start: int, count: int) -> Iterator[int]:
    """Do what is to be done once before some batches; see `CutData.prepare`."""
    return data.prepare(start, count) if isinstance(data, CutData) else iter(())


def epochs_within(data: TrainingData | CutData, seconds: float, epoch_s: float) -> int:
    """Return how many more epochs of `epoch_s` fit into a time, 0 or more."""
    if isinstance(data, CutData):
        return max(data.epochs_within(seconds, epoch_s), 0)
    return max(int(seconds / epoch_s), 0)


@contextmanager
def _named() -> Iterator[None]:
    """Say what a full disk is needed for."""
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"The features at the cut must be writable. Received: {error}. Make room and resume, "
            "or use --set cut_cache=none."
        ) from error
