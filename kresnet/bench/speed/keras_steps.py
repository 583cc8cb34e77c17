"""What happens in the processes of contenders that train with Keras and TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

from kresnet.bench.speed.work import Work, timed
from kresnet.train.cut import divided
from kresnet.train.hardware import policy_name, resolve_precision
from kresnet.train.optimizer import freeze_before, optimizer_for
from kresnet.train.optimizer import last_stage as number_of_last_stage
from kresnet.train.step import train_step
from kresnet.zoo import build, freeze_norms

CLASSES: Final = 1000
RATE: Final = 1e-5
"""Learning rate: so low that weights stay what they are, and no loss overflows."""
DECAY: Final = 0.05

_APPLICATIONS: Final = MappingProxyType(
    {"resnet50": "ResNet50", "resnet101": "ResNet101", "resnet152": "ResNet152"}
)
_HUB: Final[Mapping[str, tuple[str, list[int]]]] = MappingProxyType(
    {
        "resnet18": ("basic_block", [2, 2, 2, 2]),
        "resnet34": ("basic_block", [3, 4, 6, 3]),
        "resnet50": ("bottleneck_block", [3, 4, 6, 3]),
        "resnet101": ("bottleneck_block", [3, 4, 23, 3]),
        "resnet152": ("bottleneck_block", [3, 8, 36, 3]),
    }
)


def kresnet(*, variant: str, image_size: int, batch: int, frozen: bool, steps: int) -> Work:
    """Train with the step of `kresnet train`, in the precision that it would plan."""
    precision = resolve_precision("auto")
    model = build(
        variant,
        num_classes=CLASSES,
        input_shape=(image_size, image_size),
        dtype=policy_name(precision),
    )
    if frozen:
        freeze_norms(model)
    optimizer = optimizer_for(model, "adamw", weight_decay=DECAY, layer_decay=1.0, clip_norm=None)
    optimizer.learning_rate = RATE
    step = train_step(model, optimizer)
    images, labels = drawn(batch, image_size)
    targets, weights = tf.one_hot(labels, CLASSES), tf.ones(batch)
    return Work(
        timed(lambda: float(step(images, targets, weights)), steps), {"precision": precision}
    )


def last_stage(*, variant: str, image_size: int, batch: int, cut: bool, steps: int) -> Work:
    """Train the last stage and the head with the step of `kresnet train`.

    With the cut, its input is what the frozen stages said of the images once; else they say it
    again in each step.
    """
    precision = resolve_precision("auto")
    model = build(
        variant,
        num_classes=CLASSES,
        input_shape=(image_size, image_size),
        dtype=policy_name(precision),
    )
    freeze_before(model, number_of_last_stage(model))
    freeze_norms(model)
    inputs, labels = drawn(batch, image_size)
    if cut:
        parts = divided(model)
        inputs, model = parts.front(inputs, training=False), parts.tail
    optimizer = optimizer_for(model, "adamw", weight_decay=DECAY, layer_decay=1.0, clip_norm=None)
    optimizer.learning_rate = RATE
    step = train_step(model, optimizer)
    targets, weights = tf.one_hot(labels, CLASSES), tf.ones(batch)
    return Work(timed(lambda: float(step(inputs, targets, weights)), steps))


def applications(
    *, variant: str, image_size: int, batch: int, frozen: bool, policy: str, steps: int
) -> Work:
    """Train keras.applications' network of the variant; its strides are those of v1."""
    keras.config.set_dtype_policy(policy)
    base = applications_base(variant, image_size)
    return _by_keras(base, base.output, image_size, batch, frozen=frozen, steps=steps)


def applications_base(variant: str, image_size: int) -> keras.Model:
    """Build keras.applications' network up to the pooled features, with random weights.

    Raises:
        ValueError: It has no such network.
    """
    make = getattr(keras.applications, _APPLICATIONS[_known(variant, _APPLICATIONS)])
    return make(
        weights=None, include_top=False, pooling="avg", input_shape=(image_size, image_size, 3)
    )


def hub(*, variant: str, image_size: int, batch: int, policy: str, steps: int) -> Work:
    """Train KerasHub's backbone with frozen norms."""
    import keras_hub

    keras.config.set_dtype_policy(policy)
    block_type, blocks = _HUB[_known(variant, _HUB)]
    base = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=blocks,
        stackwise_num_strides=[1, 2, 2, 2],
        block_type=block_type,
        image_shape=(image_size, image_size, 3),
    )
    pooled = keras.layers.GlobalAveragePooling2D()(base.output)
    return _by_keras(base, pooled, image_size, batch, frozen=True, steps=steps)


def drawn(batch: int, image_size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Return images `(b, s, s, 3)` of normal values and labels `(b,)`, the same each time."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch, image_size, image_size, 3)).astype(np.float32)
    return tf.constant(images), tf.constant(rng.integers(0, CLASSES, batch).astype(np.int32))


def _by_keras(
    base: keras.Model, features: Any, image_size: int, batch: int, *, frozen: bool, steps: int
) -> Work:
    """Put a dense layer on features, and train by the function that `fit` calls for a batch."""
    if frozen:
        for layer in base.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False
    model = keras.Model(base.input, keras.layers.Dense(CLASSES, dtype="float32")(features))
    model.compile(
        keras.optimizers.AdamW(RATE, weight_decay=DECAY),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,  # XLA makes steps on processors several times slower
    )
    images, labels = drawn(batch, image_size)
    return Work(timed(lambda: model.train_on_batch(images, labels), steps))


def _known(variant: str, names: Mapping[str, Any]) -> str:
    name = variant.removesuffix("_v1")
    if name not in names:
        raise ValueError(f"The variant must be one of {', '.join(names)}. Received: {variant}.")
    return name
