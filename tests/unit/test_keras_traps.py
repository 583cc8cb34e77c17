"""What plain Keras gets wrong in silence when a network is fine-tuned, stopped or averaged.

Each test has a control that does it as the guides of Keras do and returns what comes of it, and
the same with kresnet. Where a later Keras has mended a trap, its control fails: then it can go.
"""

import json
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import randomize

from kresnet.console import Console
from kresnet.data.augment.mixing import mix
from kresnet.data.prepare import prepare
from kresnet.errors import Interrupted, ResourceError
from kresnet.train import stages
from kresnet.train.optimizer import optimizer_for
from kresnet.train.plan import plan
from kresnet.train.run import Run
from kresnet.train.schedule import rate_at
from kresnet.train.score import Score
from kresnet.train.state import load_state, restore, save_state
from kresnet.train.step import train_step
from kresnet.zoo import build, freeze_norms

EPOCHS = 3
TIMED = ("images_per_s", "wait")


class Crash(Exception):
    """A process that dies in the middle of a training."""


# ---------------------------------------------------------------- a training of plain Keras


def table(count=24, seed=0):
    """Inputs `(count, 4)` and targets `(count, 2)`."""
    rng = np.random.default_rng(seed)
    return rng.normal(1, 2, size=(count, 4)), rng.normal(size=(count, 2))


def dense(optimizer=None, *, dropout=0.0):
    """A small compiled network, the same every time."""
    keras.utils.set_random_seed(3)
    layers = [keras.Input((4,)), keras.layers.Dense(8), keras.layers.BatchNormalization()]
    layers += [keras.layers.Dropout(dropout)] if dropout else []
    model = keras.Sequential([*layers, keras.layers.Dense(2, name="head")])
    model.compile(optimizer or keras.optimizers.Adam(0.05), "mse", jit_compile=False)
    return model


def averaged():
    return keras.optimizers.SGD(0.2, use_ema=True, ema_momentum=0.9)


def fit(model, epochs=1, callbacks=(), **options):
    """Fit batches of 8 in their order, three an epoch; return the numbers of the epochs."""
    history = model.fit(
        *table(), batch_size=8, shuffle=False, epochs=epochs, verbose=0, callbacks=list(callbacks),
        **options,
    )  # fmt: skip
    return history.epoch


def weights(model):
    return [v.numpy() for v in model.trainable_variables]


def same(first, second):
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def near(first, second):
    """Keras swaps by sums and differences, which costs the last bits."""
    return all(np.allclose(a, b, atol=1e-5) for a, b in zip(first, second, strict=True))


class CrashAt(keras.callbacks.Callback):
    """Ends a fit after a step of an epoch, both from 0."""

    def __init__(self, epoch, step):
        super().__init__()
        self._at, self._epoch = (epoch, step), 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self._epoch, batch) == self._at:
            raise Crash


# ---------------------------------------------------------------- a training of kresnet


class Judging:
    """Stands for the validation: gives scores from a list, and remembers the weights it saw."""

    def __init__(self, accuracies=()):
        self.accuracies, self.seen, self.model = list(accuracies), [], None

    def __call__(self, model=None, batches=None, **team):
        if model is not None:
            self.model = model
            return self
        self.seen.append([v.numpy() for v in self.model.variables])
        return Score(self.accuracies.pop(0) if self.accuracies else 0.5, 1.0)


class Stopping(Console):
    """Presses Ctrl-C when the status shows a given step."""

    def __init__(self, at=None):
        super().__init__(quiet=True)
        self._at = at

    def status(self, text, **_):
        if self._at and self._at in text:
            self._at = None
            signal.raise_signal(signal.SIGINT)


def train(run, judge=None, at=None):
    """Train a run to its end, or to a step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "Judge", judge or Judging())
        return stages.train(run, Stopping(at))


@pytest.fixture(scope="module")
def begin(striped, tmp_path_factory):
    """Make runs of a ResNet-8 with all that a step can depend on."""
    index = prepare(striped, val=0.25, test=0.0, seed=0)
    options = {
        "batch_size": 12, "min_area": 0.9, "precision": "float32", "val": 0.25, "test": 0.0,
        "lr": 3e-3, "epochs": EPOCHS, "ema": 0.3, "drop_rate": 0.2, "drop_path_rate": 0.2,
        "mixup": 0.2,
    }  # fmt: skip

    def begin(**settings):
        recipe = plan(
            data=str(striped),
            num_images=36,
            classes=index.classes,
            variant="resnet8_cifar",
            weights=None,
            image_size=32,
            overrides=options | settings,
        )
        return Run.create(tmp_path_factory.mktemp("runs"), "run", recipe, index)

    return begin


def end_of(run):
    """Weights, statistics, optimizer, averages, seeds and history, but for what is timed."""
    arrays, meta = load_state(run.states)
    return arrays, [{k: v for k, v in row.items() if k not in TIMED} for row in meta["history"]]


@pytest.fixture(scope="module")
def whole(begin):
    """The end of a training that nothing came in the way of."""
    run = begin()
    train(run)
    return end_of(run)


@pytest.fixture(scope="module")
def resumed(begin):
    """The end of the same training, stopped in the second and in the third epoch."""
    run = begin()
    for at in ("epoch 2/3  step 2/3", "epoch 3/3  step 1/3"):
        with pytest.raises(Interrupted):
            train(run, at=at)
    train(run)
    return end_of(run)


@pytest.fixture(scope="module")
def stopped_early(begin):
    """A judge, and what it saw: the first average is best, and patience ends the training."""
    judge = Judging([0.5, 0.75, 0.6, 0.6, 0.5, 0.5])
    run = begin(epochs=9, patience=2)
    return judge, run, train(run, judge)


# ---------------------------------------------------------------- S0: norms that are not frozen


def moved_by_the_guide_of_keras():
    """Freeze the base, fit the head, unfreeze the base, fit: how far a mean of the base moves."""
    inputs = keras.Input((4,))
    base = keras.Model(inputs, keras.layers.BatchNormalization(name="norm")(inputs))
    outside = keras.Input((4,))
    model = keras.Model(outside, keras.layers.Dense(2)(base(outside, training=False)))
    base.trainable = False
    model.compile("sgd", "mse", jit_compile=False)
    fit(model)
    mean = base.get_layer("norm").moving_mean
    assert not mean.numpy().any()  # as long as the base is frozen
    base.trainable = True
    model.compile("sgd", "mse", jit_compile=False)
    fit(model)
    return float(np.abs(mean.numpy()).max())


def test_s0_statistics_of_frozen_norms_stay_when_the_network_is_unfrozen():
    assert moved_by_the_guide_of_keras() > 0.01

    model = randomize(build("resnet8_cifar", num_classes=3))
    model.trainable = False
    model.trainable = True
    freeze_norms(model)
    before = {v.path: v.numpy() for v in model.variables}
    optimizer = optimizer_for(model, "sgd", weight_decay=0.0, layer_decay=1.0, clip_norm=None)
    optimizer.learning_rate = 0.01
    rng = np.random.default_rng(0)
    step = train_step(model, optimizer)
    for _ in range(2):
        images, targets = rng.normal(1, 2, (6, 32, 32, 3)), rng.dirichlet([1, 1, 1], 6)
        step(tf.constant(images, tf.float32), tf.constant(targets, tf.float32), tf.fill((6,), 1.0))
    moved = {v.path for v in model.variables if not np.array_equal(before[v.path], v.numpy())}
    assert moved == {v.path for v in model.trainable_variables}
    assert not any("moving" in path for path in moved)


# ---------------------------------------------------------------- S1, S2: resuming


def second_stage_after_a_resume(folder):
    """A run that crashed is resumed to its end; the epochs of the stage after it are returned."""
    model = dense()
    with pytest.raises(Crash):
        fit(model, 4, [keras.callbacks.BackupAndRestore(folder), CrashAt(3, 0)])
    model = dense()
    assert fit(model, 4, [keras.callbacks.BackupAndRestore(folder)]) == [3]
    return fit(model, 5)


@pytest.mark.slow
def test_s1_no_epoch_is_left_out_after_a_resume(tmp_path, whole, resumed):
    assert second_stage_after_a_resume(tmp_path) != list(range(5))

    assert [row["epoch"] for row in whole[1]] == list(range(1, EPOCHS + 1))
    assert [row["epoch"] for row in resumed[1]] == list(range(1, EPOCHS + 1))


def third_start_after_two_crashes(folder):
    """With a save every step, two processes die in the fourth epoch; where the third begins."""
    for _ in range(2):
        model = dense()
        with pytest.raises(Crash):
            fit(model, 5, [keras.callbacks.BackupAndRestore(folder, save_freq=1), CrashAt(3, 1)])
    return json.loads((folder / "training_metadata.json").read_text())["epoch"]


@pytest.mark.slow
def test_s2_a_second_crash_in_an_epoch_goes_on_from_there(tmp_path, whole, resumed):
    assert third_start_after_two_crashes(tmp_path) < 3

    assert whole[1] == resumed[1]  # a step too many or too few would show in the loss


# ---------------------------------------------------------------- S3, S4: the optimizer's state


def updates_known_after_loading(folder):
    """Save a compiled model, load it into its like: the number of updates and the momenta."""
    model = dense()
    fit(model, 2)
    assert int(model.optimizer.iterations) == 6
    model.save_weights(folder / "model.weights.h5")
    model = dense()
    with pytest.warns(UserWarning, match="optimizer"):
        model.load_weights(folder / "model.weights.h5")
    return int(model.optimizer.iterations)


def adamw(model):
    return optimizer_for(model, "adamw", weight_decay=0.05, layer_decay=0.5, clip_norm=1.0)


def test_s3_a_state_without_its_optimizer_is_refused(tmp_path):
    assert updates_known_after_loading(tmp_path) == 0

    model = randomize(build("resnet8_cifar", num_classes=3))
    optimizer = adamw(model)
    rng = np.random.default_rng(0)
    for v in optimizer.variables:
        v.assign(rng.integers(1, 9, v.shape) if "int" in v.dtype else rng.normal(size=v.shape))
    optimizer.iterations.assign(6)
    values = [np.array(v) for v in optimizer.variables]
    save_state(tmp_path / "states", 6, [*model.variables, *optimizer.variables], {})
    arrays, _ = load_state(tmp_path / "states")

    model = build("resnet8_cifar", num_classes=3)
    optimizer = adamw(model)
    restore([*model.variables, *optimizer.variables], arrays)
    assert int(optimizer.iterations) == 6
    assert same(values, [np.array(v) for v in optimizer.variables])
    unbuilt = keras.optimizers.AdamW(0.1)
    with pytest.raises(ResourceError, match="exactly this run's variables"):
        restore([*model.variables, *unbuilt.variables], arrays)


def rate_after_promotion(folder):
    """What a promoted trial of KerasTuner's Hyperband does: build, load, go on to learn.

    The schedule warms up over 6 updates, which the saved model has made.
    """

    def built():
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0, 20, warmup_target=0.1, warmup_steps=6
        )
        return dense(keras.optimizers.SGD(schedule, momentum=0.9))

    model = built()
    fit(model, 2)
    wanted = float(model.optimizer.learning_rate)
    model.save_weights(folder / "promoted.weights.h5")
    model = built()
    with pytest.warns(UserWarning, match="optimizer"):
        model.load_weights(folder / "promoted.weights.h5")
    return float(model.optimizer.learning_rate), wanted


@pytest.mark.slow
def test_s4_the_rate_follows_from_the_place_in_the_training_alone(tmp_path, begin, whole, resumed):
    rate, wanted = rate_after_promotion(tmp_path)
    assert wanted == pytest.approx(0.1)
    assert rate < 0.01  # warming up again

    recipe = begin().recipe
    rates = [
        recipe.lr * rate_at(epoch / EPOCHS, recipe.schedule, warmup=recipe.warmup)
        for epoch in range(1, EPOCHS + 1)
    ]
    for _, history in (whole, resumed):
        assert [row["lr"] for row in history] == [f"{rate:.3g}" for rate in rates]


# ---------------------------------------------------------------- S5, S6, S14: the average


def ends_on_the_average():
    """Stop early with Keras' average swapped in at the end of each epoch; is it what is left?"""
    raw = []
    keep = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs=None: raw.append(weights(model)),
        on_epoch_end=lambda epoch, logs=None: setattr(model, "stop_training", epoch == 1),
    )
    model = dense(averaged())
    fit(model, 5, [keep, keras.callbacks.SwapEMAWeights(swap_on_epoch=True)])
    assert len(raw) == 6
    assert not near(raw[0], raw[-1])  # nor, then, is the average near the last
    return not near(weights(model), raw[-1])


@pytest.mark.slow
def test_s5_an_early_stop_ends_on_the_average(stopped_early):
    assert ends_on_the_average() is False

    judge, run, trained = stopped_early
    raw, average = judge.seen[:2]
    assert run.info["kept_weights"] == "average"
    assert len(judge.seen) == 6  # of nine epochs only three, each judged as it is and averaged
    kept = [v.numpy() for v in trained.model.trainable_variables]
    places = [k for k, v in enumerate(trained.model.variables) if v.trainable]
    assert same(kept, [average[k] for k in places])
    assert not any(np.array_equal(raw[k], average[k]) for k in places)


def saved_while_averaging(folder):
    """Train with use_ema and a checkpoint an epoch: are weights and means of it averages?"""
    raw = []
    keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: raw.append(weights(model)))
    model = dense(averaged())
    path = folder / "best.weights.h5"
    fit(model, 2, [keep, keras.callbacks.ModelCheckpoint(path, save_weights_only=True)])
    means = model.layers[1].moving_mean.numpy()
    saved = dense(averaged())
    saved.optimizer.build(saved.trainable_variables)
    saved.load_weights(path)
    found = saved.layers[1].moving_mean.numpy()
    return not same(weights(saved), raw[-1]), not np.array_equal(found, means)


def test_s6_what_is_judged_and_saved_is_the_average_with_its_statistics(tmp_path, stopped_early):
    assert saved_while_averaging(tmp_path) == (False, False)

    judge, _, trained = stopped_early
    raw, average = judge.seen[:2]
    for k, v in enumerate(trained.model.variables):
        if "seed" not in v.path:
            assert not np.array_equal(raw[k], average[k]), v.path
            np.testing.assert_array_equal(v.numpy(), average[k])  # what was kept was judged
    assert any(v.name == "moving_variance" for v in trained.model.variables)


def in_one_fit_and_in_one_an_epoch():
    """The weights after three epochs with use_ema, before Keras puts the average in place."""
    ends = []
    for fits in ([(0, 3)], [(0, 1), (1, 2), (2, 3)]):
        raw = []
        keep = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: raw.append(weights(model)))  # noqa: B023
        model = dense(averaged())
        for first, last in fits:
            fit(model, last, [keep], initial_epoch=first)
        ends.append(raw[-1])
    return ends


@pytest.mark.slow
def test_s14_stopping_between_epochs_trains_the_same(whole, resumed):
    assert not same(*in_one_fit_and_in_one_an_epoch())

    names = [name for name in whole[0] if "average_" in name]
    assert len(names) > 20
    assert all(np.array_equal(whole[0][name], resumed[0][name]) for name in names)


# ---------------------------------------------------------------- S7: weights of mixed images

PER_CLASS = {0: 1.0, 1: 10.0}
MIXED = np.array([[0.6, 0.4], [0.4, 0.6]], np.float32)


def weights_of_mixed_images():
    """How much more each image counts with class_weight than without, one image a batch."""
    found = []
    for k in range(len(MIXED)):
        losses = []
        for per_class in (None, PER_CLASS):
            keras.utils.set_random_seed(0)
            model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
            loss = keras.losses.CategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.SGD(0.0), loss, jit_compile=False)
            x = np.array([[0.3, -1.2, 0.8]])
            losses.append(model.train_on_batch(x, MIXED[k : k + 1], class_weight=per_class))
        found.append(float(losses[1] / losses[0]))
    return found


def test_s7_a_mixed_image_weighs_what_it_shows():
    expected = MIXED @ list(PER_CLASS.values())  # 4.6 and 6.4
    assert weights_of_mixed_images() != pytest.approx(expected, rel=0.1)

    images = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype("float32")
    own = np.array(list(PER_CLASS.values()), np.float32)  # an image of each class
    for seed in range(5):
        seeds = tf.constant([[seed, 0], [seed, 1]], tf.int64)
        _, targets, found = mix(
            images, np.eye(2, dtype="float32"), own, seeds, mixup=1.0, cutmix=0.0
        )
        assert 0.0 < float(targets[0, 0]) < 1.0  # it is mixed
        np.testing.assert_allclose(found, targets.numpy() @ own, rtol=1e-5)


# ---------------------------------------------------------------- S15: random seeds


def resumed_with_dropout(folder, dropout):
    """Whether two epochs, a save, a load with the optimizer built, and two more are four."""
    model = dense(dropout=dropout)
    fit(model, 4)
    wanted = weights(model)
    model = dense(dropout=dropout)
    fit(model, 2)
    model.save_weights(folder / "model.weights.h5")
    model = dense(dropout=dropout)
    model.optimizer.build(model.trainable_variables)
    model.load_weights(folder / "model.weights.h5")
    fit(model, 4, initial_epoch=2)
    return same(wanted, weights(model))


def test_s15_the_seeds_of_dropout_are_resumed(tmp_path, whole, resumed):
    assert resumed_with_dropout(tmp_path, 0.0) is True  # nothing else is lost
    assert resumed_with_dropout(tmp_path, 0.5) is False

    expected, found = whole[0], resumed[0]
    seeds = [name for name in expected if "seed" in name]
    assert seeds
    assert any(expected[name].any() for name in seeds)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
