"""The whole job behind a cut: stopped and gone on with bit for bit, and leaving nothing behind."""

import signal
from pathlib import Path

import numpy as np
import pytest
from conftest import randomize
from safetensors.numpy import load_file, save_file

import kresnet
from kresnet.console import Console
from kresnet.errors import Interrupted
from kresnet.train import cut
from kresnet.train.kept import Kept
from kresnet.train.run import Run

pytestmark = pytest.mark.slow  # they train


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights that no training has seen."""
    model = randomize(kresnet.build("resnet8_cifar", num_classes=4, dtype="float32"), seed=6)
    path = tmp_path_factory.mktemp("weights") / "model.weights.safetensors"
    save_file({f"{la.name}/{v.name}": v.numpy() for la in model.layers for v in la.weights}, path)
    return str(path)


SETTINGS = {
    "variant": "resnet8_cifar", "batch_size": 5, "min_area": 0.8, "precision": "float32",
    "val": 0.25, "lr": 1e-2, "epochs": 4, "train_from": 2, "cut_views": 2, "patience": None,
    "ema": 0.2, "probe_strength": 1e-6,  # so that any epoch is better
}  # fmt: skip


class Stopping(Console):
    """Presses Ctrl-C when the status shows something."""

    def __init__(self, at):
        super().__init__(quiet=True)
        self._at = at

    def status(self, text, **_):
        if self._at and self._at in text:
            self._at = ""
            signal.raise_signal(signal.SIGINT)


def fit(data, folder, console=None, **settings):
    return kresnet.fit(
        data,
        out=folder / "runs",
        exports=folder / "exports",
        console=console or Console(quiet=True),
        **SETTINGS | settings,
    )


def weights_of(run):
    return load_file(Path(run) / "model.weights.safetensors")


@pytest.mark.parametrize(
    ("where", "at"),
    [
        ("memory", "epoch 2/4  step 3/"),
        ("disk", "epoch 3/4  step 2/"),
        ("disk", "epoch 1: features of 10 images"),
    ],
)
def test_a_stopped_run_resumes_to_the_same_weights_bit_for_bit(
    striped, weights, tmp_path, where, at
):
    settings = {"weights": weights, "cut_cache": where}
    whole = fit(striped, tmp_path / "whole", **settings)
    with pytest.raises(Interrupted, match=r"Continue with: kresnet resume"):
        fit(striped, tmp_path, Stopping(at), **settings)
    stopped = tmp_path / "runs" / "striped"
    assert (stopped / cut.FOLDER).exists() == (where == "disk")
    resumed = kresnet.resume(stopped, console=Console(quiet=True))
    assert whole.kept == resumed.kept == "fine-tune"
    assert resumed.as_dict()["validation"] == whole.as_dict()["validation"]
    expected, found = weights_of(whole.run), weights_of(resumed.run)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert np.array_equal(value, found[name]), name
    assert not (stopped / cut.FOLDER).exists()
    start = load_file(weights)
    for name, value in found.items():
        is_frozen = name.startswith(("stem_", "stage1_")) or "moving" in name
        assert np.array_equal(value, start[name]) == is_frozen, name


def test_features_on_the_disk_are_used_by_the_run_that_goes_on(
    striped, weights, tmp_path, monkeypatch
):
    with pytest.raises(Interrupted):
        fit(striped, tmp_path, Stopping("epoch 3/4  step 2/"), weights=weights, cut_cache="disk")
    found = []
    inner = Kept.find
    monkeypatch.setattr(Kept, "find", lambda *args: found.append(inner(*args)) or found[-1])
    monkeypatch.setattr(cut.CutData, "_parts", None)
    kresnet.resume(tmp_path / "runs" / "striped", console=Console(quiet=True))
    assert [one is not None for one in found] == [True, True]


def test_a_budget_is_kept_and_the_run_says_what_it_is(striped, weights, tmp_path):
    result = fit(striped, tmp_path, weights=weights, cut_cache="memory", epochs=3, budget_s=600.0)
    run = Run.open(result.run)
    assert run.recipe.cut_cache == "memory"
    assert len(run.metrics) == 3
    assert result.export is not None
    assert result.validation.accuracy >= result.probe["accuracy"]
