"""Each planned setting has a reason with the numbers that led to it; the user's own are theirs."""

import inspect
import json

import pytest
from conftest import STRIPES

from kresnet import cli, workflow
from kresnet.cli.options import NO_FIELDS
from kresnet.console import Console
from kresnet.errors import ConfigError
from kresnet.train import plan as planning
from kresnet.train.plan import YOURS, again, explained, plan
from kresnet.train.presets import EFFORTS, PRESETS
from kresnet.train.recipe import Recipe, rerun

PLANNED = {
    "image_size", "epochs", "batch_size", "lr", "layer_decay", "train_from", "norms", "min_area",
    "augment", "mixup", "balance", "flip", "ema", "patience", "precision", "budget_s",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _processor(monkeypatch):
    monkeypatch.setattr(planning, "has_gpu", lambda: False)
    monkeypatch.setattr(planning, "resolve_precision", lambda precision: "bfloat16")


def of(num_images=420, weights="imagenet", variant="resnet50", preset="default", **given):
    known = {"classes": ("a cat", "a dog"), "counts": (), "side": None} | given.pop("known", {})
    return explained(
        data="photos", num_images=num_images, variant=variant, weights=weights, image_size=224,
        overrides=given, preset=preset, **known,
    )  # fmt: skip


@pytest.mark.parametrize("weights", ["imagenet", None])
@pytest.mark.parametrize("preset", EFFORTS)
def test_every_planned_setting_has_a_reason_and_the_recipe_is_that_of_plan(weights, preset):
    made = of(weights=weights, preset=preset)
    assert set(made.reasons) >= PLANNED
    assert all(why and why != YOURS and "\n" not in why for why in made.reasons.values())
    assert made.recipe == plan(
        data="photos", num_images=420, classes=("a cat", "a dog"), variant="resnet50",
        weights=weights, image_size=224, overrides={}, preset=preset,
    )  # fmt: skip
    assert list(made.reasons) == [name for name in Recipe.model_fields if name in made.reasons]


@pytest.mark.parametrize(
    ("field", "why"),
    [
        ("epochs", r"20,000 of 420 images, within 5 to 15"),
        ("batch_size", r"420 images, fewer than 2,000: 14 steps"),
        ("train_from", r"420 images, fewer than 5,000: the last two stages"),
        ("mixup", r"420 images, fewer than 20,000"),
        ("balance", r"classes of 30 to 390 images, more than 3 to 1"),
        ("flip", r"'left hand', 'right hand'"),
        ("image_size", r"magnified 7\.0 times"),
        ("precision", r"processor computes it"),
        ("patience", r"420 images, fewer than 5,000: 5 epochs"),
        ("budget_s", r"preset default without a GPU"),
    ],
)
def test_a_reason_holds_the_numbers_that_led_to_it(field, why):
    import re

    known = {"classes": ("left hand", "right hand"), "counts": (390, 30), "side": 32}
    made = of(known=known)
    assert re.search(why, made.reasons[field]), made.reasons[field]


def test_what_the_user_sets_is_theirs_and_an_automatic_precision_is_planned():
    made = of(lr=1e-3, epochs=4, drop_rate=0.2, precision="auto")
    yours = {name for name, why in made.reasons.items() if why == YOURS}
    assert yours == {"lr", "epochs", "drop_rate"}
    assert made.recipe.precision == "bfloat16"
    assert "number of epochs" in made.reasons["budget_s"]
    assert of(precision="float32").reasons["precision"] == YOURS


def test_the_stages_that_learn_are_those_that_the_network_has():
    assert of(variant="resnet20_cifar", preset="fast").recipe.train_from == 3
    assert of(variant="resnet20_cifar").recipe.train_from == 2
    assert of(preset="fast").recipe.train_from == 4
    assert of(num_images=5_000).recipe.train_from == 1


@pytest.mark.parametrize("name", PRESETS)
def test_a_published_recipe_trains_the_whole_network_to_the_end(name):
    made = of(preset=name, weights=None if PRESETS[name].scratch else "imagenet")
    assert (made.recipe.train_from, made.recipe.patience) == (1, None)
    assert made.reasons["lr"] == f"{name}: {PRESETS[name].source}"


def test_a_stored_recipe_leaves_nothing_to_plan():
    made = again(rerun(of().recipe, {"lr": 0.5}), source="recipe.yaml", overrides={"lr": 0.5})
    assert made.recipe.lr == 0.5
    assert made.reasons["lr"] == YOURS
    assert made.reasons["epochs"] == "as in recipe.yaml"


def test_a_plan_is_told_in_lines_and_as_json():
    made = of(epochs=7)
    lines = {line.split()[0]: line for line in made.lines()}
    assert lines["epochs"].split()[1:] == ["7", YOURS]
    assert lines["flip"].split()[1] == "yes"
    stored = json.loads(json.dumps(made.as_dict()))
    assert Recipe.model_validate(stored["recipe"]) == made.recipe
    assert stored["reasons"] == made.reasons
    assert stored["estimate"] is None


# ---------------------------------------------------------------- the command line


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Run a command in an empty folder; return its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["kresnet", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = ended.code or 0
        return code, *capsys.readouterr()

    return run


def test_a_dry_run_says_why_and_leaves_no_run_and_loads_no_weights(
    command, striped, tmp_path, monkeypatch
):
    monkeypatch.setattr("kresnet.workflow.choice.estimated", lambda *args, **options: None)
    monkeypatch.setattr("kresnet.workflow.choice.find_weights", None)
    code, out, told = command("train", striped, "--dry-run", "--set", "seed=3")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert set(lines) >= PLANNED
    assert lines["seed"].split() == ["seed", "3", YOURS]
    assert all(f"'{name}'" in lines["flip"] for name in STRIPES[:1])
    assert "plan " in told
    assert not list(tmp_path.iterdir())


def test_every_field_can_be_set(command, striped, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(workflow, "preview", lambda data, **job: seen.update(job) or of())
    code, _, _ = command(
        "train", striped, "--dry-run", "--lr", "0.1", "--set", "lr=1e-4", "--set",
        "drops=[0.25, 0.5]", "--set", "clip_norm=null", "--set", "variant=resnet18",
        "--set", "keep_split=split.csv",
    )  # fmt: skip
    assert code == 0
    assert seen["variant"] == "resnet18"
    assert seen["keep_split"] == str(tmp_path / "split.csv")
    assert seen["clip_norm"] is None
    recipe = of(**{name: seen[name] for name in ("lr", "drops", "clip_norm")}).recipe
    assert (recipe.lr, recipe.drops, recipe.clip_norm) == (1e-4, (0.25, 0.5), None)


def test_what_is_no_field_is_all_that_fit_takes_beside_them():
    taken = set(inspect.signature(workflow.fit).parameters) - {"settings"}
    assert taken - set(Recipe.model_fields) == set(NO_FIELDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch=3", r"no such field. Received: 'epoch'. Did you mean 'epochs'?"),
        ("optimizer=adam-w", r"Received: optimizer='adam-w'. Did you mean 'adamw'?"),
        ("name=x", r"`--set` takes a field of recipe.yaml and its value. Received: 'name=x'."),
        ("lr", r"`--set` takes a field of recipe.yaml and its value. Received: 'lr'."),
        ("lr=[", r"`--set` takes a field of recipe.yaml and its value. Received: 'lr=['."),
    ],
)
def test_what_cannot_be_set_is_named(command, striped, text, message):
    code, out, told = command("train", striped, "--dry-run", "--set", text)
    assert (code, out) == (2, "")
    assert message in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("optimizer: adam-w", r"optimizer='adam-w'\. Did you mean 'adamw'\?"),
        ("schedule: Cosin", r"schedule='Cosin'\. Did you mean 'cosine'\?"),
        ("balance: 7", r"'none', 'sqrt' or 'full'\. Received: balance=7\.$"),
        ("learning_rate: 3", r"no such field. Received: 'learning_rate'"),
    ],
)
def test_wrong_words_in_a_recipe_file_are_named(tmp_path, line, message):
    path = tmp_path / "recipe.yaml"
    of().recipe.save(path)
    name = line.partition(":")[0]
    kept = [one for one in path.read_text().splitlines() if not one.startswith(f"{name}:")]
    path.write_text("\n".join([*kept, line]))
    with pytest.raises(ConfigError, match=message):
        workflow.preview(recipe=path, console=Console(quiet=True))


def test_a_misspelt_field_is_told_before_the_one_that_it_leaves_out(tmp_path):
    path = tmp_path / "recipe.yaml"
    of().recipe.save(path)
    text = path.read_text()
    path.write_text(text.replace("epochs:", "epoch:"))
    with pytest.raises(ConfigError, match=r"'epoch'\. Did you mean 'epochs'\?"):
        Recipe.load(path)
    path.write_text(text.replace("epochs:", "# epochs:"))
    with pytest.raises(ConfigError, match=r"Received: no 'epochs'\. Add it"):
        Recipe.load(path)
