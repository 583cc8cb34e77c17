"""What is tried beside a training: growing images, a soup, exact statistics, a larger test size."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import kresnet
from kresnet.console import Console
from kresnet.data.prepare import prepare
from kresnet.evaluate.predict import predict_logits
from kresnet.export.contract import Contract
from kresnet.train import loop, refine, stages, state
from kresnet.train.average import moving_variables
from kresnet.train.judge import Judge
from kresnet.train.plan import plan
from kresnet.train.run import Run
from kresnet.train.score import Score
from kresnet.train.soup import from_meta, read
from kresnet.train.stages import train

SETTINGS = {
    "batch_size": 12,
    "min_area": 0.9,
    "precision": "float32",
    "val": 0.25,
    "test": 0.0,
    "lr": 3e-3,
    "epochs": 4,
    "ema": 0.3,
    "image_size": 64,
}


@pytest.fixture
def begin(striped, tmp_path):
    """Make a run of a ResNet-8 that is not yet trained."""

    def made(name="run", **settings):
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
        return Run.create(tmp_path / "runs", name, recipe, index)

    return made


class Saying(Console):
    """Keeps its lines."""

    def __init__(self):
        super().__init__(quiet=True)
        self.lines = {}

    def line(self, topic, text):
        self.lines[topic] = text


GAIN = {}  # of accuracy, by image size


class Dreaming(Judge):
    """Finds larger images better than those of the training, by as much as it is told."""

    def __init__(self, model, batches, **team):
        super().__init__(model, batches, **team)
        self._size = batches.element_spec[0].shape[1]

    def __call__(self):
        score = super().__call__()
        return Score(min(0.5 + GAIN.get(self._size, 0.0), 1.0), score.loss)


@pytest.mark.slow
def test_growing_images_are_fed_in_their_sizes(begin, monkeypatch):
    original, fed = loop.train_step, []

    def spying(*arguments, **options):
        step = original(*arguments, **options)

        def counted(images, targets, weights):
            fed.append(tuple(images.shape[1:3]))
            return step(images, targets, weights)

        return counted

    monkeypatch.setattr(loop, "train_step", spying)
    run = begin(progressive=0.5, batch_size=18)
    trained = train(run, Saying())
    assert fed == [(32, 32)] * 4 + [(64, 64)] * 4  # two steps an epoch
    assert trained.model.input_shape == (None, 64, 64, 3)
    assert trained.preprocessing.image_size == 64


@pytest.mark.slow
def test_a_soup_is_kept_only_where_it_validates_better(begin, monkeypatch):
    """Of the scripted scores, two make a soup that is better, or three that are not."""
    script = [0.5, 0.4, 0.7, 0.3, 0.6, 0.2, 0.1, 0.1]  # epochs and their averages
    for tasted, kept in (([0.7, 0.8, 0.75], True), ([0.7, 0.6, 0.7], False)):
        scores = iter([*script, *tasted, 0.8])
        monkeypatch.setattr(
            stages, "Judge", lambda *_, scores=scores, **team: lambda: Score(next(scores), 1.0)
        )
        run = begin(f"soup-{kept}", soup=2)
        console = Saying()
        trained = train(run, console)
        found = run.info["refined"]["soup"]
        parts = from_meta(run.info["ingredients"])
        assert [str(part) for part in parts] == ["epoch 2", "epoch 3", "average of epoch 1"]
        assert found["kept"] is kept
        assert trained.validation == Score(0.8 if kept else 0.7, 1.0)
        values = [read(run.states, part) for part in parts[: 2 if kept else 1]]
        stages.prepare_layers(trained.model, run.recipe)
        moving = moving_variables(trained.model)
        for variable, *several in zip(moving, *values, strict=True):
            expected = np.mean(np.float64(several), axis=0)
            np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-6, atol=1e-8)
        assert console.lines["soup"].endswith(", kept" if kept else "not better, not kept")
        assert run.info["kept_weights"] == ("soup" if kept else "weights")


@pytest.mark.slow
def test_a_job_that_is_killed_while_it_refines_ends_the_same(begin, monkeypatch):
    options = {"soup": 2, "recalibrate": True, "larger_test": True, "progressive": 0.5}
    whole = begin("whole", **options)
    trained = train(whole, Saying())
    digest = whole.weights.read_bytes()
    run = begin("killed", **options)
    original = refine._remember

    for name in ("soup", "statistics", "size"):  # after each has written what it keeps

        def die(run, best, what, found, name=name):
            original(run, best, what, found)
            if what == name:
                raise KeyboardInterrupt

        monkeypatch.setattr(refine, "_remember", die)
        with pytest.raises(KeyboardInterrupt):
            train(Run.open(run.path), Saying())
    monkeypatch.setattr(refine, "_remember", original)
    again = train(Run.open(run.path), Saying())
    assert run.weights.read_bytes() == digest
    assert again.validation == trained.validation
    assert run.info["refined"] == whole.info["refined"]
    assert run.preprocessing == whole.preprocessing


def test_a_size_is_changed_only_by_a_margin(begin, monkeypatch):
    monkeypatch.setattr(stages, "Judge", Dreaming)
    run = begin(larger_test=True, epochs=1, image_size=224, batch_size=36)
    margin = 0.5 * np.sqrt(0.5 * 0.5 / 12)
    best = Score(0.5, 1.0)
    for gain, size in (({256: margin - 0.01}, 224), ({256: margin + 0.01, 288: 0.01}, 256)):
        console = Saying()
        side, score = refine.better_size(
            run,
            lambda at, gain=gain: lambda: Score(0.5 + gain.get(at, 0.0), 1.0),
            best,
            images=12,
            console=console,
        )
        assert side == size
        assert score.accuracy == 0.5 + (gain[256] if size == 256 else 0.0)
        assert console.lines["size"].endswith(f"{size} px is kept")
        assert run.info["refined"]["size"]["kept"] is (size != 224)


@pytest.mark.slow
def test_the_better_size_reaches_the_export(striped, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "Judge", Dreaming)
    monkeypatch.setitem(GAIN, 96, 0.4)
    result = kresnet.fit(
        striped,
        variant="resnet8_cifar",
        weights=None,
        out=tmp_path / "runs",
        exports=tmp_path / "saved_models",
        console=Console(quiet=True),
        **SETTINGS | {"epochs": 2, "progressive": 0.5, "larger_test": True},
    )
    run = Run.open(result.run)
    assert json.loads((run.path / "preprocessing.json").read_text())["image_size"] == 96
    assert run.recipe.image_size == 64
    contract = Contract.load(result.export)
    assert contract.preprocessing.image_size == 96
    served = tf.saved_model.load(str(result.export)).signatures["serving_bytes"]
    model = kresnet.build("resnet8_cifar", num_classes=4, weights=run.weights)
    rows = run.index.select("val")
    answer = served(image_bytes=tf.stack([tf.io.read_file(row.path) for row in rows]))
    logits = predict_logits(model, rows, run.preprocessing) / run.info["temperature"]
    np.testing.assert_allclose(answer["scores"], keras.ops.softmax(logits), atol=1e-5)
    assert state.load_state(run.states) is None
    again = kresnet.resume(run.path, console=Console(quiet=True))  # a finished run, exported anew
    assert Contract.load(again.export).preprocessing.image_size == 96
