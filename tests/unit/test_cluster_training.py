"""What becomes of a training on a cluster, by how its workers have ended."""

import pytest
from typer.testing import CliRunner

from kresnet.cli import app, launch
from kresnet.cluster.training import result_of
from kresnet.errors import ConfigError, Interrupted, ResourceError


@pytest.mark.parametrize(
    ("codes", "result"),
    [
        ([0, 0, 0], 0),
        ([0, None], 0),  # all was written when the other machine went
        ([5, None], None),
        ([None, 5, 5], None),
        ([-9, 5], None),
        ([3, 5], 3),
        ([5, 4, None], 4),
        ([None, 2], 2),
    ],
)
def test_only_what_was_lost_is_gone_on_with(codes, result):
    assert result_of(codes, stopped=False) == result


def test_what_was_stopped_says_how_to_go_on():
    with pytest.raises(Interrupted, match="The same command goes on"):
        result_of([5, 5], stopped=True)
    assert result_of([0, 5], stopped=True) == 0
    assert result_of([3, 5], stopped=True) == 3


def test_mistakes_of_the_command_are_one_line():
    pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    runner = CliRunner()
    for command in (["launch", "--ray", "127.0.0.1:1", "--", "train"], ["train", "--ray=[::1]:1"]):
        done = runner.invoke(app, [*command, "photos"])
        assert isinstance(done.exception, ResourceError)
        assert "There must be a Ray cluster at its address" in str(done.exception)
    done = runner.invoke(app, ["launch", "--ray", "auto", "--", "predict", "photos"])
    assert isinstance(done.exception, ConfigError)


@pytest.fixture
def handed(monkeypatch):
    """What is handed over to the cluster, in place of it."""
    found = []

    def run_on_ray(command, address, *, say, tell, **options):
        found.append((command, address, options))
        return 0

    monkeypatch.setattr("kresnet.cluster.training.run_on_ray", run_on_ray)
    return found


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (["--epochs", "3", "photos"], ["--epochs=3", "--", "photos"]),
        (["--no-flip", "--json", "--", "-x"], ["--no-flip", "--json", "--", "-x"]),
        (
            ["--set", "a=1", "--set", "b=x y", "--augment", "rand", "--recipe", "r.yaml"],
            ["--recipe=r.yaml", "--augment=rand", "--set=a=1", "--set=b=x y"],
        ),
    ],
)
def test_train_hands_what_was_said_over_to_the_workers(handed, said, meant):
    placed = ["--ray", "local", "--workers", "4", "--worker-cpus", "8", "--worker-gpus", "1"]
    assert CliRunner().invoke(app, ["train", *placed, *said]).exit_code == 0
    (one,) = handed
    command, address, options = one
    assert (command[0], address) == ("train", None)
    assert sorted(command[1:]) == sorted(meant)
    assert command[-1] == meant[-1]
    assert options == {"workers": 4, "cpus": 8, "gpus": 1}


def test_train_takes_as_many_workers_as_launch(handed):
    for command in (["train", "photos", "--ray", "auto"], ["launch", "--ray", "auto", "train"]):
        assert CliRunner().invoke(app, command).exit_code == 0
    assert [options["workers"] for _, _, options in handed] == [launch.WORKERS] * 2


def test_workers_of_train_need_a_cluster(handed):
    done = CliRunner().invoke(app, ["train", "photos", "--workers", "2"])
    assert isinstance(done.exception, ConfigError)
    assert "go with `--ray`. Received: workers=2" in str(done.exception)
    assert "kresnet launch --workers 2 -- train photos/" in str(done.exception)
    assert not handed


def test_train_ends_with_the_code_of_its_workers(monkeypatch):
    monkeypatch.setattr("kresnet.cluster.training.run_on_ray", lambda *_, **options: 5)
    assert CliRunner().invoke(app, ["train", "photos", "--ray", "auto"]).exit_code == 5
