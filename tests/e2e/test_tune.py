"""Searches with real, small trainings: what a trial leaves, goes on from, and must not see."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from searching import asked

from kresnet.console import Console
from kresnet.data.demo import write_digits
from kresnet.data.prepare import prepare
from kresnet.data.scan import Index
from kresnet.errors import ConfigError
from kresnet.train.plan import plan
from kresnet.train.recipe import Recipe, rerun
from kresnet.train.run import Run
from kresnet.train.state import load_state
from kresnet.tune.executors import Job
from kresnet.tune.head import Features
from kresnet.tune.trials import Ledger
from kresnet.tune.worker import failure, outcome_of, work
from kresnet.zoo import build

SETTINGS = {
    "epochs": 3,
    "batch_size": 20,
    "lr": 3e-3,
    "precision": "float32",
    "norms": "train",
    "train_from": 1,
    "ema": 0.3,
    "mixup": 0.2,
    "drop_rate": 0.2,
    "patience": None,
    "budget_s": None,
    "val": 0.2,
    "test": 0.2,
}
TIMES = ("images_per_s", "wait")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Handwritten digits, 20 of each."""
    root = write_digits(tmp_path_factory.mktemp("digits") / "digits")
    for number in range(10):
        for path in sorted((root / str(number)).iterdir())[20:]:
            path.unlink()
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint to start from."""
    model = build("resnet8_cifar", num_classes=10)
    file = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file({f"{la.name}/{v.name}": v.numpy() for la in model.layers for v in la.weights}, file)
    return file


@pytest.fixture
def images(tmp_path, digits):
    """The folder of a study's images, of which the test images are no longer there."""
    index = prepare(digits, val=SETTINGS["val"], test=SETTINGS["test"])
    assert len(index.select("test")) > 20
    folder = tmp_path / "images"
    folder.mkdir()
    replace(index, rows=tuple(row for row in index.rows if row.split != "test")).save(folder)
    return folder


def recipe_of(digits, weights=None, **changes):
    return plan(
        data=str(digits),
        num_images=120,
        classes=tuple("0123456789"),
        variant="resnet8_cifar",
        weights=None if weights is None else str(weights),
        image_size=32,
        overrides=SETTINGS | changes,
    )


def job_of(recipe, images, number, **changes):
    return Job(
        trial=number,
        recipe=recipe.model_dump(mode="json"),
        directory=str(images.parent / "trials" / f"{number:04d}"),
        index=str(images),
        **changes,
    )


def do(job):
    return work(Job(**json.loads(json.dumps(job.as_dict()))), Console(quiet=True))


def metrics(directory):
    with Path(directory, "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


@pytest.mark.slow
def test_a_promoted_trial_is_the_one_that_was_never_paused(digits, images):
    """Optimizer, average, order of the images and learning rate go on; nothing begins anew."""
    recipe = recipe_of(digits)
    straight = job_of(recipe, images, 0)
    first = job_of(recipe, images, 1, stop_after=1)
    then = job_of(recipe, images, 2, stop_after=2, go_on_from=first.directory)
    last = job_of(recipe, images, 3, go_on_from=then.directory)
    outcomes = [do(job) for job in (straight, first, then, last)]
    assert all(outcome.ok for outcome in outcomes)
    assert [outcome.epochs for outcome in outcomes] == [3, 1, 2, 3]
    rows = metrics(straight.directory)
    assert len({row["lr"] for row in rows}) == 3  # the schedule is that of all three epochs
    for count, job in ((1, first), (2, then), (3, last)):
        assert metrics(job.directory) == rows[:count]
    (arrays, meta), (others, known) = (
        load_state(Path(job.directory) / "state") for job in (straight, last)
    )
    steps = [name for name in arrays if name.endswith("/iteration")]
    assert len(steps) == 1
    assert arrays[steps[0]] == 3 * 6  # 120 images, 20 a step
    assert arrays.keys() == others.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(others[name], array, err_msg=name)
    assert meta["epoch"] == known["epoch"] == 3
    shas = [
        sha256((Path(job.directory) / "model.weights.safetensors").read_bytes()).hexdigest()
        for job in (straight, last)
    ]
    assert shas[0] == shas[1]
    assert (outcomes[0].score, outcomes[0].loss) == (outcomes[3].score, outcomes[3].loss)
    # The parent is as it was: another trial may go on from it.
    assert load_state(Path(first.directory) / "state")[1]["epoch"] == 1
    assert do(first).epochs == 1
    assert metrics(first.directory) == rows[:1]


@pytest.mark.slow
def test_trials_share_the_probe_and_are_scored_by_what_they_trained(digits, images, weights):
    recipe = recipe_of(digits, weights, epochs=1, lr=1e-6, ema=0.0)
    one, other = (job_of(rerun(recipe, {"lr": lr}), images, k) for k, lr in ((0, 1e-6), (1, 1e-5)))
    first, second = do(one), do(other)
    probes = [p for p in (images / "probes").iterdir() if p.is_dir()]
    assert len(probes) == 1
    alone = Run.open(probes[0])
    assert alone.recipe.epochs == 0
    infos = [Run.open(job.directory).info for job in (one, other)]
    assert infos[0]["probe"] == infos[1]["probe"] == alone.info["probe"]
    for job, outcome in ((one, first), (other, second)):
        row = metrics(job.directory)[0]
        assert outcome.score == pytest.approx(float(row["val_accuracy"]), abs=1e-6)
        assert outcome.loss == pytest.approx(float(row["val_loss"]), abs=1e-6)
    assert first.loss != second.loss


@pytest.mark.parametrize(
    ("views", "number"),
    [
        ("center", 1),
        pytest.param("mirror", 2, marks=pytest.mark.slow),
        pytest.param("crops", 6, marks=pytest.mark.slow),
    ],
)
def test_a_head_that_is_searched_for_scores_as_the_probe_of_a_training(
    digits, images, weights, views, number
):
    settings = {
        "probe_strength": 0.05, "probe_smoothing": 0.1, "probe_views": views, "flip": True,
    }  # fmt: skip
    recipe = recipe_of(digits, weights, epochs=0, **settings)
    score, loss = Features(images).score(recipe.model_dump(mode="json"))
    trained = do(job_of(recipe, images, 0))
    assert score == pytest.approx(trained.score, abs=1e-6)
    assert loss == pytest.approx(trained.loss, rel=1e-3)
    plain = rerun(recipe, {"probe_strength": None, "probe_smoothing": 0.0, "probe_views": "center"})
    assert Features(images).score(plain.model_dump(mode="json"))[1] != loss
    assert len(list((images / "features").glob("*.npz"))) == 1 + number


def test_no_trial_is_given_the_test_images(digits, images):
    recipe = recipe_of(digits)
    whole = prepare(digits, val=SETTINGS["val"], test=SETTINGS["test"])
    folder = images.parent / "whole"
    folder.mkdir()
    whole.save(folder)
    with pytest.raises(ConfigError, match="test images"):
        do(replace(job_of(recipe, images, 0), index=str(folder)))


def test_a_training_that_runs_away_is_not_tried_again(digits, images):
    recipe = recipe_of(digits, lr=1e30, clip_norm=None, optimizer="sgd", ema=0.0)
    job = job_of(recipe, images, 0)
    with pytest.raises(ConfigError) as caught:
        do(job)
    outcome = failure(caught.value, Path(job.directory))
    assert outcome.kind == "nan"
    assert not outcome.again
    assert "finite" in outcome.error
    wrong = job_of(recipe_of(digits).model_copy(update={"train_from": 9}), images, 1)
    with pytest.raises(ConfigError) as caught:
        do(wrong)
    assert failure(caught.value, Path(wrong.directory)).kind == "config"
    assert failure(MemoryError(), Path(wrong.directory)).kind == "memory"


class Here:
    """An executor that trains in this process: it starts no interpreters, which take seconds."""

    slots = 1

    def __init__(self):
        self.jobs = []

    def start(self, job):
        self.jobs.append(job)
        self._outcome = do(job)
        return self

    def poll(self):
        return self._outcome

    def kill(self):
        pass

    def close(self):
        pass


@pytest.mark.slow
def test_a_search_from_images_to_the_export(tmp_path, digits):
    pytest.importorskip("keras_tuner")
    from kresnet.tune.job import resume_study, tune

    space = tmp_path / "space.yaml"
    space.write_text("lr: {float: [1e-3, 1e-2], log: true}\nflip: {choice: [true, false]}\n")
    executor = Here()
    found = tune(
        digits,
        trials=3,
        algorithm="random",
        space=space,
        variant="resnet8_cifar",
        weights=None,
        name="numbers",
        studies=tmp_path / "studies",
        out=tmp_path / "runs",
        exports=tmp_path / "exports",
        executor=lambda: executor,
        console=Console(quiet=True),
        image_size=32,
        **SETTINGS | {"epochs": 2},
    )
    study = tmp_path / "studies" / "numbers"
    assert found.study == study
    trials = Ledger(study, read_only=True).trials()
    assert [t.status for t in trials] == ["done"] * 3
    # One split for all, of which the trials know no test image.
    rows = Index.load(study / "index").select("test")
    assert len(rows) > 20
    for job in executor.jobs:
        given = Index.load(Path(job.directory))
        assert not {row.path for row in rows} & {row.path for row in given.rows}
        assert given.rows == Index.load(study / "images").rows
    # The best is a plain recipe, and training it again gives what the trial gave.
    best = max(trials, key=lambda t: (t.score, -t.loss))
    assert found.best.number == best.number
    assert found.gain == best.score - trials[0].score
    assert Recipe.load(study / "best.yaml") == rerun(
        Recipe.load(study / "recipe.yaml"), best.fields
    )
    assert metrics(found.run) == metrics(study / best.directory)
    assert found.test["n"] == len(rows)
    assert {row.path for row in Run.open(found.run).index.select("test")} == {r.path for r in rows}
    assert (found.export / "saved_model.pb").is_file()
    assert str(study / "best.yaml") in "\n".join(found.lines())
    assert f"best of 3 scores on the same {found.images} images" in (
        " ".join((study / "study.html").read_text().split())
    )
    # Nothing is left to do, and nothing is done again.
    again = resume_study(study, executor=lambda: executor, console=Console(quiet=True))
    assert len(executor.jobs) == 3
    assert (again.run, again.export, again.test) == (found.run, found.export, found.test)
    # More trials, and no refit: the test images are for the winner's own weights.
    more = resume_study(
        study, trials=4, refit=False, executor=lambda: executor, console=Console(quiet=True)
    )
    assert len(executor.jobs) == 4
    assert sum(more.trials.values()) == 4
    assert more.test["n"] == len(rows)


def searched(folder, algorithm, kills, seed):
    script = Path(__file__).parents[1] / "searching.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder), algorithm, str(kills), str(seed)],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("algorithm", "kills"),
    [
        ("random", 4),
        pytest.param("hyperband", 8, marks=SLOW),
        pytest.param("bayesian", 6, marks=SLOW),
        pytest.param("grid", 6, marks=SLOW),
    ],
)
def test_a_search_that_is_killed_again_and_again_asks_the_same(tmp_path, algorithm, kills):
    pytest.importorskip("keras_tuner")
    found = searched(tmp_path, algorithm, kills, seed=11)
    assert found["statuses"] == [-signal.SIGKILL] * kills + [0]
    assert found["killed"] == found["whole"]
    assert {row[1] for row in found["whole"]} == {"done"}
    assert found["starts"] >= len(found["whole"])
    assert found["alive"] == []  # no worker outlives the search that started it


def command(*arguments):
    return [sys.executable, "-m", "kresnet", "tune", *map(str, arguments)]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # it starts about twenty interpreters, one after the other
def test_real_processes_killed_and_resumed_end_where_others_do(tmp_path, digits):
    """The program itself; one worker and the search are killed while a network is trained."""
    pytest.importorskip("keras_tuner")
    options = [
        *("--variant", "resnet8_cifar", "--weights", "none", "--algorithm", "hyperband"),
        *("--trials", 6, "--epochs", 3, "--jobs", 1, "--no-refit", "--json"),
        *("--out", tmp_path / "runs", "--exports", tmp_path / "exports"),
        *("--set", "image_size=32", "--set", "batch_size=20", "--set", "val=0.2"),
        *("--set", "test=0.2", "--set", "precision=float32"),
    ]
    whole = tmp_path / "whole"
    done = subprocess.run(
        command(digits, *options, "--studies", whole), capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        command(digits, *options, "--studies", killed), stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    study = killed / "digits"

    def wait_for(what, limit_s=600):
        until = time.monotonic() + limit_s
        while not what():
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.05)

    wait_for(lambda: (study / "trials" / "0001" / "metrics.csv").exists())
    wait_for(lambda: workers(study))
    os.kill(workers(study)[0], signal.SIGKILL)  # of a trial: it is tried again
    wait_for(lambda: (study / "trials" / "0003" / "run.json").exists())
    process.kill()
    process.wait()
    until = time.monotonic() + 30
    while workers(study) and time.monotonic() < until:
        time.sleep(0.05)
    assert not workers(study)
    done = subprocess.run(
        [sys.executable, "-m", "kresnet", "tune", "--resume", str(study), "--json"],
        capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert asked(study) == asked(whole / "digits")
    trials = Ledger(study, read_only=True).trials()
    assert [t.status for t in trials] == ["done"] * 6
    assert any(t.parent is not None for t in trials)
    assert json.loads(done.stdout)["result"]["test"]["n"] > 20
    assert outcome_of(study / trials[-1].directory).ok


def workers(study):
    """Process numbers of the workers of a study."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            said = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"kresnet.tune.worker" in said and any(str(study).encode() in part for part in said):
            found.append(int(folder.name))
    return found
