"""Temperatures, calibration errors and thresholds, against known cases and slow oracles."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from kresnet.errors import DataError
from kresnet.evaluate.calibrate import (
    abstention,
    answered,
    calibration,
    expected_calibration_error,
    fit_temperature,
    probabilities,
    reliability,
)
from kresnet.evaluate.metrics import wilson_interval


def drawn(n, k, *, scale=1.0, spread=2.0, seed=0):
    """Logits whose softmax tells the truth about the labels, made `scale` times as sure."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, k)) * spread
    labels = np.array([rng.choice(k, p=p) for p in softmax(logits, axis=1)])
    return (logits * scale).astype(np.float32), labels


def loss(logits, labels, temperature=1.0):
    logs = log_softmax(logits.astype(np.float64) / temperature, axis=1)
    return -logs[np.arange(len(labels)), labels].mean()


cases = st.builds(
    drawn,
    st.integers(1, 60),
    st.integers(2, 7),
    scale=st.floats(0.05, 20),
    spread=st.floats(0.1, 5),
    seed=st.integers(0, 2**32 - 1),
)


# ---------------------------------------------------------------- temperature


@pytest.mark.parametrize("scale", [0.4, 1.0, 1.7, 3.0])
def test_what_made_logits_too_sure_is_found(scale):
    logits, labels = drawn(8000, 4, scale=scale, seed=3)
    found = fit_temperature(logits, labels)
    assert found.value == pytest.approx(scale, rel=0.06)
    low, high = found.interval
    assert 1.05 < high / low < 1.2


def test_the_interval_holds_the_truth_nearly_always():
    held = 0
    for seed in range(40):
        low, high = fit_temperature(*drawn(400, 3, scale=2, seed=seed)).interval
        held += low < 2 < high
        assert 1.1 < high / low < 2.5
    assert 34 <= held <= 40  # 95 %


def test_it_is_the_minimum_that_lbfgs_finds():
    logits, labels = drawn(400, 5, scale=2.5, seed=1)

    def cost(place):
        return loss(logits, labels, np.exp(place[0])) * len(labels) + place[0] ** 2 / 2

    oracle = minimize(cost, [0.0], method="L-BFGS-B")
    assert fit_temperature(logits, labels).value == pytest.approx(np.exp(oracle.x[0]), rel=1e-4)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_the_likelihood_is_never_worse_and_no_answer_changes(case):
    logits, labels = case
    found = fit_temperature(logits, labels)
    assert 0.1 <= found.value <= 10
    assert found.interval[0] <= found.value <= found.interval[1]
    assert loss(logits, labels, found.value) <= loss(logits, labels) + 1e-12
    scores = probabilities(logits, found.value)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-12)
    assert np.array_equal(scores.argmax(axis=1), logits.argmax(axis=1))


@settings(max_examples=20, deadline=None)
@given(cases, st.floats(-30, 30))
def test_what_all_logits_share_and_the_order_of_images_do_not_count(case, shift):
    logits, labels = case
    order = np.random.default_rng(0).permutation(len(labels))
    one = fit_temperature(logits, labels).value
    other = fit_temperature((logits.astype(np.float64) + shift)[order], labels[order]).value
    assert other == pytest.approx(one, rel=1e-3)


def test_ten_images_that_are_all_right_do_not_make_a_model_infinitely_sure():
    rng = np.random.default_rng(5)
    logits, labels = rng.normal(size=(10, 3)), rng.integers(0, 3, 10)
    logits[np.arange(10), labels] += 6
    found = fit_temperature(logits, labels)
    assert 0.5 < found.value < 1  # the likelihood alone has its best at zero
    assert loss(logits, labels, 0.1) < loss(logits, labels, found.value)


def test_fewer_images_give_a_wider_interval():
    logits, labels = drawn(2000, 4, scale=2, seed=9)
    (low, high), (a, b) = (fit_temperature(logits[:n], labels[:n]).interval for n in (40, 2000))
    assert high / low > 1.5 * b / a


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), r"at least one image. Received: values \(0, 3\)"),
        (np.zeros((2, 3)), np.zeros(3, int), r"one row of values for each"),
        (np.array([[0.5, np.nan], [1, 2]]), np.array([0, 1]), r"finite values. Received: 1 of 2"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(logits, labels, message):
    with pytest.raises(DataError, match=message):
        fit_temperature(logits, labels)
    with pytest.raises(DataError, match=message):
        calibration(logits, labels)


# ---------------------------------------------------------------- errors


def test_the_error_of_a_case_that_is_done_by_hand():
    best = np.array([0.95, 0.95, 0.95, 0.95, 0.61, 0.61])
    right = np.array([True, True, True, False, False, True])
    # |0.75 - 0.95| on four of six images, |0.5 - 0.61| on two
    assert expected_calibration_error(best, right) == pytest.approx((4 * 0.2 + 2 * 0.11) / 6)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 200), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_errors_are_those_of_a_slow_loop(n, bins, seed):
    rng = np.random.default_rng(seed)
    best, right = rng.beta(3, 1, n), rng.random(n) < 0.7
    slow = 0.0
    for k in range(bins):
        inside = [j for j in range(n) if k / bins <= best[j] < (k + 1) / bins]
        if inside:
            slow += len(inside) / n * abs(best[inside].mean() - right[inside].mean())
    found = expected_calibration_error(best, right, bins=bins)
    assert found == pytest.approx(slow, abs=1e-12)
    in_order = np.argsort(best)
    parts = [in_order[[j * bins // n == k for j in range(n)]] for k in range(bins)]
    slow = sum(abs(best[p].mean() - right[p].mean()) * len(p) / n for p in parts if len(p))
    found = expected_calibration_error(best, right, bins=bins, equal_mass=True)
    assert found == pytest.approx(slow, abs=1e-12)
    overall = abs(best.mean() - right.mean())
    assert overall - 1e-12 <= found <= 1


def test_a_temperature_mends_the_error_of_a_model_that_is_too_sure():
    logits, labels = drawn(4000, 5, scale=3, seed=2)
    held_logits, held_labels = drawn(4000, 5, scale=3, seed=20)
    value = fit_temperature(logits, labels).value
    before, after = (calibration(probabilities(held_logits, t), held_labels) for t in (1.0, value))
    assert before.ece > 0.15 > 0.03 > after.ece
    assert before.ece_equal_mass > 0.15 > 0.04 > after.ece_equal_mass
    assert after.loss < before.loss
    assert after.ece < after.ece_by_chance * 1.3
    assert before.ece > before.ece_by_chance


def test_chance_alone_gives_errors_on_few_images():
    rng = np.random.default_rng(1)
    inside = 0
    for seed in range(60):  # models that are perfect by construction
        best = rng.uniform(0.5, 1, 90)
        scores = np.stack([best, 1 - best], axis=1)
        result = calibration(scores, (rng.random(90) > best).astype(int), seed=seed)
        inside += result.ece <= result.ece_by_chance
    assert 51 <= inside <= 60  # 95 %
    assert result.ece_by_chance > 0.05  # so an error of 0.05 would mean nothing here


def test_a_reliability_diagram_counts_every_image_once():
    logits, labels = drawn(300, 4, seed=4)
    scores = probabilities(logits, 1.3)
    bins = reliability(scores.max(axis=1), scores.argmax(axis=1) == labels)
    assert len(bins) == 15
    assert sum(b.n for b in bins) == 300
    assert sum(b.accuracy * b.n for b in bins if b.n) == pytest.approx(
        (scores.argmax(axis=1) == labels).sum()
    )
    for b in bins:
        if b.n:
            assert b.low <= b.confidence <= b.high
            assert b.interval[0] <= b.accuracy <= b.interval[1]
        else:
            assert b.accuracy is b.confidence is b.interval is None
    assert any(b.n == 0 for b in bins)  # four classes are never below a quarter


# ---------------------------------------------------------------- when to give no answer


@settings(max_examples=60, deadline=None)
@given(cases, st.floats(0.3, 0.99))
def test_the_threshold_is_the_lowest_that_reaches_the_target(case, target):
    logits, labels = case
    scores = probabilities(logits, 1.0)
    best, right = scores.max(axis=1), scores.argmax(axis=1) == labels
    found = abstention(scores, labels, target)

    def reached(level, basis):
        hits, n = int(right[best >= level].sum()), int((best >= level).sum())
        share = hits / n
        return (wilson_interval(hits, n, z=1.6448536269514722)[0]
                if basis == "lower bound" else share) >= target  # fmt: skip

    levels = np.unique(best)
    if found.threshold is None:
        assert not any(reached(level, "estimate") for level in levels)
        return
    if found.basis == "estimate":
        assert not any(reached(level, "lower bound") for level in levels)
    said = best >= found.threshold
    assert found.n == said.sum()
    assert found.coverage == pytest.approx(said.mean())
    assert found.precision == pytest.approx(right[said].mean())
    assert reached(best[said].min(), found.basis)
    assert not any(reached(level, found.basis) for level in levels[levels < best[said].min()])
    assert np.abs(best - found.threshold).min() > 0 or len(np.unique(best)) == 1
    told = answered(scores, labels, found.threshold)
    assert (told["n"], told["precision"]) == (found.n, found.precision)


def test_few_images_are_said_to_be_few():
    best = np.linspace(0.6, 0.99, 40)
    scores, labels = np.stack([best, 1 - best], axis=1), (best < 0.7).astype(int)
    found = abstention(scores, labels, 0.95)  # 30 right of 30 have a lower bound of 0.917
    assert found.basis == "estimate"
    assert "too few images to be sure of it" in str(found)
    scores, labels = np.repeat(scores, 5, axis=0), np.repeat(labels, 5)
    sure = abstention(scores, labels, 0.95)
    assert sure.basis == "lower bound"
    assert sure.threshold >= found.threshold
    assert "abstains: answers" in str(sure)


def test_a_target_that_cannot_be_reached_is_said_to_be():
    scores = np.array([[0.9, 0.1], [0.8, 0.2]])
    found = abstention(scores, np.array([1, 0]), 0.9)
    assert found.threshold is None
    assert "no threshold reaches a precision of 90.0%" in str(found)


def test_a_model_that_is_good_enough_answers_always():
    scores = np.tile([[0.9, 0.1], [0.3, 0.7]], (60, 1))
    found = abstention(scores, np.tile([0, 1], 60), 0.95)
    assert (found.threshold, found.coverage, found.basis) == (0.0, 1.0, "lower bound")
