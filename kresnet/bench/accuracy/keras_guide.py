"""The transfer-learning guide of keras.io, on the same weights and within the time.

<https://keras.io/guides/transfer_learning/>: squeezed images in batches of 64, mirrored and turned
by up to a tenth of a full turn; a frozen base, pooling, Dropout 0.2, Dense; Adam at 1e-3 for up to
20 epochs in the first half of the time, then everything unfrozen, Adam at 1e-5 for up to 10. The
base is called with `training=False`, as the guide has it. Computed in bfloat16 where ours is.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kresnet.bench.accuracy import checking
from kresnet.bench.accuracy.task import Answer, Labelled, Task, softmax

_BATCH = 64
_FROZEN_EPOCHS, _EPOCHS = 20, 10


class _Until(keras.callbacks.Callback):
    """Ends a training where one more epoch would be too late."""

    def __init__(self, deadline: float) -> None:
        super().__init__()
        self._deadline = deadline
        self.epochs = 0
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._began = time.time()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs += 1
        self.seconds.append(time.time() - self._began)
        if time.time() + min(self.seconds) > self._deadline:
            self.model.stop_training = True


def contend(task: Task) -> Answer:
    """Follow the guide."""
    keras.utils.set_random_seed(task.seed)
    base = keras.saving.load_model(Path(task.start) / checking.KERAS, compile=False)
    difference = checking.check(
        task.start, base.predict_on_batch(checking.images_to_check(task.start))
    )
    base = _as_applications(base, task.precision)
    train, test = _stream(task, task.train, learn=True), _stream(task, task.test)

    mean, std = checking.normalization(task.start)
    base.trainable = False
    inputs = keras.Input((task.image_size, task.image_size, 3))
    x = keras.layers.Normalization(
        mean=[255 * value for value in mean],
        variance=[(255 * value) ** 2 for value in std],
        dtype="float32",
    )(inputs)
    x = base(x, training=False)
    x = keras.layers.Dropout(0.2)(x)
    model = keras.Model(inputs, keras.layers.Dense(len(task.classes))(x))

    started = time.time()
    frozen = _fit(model, train, 1e-3, _FROZEN_EPOCHS, started + task.left_s - task.budget_s / 2)
    scoring = 1.5 * min(frozen.seconds) * len(task.test) / len(task.train) + 2.0
    base.trainable = True
    tuned = _fit(model, train, 1e-5, _EPOCHS, time.time() + task.left_s - scoring)
    logits = model.predict(test, verbose=0)
    return Answer(
        softmax(logits.astype(np.float64)),
        {
            "epochs": f"{frozen.epochs} + {tuned.epochs}",
            "images_per_s": len(task.train) / min(tuned.seconds),
            "weights_differ_by": difference,
        },
    )


def _fit(
    model: keras.Model, train: tf.data.Dataset, rate: float, epochs: int, deadline: float
) -> _Until:
    until = _Until(deadline)
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(train, epochs=epochs, verbose=2, callbacks=[until])
    return until


def _as_applications(base: keras.Model, precision: str) -> keras.Model:
    """Return the same network with the momentum of keras.applications, in a precision.

    Variables, pooling and the statistics of norms are float32 in any case.
    """
    float32 = (keras.layers.InputLayer, keras.layers.GlobalAveragePooling2D)

    def clone(layer: keras.Layer) -> keras.Layer:
        config = layer.get_config()
        if isinstance(layer, keras.layers.BatchNormalization):
            config["momentum"] = 0.99
        if precision == "bfloat16" and not isinstance(layer, float32):
            config["dtype"] = "mixed_bfloat16"
        return layer.__class__.from_config(config)

    made = keras.models.clone_model(base, clone_function=clone)
    made.set_weights(base.get_weights())
    return made


def _stream(task: Task, images: tuple[Labelled, ...], *, learn: bool = False) -> tf.data.Dataset:
    """Return batches of pixels 0..255 and labels."""
    resize = keras.layers.Resizing(task.image_size, task.image_size)
    augment = [
        keras.layers.RandomFlip("horizontal", seed=task.seed),
        keras.layers.RandomRotation(0.1, seed=task.seed),
    ]

    def read(path: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        image.set_shape((None, None, 3))
        return resize(image), label

    def change(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        for layer in augment:
            images = layer(images, training=True)
        return images, labels

    paths, labels = zip(*images, strict=True)
    stream = tf.data.Dataset.from_tensor_slices((list(paths), list(labels))).map(read).cache()
    if not learn:
        return stream.batch(_BATCH)
    stream = stream.shuffle(len(images), seed=task.seed).batch(_BATCH)
    return stream.map(change, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
