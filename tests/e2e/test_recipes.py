"""Recipe scripts run as their first lines say, and say what they were measured to do."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import randomize
from PIL import Image
from safetensors.numpy import save_file

from kresnet.data.pack import pack
from kresnet.data.scan import scan
from kresnet.train.recipe import Recipe
from kresnet.zoo import build
from kresnet.zoo.embedded import read_card

RECIPES = Path(__file__).parents[2] / "recipes"
FIELDS = ("Machine", "Time", "Result", "Source")

SMALL = ("--variant", "resnet8_cifar", "--weights", "none", "--epochs", 1)
PRETRAINED = ("--variant", "resnet20_cifar", "--weights", "WEIGHTS")
SCORE = r"[01]\.\d{3} \(95 % 0\.\d{3}-[01]\.\d{3}, n=\d+\), balanced [01]\.\d{3}"
BALANCES = ("none", "sqrt", "full")
EXPORT = r"saved_models/\S+/1"
RANGE = r"\d+\.\d% \(\d+\.\d% to \d+\.\d%, \d seeds\)"

# Of each script, the arguments of its quick form, and all that it then prints. Words in capitals
# are fixtures of these tests.
QUICK = {
    "cifar10_resnet20.py": (["STRIPED", "--epochs", 1], rf"{SCORE}\n{EXPORT}\n"),
    "export_and_serve.py": (
        ["STRIPED", "--epochs", 1],
        rf"{SCORE}\n{EXPORT}\n32 of 32 answers are the same\n",
    ),
    "feature_extraction.py": (
        ["STRIPED", *SMALL[:4]],
        r"features.npz: 48 images, 64 features each\nnearest neighbour of the same class: "
        rf"\d+\.\d%\naccuracy {RANGE}\n",
    ),
    "finetune_flowers.py": (
        ["STRIPED", *SMALL, "--seeds", 2],
        rf"seed 0: {SCORE} in \d+ s, saved_models/flowers-0/1\n"
        rf"seed 1: {SCORE} in \d+ s, saved_models/flowers-1/1\naccuracy {RANGE}\n",
    ),
    "finetune_folder.py": (
        ["STRIPED", *PRETRAINED, "--epochs", 1],
        rf"{SCORE}\n{EXPORT}\n",
    ),
    "finetune_hymenoptera.py": (
        ["STRIPED", *PRETRAINED, "--epochs", 1, "--seeds", 1],
        rf"seed 0: fixed features \d+\.\d%\nseed 0: kept the (probe|fine-tune): {SCORE}\n"
        rf"accuracy {RANGE}\n",
    ),
    "finetune_tfds.py": (["TFDS", *SMALL], rf"{SCORE}\n{EXPORT}\n"),
    "grayscale_and_multispectral.py": (
        ["--epochs", 1, "--images", 60, "--seeds", 1],
        r"\| bands \| accuracy \|\n\|---\|---\|\n"
        + "".join(rf"\| {bands} \| {RANGE} \|\n" for bands in ("grey", "RGB", "six bands")),
    ),
    "imbalanced.py": (
        ["--epochs", 1, "--seeds", 1],
        r"\| balance \| accuracy, rare classes \| accuracy, others \|\n\|---\|---\|---\|\n"
        + "".join(rf"\| {name} (\| [^|]*% to [^|]*%\) ){{2}}\|\n" for name in BALANCES),
    ),
    "plain_vs_residual.py": (
        ["--epochs", 1, "--seeds", 1, "--images", 300],
        r"\| network \|.*\n\|[-|]*\n"
        + "".join(
            rf"\| {name}_cifar \|.*\n" for name in ("plain20", "plain56", "resnet20", "resnet56")
        ),
    ),
    "segmentation_backbone.py": (
        ["--variant", "resnet10t", *SMALL[2:], "--images", 24, "--seeds", 1],
        r"mean IoU 0\.\d{3} \(0\.\d{3} to 0\.\d{3}, 1 seeds\)\n",
    ),
    "tune_flowers.py": (
        ["STRIPED", *SMALL, "--trials", 2],
        r"([01]\.\d{3} \{.*\}\n){2}studies/tune_flowers/best.yaml\n",
    ),
}  # fmt: skip
FAST = ("feature_extraction.py", "segmentation_backbone.py")
OWN_TEST = ("embedded_backbone.py",)
HEAVY = (
    *FAST,
    *OWN_TEST,
    "plain_vs_residual.py",
)  # they load Keras before they read their arguments
NEEDED = {
    "export_and_serve.py": "tensorflow_serving",
    "finetune_tfds.py": "tensorflow_datasets",
    "tune_flowers.py": "keras_tuner",
}


def scripts():
    return sorted(path.name for path in RECIPES.glob("*.py"))


def run(script, *arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, RECIPES / script, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A checkpoint of a ResNet-20."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    model = randomize(build("resnet20_cifar"))
    save_file({f"{la.name}/{v.name}": v.numpy() for la in model.layers for v in la.weights}, path)
    return path


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(name, marks=() if name in FAST else pytest.mark.slow)
        for name in scripts()
        if name not in OWN_TEST
    ],
)  # fmt: skip
def test_recipes_run_in_their_quick_form(script, striped, weights, tmp_path, request):
    if script in NEEDED:
        pytest.importorskip(NEEDED[script], reason="an extra is not installed")
    if script == "finetune_tfds.py":
        packed = pack(scan(striped), tmp_path / "striped", shards=2).path
        (tmp_path / "tfds" / "striped").mkdir(parents=True)
        packed.rename(tmp_path / "tfds" / "striped" / "1.0.0")
    arguments, printed = QUICK[script]
    named = {"STRIPED": striped, "WEIGHTS": weights, "TFDS": "striped"}
    done = run(
        script,
        *(named.get(argument, argument) for argument in arguments),
        cwd=tmp_path,
        TFDS_DATA_DIR=str(tmp_path / "tfds"),
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(printed, done.stdout), done.stdout
    for export in re.findall(EXPORT, done.stdout):
        assert (tmp_path / export / "saved_model.pb").is_file()
    AFTERWARDS.get(script, lambda folder, said: None)(tmp_path, done.stdout)


def test_every_recipe_has_a_quick_form():
    assert {*QUICK, *OWN_TEST} == set(scripts())


@pytest.mark.parametrize("script", scripts())
def test_recipes_say_command_machine_time_result_and_source(script):
    text = ast.get_docstring(ast.parse((RECIPES / script).read_text(encoding="utf-8")))
    command = re.search(rf"^    python recipes/{script}\b.*$", text, re.MULTILINE)
    assert command, text
    fields = re.split(rf"^({'|'.join(FIELDS)}): ", text, flags=re.MULTILINE)
    assert tuple(fields[1::2]) == FIELDS
    said = dict(zip(fields[1::2], fields[2::2], strict=True))
    assert re.search("cores|GPU", said["Machine"]), said
    assert "not measured" not in said["Machine"], said
    assert re.search(r"\d", said["Time"]), said
    assert re.search(r"\d", said["Result"]), said
    assert re.search(r"arXiv:\d{4}\.\d{5}|https?://|doi:|kresnet", said["Source"]), said


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(name, marks=pytest.mark.slow if name in HEAVY else ())
        for name in scripts()
    ],
)  # fmt: skip
def test_called_wrongly_they_say_how_to_call_them(script, tmp_path):
    done = run(script, "--no-such-option", cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(rf"^usage: {script} ", done.stderr, re.MULTILINE), done.stderr


def test_mistakes_are_one_line(tmp_path):
    done = run("feature_extraction.py", "nowhere", *SMALL[:4], cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("The images must be in a folder.")
    assert "Traceback" not in done.stderr


def the_features_are_those_of_the_images(folder, said):
    with np.load(folder / "features.npz") as found:
        assert found["features"].shape == (48, 64)
        names = [Path(path).parent.name for path in found["paths"]]
        assert names == [str(found["classes"][label]) for label in found["labels"]]


def the_probe_came_first(folder, said):
    info = json.loads((folder / "runs" / "striped" / "run.json").read_text())
    assert info["status"] == "complete"
    assert info["result"]["probe"] is not None


def the_best_recipe_is_written(folder, said):
    *trials, best = said.splitlines()
    scores = [float(line.split()[0]) for line in trials]
    assert scores == sorted(scores, reverse=True)
    recipe = Recipe.load(folder / best)
    assert recipe.variant == "resnet8_cifar"
    assert repr(recipe.lr) in trials[0]


AFTERWARDS = {
    "feature_extraction.py": the_features_are_those_of_the_images,
    "finetune_folder.py": the_probe_came_first,
    "tune_flowers.py": the_best_recipe_is_written,
}


def blots(folder, count, seed):
    """Save pictures that are not alike."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for k in range(count):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        small.resize((80, 72), Image.Resampling.BICUBIC).save(folder / f"{k}.png")


@pytest.mark.slow
def test_embedded_backbone_leaves_out_what_it_must_not_see_and_goes_on_where_it_was(
    shared, tmp_path
):
    teacher = next((shared / "weights" / "resnet50_imagenet").glob("*.npz"))
    for name in ("one", "two"):
        blots(tmp_path / "images" / name, 16, seed=len(name) + ord(name[0]))
    unseen = tmp_path / "unseen" / "any"
    unseen.mkdir(parents=True)
    for name in ("3.png", "5.png"):
        with Image.open(tmp_path / "images" / "one" / name) as image:
            image.resize((60, 54)).save((unseen / name).with_suffix(".jpg"), quality=80)
    asked = (
        tmp_path / "images", "--teacher", teacher, "--work", tmp_path / "work",
        "--leave-out", unseen.parent, "--judge", tmp_path / "images",
    )  # fmt: skip
    file = tmp_path / "work" / "embedded.safetensors"

    def steps(minutes):
        done = run("embedded_backbone.py", *asked, "--minutes", minutes, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout, read_card(file)["steps"]

    said, first = steps(0.1)
    assert "30 images, 2 left out, 2 classes" in said
    assert first > 0
    assert read_card(file)["probes"]["images"].keys() == {"64", "96", "128", "160"}
    said, same = steps(0.1)
    assert "taught" not in said  # the teacher is asked once
    assert same == first
    assert steps(0.8)[1] > first
