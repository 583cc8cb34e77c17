"""kresnet's training inside of keras_tuner's own tuners."""

import json
import shutil
import sys
from typing import ClassVar

import keras
import numpy as np
import pytest

import kresnet
from kresnet.console import Console
from kresnet.data.demo import write_digits
from kresnet.errors import ConfigError, ResourceError
from kresnet.train.schedule import rate_at
from kresnet.train.stages import preprocessing_for

keras_tuner = pytest.importorskip("keras_tuner", reason="the extra `tune` is not installed")
pytest.importorskip("tensorboard", reason="the extra `tune` is not installed")

pytestmark = [  # keras_tuner's own
    pytest.mark.filterwarnings("ignore:(currentThread|getName)\\(\\) is deprecated"),
]
SETTINGS = {"epochs": 2, "batch_size": 16, "precision": "float32", "image_size": 32, "seed": 3}
SPACE = {
    "lr": {"float": [1e-3, 1e-2], "log": True},
    "layer_decay": {"choice": [0.5, 1.0]},
    "batch_size": {"choice": [8, 16]},
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Three digits, 22 images each."""
    everything = write_digits(tmp_path_factory.mktemp("digits") / "all")
    some = everything.with_name("some")
    for digit in "147":
        (some / digit).mkdir(parents=True)
        for file in sorted((everything / digit).iterdir())[:22]:
            shutil.copy(file, some / digit)
    return some


def hypermodel(data, **changes):
    settings = SETTINGS | {"weights": None, "space": SPACE, "console": Console(quiet=True)}
    return kresnet.tune.ResNetHyperModel(data, variant="resnet8_cifar", **settings | changes)


class Seen(keras.callbacks.Callback):
    """Notes what the optimizer does; a class attribute, because tuners copy their callbacks."""

    noted: ClassVar = []

    def on_train_begin(self, logs=None):
        self.noted.append(("begin", int(self.model.optimizer.iterations)))

    def on_train_batch_end(self, batch, logs=None):
        optimizer = self.model.optimizer
        self.noted.append((int(optimizer.iterations), float(optimizer.learning_rate)))


@pytest.fixture
def seen():
    Seen.noted.clear()
    return Seen()


@pytest.mark.slow
def test_a_tuner_of_keras_tuner_searches_it(digits, tmp_path, seen):
    model = hypermodel(digits)
    tuner = keras_tuner.RandomSearch(
        model, objective="val_accuracy", max_trials=2, seed=5, directory=tmp_path, project_name="p"
    )
    assert {hp.name for hp in tuner.oracle.get_space().space} == set(SPACE)
    tuner.search(verbose=0, callbacks=[seen])
    trials = list(tuner.oracle.trials.values())
    assert [trial.status for trial in trials] == ["COMPLETED"] * 2
    assert len({json.dumps(trial.hyperparameters.values) for trial in trials}) == 2
    assert all(0 < trial.score <= 1 for trial in trials)
    rates = iter(Seen.noted)
    rows = len(model.index.select("train"))
    for trial in trials:
        recipe = model.recipe_of(trial.hyperparameters)
        assert recipe.batch_size == trial.hyperparameters["batch_size"]
        total = recipe.epochs * -(-rows // recipe.batch_size)
        assert next(rates) == ("begin", 0)
        for step in range(1, total + 1):
            expected = recipe.lr * rate_at(step / total, "cosine", warmup=recipe.warmup, drops=())
            assert next(rates) == (step, pytest.approx(expected, rel=1e-5))
    assert next(rates, None) is None
    best = model.recipe_of(tuner.get_best_hyperparameters()[0])
    best.save(tmp_path / "best.yaml")
    assert kresnet.Recipe.load(tmp_path / "best.yaml") == best


@pytest.mark.slow
def test_what_hyperband_promotes_goes_on_with_its_optimizer_and_its_rate(digits, tmp_path, seen):
    model = hypermodel(digits, epochs=3, space={"lr": SPACE["lr"]})
    tuner = keras_tuner.Hyperband(
        model, objective=keras_tuner.Objective("val_loss", "min"), max_epochs=3, factor=3, seed=2,
        directory=tmp_path, project_name="p",
    )  # fmt: skip
    tuner.search(verbose=0, callbacks=[seen])
    steps = -(-len(model.index.select("train")) // SETTINGS["batch_size"])
    promoted = [
        trial for trial in tuner.oracle.trials.values()
        if trial.hyperparameters.values.get("tuner/trial_id")
    ]  # fmt: skip
    begun = [value for what, value in Seen.noted if what == "begin"]
    assert promoted
    assert begun.count(steps) == len(promoted)  # one epoch was done before
    assert set(begun) == {0, steps}
    for trial in promoted:
        recipe = model.recipe_of(trial.hyperparameters)
        at = (steps + 1) / (3 * steps)
        expected = recipe.lr * rate_at(at, "cosine", warmup=recipe.warmup, drops=())
        places = [
            k for k, (what, value) in enumerate(Seen.noted)
            if what == "begin" and value == steps
            and Seen.noted[k + 1] == (steps + 1, pytest.approx(expected, rel=1e-5))
        ]  # fmt: skip
        assert places


def test_frozen_norms_keep_their_statistics_under_fit_and_early_layers_learn_slower(digits):
    model = hypermodel(digits, norms="frozen", epochs=1, space={"lr": SPACE["lr"]}, layer_decay=0.1)
    keras.utils.set_random_seed(1)
    hp = keras_tuner.HyperParameters()
    network = model.build(hp)
    assert hp.values == {"lr": pytest.approx(model.recipe.lr)}
    rng = np.random.default_rng(0)
    for variable in network.variables:
        if variable.name == "moving_mean":
            variable.assign(rng.normal(size=variable.shape) * 0.1)
    before = {v.path: np.array(v) for v in network.variables}
    model.fit(hp, network, verbose=0)
    moved = {v.path: float(np.abs(np.array(v) - before[v.path]).mean()) for v in network.variables}
    statistics = {path: change for path, change in moved.items() if "moving_" in path}
    assert statistics
    assert set(statistics.values()) == {0.0}
    kernels = [p for p in moved if p.endswith("kernel") and "stage" in p]
    first = [moved[p] for p in kernels if "stage1_" in p]
    last = [moved[p] for p in kernels if "stage3_" in p]
    assert 0 < max(first) < min(last)


@pytest.mark.slow
def test_a_pretrained_network_starts_with_the_head_of_the_probe(digits, tmp_path):
    network = kresnet.build("resnet8_cifar", num_classes=3, input_shape=(32, 32))
    from safetensors.numpy import save_file

    save_file(
        {f"{la.name}/{v.name}": np.array(v) for la in network.layers for v in la.weights},
        tmp_path / "w.safetensors",
    )
    model = hypermodel(
        digits, weights=str(tmp_path / "w.safetensors"), space={"lr": {"float": [1e-9, 2e-9]}}
    )
    hp = keras_tuner.HyperParameters()
    one, two = model.build(hp), model.build(hp)
    history = model.fit(hp, one, epochs=1, verbose=0).history
    assert history["val_accuracy"][0] > 0.6  # at next to no rate: the probe's, not chance
    calls = []
    model._console.status = calls.append
    model.fit(hp, two, epochs=1, verbose=0)
    assert not calls  # it is not fitted again
    assert np.allclose(one.get_layer("head").kernel, two.get_layer("head").kernel, atol=1e-5)
    weaker = model.recipe.model_copy(update={"probe_strength": 1e-5})
    model._start_head(two, weaker, preprocessing_for(weaker, model.index, two))
    assert calls  # another head is
    heads = [np.abs(each.get_layer("head").kernel).max() for each in (one, two)]
    assert heads[1] < 0.9 * heads[0]


def test_what_fit_would_not_heed_is_refused(digits, tmp_path):
    with pytest.raises(ConfigError, match=r"does nothing with 'ema'.*kresnet tune"):
        hypermodel(digits, space={"ema": {"float": [0.0, 0.5]}})
    with pytest.raises(ConfigError, match=r"does nothing with 'cut_views'"):
        hypermodel(digits, space={"cut_views": {"int": [2, 4]}})
    cut = hypermodel(digits, cut_cache="memory", train_from=2)
    assert cut.recipe.cut_cache == "none"
    from kresnet.tune.hypermodel import FitError

    model = hypermodel(digits)
    tuner = keras_tuner.RandomSearch(
        model, objective="val_accuracy", max_trials=2, directory=tmp_path, project_name="p"
    )
    with pytest.raises(FitError, match=r"Received: 1 by place, validation_split\."):
        tuner.search(np.zeros((2, 32, 32, 3)), validation_split=0.5, verbose=0)


@pytest.mark.parametrize("package", ["keras_tuner", "tensorboard"])
def test_a_package_that_is_absent_is_one_line(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ResourceError, match=rf"needs {package}, .*pip install 'kresnet\[tune\]'"):
        _ = kresnet.tune.ResNetHyperModel
