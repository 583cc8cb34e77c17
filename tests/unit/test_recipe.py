"""Recipes are complete and validated; the plan follows the data; mistakes are named."""

import pytest

from kresnet.errors import ConfigError
from kresnet.train import hardware
from kresnet.train.plan import plan
from kresnet.train.recipe import Recipe


def planned(num_images=500, classes=("a cat", "a dog"), weights="imagenet", **overrides):
    return plan(
        data="photos",
        num_images=num_images,
        classes=classes,
        variant="resnet50",
        weights=weights,
        image_size=224,
        overrides=overrides,
    )


def test_yaml_round_trip(tmp_path):
    recipe = planned(epochs=7, lr=1e-3, test=0.0, budget_s=90.0)
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


def test_pretrained_norms_stay_and_random_ones_learn():
    assert planned().norms == "frozen"
    assert planned().layer_decay < 1.0
    scratch = planned(weights=None)
    assert scratch.norms == "train"
    assert scratch.layer_decay == 1.0
    assert scratch.lr > planned().lr


def test_fewer_images_get_more_epochs():
    epochs = [planned(num_images=n).epochs for n in (10, 500, 2_000, 10_000, 1_000_000)]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[0] > epochs[-1] >= 1


@pytest.mark.parametrize(
    ("classes", "flip"),
    [
        (("ants", "bees"), True),
        (("0", "1", "10"), False),
        (("A", "b"), False),
        (("arrow_left", "arrow_right"), False),
        (("Left hand", "other"), False),
        (("cleft", "bright"), True),
    ],
)
def test_mirroring_is_off_where_it_changes_the_meaning(classes, flip):
    assert planned(classes=classes).flip is flip
    assert planned(classes=classes, flip=not flip).flip is not flip


def test_what_the_user_sets_wins_and_none_is_open():
    recipe = planned(batch_size=5, clip_norm=None, seed=3)
    assert (recipe.batch_size, recipe.clip_norm, recipe.seed) == (5, None, 3)
    assert recipe.lr == planned().lr


def test_a_processor_has_a_default_budget_unless_the_length_is_given(monkeypatch):
    monkeypatch.setattr("kresnet.train.plan.has_gpu", lambda: False)
    assert 60 < planned().budget_s < 300
    assert planned(epochs=3).budget_s is None
    assert planned(budget_s=60.0).budget_s == 60.0
    monkeypatch.setattr("kresnet.train.plan.has_gpu", lambda: True)
    assert planned().budget_s is None


@pytest.mark.parametrize(
    ("flags", "precision"),
    [({"amx_bf16"}, "bfloat16"), ({"avx512_bf16"}, "float32"), ({"avx2"}, "float32")],
)
def test_automatic_precision_is_what_the_processor_is_fast_in(monkeypatch, flags, precision):
    monkeypatch.setattr(hardware, "_cpu_flags", lambda: flags)
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: [])
    assert planned(precision="auto").precision == precision
    assert planned(precision="float16").precision == "float16"


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16"), ((6, 1), "float32")],
)
def test_automatic_precision_is_what_the_gpu_has(monkeypatch, capability, precision):
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda kind: ["gpu"])
    monkeypatch.setattr(
        "tensorflow.config.experimental.get_device_details",
        lambda gpu: {"compute_capability": capability},
    )
    assert hardware.resolve_precision("auto") == precision


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epoch": 3}, r"no such field. Received: 'epoch'. Did you mean 'epochs'\?"),
        ({"zzz": 3}, r"no such field. Received: 'zzz'. Known: data, variant"),
        ({"lr": -1.0}, r"`lr` is wrong: .*greater than 0.* Received: lr=-1.0"),
        ({"epochs": 1.5}, r"`epochs` is wrong: .*integer.* Received: epochs=1.5"),
        ({"optimizer": "lion"}, r"`optimizer` is wrong: .*'adamw', .*'sgd'.*optimizer='lion'\.$"),
        ({"precision": "int4"}, r"`precision` is wrong: .*precision='int4'"),
        ({"image_size": 16}, r"`image_size` is wrong: .*greater than or equal to 32"),
    ],
)
def test_mistakes_are_named(overrides, message):
    with pytest.raises(ConfigError, match=message):
        planned(**overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (":\n\t- x", r"readable YAML file"),
        ("just words", r"`field: value` lines"),
        (None, "No such"),
    ],
)
def test_files_that_are_no_recipe(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        Recipe.load(path)


def test_views_follow_the_data_and_the_users_word():
    assert planned().augment == "light"
    assert planned().mixup == 0.0
    assert planned(num_images=20_000).mixup > 0.0
    assert planned(augment="rand").augmentation.policy == "rand"
    assert planned(label_smoothing=0.1).augmentation.smoothing == 0.1


@pytest.mark.parametrize(
    ("counts", "balance"), [((30, 10), "none"), ((31, 10), "sqrt"), ((5, 5, 5), "none")]
)
def test_rare_classes_are_raised_from_three_to_one_on(counts, balance):
    plan_of = {"data": "x", "num_images": 90, "classes": ("a cat", "a dog"), "variant": "resnet50"}
    made = plan(**plan_of, weights="imagenet", image_size=224, overrides={}, counts=counts)
    assert made.balance == balance
