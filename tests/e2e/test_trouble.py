"""A training that is stopped, runs out of memory or disk, or diverges ends as it should."""

import signal
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

import kresnet
from kresnet.console import Console
from kresnet.data.prepare import prepare
from kresnet.errors import ConfigError, Interrupted, ResourceError
from kresnet.train import loop, stages, state
from kresnet.train.plan import plan
from kresnet.train.run import Run
from kresnet.train.score import Score
from kresnet.train.stages import train
from kresnet.zoo import build

SETTINGS = {
    "batch_size": 12,
    "min_area": 0.9,
    "precision": "float32",
    "val": 0.25,
    "test": 0.0,
    "lr": 3e-3,
    "epochs": 3,
    "ema": 0.3,
}
STEPS = 3  # an epoch


class Scripted:
    """Judges weights, then their average, by a list of accuracies; remembers what it saw."""

    def __init__(self, accuracies=()):
        self.accuracies, self.seen, self.model = list(accuracies), [], None

    def __call__(self, model=None, batches=None, **team):
        if model is not None:  # made, by the stages
            self.model = model
            return self
        self.seen.append([v.numpy() for v in self.model.variables if "seed" not in v.path])
        return Score(self.accuracies.pop(0) if self.accuracies else 0.5, 1.0)


@pytest.fixture
def begun(striped, tmp_path, monkeypatch):
    """Make a run of a ResNet-8 that is not yet trained."""

    def begin(name="run", judge=None, **settings):
        monkeypatch.setattr(stages, "Judge", judge or Scripted())
        index = prepare(striped, val=0.25, test=0.0, seed=0)
        recipe = plan(
            data=str(striped),
            num_images=36,
            classes=index.classes,
            variant="resnet8_cifar",
            weights=None,
            image_size=32,
            overrides=SETTINGS | settings,
        )
        run = Run.create(tmp_path / "runs", name, recipe, index)
        assert len(index.select("train")) == STEPS * 12
        return run

    return begin


class Saying(Console):
    """Keeps its lines, and does something when the status shows a given step."""

    def __init__(self, at="", action=None):
        super().__init__(quiet=True)
        self.lines, self._at, self._action = [], at, action

    def line(self, topic, text):
        self.lines.append((topic, text))

    def status(self, text, **_):
        if self._at and self._at in text:
            self._at = ""
            self._action()


def final_state(run):
    """Weights, optimizer, averages and random seeds as they were at the end."""
    arrays, meta = state.load_state(run.states)
    history = [{k: v for k, v in row.items() if k not in ("images_per_s", "wait")}
               for row in meta.pop("history")]  # fmt: skip
    return arrays, meta | {"history": history}


def assert_same(run, other):
    for (arrays, meta), (expected, wanted) in ((final_state(run), final_state(other)),):
        assert meta == wanted
        assert arrays.keys() == expected.keys()
        for name, value in expected.items():
            assert np.array_equal(arrays[name], value), name


def test_weights_averages_and_seeds_resume_bit_for_bit(begun):
    options = {"drop_rate": 0.2, "accumulate": 2, "epochs": 2}
    whole = begun("whole", **options)
    train(whole, Saying())
    run = begun("stopped", **options)
    stopping = Saying("epoch 2/2  step 1/3", lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted, match=r"epoch 2 of 2"):
        train(run, stopping)
    train(Run.open(run.path), Saying())
    assert_same(run, whole)
    assert any("average_" in name for name in final_state(run)[0])


@pytest.mark.slow
def test_an_early_stop_keeps_the_average_that_was_best(begun):
    """Keras' SwapEMAWeights ends on the raw weights here, use_ema saves them all along."""
    judge = Scripted([0.5, 0.75, 0.6, 0.6, 0.5, 0.5])
    run = begun(judge=judge, epochs=9, patience=2)
    console = Saying()
    trained = train(run, console)
    assert len(judge.seen) == 6  # three epochs, weights and average
    assert ("stop", "2 epochs without a better one") in console.lines
    assert trained.validation == Score(0.75, 1.0)
    assert run.info["kept_weights"] == "average"
    kept = [v.numpy() for v in trained.model.variables if "seed" not in v.path]
    for k, (raw, average) in enumerate(zip(judge.seen[0], judge.seen[1], strict=True)):
        np.testing.assert_array_equal(kept[k], average)
        assert not np.array_equal(raw, average), trained.model.variables[k].path


@pytest.mark.slow
def test_patience_is_with_the_stage_and_not_with_what_came_before_it(begun):
    """A fine-tuning that is still below its probe, and gets better, is not at its end."""
    run = begun(judge=Scripted([0.3, 0.1, 0.4, 0.1, 0.5, 0.1, 0.6, 0.1]), epochs=4, patience=1)
    judge = stages.Judge
    probe = Score(0.9, 0.1)
    original = stages.fine_tune

    def after_a_probe(run, model, data, judged, best, console, **options):
        run.save_weights(model)
        run.update(kept="probe")
        return original(run, model, data, judged, probe, console, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "fine_tune", after_a_probe)
        trained = train(run, Saying())
    assert len(judge.seen) == 8
    assert (trained.kept, trained.validation) == ("probe", probe)


def test_weights_are_kept_where_they_are_better_than_their_average(begun):
    judge = Scripted([0.75, 0.5])
    run = begun(judge=judge, epochs=1)
    trained = train(run, Saying())
    assert run.info["kept_weights"] == "weights"
    kept = [v.numpy() for v in trained.model.variables if "seed" not in v.path]
    for a, b in zip(kept, judge.seen[0], strict=True):
        np.testing.assert_array_equal(a, b)


def broken(monkeypatch, fault):
    """Have `fault(number, parts, model)` before each step; what it returns is the loss."""
    original, made, count = loop.train_step, [], [0]

    def step_of(model, optimizer, *, parts, **options):
        made.append(parts)
        step = original(model, optimizer, parts=parts, **options)

        def faulty(*batch):
            count[0] += 1
            loss = fault(count[0], parts, model)
            return step(*batch) if loss is None else loss

        return faulty

    monkeypatch.setattr(loop, "train_step", step_of)
    return made


@pytest.mark.slow
def test_out_of_memory_halves_what_is_computed_at_a_time_and_changes_nothing(begun, monkeypatch):
    expected = begun("expected", accumulate=4, epochs=1, budget_s=1e6)
    train(expected, Saying())

    def fault(number, parts, model):
        if parts < 4:
            model.trainable_variables[0].assign_add(tf.ones(model.trainable_variables[0].shape))
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    made = broken(monkeypatch, fault)
    run = begun("small", epochs=1, budget_s=1e6)
    console = Saying()
    train(run, console)
    assert made == [1, 2, 4]
    said = [text for topic, text in console.lines if topic == "trouble"]
    assert "a batch of 12 is now computed 6 images at a time, with the same result" in said[0]
    assert "3 images at a time" in said[1]
    assert_same(run, expected)


def test_one_image_that_does_not_fit_is_an_error(begun, monkeypatch):
    def fault(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    broken(monkeypatch, fault)
    with pytest.raises(ResourceError, match=r"One image must fit.*image_size=32.*--image-size"):
        train(begun(batch_size=3), Saying())


def test_a_loss_that_is_not_finite_goes_back_with_a_third_of_the_rate(begun, monkeypatch):
    def fault(number, parts, model):
        if number in (2, 7):
            model.trainable_variables[0].assign(
                model.trainable_variables[0] * float("nan")
            )  # as the update that comes with such a loss
            return tf.constant(float("nan"))

    broken(monkeypatch, fault)
    run = begun()
    console = Saying()
    train(run, console)
    said = [text for topic, text in console.lines if topic == "trouble"]
    assert len(said) == 2
    assert "loss nan in epoch 1, step 2 (batch of " in said[0]
    assert "back to the last saved state, with the learning rate divided by 3" in said[0]
    first = run.info["troubles"][0]["files"]
    data = stages.training_data(
        run.recipe, run.index.select("train"), run.preprocessing, num_classes=4
    )
    assert sorted(first) == sorted(row.name for row in data.rows_of(1))
    history = final_state(run)[1]["history"]
    assert float(history[-1]["lr"]) == pytest.approx(3e-3 * 0.01 / 9, rel=0.01)
    assert all(np.isfinite(v).all() for v in load_file(run.weights).values())


def test_the_third_time_it_gives_up_and_names_the_files(begun, monkeypatch):
    broken(monkeypatch, lambda *_: tf.constant(float("inf")))
    run = begun()
    with pytest.raises(ConfigError, match=r"stay finite. Received: loss inf in epoch 1, step 1, a"):
        train(run, Saying())
    assert len(run.info["troubles"]) == 2
    assert state.load_state(run.states)[1]["done"] == 0


def test_weights_that_are_not_finite_are_never_saved(begun, monkeypatch):
    def fault(number, parts, model):
        if number == STEPS:  # the last step's update overflows; its loss was still finite
            model.trainable_variables[-1].assign(model.trainable_variables[-1] + float("inf"))
            return tf.constant(1.0)

    broken(monkeypatch, fault)
    run = begun(epochs=1)
    console = Saying()
    train(run, console)
    assert [t for t, _ in console.lines].count("trouble") == 1
    assert all(np.isfinite(v).all() for v in final_state(run)[0].values())


@pytest.mark.slow
def test_a_full_disk_loses_nothing(begun, monkeypatch):
    whole = begun("whole")
    train(whole, Saying())
    original, calls = state.save_file, []

    def full(arrays, path):
        calls.append(path)
        if len(calls) == 2:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        original(arrays, path)

    monkeypatch.setattr(state, "save_file", full)
    monkeypatch.setattr(loop, "_SAVE_EVERY_S", 0.0)
    run = begun("full")
    with pytest.raises(ResourceError, match=r"No space left.*the last saved state is intact") as e:
        train(run, Saying())
    assert e.value.exit_code == 4
    train(Run.open(run.path), Saying())
    assert_same(run, whole)


class Pressing(Saying):
    """Sends a signal when the status shows something."""

    def __init__(self, at, kind):
        super().__init__(at, lambda: signal.raise_signal(kind))


@pytest.mark.slow
def test_a_job_can_be_stopped_in_every_stage(striped, tmp_path, monkeypatch):
    """In the probe, in a validation, in the last one, and while the export is written."""
    model = build("resnet8_cifar", num_classes=4)
    weights = {f"{la.name}/{v.name}": v.numpy() for la in model.layers for v in la.weights}
    save_file(weights, tmp_path / "weights.safetensors")
    settings = {**SETTINGS, "epochs": 2, "exports": tmp_path / "exports", "data": striped}
    settings |= {"variant": "resnet8_cifar", "weights": str(tmp_path / "weights.safetensors")}
    whole = kresnet.fit(out=tmp_path / "whole", console=Saying(), **settings)

    original, judged = stages.Judge.__call__, []

    def pressing(self):
        judged.append(1)
        if len(judged) in (4, 6):  # of the first epoch, then of the last epoch's average
            signal.raise_signal(signal.SIGINT)
        return original(self)

    monkeypatch.setattr(stages.Judge, "__call__", pressing)
    out, run = tmp_path / "runs", tmp_path / "runs" / striped.name
    with pytest.raises(Interrupted, match=r"what was done is saved. Continue with: kresnet resume"):
        kresnet.fit(out=out, console=Pressing("probe: features", signal.SIGTERM), **settings)
    update = Run.update

    def stopped(self, **fields):
        if "probe" in fields:
            raise KeyboardInterrupt
        update(self, **fields)

    with monkeypatch.context() as patch:  # the probe's weights are written, its score is not
        patch.setattr(Run, "update", stopped)
        with pytest.raises(Interrupted, match=r"what was done is saved"):
            kresnet.resume(run, console=Saying())
    assert Run.open(run).weights.exists()
    assert "probe" not in Run.open(run).info
    for where in ("in epoch 2", "after the last"):
        with pytest.raises(
            Interrupted, match=rf"Stopped {where} of 2, and saved. Continue with: k"
        ):
            kresnet.resume(run, console=Saying())
    with pytest.raises(Interrupted, match=r"what was done is saved"):
        kresnet.resume(run, console=Pressing("checking the SavedModel", signal.SIGTERM))
    assert len(list((tmp_path / "exports" / striped.name).iterdir())) == 1  # that of `whole`
    result = kresnet.resume(run, console=Saying())
    assert result.as_dict()["validation"] == whole.as_dict()["validation"]
    expected, found = (
        load_file(Path(r.run) / "model.weights.safetensors") for r in (whole, result)
    )
    assert all(np.array_equal(found[name], value) for name, value in expected.items())
