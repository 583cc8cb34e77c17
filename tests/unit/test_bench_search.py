"""The comparison of searches: what each suggests, how its time is counted, what the table says."""

import json
import os
import subprocess
import sys

import pytest
from searches import write_study

from kresnet.bench import search
from kresnet.bench.search import (
    CONTENDERS,
    SPACE,
    Task,
    Trial,
    compare,
    measured,
    note,
    processor_seconds,
    suggested,
    table,
)
from kresnet.errors import ConfigError
from kresnet.tune.space import Space

TASK = Task("photos", "resnet8_cifar", 32, 9, 4)


class Suggests:
    """Stands in for an Optuna trial: always the last choice and the upper end."""

    def __init__(self):
        self.asked = {}

    def suggest_categorical(self, name, choices):
        self.asked[name] = choices
        return choices[-1]

    def suggest_float(self, name, low, high, *, log):
        self.asked[name] = (low, high, log)
        return high

    suggest_int = suggest_float


def test_optuna_is_given_the_same_space():
    trial = Suggests()
    values = suggested(trial, Space.of(SPACE))
    assert values["augment"] == "trivial"
    assert "color" not in values  # as `augment` is not "light"
    assert set(trial.asked) == set(SPACE) - {"color"}
    assert trial.asked["lr"] == (1e-4, 3e-2, True)
    assert trial.asked["min_area"] == (0.2, 1.0, False)
    light = dict(SPACE) | {"augment": {"choice": ["none", "light"]}}
    assert suggested(Suggests(), Space.of(light))["color"] == 0.4


def test_the_table_has_medians_ranges_and_who_is_absent(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name != "optuna" or None)
    runs = [
        [Trial(1.0, 0.5, 9), Trial(2.0, 0.61, 3)],
        [Trial(1.0, 0.7, 9)],
        [Trial(1.0, 0.4, 9), Trial(3.0, 0.9, 9), Trial(4.0, 0.8, 9)],
    ]
    lines = table({"kresnet-hyperband": runs}, 300.0, processor_time=True).splitlines()
    assert lines[0].startswith("| search, 300 s of the processor | trials finished | epochs |")
    assert lines[2] == "| kresnet tune, hyperband | 2 (1-3) | 12 (9-27) | 70.0 (61.0-90.0) % |"
    assert lines[3] == "| Optuna, TPE with median pruning | not installed: optuna | - | - |"
    assert len(lines) == 4


def test_what_is_kept_is_not_measured_again_and_must_be_the_same(tmp_path, monkeypatch):
    calls = []

    def made_up(name, task, budget_s, folder, *, processor_time):
        calls.append((name, task.seed))
        return [Trial(1.5, 0.25 + task.seed / 100, 9)]

    monkeypatch.setattr(search, "measured", made_up)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name != "optuna" or None)
    options = {"names": ["optuna", "keras_tuner-bayesian"], "budget_s": 9.0, "out": tmp_path}
    first = compare([TASK], **options)
    assert compare([TASK], **options) == first == {"keras_tuner-bayesian": [[Trial(1.5, 0.29, 9)]]}
    assert calls == [("keras_tuner-bayesian", 4)]
    with pytest.raises(ConfigError, match=r"must be of the same comparison. .*Choose another"):
        compare([TASK], **options | {"budget_s": 10.0})


def test_processor_time_is_that_of_a_process_and_all_below_it():
    spin = "import time\nwhile time.process_time() < 0.6: pass\n"
    code = (
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-c', {spin!r}])\n"  # has ended
        f"child = subprocess.Popen([sys.executable, '-c', {(spin + 'input()')!r}], "
        "stdin=subprocess.PIPE)\n"
        f"{spin}print('ready', flush=True)\ninput()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    while processor_seconds(process.pid) < 1.75:  # three times 0.6 s in time: hangs if it cannot
        assert process.poll() is None
    assert processor_seconds(os.getpid()) >= processor_seconds(process.pid)
    process.communicate("\n")
    assert process.returncode == 0


def test_a_search_that_ends_by_itself_is_no_measurement(tmp_path, monkeypatch):
    task = Task(str(tmp_path / "nowhere"), "resnet8_cifar", 32, 9, 0)
    monkeypatch.setattr(search.sys, "executable", "/bin/false")
    with pytest.raises(ConfigError, match=r"must last as long as its time. Received: optuna ended"):
        measured("optuna", task, 60.0, tmp_path / "out")


def test_trials_are_read_from_notes_and_from_the_study_file(tmp_path):
    note(tmp_path, 0.5, 9)
    note(tmp_path, 0.75, 2)
    with (tmp_path / "trials").open("a") as file:
        file.write('{"time": 17')  # killed while it wrote
    found = search._of_notes(tmp_path / "trials", started=0.0)
    assert [(t.score, t.epochs) for t in found] == [(0.5, 9), (0.75, 2)]
    assert found[0].seconds <= found[1].seconds

    folder = tmp_path / "studies" / "flowers"
    ledger = write_study(folder, trials=5)
    child = ledger.add(values={}, fields={}, horizon=30, epochs=30, parent=3)
    ledger.change(child.number, status="done", score=0.95, loss=0.1, epochs_done=30)
    done = [t for t in ledger.trials() if t.status == "done"]
    for trial in done:
        (folder / trial.directory).mkdir(parents=True)
        (folder / trial.directory / "outcome.json").write_text(json.dumps({}))
    ledger.close()
    study = search._of_study(tmp_path, started=0.0)
    assert sorted(t.score for t in study) == sorted(t.score for t in done)
    assert next(t.epochs for t in study if t.score == 0.95) == 20  # without those of its parent


def test_every_contender_is_known_by_its_kind():
    assert {name.partition("-")[0] for name in CONTENDERS} == {"kresnet", "keras_tuner", "optuna"}
