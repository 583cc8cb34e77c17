"""What is measured at several sizes, each in a process of its own."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from kresnet.bench.speed.pictures import written
from kresnet.bench.speed.work import Work, seconds_of, timed
from kresnet.data.look import SIDE
from kresnet.data.scan import Index, Row

_CLASSES: Final = 10
_WIDTH, _HEIGHT = 500, 375


def made_up(rows: int, path: str = "", *, looks: bool = False) -> Index:
    """Return an index of random rows.

    Args:
        rows: How many.
        path: Of the file that all name; "" gives each a name of its own.
        looks: Whether they have a random `look`.
    """
    rng = np.random.default_rng(rows)
    digests = rng.bytes(32 * rows).hex()
    seen = rng.integers(0, 256, (rows, 4 + SIDE * SIDE), np.uint8) if looks else None
    made = tuple(
        Row(
            path or f"/photos/class-{k % _CLASSES}/{k}.jpg",
            k % _CLASSES,
            None,
            _HEIGHT,
            _WIDTH,
            digests[64 * k : 64 * k + 64],
            look=b"" if seen is None else seen[k].tobytes(),
        )
        for k in range(rows)
    )
    return Index("/photos", tuple(f"class-{k}" for k in range(_CLASSES)), made, ())


def index(*, rows: int, folder: str) -> Work:
    """Split an index, write it and read it again."""
    from kresnet.data.split import split

    made = made_up(rows)

    def turn() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as home:
            split(made).save(home)
            Index.load(home)

    return Work(lambda: seconds_of(turn))


def duplicates(*, rows: int) -> Work:
    """Compare all rows with each other."""
    from kresnet.data.duplicates import find

    made = made_up(rows, looks=True)
    return Work(lambda: seconds_of(lambda: find(made.rows)))


def stream(*, rows: int, folder: str) -> Work:
    """Set up the stream of a training and take its first batches."""
    from kresnet.data.augment import Augmentation
    from kresnet.data.pipeline import TrainingData
    from kresnet.zoo import Preprocessing

    file = _photo(folder, _WIDTH, _HEIGHT)
    made = made_up(rows, file)

    def turn() -> None:
        data = TrainingData(
            [replace(row, split="train") for row in made.rows],
            Preprocessing(),
            num_classes=_CLASSES,
            batch_size=32,
            augmentation=Augmentation(),
            seed=0,
        )
        for _ in islice(data.batches(), 4):
            pass

    return Work(lambda: seconds_of(turn))


def photo(*, side: int, folder: str, image_size: int) -> Work:
    """Decode a square JPEG and make it what the model takes."""
    import tensorflow as tf

    from kresnet.data import pixels
    from kresnet.zoo import Preprocessing

    contents = tf.io.read_file(_photo(folder, side, side))
    preprocessing = Preprocessing(image_size=image_size)
    prepare = tf.function(lambda contents: pixels.prepare(contents, preprocessing))
    return Work(timed(lambda: prepare(contents).numpy(), 5))


def _photo(folder: str, width: int, height: int) -> str:
    return written(None, Path(folder) / f"{width}x{height}", 1, size=(width, height))[0]
