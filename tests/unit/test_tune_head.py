"""The search for a head: one process, features once, and the score that training would give."""

import sys
import textwrap
import time

import numpy as np
import pytest
from searching import recipe_of

from kresnet.errors import ConfigError
from kresnet.train.probe import fit_head
from kresnet.tune.executors import Job
from kresnet.tune.head import Features, HeadWorker, answer
from kresnet.tune.space import Space


def blobs(n, seed):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(1).normal(size=(3, 12))
    y = rng.permutation(np.arange(n) % 3)
    return (2.0 * centres[y] + 2.5 * rng.normal(size=(n, 12))).astype("f4"), y


@pytest.fixture
def features(tmp_path, monkeypatch):
    """Features of images that there are not; counts how often they are computed."""
    parts = {
        ("train", False): blobs(90, 0), ("train", True): blobs(90, 1), ("val", False): blobs(60, 2),
    }  # fmt: skip
    computed = []

    def given(images, recipe, split, view):
        assert view.crop == "center"
        computed.append((split, view.mirror))
        return parts[split, view.mirror]

    monkeypatch.setattr("kresnet.tune.head._computed", given)
    found = Features(tmp_path)
    return found, parts, computed


def recipe(**changes):
    known = recipe_of(epochs=0).model_copy(update={"weights": "imagenet"})
    return known.model_dump(mode="json") | changes


def scored(kernel, bias, x, y):
    logits = (x @ kernel + bias).astype("f8")
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return (p.argmax(axis=1) == y).mean(), -np.log(p[np.arange(len(y)), y]).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("strength", [None, 0.05])
def test_a_head_scores_as_one_that_is_trained(features, strength, smoothing):
    found, parts, computed = features
    settings = {"probe_strength": strength, "probe_smoothing": smoothing}
    score, loss = found.score(recipe(**settings))
    kernel, bias = fit_head(*parts["train", False], seed=0, strength=strength, smoothing=smoothing)
    assert (score, loss) == pytest.approx(scored(kernel, bias, *parts["val", False]), abs=1e-6)
    found.score(recipe(**settings | {"probe_strength": 0.3}))
    assert computed == [("train", False), ("val", False)]


def test_mirror_images_are_learned_from_and_kept(features, tmp_path):
    found, parts, computed = features
    plain = found.score(recipe(probe_strength=0.1))
    both = found.score(recipe(probe_strength=0.1, probe_views="mirror"))
    x, y = (np.concatenate([parts["train", m][k] for m in (False, True)]) for k in (0, 1))
    kernel, bias = fit_head(x, y, seed=0, strength=0.1 / 2)  # for two images that count as one
    assert both == pytest.approx(scored(kernel, bias, *parts["val", False]), abs=1e-6)
    assert plain != both
    again = Features(tmp_path)  # another process
    assert again.score(recipe(probe_strength=0.1, probe_views="mirror")) == both
    assert computed == [("train", False), ("val", False), ("train", True)]


def test_what_trains_more_than_a_head_is_told(features):
    found, *_ = features
    for wrong in ({"epochs": 3}, {"weights": None}):
        outcome = answer(found, Job(trial=1, recipe=recipe(**wrong), directory="x", index="y"))
        assert (outcome.ok, outcome.kind) == (False, "config")
        assert "Leave --only out" in outcome.error


def test_the_space_of_a_head_is_of_the_head():
    known = recipe_of(flip=True)
    space = Space.head(known)
    assert set(space.entries) == {"probe_strength", "probe_smoothing", "probe_views"}
    space.check(known, algorithm="random", kind="head")
    assert space.entries["probe_views"].choice == ("center", "mirror", "crops")
    unflipped = Space.head(recipe_of(flip=False)).entries["probe_views"]
    assert unflipped.choice == ("center", "crops")
    with pytest.raises(ConfigError, match="begin with probe_"):
        Space.default(known).check(known, algorithm="random", kind="head")


PROCESS = """
    import json, os, sys, time
    print("started", file=sys.stderr)
    for line in sys.stdin:
        job = json.loads(line)
        if job["trial"] == 2:
            os._exit(7)
        if job["trial"] == 3:
            time.sleep(600)
        print(json.dumps({"ok": True, "score": job["trial"] / 10, "loss": 0.5}), flush=True)
"""


def test_one_process_answers_all_and_a_new_one_what_comes_after_its_end(tmp_path):
    script = tmp_path / "process.py"
    script.write_text(textwrap.dedent(PROCESS))
    worker = HeadWorker(tmp_path, command=(sys.executable, str(script)))

    def ask(trial, **changes):
        fields = {"recipe": {}, "directory": "x", "index": "y"}
        handle = worker.start(Job(trial=trial, **fields | changes))
        until = time.monotonic() + 60
        while (outcome := handle.poll()) is None:
            assert time.monotonic() < until
            time.sleep(0.005)
        return outcome

    assert [ask(trial).score for trial in (0, 1, 4)] == [0.0, 0.1, 0.4]
    assert (tmp_path / "head.log").read_text().split() == ["started"]
    crashed = ask(2)
    assert (crashed.ok, crashed.kind, crashed.again) == (False, "crash", True)
    assert "ended with 7" in crashed.error
    late = ask(3, deadline_s=0.5)
    assert late.kind == "hang"
    assert ask(5).score == 0.5
    assert (tmp_path / "head.log").read_text().split() == ["started"] * 3
    worker.close()
    worker.close()
