"""Time the input pipeline, stage by stage and beside the usual one of Keras.

    python -m kresnet.bench.input FOLDER

Every line is a stream of batches. They take turns, so that whatever else the machine does hits all
of them. A turn begins a stream anew and ends it, so nothing is made while others are timed, and its
first batches are passed over. Printed are the medians of the turns and their quartiles. Processor
time is of all threads, and other work on the machine changes it less.

The stages are those of training, each with all before it: reading, decoding, the random crop, the
whole stream. "kept" has the decoded images in memory. Keras' own is `image_dataset_from_directory`
with two sets of layers: those of its guides (mirror, brightness, contrast, scaling), which squeeze
every image to the size of the input and take no crops, and those that come nearest to ours (a
random zoom into the middle, mirror, and brightness, contrast and saturation).
"""

from __future__ import annotations

import argparse
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kresnet.data import items, pixels
from kresnet.data.augment import Augmentation, geometry
from kresnet.data.pipeline import TrainingData
from kresnet.data.scan import Row, scan
from kresnet.data.store import Cache
from kresnet.machine import cores
from kresnet.zoo import Preprocessing

Start = Callable[[], Iterator[Any]]

_PASSED_OVER = 8  # batches, while buffers fill and Keras tunes itself


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder with a folder of images for each class")
    parser.add_argument("--image-size", type=int, default=224, help="side of the model input")
    parser.add_argument("--batch-size", type=int, default=32, help="images a batch")
    parser.add_argument("--batches", type=int, default=6, help="timed batches in a turn")
    parser.add_argument("--turns", type=int, default=7, help="turns of every stream")
    arguments = parser.parse_args()
    index = scan(arguments.data)
    sides = [min(row.height, row.width) for row in index.rows]
    print(
        f"{len(index.rows)} images of a shorter side of {median(sides):.0f} px (median), "
        f"{arguments.image_size} px, batches of {arguments.batch_size}, "
        f"{cores()} cores\n"
    )
    streams = dict(
        contenders(
            arguments.data, index.rows, len(index.classes), arguments.image_size,
            arguments.batch_size,
        )
    )  # fmt: skip
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in streams}
    for _ in range(arguments.turns):
        for name, start in streams.items():
            times[name].append(timed(start(), arguments.batches, arguments.batch_size))
    print(table(times))


def contenders(
    folder: Path, rows: Sequence[Row], num_classes: int, image_size: int, batch_size: int
) -> Iterator[tuple[str, Start]]:
    """Yield names and what begins an endless stream of batches."""

    def own(policy: Augmentation, cache: Cache = "none") -> Start:
        return ours(rows, num_classes, image_size, batch_size, policy=policy, cache=cache)

    for name, stage in _stages(image_size).items():
        places = tf.data.Dataset.from_tensor_slices(items.places(rows))
        dataset = places.repeat().enumerate().map(stage, cores())
        yield name, partial(iter, dataset.batch(batch_size).prefetch(2))
    yield "whole stream, crop and mirror", own(Augmentation("none"))
    yield "whole stream, light (the default)", own(Augmentation("light"))
    yield "light, kept", own(Augmentation("light"), "memory")
    yield "trivial, kept", own(Augmentation("trivial"), "memory")
    yield "rand, kept", own(Augmentation("rand"), "memory")
    yield "light, mixup and cutmix, kept", own(Augmentation(mixup=0.2, cutmix=1.0), "memory")
    yield "light, erasing, kept", own(Augmentation(erase=0.5), "memory")
    for is_kept in (False, True):
        for zoomed in (False, True):
            name = f"Keras{', zoom and saturation' * zoomed}{', kept' * is_kept}"
            yield name, of_keras(folder, image_size, batch_size, is_kept=is_kept, zoomed=zoomed)


def ours(
    rows: Sequence[Row],
    num_classes: int,
    image_size: int,
    batch_size: int,
    *,
    policy: Augmentation,
    cache: Cache = "none",
) -> Start:
    """Return what begins the stream of a training, with all images in its cache if it has one."""
    data = TrainingData(
        rows,
        Preprocessing(image_size=image_size),
        num_classes=num_classes,
        batch_size=batch_size,
        augmentation=policy,
        seed=0,
        cache=cache,
    )
    if cache != "none":  # a pass over the images fills it
        deque(islice(data.batches(), data.steps), maxlen=0)
    return data.batches


def _stages(image_size: int) -> dict[str, Any]:
    """Return the first stages of training, from number and place of an image."""

    def read(number: tf.Tensor, place: tuple[tf.Tensor, ...]) -> tf.Tensor:
        return tf.strings.length(items.read(*place))

    def decode(number: tf.Tensor, place: tuple[tf.Tensor, ...]) -> tf.Tensor:
        return tf.shape(pixels.decode(items.read(*place)))

    def crop(number: tf.Tensor, place: tuple[tf.Tensor, ...]) -> tf.Tensor:
        image = pixels.decode(items.read(*place))
        shape, seed = tf.shape(image), tf.stack([0, number])
        box = geometry.random_box(shape[0], shape[1], seed, min_area=0.35)
        return pixels.resample(image, box, image_size, "bilinear")

    return {"read": read, "and decode": decode, "and crop": crop}


def of_keras(
    folder: Path, image_size: int, batch_size: int, *, is_kept: bool, zoomed: bool
) -> Start:
    """Return what begins a stream of Keras' own.

    Args:
        folder: Of the images.
        image_size: Side of the model input in pixels.
        batch_size: Images of a batch.
        is_kept: Have all images in memory.
        zoomed: Zoom into the middle, and change the saturation, too.
    """
    if zoomed:
        layers = [
            keras.layers.RandomZoom((-0.4, 0.0), seed=1),  # 0.6 of a side is 0.36 of the area
            keras.layers.RandomFlip("horizontal", seed=2),
            keras.layers.RandomColorJitter(
                (0, 255),
                brightness_factor=0.2,
                contrast_factor=0.2,
                saturation_factor=0.2,
                seed=3,
            ),
            keras.layers.Rescaling(1 / 255),
        ]
    else:
        layers = [
            keras.layers.RandomFlip("horizontal", seed=1),
            keras.layers.RandomBrightness(0.2, seed=2),
            keras.layers.RandomContrast(0.2, seed=3),
            keras.layers.Rescaling(1 / 255),
        ]

    def augmented(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        for layer in layers:
            images = layer(images, training=True)
        return images, labels

    dataset = keras.utils.image_dataset_from_directory(
        folder,
        image_size=(image_size, image_size),
        batch_size=None,
        crop_to_aspect_ratio=zoomed,
        shuffle=False,
        seed=0,
        verbose=False,
    )
    if is_kept:
        dataset = dataset.cache()
        deque(dataset, maxlen=0)
    dataset = dataset.shuffle(8 * batch_size).repeat().batch(batch_size)
    return partial(iter, dataset.map(augmented, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE))


def timed(stream: Iterator[Any], batches: int, batch_size: int) -> tuple[float, float]:
    """Return images a second, and milliseconds of processor time an image."""
    for _ in range(_PASSED_OVER):
        next(stream)
    started, spent = time.perf_counter(), time.process_time()
    for _ in range(batches):
        next(stream)
    images = batches * batch_size
    return (
        images / (time.perf_counter() - started),
        1000 * (time.process_time() - spent) / images,
    )


def table(times: dict[str, list[tuple[float, float]]]) -> str:
    """Return the medians and quartiles as Markdown."""
    lines = [
        "| stream | images/s | quartiles | processor, ms an image | quartiles |",
        "|---|---|---|---|---|",
    ]
    for name, turns in times.items():
        speeds, costs = np.array(turns).T
        low, _, high = quantiles(speeds, n=4)
        least, _, most = quantiles(costs, n=4)
        lines.append(
            f"| {name} | {median(speeds):.0f} | {low:.0f}-{high:.0f} | {median(costs):.2f} | "
            f"{least:.2f}-{most:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
