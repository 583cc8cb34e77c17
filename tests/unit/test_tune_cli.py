"""What the command line makes of the options of a search."""

import json
from types import SimpleNamespace

import pytest
from searching import Instant, new_study

from kresnet.cli import app
from kresnet.errors import ConfigError
from kresnet.tune import job
from kresnet.tune.study import Study


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Arguments of the searches that were asked for; the study that they leave is a made-up one."""
    pytest.importorskip("keras_tuner")
    ledger = new_study(tmp_path / "study", trials=3)
    Study(ledger, Instant()).search()
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    found = []

    def note(*arguments, **options):
        options.pop("console")
        found.append((arguments, {k: v for k, v in options.items() if v is not None}))
        return SimpleNamespace(
            study=tmp_path / "study", lines=lambda: ["recipe best.yaml"], as_dict=lambda: {"n": 1}
        )

    monkeypatch.setattr(job, "tune", note)
    monkeypatch.setattr(job, "resume_study", note)
    return found


def run(*arguments):
    app(["tune", *map(str, arguments)], standalone_mode=False)


def test_options_arrive_in_their_units(calls, capsys):
    run(
        "photos", "--trials", 7, "--budget", "2h", "--algorithm", "grid", "--jobs", 3,
        "--trial-budget", "90s", "--trial-memory", 1.5, "--keep", 2, "--retries", 0, "--no-refit",
        "--epochs", 4, "--set", "batch_size=8", "--weights", "none", "--json",
    )  # fmt: skip
    ((data,), options) = calls[0]
    assert data == "photos"
    expected = {
        "trials": 7, "budget_s": 7200.0, "algorithm": "grid", "jobs": 3, "trial_s": 90.0,
        "memory_bytes": 1_500_000_000, "keep": 2, "retries": 0, "refit": False, "epochs": 4,
        "batch_size": 8, "weights": "none",
    }  # fmt: skip
    assert expected.items() <= options.items()
    printed = json.loads(capsys.readouterr().out)
    assert printed["result"] == {"n": 1}
    assert len(printed["trials"]) == 3


def test_what_is_not_said_is_left_open(calls, capsys):
    run("photos")
    assert not {"trials", "budget_s", "algorithm", "jobs", "refit", "epochs"} & set(calls[0][1])
    said = capsys.readouterr().out
    assert "recipe best.yaml" in said
    assert "0 plan" in said


def test_a_resumed_study_stays_what_it_was(calls, tmp_path):
    study = tmp_path / "study"
    run("--resume", study, "--trials", 9, "--refit")
    assert calls[0] == ((study,), {"trials": 9, "refit": True})
    for wrong in (["photos"], ["--algorithm", "grid"], ["--set", "lr=1"], ["--epochs", 3]):
        with pytest.raises(ConfigError, match="as it was begun"):
            run("--resume", study, *wrong)
    assert len(calls) == 1


@pytest.mark.parametrize("wrong", [["--jobs", "none"], ["--jobs", 0], ["--trial-budget", "long"]])
def test_a_wrong_option_is_named(calls, wrong):
    with pytest.raises(ConfigError, match=wrong[0]):
        run("photos", *wrong)
