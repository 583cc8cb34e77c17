"""What becomes of a training on a cluster, by how its workers have ended."""

import pytest
from typer.testing import CliRunner

from kresnet.cli import app
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
    done = runner.invoke(app, ["launch", "--ray", "127.0.0.1:1", "--", "train", "photos"])
    assert isinstance(done.exception, ResourceError)
    assert "There must be a Ray cluster at its address" in str(done.exception)
    done = runner.invoke(app, ["launch", "--ray", "auto", "--", "predict", "photos"])
    assert isinstance(done.exception, ConfigError)
