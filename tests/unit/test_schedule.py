"""The learning rate rises and falls as its schedule says."""

import numpy as np
import pytest

from kresnet.train import schedule as schedules
from kresnet.train.schedule import one_cycle, rate_at, size_at, warmup_cosine


def test_cosine_rises_then_falls_to_one_percent():
    rates = [warmup_cosine(p, warmup=0.1) for p in np.linspace(0.001, 1.0, 1000)]
    assert rates[0] == pytest.approx(0.01)
    assert np.argmax(rates) == pytest.approx(99, abs=1)
    assert max(rates) <= 1.0
    assert rates[-1] == pytest.approx(0.01)
    assert warmup_cosine(0.55, warmup=0.1) == pytest.approx(0.505)
    assert warmup_cosine(0.0, warmup=0.0) == 1.0


def test_one_cycle_is_fastais():
    rates = [one_cycle(p, warmup=0.25) for p in (0.0, 0.125, 0.25, 0.625, 1.0)]
    assert rates == pytest.approx([1 / 25, (1 + 1 / 25) / 2, 1.0, (1 + 1e-5) / 2, 1e-5])


def test_steps_fall_to_a_tenth_after_each_drop():
    he = [rate_at(p, "steps", warmup=0.0, drops=(0.5, 0.75)) for p in (0.1, 0.5, 0.51, 0.75, 0.76)]
    assert he == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01])
    assert rate_at(0.05, "steps", warmup=0.2, drops=(0.4,)) == pytest.approx(0.25)


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle", "steps"])
def test_no_schedule_jumps_up_or_exceeds_its_peak(schedule):
    points = np.linspace(0.0005, 1.0, 2000)
    rates = np.array([rate_at(p, schedule, warmup=0.3, drops=(0.6,)) for p in points])
    assert rates.max() == pytest.approx(1.0, abs=1e-3)
    assert rates.min() > 0.0
    assert np.diff(rates).max() < 0.01


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle", "steps"])
def test_the_schedule_is_chosen_by_name(schedule):
    others = {"cosine", "one-cycle", "steps"} - {schedule}
    at = {s: rate_at(0.7, s, warmup=0.1, drops=(0.2,)) for s in ("cosine", "one-cycle", "steps")}
    assert all(abs(at[schedule] - at[other]) > 1e-3 for other in others)


def test_images_grow_to_their_size_in_whole_strides():
    sizes = [size_at(epoch / 20, 224, growing=0.4) for epoch in range(20)]
    assert sizes[:8] == [128, 128, 128, 160, 160, 160, 192, 192]
    assert sizes[8:] == [224] * 12
    assert {size_at(p, 224, growing=0.0) for p in (0.0, 0.5, 1.0)} == {224}
    assert [size_at(p, 100, growing=0.9) for p in (0.0, 0.6, 0.95)] == [32, 64, 100]
    assert {size_at(p, 32, growing=0.5) for p in np.linspace(0, 1, 9)} == {32}


@pytest.mark.parametrize(
    ("side", "larger"), [(224, (256, 288)), (160, (192,)), (64, (96,)), (32, ()), (384, (448, 480))]
)
def test_tests_are_at_1_15_and_1_28_of_the_size(side, larger):
    assert schedules.test_sizes(side) == larger
