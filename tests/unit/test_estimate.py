"""Times are arithmetic on speeds that were measured, kept by machine, and change nothing else."""

import json
from hashlib import sha256

import pytest
import tensorflow as tf

from kresnet.console import Console
from kresnet.data.prepare import prepare
from kresnet.errors import ConfigError
from kresnet.train import estimate as estimates
from kresnet.train.estimate import Estimate, about, estimated, remember
from kresnet.train.plan import plan
from kresnet.train.run import Run
from kresnet.train.stages import train
from kresnet.zoo.size import measure, measure_front
from kresnet.zoo.variants import variant_config

LEARN, LOOK, FRESH, KEPT = 0.05, 0.01, 0.006, 0.002


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("KRESNET_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def index(striped):
    return prepare(striped, val=0.25, test=0.25, seed=0)  # 24, 12 and 12 images


@pytest.fixture
def speeds(monkeypatch):
    """Speeds of a machine without a GPU, by the number."""
    monkeypatch.setattr(estimates, "_network_speed", lambda *args: (LEARN, LOOK))
    monkeypatch.setattr(estimates, "_input_speed", lambda *args: (FRESH, KEPT))
    monkeypatch.setattr(estimates, "has_gpu", lambda: False)


def recipe(weights=None, variant="resnet8_cifar", **given):
    defaults = {"precision": "float32", "batch_size": 6, "epochs": 4, "min_area": 0.9}
    return plan(
        data="photos", num_images=24, classes=("a cat", "a dog"), variant=variant,
        weights=weights, image_size=32, overrides=defaults | given,
    )  # fmt: skip


def test_the_time_is_the_sum_of_what_is_done(speeds, index):
    found = estimated(recipe(ema=0.1), index)
    epoch = 24 * (LEARN + KEPT) + 2 * 12 * LOOK
    once = 24 * (LOOK + FRESH) + 24 * (FRESH - KEPT)
    assert found.epoch_s == pytest.approx(epoch)
    assert found.once_s == pytest.approx(once)
    assert found.probe_s == 0.0
    assert found.seconds == pytest.approx(once + 4 * epoch + found.rest_s)
    probed = estimated(recipe("imagenet", epochs=0, probe_views="center"), index)
    assert probed.probe_s == pytest.approx(36 * (LOOK + FRESH))
    mirrored = estimated(recipe("imagenet", epochs=0, probe_views="mirror", flip=True), index)
    assert mirrored.probe_s == pytest.approx((2 * 24 + 12) * (LOOK + FRESH))
    assert probed.seconds == pytest.approx(probed.probe_s + 24 * (LOOK + FRESH) + probed.rest_s)


def test_what_is_refined_has_its_time(speeds, index):
    plain = estimated(recipe(image_size=96), index)
    larger = estimated(recipe(image_size=96, larger_test=True), index)
    sides = estimates.test_sizes(96)
    assert sides == (128,)
    assert larger.once_s - plain.once_s == pytest.approx(12 * (LOOK * (128 / 96) ** 2 + FRESH))
    soup = estimated(recipe(soup=3, ema=0.1, recalibrate=True), index)
    assert soup.once_s - plain.once_s == pytest.approx(5 * (12 + 24) * LOOK)  # 4 tries, 1 before
    grown = estimated(recipe(image_size=64, progressive=0.5), index)
    assert grown.epoch_s - 12 * LOOK - 24 * KEPT == pytest.approx(
        24 * LEARN * (32**2 + 32**2 + 64**2 + 64**2) / 4 / 64**2
    )


def test_behind_a_cut_an_epoch_is_the_rest_of_the_network(speeds, index):
    cut = {"train_from": 3, "cut_cache": "memory", "cut_views": 2, "flip": False}
    whole, found = (estimated(recipe("imagenet", **given), index) for given in ({}, cut))
    config = variant_config("resnet8_cifar")
    share = measure_front(config, 3, image_size=32).macs / measure(config, num_classes=0).macs
    assert 0.3 < share < 0.8
    assert found.epoch_s == pytest.approx(24 * LEARN + 12 * LOOK * (1 - share))
    once = 2 * 24 * (LOOK * share + KEPT) + 12 * LOOK * share
    assert found.once_s - whole.once_s == pytest.approx(once)
    few = estimated(recipe("imagenet", **cut | {"epochs": 1}), index)
    assert found.once_s - few.once_s == pytest.approx(24 * (LOOK * share + KEPT))


def test_the_speed_behind_a_cut_is_one_of_its_own(index, monkeypatch):
    monkeypatch.setattr(estimates, "_timed_network", lambda *args: (0.9, 0.3))
    monkeypatch.setattr(estimates, "_timed_input", lambda *args: (FRESH, KEPT))
    monkeypatch.setattr(estimates, "has_gpu", lambda: False)
    whole = estimated(recipe(train_from=3), index)
    cut = estimated(recipe(train_from=3, cut_cache="memory"), index)
    assert 0 < cut.epoch_s < whole.epoch_s
    assert estimated(recipe(train_from=3), index) == whole


def test_a_gpu_computes_while_the_processor_reads(speeds, index, monkeypatch):
    monkeypatch.setattr(estimates, "has_gpu", lambda: True)
    assert estimated(recipe(), index).epoch_s == pytest.approx(24 * LEARN + 12 * LOOK)


def test_a_budget_leaves_as_many_epochs_as_fit(speeds, index):
    whole = estimated(recipe(epochs=50), index)
    short = estimated(recipe(epochs=50, budget_s=60.0), index, spent_s=12.0)
    left = 60 - 12 - short.once_s - estimates.FINISHING_S
    assert short.epochs == int(left / whole.epoch_s) < 50
    assert short.seconds < 60
    assert estimated(recipe(epochs=50, budget_s=1.0), index).epochs == 1  # there must be one
    assert estimated(recipe("imagenet", epochs=50, budget_s=1.0), index).epochs == 0
    assert f"up to {short.epochs} of 50 epochs" in str(short)
    assert "no time for an epoch of" in str(estimated(recipe("imagenet", budget_s=1.0), index))


def done(index, folder, made, speeds=(), probe=None):
    """A run as a training leaves it, of epochs at these images a second."""
    run = Run.create(folder, "run", made, index)
    run.write_metrics([{"epoch": k, "images_per_s": s} for k, s in enumerate(speeds)])
    run.update(probe=probe)
    return run


def test_the_rest_is_what_it_took_the_last_times(speeds, index, tmp_path):
    made = recipe()
    first = estimated(made, index)
    assert first.rest_s == estimates.FINISHING_S
    run = done(index, tmp_path, made, speeds=(12.0, 16.0), probe={"seconds": 3.0})
    took = 24 / 12 + 24 / 16 + 2 * 12 * LOOK + first.once_s + 3.0
    for rest in (900, 10, 12, 11, 13, 11):
        remember(run, first, took + rest)
    again = estimated(made, index)
    assert again.rest_s == pytest.approx(11, abs=0.1)  # the median of the last five
    assert again.seconds == pytest.approx(first.seconds - estimates.FINISHING_S + again.rest_s)
    assert estimated(recipe(variant="resnet20_cifar"), index).rest_s == estimates.FINISHING_S


def test_a_training_corrects_the_speed(index, tmp_path, monkeypatch):
    monkeypatch.setattr(estimates, "_timed_network", lambda *args: (0.9, 0.3))
    monkeypatch.setattr(estimates, "_timed_input", lambda *args: (FRESH, KEPT))
    monkeypatch.setattr(estimates, "has_gpu", lambda: False)
    made = recipe()
    first = estimated(made, index)
    remember(done(index, tmp_path, made, speeds=(2.0, 8.0, 4.0)), first, 100.0)
    small = recipe(image_size=64, progressive=0.9)
    grown = estimated(small, index)
    remember(done(index, tmp_path, small, speeds=(50.0, 50.0)), grown, 100.0)
    assert estimated(small, index).epoch_s == grown.epoch_s  # no epoch was of the full size
    again = estimated(made, index)
    assert again.epoch_s - again.judge_s == pytest.approx(24 / 8)
    assert again.judge_s / first.judge_s == pytest.approx(
        (1 / 8 - KEPT) / (first.epoch_s / 24 - first.judge_s / 24 - KEPT)
    )


def test_multiplications_are_counted_where_gradients_flow():
    config, whole, last = variant_config("resnet20_cifar"), recipe(), recipe(train_from=3)
    learn, look = estimates._macs(config, whole, 4)
    assert learn == 3 * look
    frozen = estimates._macs(config, last, 4)
    assert frozen[1] == look
    assert look < frozen[0] < learn
    # Three stages of ResNet-20 multiply about as often each.
    assert frozen[0] / look == pytest.approx(1 + 2 / 3, abs=0.1)


def test_speeds_are_measured_once_and_kept(home, index, monkeypatch):
    made = recipe()
    found = estimated(made, index)
    assert min(found.epoch_s, found.once_s) > 0
    kept = json.loads((home / "speed.json").read_text())
    assert len(kept) == 2
    assert all(value > 0 for values in kept.values() for value in values)
    for name in ("_timed_network", "_timed_input"):
        monkeypatch.setattr(estimates, name, None)  # to be measured no more
    assert estimated(made, index) == found
    with pytest.raises(TypeError):
        estimated(recipe(variant="resnet20_cifar"), index)


@pytest.mark.parametrize("text", ["", "[1", '{"a": 3}', '{"a": ["x"]}', "[]"])
def test_a_damaged_memory_is_forgotten(home, text):
    home.mkdir()
    (home / "speed.json").write_text(text)
    assert estimates._kept() == {}
    estimates._keep("b", [1.5, 2.0])
    assert estimates._kept() == {"b": [1.5, 2.0]}


def test_nothing_is_said_where_nothing_can_be_measured(index, monkeypatch):
    def fails(*args):
        raise tf.errors.ResourceExhaustedError(None, None, "no memory")

    monkeypatch.setattr(estimates, "_timed_network", fails)
    assert estimated(recipe(), index) is None


def test_a_stage_that_is_not_there_is_told_at_once(index):
    with pytest.raises(ConfigError, match=r"train_from=7"):
        estimated(recipe(train_from=7), index)


@pytest.mark.slow
def test_measuring_changes_nothing_of_the_training(index, tmp_path):
    """Keras' and TensorFlow's seeds and names must be what they are without it."""
    digests = []
    for name in ("plain", "measured"):
        made = recipe(epochs=1, drop_rate=0.3, drop_path_rate=0.2)
        run = Run.create(tmp_path / "runs", name, made, index)
        if name == "measured":
            assert estimated(made, index) is not None
        train(run, Console(quiet=True))
        digests.append(sha256(run.weights.read_bytes()).hexdigest())
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (4.23, "4.2 s"),
        (9.97, "10 s"),
        (99, "99 s"),
        (250, "4 min"),
        (9000, "2.5 h"),
    ],
)
def test_times_are_no_more_exact_than_they_are_known(seconds, text):
    assert about(seconds) == text


def test_an_estimate_is_told_in_a_line():
    found = Estimate(8.2, 21.4, 2.0, 9, 15, 3.0, 25.0, 228.8)
    assert str(found) == ("about 4 min: probe 8.2 s, up to 9 of 15 epochs of 21 s, the rest 28 s")
    assert json.loads(json.dumps(found.as_dict()))["epoch_s"] == 21.4
