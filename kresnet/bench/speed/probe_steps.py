"""What happens in the processes of contenders that fit a head on frozen features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median

import keras as keras_library
import tensorflow as tf

from kresnet.bench.speed.keras_steps import applications_base
from kresnet.bench.speed.work import Work, seconds_of
from kresnet.data.scan import scan
from kresnet.train.hardware import resolve_precision
from kresnet.train.probe import Frozen, View, fit_head
from kresnet.zoo import build


def kresnet(*, folder: str, variant: str, weights: str | None, image_size: int, batch: int) -> Work:
    """Read every photo, compute its features and fit the head, as the first stage of a training."""
    rows, precision = scan(folder).rows, resolve_precision("auto")
    model = build(variant, num_classes=None, input_shape=(image_size, image_size), weights=weights)
    preprocessing = replace(model.preprocessing, image_size=image_size)

    def probe() -> None:
        batches = View().batches(rows, preprocessing, batch_size=batch)
        fit_head(*Frozen(model, precision=precision).features(batches), seed=0)

    return Work(lambda: seconds_of(probe), {"precision": precision})


def keras(
    *,
    folder: str,
    variant: str,
    image_size: int,
    batch: int,
    policy: str,
    epochs: int,
    steps: int,
) -> Work:
    """Train a dense layer on a frozen keras.applications network by `train_on_batch`.

    The seconds are those of all epochs, from the median of some steps on images kept in memory.
    """
    keras_library.config.set_dtype_policy(policy)
    base = applications_base(variant, image_size)
    base.trainable = False
    images = keras_library.utils.image_dataset_from_directory(
        Path(folder), image_size=(image_size, image_size), batch_size=batch, verbose=False
    )
    inputs = keras_library.Input((image_size, image_size, 3))
    head = keras_library.layers.Dense(len(images.class_names), dtype="float32")
    model = keras_library.Model(inputs, head(base(inputs, training=False)))
    model.compile(
        keras_library.optimizers.Adam(1e-3),
        keras_library.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    count = len(images.file_paths)
    stream = iter(images.take(steps).cache().repeat().prefetch(tf.data.AUTOTUNE))

    def turn() -> float:
        model.train_on_batch(*next(stream))
        step_s = median(
            seconds_of(lambda: model.train_on_batch(*next(stream))) for _ in range(steps)
        )
        return step_s * epochs * count / batch

    return Work(turn)
