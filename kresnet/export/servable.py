"""The graph of a SavedModel: images in, labels, scores and verdicts out, each image on its own.

Legend of shapes: n images, k classes, s side of the model input, g side of the last features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import keras
import tensorflow as tf

from kresnet.data import pixels
from kresnet.errors import ExportError
from kresnet.export.contract import Contract
from kresnet.zoo.graph import deep_graph

SIGNATURES: Final = ("serving_default", "serving_bytes", "explain", "classify")

# Images of a batch that are decoded at a time; a server's own threads bound it further.
_PARALLEL: Final = 8

_EXAMPLE: Final = {
    "image_bytes": tf.io.FixedLenFeature((), tf.string, ""),
    "image/encoded": tf.io.FixedLenFeature((), tf.string, ""),
}


class Servable(tf.Module):
    """The graph and its variables, each once; `model.export` stores them twice (keras#23553).

    Every output has the batch as its first dimension, or a server could not split a batch.

    Args:
        model: Gives logits from its layers "pool" and "head", as `kresnet.build` makes them.
        contract: Labels, preprocessing, temperature and threshold.
        labels: File with a label a line, which becomes an asset.
    """

    def __init__(self, model: keras.Model, contract: Contract, labels: Path) -> None:
        super().__init__()
        self._model_variables = [variable.value for variable in model.variables]
        self._labels_file = tf.saved_model.Asset(str(labels))
        self._labels = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                self._labels_file,
                tf.int64,
                tf.lookup.TextFileIndex.LINE_NUMBER,
                tf.string,
                tf.lookup.TextFileIndex.WHOLE_LINE,
            ),
            "",
        )
        # A partial, because tf.Module would track a model and store its variables once more.
        self._call: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]] = partial(
            with_features(model), training=False
        )
        self._weights_of_classes = model.get_layer("head").kernel.value  # (features, k)
        self._contract = contract

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8, "images")])
    def serve_images(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Answer for decoded RGB images of one size."""
        prepared = pixels.prepare_pixels(images, self._contract.preprocessing)
        _, scores = self._look(prepared)
        return self._answer(scores, tf.ones(tf.shape(images)[:1], tf.bool))

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, "image_bytes")])
    def serve_bytes(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Answer for encoded images."""
        prepared, ok = self._prepare_each(image_bytes)
        _, scores = self._look(prepared)
        return self._answer(scores, ok)

    @tf.function(
        input_signature=[
            tf.TensorSpec((None,), tf.string, "image_bytes"),
            tf.TensorSpec((None,), tf.int32, "class_index"),
        ]
    )
    def explain(self, image_bytes: tf.Tensor, class_index: tf.Tensor) -> dict[str, tf.Tensor]:
        """Answer, and show where the evidence for a class is.

        Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391, section 3). Behind global average
        pooling and one dense layer, the gradient of a logit is that layer's weights divided by
        the number of places (appendix A there), and scaling to the maximum removes the divisor.

        Args:
            image_bytes: Encoded images `(n,)`.
            class_index: The class to explain for each, `(n,)`; the best one where it is none of
                0..k-1, as -1.
        """
        prepared, ok = self._prepare_each(image_bytes)
        features, scores = self._look(prepared)
        best = tf.argmax(scores, axis=1, output_type=tf.int32)
        is_class = (class_index >= 0) & (class_index < len(self._contract.classes))
        chosen = tf.where(is_class, class_index, best)
        weights = tf.gather(tf.transpose(self._weights_of_classes), chosen)  # (n, features)
        heat = tf.nn.relu(tf.einsum("nhwf,nf->nhw", features, weights))
        heat = tf.math.divide_no_nan(heat, tf.reduce_max(heat, axis=(1, 2), keepdims=True))
        return self._answer(scores, ok) | {
            "heatmap": tf.where(ok[:, tf.newaxis, tf.newaxis], heat, 0.0)
        }

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, "inputs")])
    def classify(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Answer TensorFlow Serving's Classify: tf.Examples with the bytes `image_bytes`."""

        def encoded(example: tf.Tensor) -> tf.Tensor:
            found = tf.io.parse_single_example(example, _EXAMPLE)
            named, other = found["image_bytes"], found["image/encoded"]
            return tf.cond(tf.strings.length(named) > 0, lambda: named, lambda: other)

        prepared, ok = self._prepare_each(inputs, encoded)
        _, scores = self._look(prepared)
        answer = self._answer(scores, ok)
        return {"classes": answer["labels"], "scores": answer["scores"]}

    def _look(self, prepared: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the last features `(n, g, g, f)` and the scores `(n, k)`."""
        features, logits = self._call(prepared)
        scores = tf.nn.softmax(tf.cast(logits, tf.float32) / self._contract.temperature)
        return tf.cast(features, tf.float32), scores

    def _answer(self, scores: tf.Tensor, ok: tf.Tensor) -> dict[str, tf.Tensor]:
        names = self._labels.lookup(tf.range(len(self._contract.classes), dtype=tf.int64))
        scores = tf.where(ok[:, tf.newaxis], scores, 0.0)
        score = tf.reduce_max(scores, axis=1)
        unsure = score < (self._contract.threshold or 0.0)
        return {
            "label": tf.where(ok, tf.gather(names, tf.argmax(scores, axis=1)), ""),
            "score": score,
            "labels": tf.tile(names[tf.newaxis], (tf.shape(scores)[0], 1)),
            "scores": scores,
            "ok": ok,
            "abstain": ~ok | unsure,
        }

    def _prepare_each(
        self, items: tf.Tensor, encoded: Callable[[tf.Tensor], tf.Tensor] = tf.identity
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Turn each of `items` `(n,)` into model input; a bad one costs no other its answer.

        A dataset can drop the elements whose function fails, and then the places say which are
        left. One more element, which never fails, sees to it that there is always a batch.

        Returns:
            float32 `(n, s, s, 3)`, zero where bad, and bool `(n,)`, whether it was good.
        """
        preprocessing = self._contract.preprocessing
        shape = (preprocessing.image_size, preprocessing.image_size, 3)
        count = tf.size(items, tf.int64)

        def prepare(place: tf.Tensor, item: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return place, pixels.prepare(encoded(item), preprocessing)

        options = tf.data.Options()
        options.autotune.enabled = False  # it would start a thread for every request
        good = (
            tf.data.Dataset.from_tensor_slices(items)
            .enumerate()
            .map(prepare, num_parallel_calls=_PARALLEL)
            .ignore_errors()
            .concatenate(tf.data.Dataset.from_tensors((count, tf.zeros(shape))))
            .batch(count + 1)
            .with_options(options)
        )
        places, images = good.get_single_element()
        places = places[:, tf.newaxis]
        images = tf.scatter_nd(places, images, tf.stack([count + 1, *shape]))
        found = tf.scatter_nd(places, tf.ones_like(places[:, 0], tf.int32), [count + 1])
        return images[:count], found[:count] > 0


def with_features(model: keras.Model) -> keras.Model:
    """Return the model that gives its last features too.

    Raises:
        ExportError: It does not end in "pool" and "head".
    """
    try:
        pool, head = model.get_layer("pool"), model.get_layer("head")
        if not isinstance(pool, keras.layers.GlobalAveragePooling2D) or not isinstance(
            head, keras.layers.Dense
        ):
            raise ValueError
    except ValueError:
        raise ExportError(
            "The model must end in global average pooling 'pool' and a dense layer 'head', as "
            f"kresnet.build makes it. Received: {model.name!r}, with the last layers "
            f"{', '.join(layer.name for layer in model.layers[-3:])}."
        ) from None
    with deep_graph():
        return keras.Model(model.inputs[0], [pool.input, model.outputs[0]])
