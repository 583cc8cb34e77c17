"""A training that is killed at any moment, and resumed, ends as if nothing had happened."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def killed(folder, kills, seed, **settings):
    command = [TESTS / "killing.py", folder, kills, seed, json.dumps(settings)]
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
    )
    log = folder / "log.txt"
    said = log.read_text()[-3000:] if log.exists() else ""
    assert done.returncode == 0, done.stderr[-3000:] + said
    return json.loads(done.stdout)


def check(result, kills):
    expected = result["expected"]
    assert len(expected["metrics"]) == 3
    assert {"average_val_loss", "val_loss", "loss"} <= set(expected["metrics"][0])
    assert {"model.weights.safetensors", "variables.safetensors"} < set(expected["sha256"])
    assert "soup" in expected["refined"]
    assert len(result["moments"]) == kills
    for found in result["found"]:
        assert found == expected
    stages = [moment.split()[0] for moment in result["moments"]]
    assert {"probe", "fine-tune"} == set(stages)
    assert any(".partial" in moment for moment in result["moments"])  # a half-written state


@pytest.mark.slow
def test_three_kills_change_no_bit(tmp_path):
    quick = {"image_size": 32, "progressive": 0.0, "norms": "frozen"}
    check(killed(tmp_path, 3, seed=1, **quick), 3)


@pytest.mark.slow
def test_twenty_kills_change_no_bit(tmp_path):
    result = killed(tmp_path, 20, seed=2)
    check(result, 20)
    assert set(result["expected"]["refined"]) == {"soup", "statistics"}
