"""A score is told with its interval, and compared without it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kresnet.train.judge import Judge
from kresnet.train.score import Score


def test_a_score_is_told_with_half_of_its_interval():
    assert str(Score(0.912, 0.3384, 680)) == "0.912 ±.021 (loss 0.338)"
    assert str(Score(1.0, 0.01, 10)) == "1.000 ±.139 (loss 0.010)"
    assert str(Score(0.912, 0.3384)) == "0.912 (loss 0.338)"


def test_accuracy_decides_and_then_the_loss():
    best = Score(0.9, 0.3, 10)
    assert best.beats(None)
    assert best.beats(Score(0.9, 0.4, 10))
    assert best.beats(Score(0.8, 0.1, 10))
    assert not best.beats(best)
    assert best == Score(0.9, 0.3)  # as from a run that did not count


def test_every_image_counts_once_in_batches_of_any_size():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(11, 3)).astype("float32")
    labels = rng.integers(3, size=11).astype("int32")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Rescaling(2.0)(inputs))
    batches = tf.data.Dataset.from_tensor_slices((logits, labels)).batch(4)
    found = Judge(model, batches)()
    assert found.n == 11
    assert found.accuracy == pytest.approx((logits.argmax(axis=1) == labels).mean())
    shares = np.exp(2 * logits.astype("float64"))
    shares /= shares.sum(axis=1, keepdims=True)
    assert found.loss == pytest.approx(-np.log(shares[np.arange(11), labels]).mean(), rel=1e-5)
