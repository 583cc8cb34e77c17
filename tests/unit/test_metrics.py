"""The numbers of an evaluation, against hand-made cases and scikit-learn."""

import numpy as np
import pytest

from kresnet.errors import DataError
from kresnet.evaluate.metrics import evaluation, save_confusion_picture, wilson_interval

CLASSES = ("ant", "bee", "cat, grey")


def random_case(seed=0, n=200):
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=[0.6, 0.3, 0.1])
    probabilities = rng.dirichlet([1, 1, 1], n)
    probabilities[np.arange(n), labels] += 0.6
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels


def test_agrees_with_scikit_learn():
    from sklearn import metrics

    probabilities, labels = random_case()
    result = evaluation(probabilities, labels, CLASSES)
    said = probabilities.argmax(axis=1)
    assert result.n == 200
    assert result.accuracy == metrics.accuracy_score(labels, said)
    assert result.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(labels, said))
    assert result.loss == pytest.approx(metrics.log_loss(labels, probabilities))
    np.testing.assert_array_equal(result.matrix, metrics.confusion_matrix(labels, said))
    table = metrics.precision_recall_fscore_support(labels, said)
    for row, precision, recall, f1, n in zip(result.per_class(), *table, strict=True):
        assert (row["precision"], row["recall"], row["f1"], row["n"]) == pytest.approx(
            (precision, recall, f1, n)
        )


@pytest.mark.parametrize(("right", "n"), [(148, 153), (0, 10), (10, 10), (1, 2), (990, 1000)])
def test_wilson_interval(right, n):
    from scipy.stats import binomtest

    oracle = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson_interval(right, n) == pytest.approx((oracle.low, oracle.high), abs=1e-12)


def test_a_class_that_never_occurs_is_undefined_not_zero():
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0], [0.7, 0.3, 0.0]])
    result = evaluation(probabilities, np.array([0, 1, 1]), CLASSES)
    last = result.per_class()[2]
    assert last == {"class": "cat, grey", "n": 0, "precision": None, "recall": None, "f1": None}
    assert result.balanced_accuracy == pytest.approx((1 + 0.5) / 2)
    assert result.confusions() == [("bee", "ant", 1)]
    assert "-" in result.table().splitlines()[-1]


def test_text_says_how_sure_it_is():
    probabilities, labels = random_case()
    text = str(evaluation(probabilities, labels, CLASSES))
    assert text.startswith("0.")
    assert "95 %" in text
    assert "n=200" in text


@pytest.mark.parametrize(
    ("probabilities", "labels"), [(np.zeros((0, 3)), []), (np.ones((2, 2)), [0, 1])]
)
def test_shapes_that_do_not_agree_are_refused(probabilities, labels):
    with pytest.raises(DataError, match=r"one row of probabilities for each of at least one image"):
        evaluation(probabilities, np.array(labels, int), CLASSES)


@pytest.mark.parametrize("count", [2, 60])
def test_confusion_picture_is_written(tmp_path, count):
    from PIL import Image

    rng = np.random.default_rng(0)
    result = evaluation(
        rng.dirichlet(np.ones(count), 300),
        rng.integers(0, count, 300),
        [f"c{k}" for k in range(count)],
    )
    save_confusion_picture(result, tmp_path / "m.png", title="validation")
    picture = np.asarray(Image.open(tmp_path / "m.png").convert("L"))
    assert min(picture.shape) > 300
    assert picture.std() > 5  # something is drawn
