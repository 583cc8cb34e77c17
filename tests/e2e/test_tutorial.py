"""The code of recipes/tutorial.md runs as it stands there, and says what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIAL = Path(__file__).parents[2] / "recipes" / "tutorial.md"
FAST = 3  # blocks up to the comparison with kresnet's network, before the first training


def blocks():
    text = TUTORIAL.read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run(code, cwd):
    environment = os.environ | {"KRESNET_HOME": str(cwd / "home")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_the_network_from_scratch_answers_as_kresnets(tmp_path):
    done = run("\n".join(blocks()[:FAST]), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "274,042 parameters\n"


@pytest.mark.slow
def test_the_whole_tutorial_runs(tmp_path):
    done = run("\n".join(blocks()), tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "274,042 parameters"
    assert lines[1].endswith("of 360 digits that it has not seen")
    assert (tmp_path / "saved_models" / "low" / "1" / "saved_model.pb").is_file()
    assert lines[-2].startswith("from random weights 0.")
    assert lines[-1].startswith("from those of 0 to 4 0.")
