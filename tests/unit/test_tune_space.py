"""What may be searched, what is refused, and how it looks to keras_tuner."""

import random
from types import SimpleNamespace

import pytest
import yaml
from searching import SPACE, recipe_of

from kresnet.errors import ConfigError, ResourceError
from kresnet.train.recipe import rerun
from kresnet.tune import begin, job
from kresnet.tune.space import FIXED, Space


def sampled(hp, seed):
    """A random point, as keras_tuner draws it: only what is active."""
    found = type(hp)()
    for number, one in enumerate(hp.space):
        found.merge([one])
        if found.is_active(one):
            found.values[one.name] = one.random_sample(1000 * seed + number)
    return found.values


def test_random_points_of_a_space_are_recipes_within_it():
    pytest.importorskip("keras_tuner")
    fields = SPACE | {
        "clip_norm": {"choice": [None, 0.5, 1.0]},
        "soup": {"choice": [0, 3]},
        "flip": {"choice": [True, False]},
        "drops": {"choice": [[0.5], [0.3, 0.6]], "when": {"schedule": ["steps"]}},
        "schedule": {"choice": ["cosine", "steps"]},
        "batch_size": {"int": [8, 64], "step": 2, "log": True},
        "drop_rate": {"float": [0.0, 0.5], "step": 0.25},
    }
    space, recipe = Space.of(fields), recipe_of()
    hp = space.hyperparameters(recipe)
    seen = {name: set() for name in fields}
    for seed in range(200):
        chosen = space.overrides(sampled(hp, seed) | {"tuner/epochs": 3})
        changed = rerun(recipe, chosen)
        assert ("color" in chosen) == (changed.augment == "light")
        assert ("drops" in chosen) == (changed.schedule == "steps")
        for name, value in chosen.items():
            assert getattr(changed, name) == value
            seen[name].add(value)
        point = space.values_of(changed)
        assert space.overrides(point) == chosen
    assert seen["clip_norm"] == {None, 0.5, 1.0}
    assert seen["flip"] == {True, False}
    assert seen["drops"] == {(0.5,), (0.3, 0.6)}
    assert seen["batch_size"] == {8, 16, 32, 64}
    assert seen["drop_rate"] == {0.0, 0.25, 0.5}
    assert min(seen["lr"]) < 1e-3 < 1e-2 < max(seen["lr"])


def test_defaults_are_those_of_the_recipe_where_the_space_has_them():
    pytest.importorskip("keras_tuner")
    space = Space.of({"lr": {"float": [0.1, 0.2]}, "batch_size": {"choice": [8, 16, 32]}})
    recipe = recipe_of(batch_size=16)
    hp = space.hyperparameters(recipe)
    assert {one.name: one.default for one in hp.space} == {"lr": 0.1, "batch_size": 16}
    assert space.values_of(recipe) is None
    assert space.values_of(rerun(recipe, {"lr": 0.15})) == {"lr": 0.15, "batch_size": 16}


@pytest.mark.parametrize("weights", [None, "imagenet"])
def test_the_default_space_holds_the_planned_recipe(weights):
    recipe = recipe_of().model_copy(update={"weights": weights})
    space = Space.default(recipe)
    assert set(space.values_of(recipe)) <= set(space.entries)
    assert ("layer_decay" in space.entries) == (weights is not None)
    assert Space.of(space.as_dict()) == space


def test_a_file_is_read_as_people_write_it(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(
        "color: {float: [0, 0.4], when: {augment: light}}\n"
        "augment: {choice: [none, light]}\n"
        "lr: {float: [1e-5, 1e-3], log: true}\n"  # YAML takes these for words
    )
    space = Space.load(file)
    assert list(space.entries) == ["augment", "lr", "color"]
    assert space.entries["lr"].floats == (1e-5, 1e-3)
    assert space.entries["color"].when == {"augment": ("light",)}
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(space.as_dict()))
    assert Space.load(again) == space


WRONG = {
    "lrr: {float: [0.1, 0.2]}": "Did you mean 'lr'",
    "seed: {int: [0, 9]}": "cannot be searched",
    "lr: {float: [0.2, 0.1]}": "lower value first",
    "lr: {float: [0.0, 0.1]}": "greater than 0",
    "lr: {float: [-1, 0.1], log: true}": "above 0",
    "lr: {flaot: [0.1, 0.2]}": "Did you mean 'float'",
    "lr: {float: [0.1]}": "Write it as",
    "lr: {}": "one of choice",
    "lr: 0.1": "Write it as",
    "lr: {float: [0.1, 0.2], choice: [0.1]}": "one of choice",
    "lr: {float: [0.1, .inf]}": "lower value first",
    "lr: {float: [0.1, 0.2], step: -1}": "greater than 0",
    "lr: {float: [0.1, 0.2], log: true, step: 0.5}": "factor above 1",
    "drop_rate: {float: [0.0, 1.5]}": "less than 1",
    "norms: {choice: [frozen, thawed]}": "'frozen' or 'train'",
    "augment: {choice: []}": "at least 1",
    "norms: {choice: [frozen], log: true}": "neither log nor step",
    "variant: {choice: [resnet50, resnet5]}": "resnet5",
    "color: {float: [0, 0.4], when: {augment: light}}": "Add that field",
    "color: {float: [0, 0.4], when: {agument: light}}": "no recipe has",
    "color: {float: [0, 0.4], when: {color: 0.1}}": "depend on it",
    "batch_size: {int: [8, 64], step: 1.5}": "whole",
    "[1, 2]": "must hold lines",
    "": "must hold lines",
    "lr: {float: [0.1": "YAML",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_space_is_told_in_one_line(tmp_path, text):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Space.load(file)
    said = str(caught.value)
    assert WRONG[text] in said
    assert "\n" not in said
    assert "Received: " in said


def test_a_space_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ResourceError, match="readable"):
        Space.load(tmp_path / "none.yaml")


def test_what_all_trials_share_is_not_searched():
    fields = set(recipe_of().model_dump())
    assert set(FIXED) <= fields
    assert {"seed", "val", "test", "keep_split"} <= set(FIXED)


def test_hyperband_keeps_the_epochs_for_itself_and_variants_need_their_own_weights():
    recipe = recipe_of()
    epochs = Space.of({"epochs": {"int": [1, 9]}})
    epochs.check(recipe, algorithm="random")
    with pytest.raises(ConfigError, match="Hyperband"):
        epochs.check(recipe, algorithm="hyperband")
    variants = Space.of({"variant": {"choice": ["resnet50", "resnet18"]}})
    variants.check(recipe, algorithm="random")
    with pytest.raises(ConfigError, match="imagenet or none"):
        variants.check(recipe.model_copy(update={"weights": "some.h5"}), algorithm="random")


def test_what_depends_on_the_inactive_is_inactive():
    space = Space.of(
        {
            "schedule": {"choice": ["cosine", "steps"]},
            "warmup": {"float": [0.0, 0.3], "when": {"schedule": "cosine"}},
            "ema": {"float": [0.1, 0.5], "when": {"warmup": 0.1}},
        }
    )
    values = {"schedule": "steps", "warmup": 0.1, "ema": 0.2}
    assert space.overrides(values) == {"schedule": "steps"}
    rng = random.Random(0)
    values = {"schedule": "cosine", "warmup": 0.1, "ema": rng.uniform(0.1, 0.5)}
    assert space.overrides(values) == values


@pytest.mark.parametrize("variants", [None, ["resnet50", "resnet20_cifar"]])
def test_a_stage_that_a_network_does_not_have_is_refused(variants):
    fields = {"train_from": {"int": [1, 4]}}
    if variants:
        fields["variant"] = {"choice": variants}
    known = recipe_of().model_copy(update={"weights": None, "variant": "resnet20_cifar"})
    with pytest.raises(ConfigError, match="resnet20_cifar has 3 stages"):
        Space.of(fields).check(known, algorithm="random")
    Space.of(fields | {"train_from": {"choice": [1, 3]}}).check(known, algorithm="random")


CUT = {"cut_cache": "memory", "train_from": 3, "epochs": 3}


@pytest.mark.parametrize("name", ["train_from", "mixup"])
def test_what_forbids_to_keep_what_frozen_stages_say_is_not_tried_with_it(name):
    fields = {"train_from": {"int": [1, 3]}, "mixup": {"float": [0.0, 0.2]}}
    space = Space.of({name: fields[name]})
    with pytest.raises(ConfigError, match=rf"{name}=.* in the space, and cut_cache='memory'"):
        space.check(rerun(recipe_of(), CUT), algorithm="random")
    space.check(rerun(recipe_of(), CUT | {"cut_cache": "none"}), algorithm="random")


@pytest.mark.parametrize(
    ("asked", "cut_cache"), [({}, "none"), ({"cut_cache": "memory"}, "memory")]
)
def test_trials_see_new_views_in_each_epoch_where_a_plan_would_not(monkeypatch, asked, cut_cache):
    """Unless somebody asks for it: spaces have what would be refused, as training from stage 1."""
    pytest.importorskip("keras_tuner")
    planned = SimpleNamespace(recipe=rerun(recipe_of(), CUT))
    monkeypatch.setattr(job, "choose", lambda *args, **options: (planned, None))
    found = []

    def fetch(space, recipe, console):
        found.append(recipe)
        raise InterruptedError

    monkeypatch.setattr(begin, "fetch_weights", fetch)
    with pytest.raises(InterruptedError):
        job.tune("photos", **asked)
    assert [recipe.cut_cache for recipe in found] == [cut_cache]
