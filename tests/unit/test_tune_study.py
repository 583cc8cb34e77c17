"""A search with trials that take no time: what is asked, kept, retried, counted and given up."""

import gc
import json
import resource
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest
from searching import Instant, asked, good, new_study, recipe_of

from kresnet.errors import ConfigError, Interrupted
from kresnet.tune.board import as_list, epochs_trained, list_studies, ranked, summary
from kresnet.tune.executors import Outcome
from kresnet.tune.local import resident_bytes
from kresnet.tune.oracles import hyperband_budget
from kresnet.tune.study import Study
from kresnet.tune.trials import Ledger
from kresnet.tune.worker import write_outcome

pytest.importorskip("keras_tuner")


def search(folder, executor=None, *, said=None, **settings):
    ledger = new_study(folder, **settings)
    tell = (lambda topic, text: None) if said is None else (lambda *line: said.append(line))
    ending = Study(ledger, executor or Instant(), tell=tell).search()
    return ledger, ending


def test_the_planners_recipe_comes_first_and_the_limit_counts_it(tmp_path):
    executor, said = Instant(), []
    ledger, ending = search(tmp_path, executor, trials=5, said=said)
    trials = ledger.trials()
    assert ending.reason == "trials"
    assert [t.number for t in trials] == [0, 1, 2, 3, 4]
    assert executor.jobs[0].recipe == recipe_of().model_dump(mode="json")
    assert trials[0].fields == {}
    for trial, job in zip(trials[1:], executor.jobs[1:], strict=True):
        changed = {n: v for n, v in job.recipe.items() if v != executor.jobs[0].recipe[n]}
        assert changed.items() <= trial.fields.items()
        assert trial.score == good(job).score
    assert len([line for line in said if line[0] == "trial"]) == 5
    assert "the planner's recipe" in said[0][1]
    assert f"best {ranked(trials)[0].score:.3f}" in said[-1][1]


@pytest.mark.parametrize("slots", [1, 4])
def test_hyperband_goes_on_from_the_parent_and_spends_its_budget(tmp_path, slots):
    executor = Instant(slots=slots)
    ledger, ending = search(tmp_path, executor, algorithm="hyperband", trials=None)
    trials = ledger.trials()
    count, epochs = hyperband_budget(9)
    assert ending.reason == "space"
    assert epochs_trained(trials) == 9 + epochs  # and those of trial 0
    assert len(trials) == 1 + count
    for trial, job in zip(trials, sorted(executor.jobs, key=lambda j: j.trial), strict=True):
        assert job.recipe["epochs"] == trial.horizon == 9  # what the schedule is for
        assert (job.stop_after or 9) == trial.epochs
        assert (job.stop_after is None) == (trial.epochs == 9)
        if trial.parent is None:
            assert job.go_on_from is None
        else:
            parent = trials[trial.parent]
            assert Path(job.go_on_from) == tmp_path / parent.directory
            assert parent.fields == trial.fields
            assert parent.epochs < trial.epochs
    assert all(trial.fraction == 1 for trial in ranked(trials))


def test_failures_are_recorded_tried_again_and_end_nothing(tmp_path):
    kinds = {1: "crash", 2: "nan", 3: "hang", 4: "config", 5: "memory", 6: "killed"}
    tries = {}

    def answer(job):
        tries[job.trial] = tries.get(job.trial, 0) + 1
        if job.trial == 6 and tries[6] == 2:
            return good(job)
        if job.trial in kinds:
            return Outcome(ok=False, error=f"it was {kinds[job.trial]}", kind=kinds[job.trial])
        return good(job)

    ledger, ending = search(tmp_path, Instant(answer), trials=9)
    trials = ledger.trials()
    assert ending.reason == "trials"
    assert tries == {0: 1, 1: 2, 2: 1, 3: 2, 4: 1, 5: 2, 6: 2, 7: 1, 8: 1}
    assert [t.number for t in trials if t.status == "failed"] == [1, 2, 3, 4, 5]
    assert trials[3].error == "it was hang"
    assert trials[6].status == "done"
    assert all(t.status == "done" for t in (trials[0], *trials[6:]))


def test_a_search_of_failures_alone_comes_to_its_end(tmp_path):
    ledger, ending = search(
        tmp_path,
        Instant(lambda job: Outcome(ok=False, error="no", kind="data")),
        algorithm="hyperband",
        trials=None,
    )
    assert ending.reason == "space"
    assert {t.status for t in ledger.trials()} == {"failed"}
    assert len(ledger.trials()) == 1 + 9 + 5 + 3


def test_what_is_asked_twice_is_trained_once(tmp_path, monkeypatch):
    """keras_tuner's Gaussian process comes back to the best of a few choices for ever."""
    monkeypatch.setattr("kresnet.tune.study._MOST_REPEATS", 4)
    executor = Instant()
    rates = {"choice": [1e-4, 1e-3, 1e-2, 1e-1]}
    ledger, ending = search(
        tmp_path,
        executor,
        algorithm="bayesian",
        trials=None,
        budget_s=600.0,
        space={"lr": rates, "norms": {"choice": ["train", "frozen"]}},
        recipe=recipe_of(lr=1e-3),
    )
    assert ending.reason == "space"
    assert 6 <= len(executor.jobs) <= 8  # of the 8 that there are
    trained = [(job.recipe["lr"], job.recipe["norms"]) for job in executor.jobs]
    assert len(set(trained)) == len(trained)
    trials = ledger.trials()
    assert len(trials) >= len(executor.jobs) + 4
    assert {t.status for t in trials} == {"done"}
    assert ranked(trials)[0].number in {job.trial for job in executor.jobs}


def test_lost_machines_are_no_fault_of_the_trial_within_a_bound(tmp_path):
    starts = []

    def answer(job):
        starts.append(job.trial)
        lost = job.trial == 2 or (job.trial == 1 and starts.count(1) <= 5)
        return Outcome(ok=False, error="gone", kind="lost") if lost else good(job)

    ledger, _ = search(tmp_path, Instant(answer), trials=4)
    trials = ledger.trials()
    assert trials[1].status == "done"
    assert trials[1].tries == 1
    assert trials[2].status == "failed"
    assert 10 < starts.count(2) < 20


@pytest.mark.parametrize("score", [None, float("nan"), float("inf")])
def test_a_score_that_is_no_number_fails(tmp_path, score):
    bad = Outcome(ok=True, score=score, loss=0.1)
    ledger, _ = search(tmp_path, Instant(lambda j: bad if j.trial == 1 else good(j)), trials=3)
    assert [t.status for t in ledger.trials()] == ["done", "failed", "done"]
    assert json.loads(json.dumps(summary(tmp_path), allow_nan=False))["best"] in (0, 2)


def test_a_recipe_that_cannot_be_is_failed_without_a_process(tmp_path):
    executor = Instant()
    ledger = new_study(tmp_path, trials=3, space={"train_from": {"int": [1, 3]}})
    study = Study(ledger, executor)
    ledger.add(values={}, fields={}, horizon=9, epochs=9)
    ledger.add(values={"x": 1}, fields={"lr": -1.0}, horizon=9, epochs=9)
    study.search()
    assert [job.trial for job in executor.jobs] == [0, 2]
    assert ledger.trial(1).status == "failed"
    assert "greater than 0" in ledger.trial(1).error


def test_the_time_ends_a_search_and_more_time_goes_on(tmp_path):
    ledger, ending = search(tmp_path, Instant(polls=10**9), trials=5, budget_s=0.4)
    assert ending.reason == "budget"
    assert [t.status for t in ledger.trials()] == ["waiting"]
    assert ledger.trial(0).tries == 0
    assert ledger.settings["spent_s"] >= 0.4
    ledger.update(budget_s=10_000.0)
    assert Study(ledger, Instant()).search().reason == "trials"
    assert [t.status for t in ledger.trials()] == ["done"] * 5


def test_a_signal_ends_a_search_so_that_it_can_be_resumed(tmp_path):
    ledger = new_study(tmp_path, trials=6)

    def answer(job):
        if job.trial == 3:
            study._stop()
        return good(job)

    study = Study(ledger, Instant(answer, polls=2))
    with pytest.raises(Interrupted, match=f"kresnet tune --resume {tmp_path}"):
        study.search()
    assert [t.status for t in ledger.trials()] == ["done", "done", "done", "waiting"]
    Study(ledger, Instant()).search()
    search(tmp_path / "whole", trials=6)
    assert asked(tmp_path) == asked(tmp_path / "whole")


def test_results_that_a_killed_search_did_not_see_are_taken(tmp_path):
    ledger = new_study(tmp_path, trials=4)
    executor = Instant()
    Study(ledger, executor).search()
    for number in (2, 3):  # as if the search had been killed before it saw them
        job = executor.jobs[number]
        ledger.change(number, status="running", score=None, told=None, tries=1)
        if number == 2:
            write_outcome(job.directory, good(job))
    again = Instant()
    Study(Ledger(tmp_path), again).search()
    assert [job.trial for job in again.jobs] == [3]
    assert ledger.trial(2).score == good(executor.jobs[2]).score
    assert {t.tries for t in ledger.trials()} == {1}


def test_only_the_best_keep_weights_and_states(tmp_path):
    def answer(job):
        folder = Path(job.directory)
        (folder / "state" / "step-00000001").mkdir(parents=True)
        for name in ("model.weights.safetensors", "recipe.yaml", "metrics.csv", "run.json"):
            (folder / name).write_text(name)
        return good(job)

    ledger, _ = search(tmp_path, Instant(answer), trials=8, keep=2)
    best = {trial.number for trial in ranked(ledger.trials())[:2]}
    for trial in ledger.trials():
        folder = tmp_path / trial.directory
        heavy = [(folder / name).exists() for name in ("state", "model.weights.safetensors")]
        assert heavy == [trial.number in best] * 2
        assert all((folder / n).exists() for n in ("recipe.yaml", "metrics.csv", "run.json"))


def test_states_of_what_may_be_promoted_are_there_when_they_are_needed(tmp_path):
    most = []

    def answer(job):
        folder = Path(job.directory)
        (folder / "state").mkdir(parents=True)
        if job.go_on_from:
            assert (Path(job.go_on_from) / "state").is_dir()
        most.append(len(list(tmp_path.glob("trials/*/state"))))
        return good(job)

    ledger, _ = search(tmp_path, Instant(answer), algorithm="hyperband", trials=None, keep=1)
    assert any(trial.parent is not None for trial in ledger.trials())
    assert max(most) <= 8  # of 24 trials
    assert (
        len(list(tmp_path.glob("trials/*/state"))) <= 2
    )  # the best, and what no rounds are left for


def test_one_process_at_a_time(tmp_path):
    ledger = new_study(tmp_path, trials=3)
    inside, go_on = threading.Event(), threading.Event()

    def wait(job):
        inside.set()
        go_on.wait(30)
        return good(job)

    first = Study(ledger, Instant(wait))
    # SQLite's connection stays with its thread, so the second search is in another one.
    failures = []

    def second():
        inside.wait(30)
        try:
            Study(Ledger(tmp_path), Instant()).search()
        except ConfigError as error:
            failures.append(str(error))
        go_on.set()

    thread = threading.Thread(target=second)
    thread.start()
    first.search()
    thread.join()
    assert len(failures) == 1
    assert "another process" in failures[0]
    assert [t.status for t in ledger.trials()] == ["done"] * 3


@pytest.mark.slow
def test_the_memory_of_a_search_stays_flat(tmp_path):
    ledger = new_study(tmp_path, trials=25)
    Study(ledger, Instant()).search()
    gc.collect()
    tracemalloc.start()
    before, resident = tracemalloc.get_traced_memory()[0], resident_bytes()
    ledger.update(trials=125)
    study = Study(ledger, Instant())
    study.search()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(ledger.trials()) == 125
    assert grown < 5e6  # 50 kB a trial; a model would be megabytes
    assert resident_bytes() - resident < 60e6
    assert resident_bytes() > 1e6
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 >= resident


def test_studies_are_listed_without_tensorflow(tmp_path):
    search(tmp_path / "one", trials=4)
    fail = Instant(lambda job: Outcome(ok=False, error="It ran away.", kind="data"))
    search(tmp_path / "two", fail, trials=2)
    (tmp_path / "none").mkdir()
    listed = as_list(list_studies(tmp_path))
    assert [Path(line.split()[0]).name for line in listed.splitlines()[1:]] == ["one", "two"]
    with pytest.raises(ConfigError, match="must exist"):
        list_studies(tmp_path / "nowhere")
    code = (
        "import sys\nfrom kresnet.cli import app\n"
        f"app(['study', 'list', {str(tmp_path)!r}, '--json'], standalone_mode=False)\n"
        "print(sorted({'tensorflow', 'keras', 'keras_tuner'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown, loaded = done.stdout.splitlines()
    assert json.loads(shown) == json.loads(json.dumps(list_studies(tmp_path)))
    assert loaded == "[]"
