"""Recipe scripts run as their first lines say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import randomize
from safetensors.numpy import save_file

from kresnet.train.recipe import Recipe
from kresnet.zoo import build

RECIPES = Path(__file__).parents[2] / "recipes"


def run(script, *arguments, cwd):
    return subprocess.run(
        [sys.executable, RECIPES / script, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_cifar10_resnet20_trains_from_scratch(striped, tmp_path):
    done = run("cifar10_resnet20.py", striped, 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    accuracy, export = done.stdout.splitlines()
    assert "95 %" in accuracy
    assert (tmp_path / export / "saved_model.pb").is_file()


@pytest.mark.slow
def test_finetune_folder_takes_a_checkpoint(striped, tmp_path):
    model = randomize(build("resnet20_cifar"))
    save_file(
        {f"{la.name}/{v.name}": v.numpy() for la in model.layers for v in la.weights},
        tmp_path / "weights.safetensors",
    )
    done = run(
        "finetune_folder.py", striped, tmp_path / "weights.safetensors", "resnet20_cifar",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    info = json.loads((tmp_path / "runs" / "striped" / "run.json").read_text())
    assert info["status"] == "complete"
    assert info["result"]["probe"] is not None


@pytest.mark.slow
def test_plain_vs_residual_prints_a_row_for_each_network(tmp_path):
    done = run("plain_vs_residual.py", 1, 1, 300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines()[2:]]
    assert rows == ["plain20_cifar", "plain56_cifar", "resnet20_cifar", "resnet56_cifar"]


@pytest.mark.parametrize("script", sorted(path.name for path in RECIPES.glob("*.py")))
def test_called_wrongly_they_say_how_to_call_them(script, tmp_path):
    wrong = ("many",) if script == "plain_vs_residual.py" else ()
    done = run(script, *wrong, cwd=tmp_path)
    assert done.returncode == 1
    assert f"python recipes/{script} " in done.stderr


def test_mistakes_are_one_line(tmp_path):
    done = run("cifar10_resnet20.py", "nowhere", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("The images must be in a folder.")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_tune_flowers_writes_the_best_recipe(striped, tmp_path):
    pytest.importorskip("keras_tuner", reason="the extra `tune` is not installed")
    done = run("tune_flowers.py", striped, "none", "resnet8_cifar", 2, 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *trials, best = done.stdout.splitlines()
    scores = [float(line.split()[0]) for line in trials if line.startswith("0.")]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    recipe = Recipe.load(tmp_path / best)
    assert recipe.variant == "resnet8_cifar"
    assert repr(recipe.lr) in trials[-2]
