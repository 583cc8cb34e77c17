"""Presets are complete recipes that name their sources and fit what is overridden."""

import pytest

from kresnet.errors import ConfigError
from kresnet.train import plan as planning
from kresnet.train.plan import plan
from kresnet.train.presets import EFFORTS, PRESETS
from kresnet.train.recipe import Recipe, rerun


@pytest.fixture(autouse=True)
def _processor(monkeypatch):
    monkeypatch.setattr(planning, "has_gpu", lambda: False)


def planned(preset, num_images=500, weights=None, **overrides):
    return plan(
        data="photos",
        num_images=num_images,
        classes=("a cat", "a dog"),
        variant="resnet50",
        weights=weights,
        image_size=224,
        overrides=overrides,
        preset=preset,
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_published_recipe_is_complete_and_says_where_it_is_from(name):
    preset = PRESETS[name]
    assert "arXiv" in preset.source or "github.com" in preset.source
    assert "%" in preset.result
    assert preset.differs
    made = planned(name, weights=None if preset.scratch else "imagenet")
    assert made.budget_s is None
    assert made.layer_decay == 1.0


def test_the_numbers_are_those_of_the_papers():
    he = planned("he-cifar", num_images=45_000)
    assert (he.batch_size, he.lr, he.weight_decay, he.drops) == (128, 0.1, 1e-4, (0.5, 0.75))
    assert he.epochs * -(-45_000 // 128) == pytest.approx(64_000, rel=0.01)
    a1, a3 = planned("rsb-a1"), planned("rsb-a3")
    assert (a1.optimizer, a1.lr, a1.epochs, a1.weight_decay, a1.loss) == (
        "lamb", 5e-3, 600, 0.01, "sigmoid",
    )  # fmt: skip
    assert (a1.repeats, a1.mixup, a1.label_smoothing, a1.drop_path_rate) == (3, 0.2, 0.1, 0.05)
    assert (a3.lr, a3.epochs, a3.mixup, a3.repeats) == (8e-3, 100, 0.1, 1)
    v2 = planned("torchvision-v2")
    assert (v2.lr, v2.batch_size, v2.weight_decay, v2.erase, v2.cutmix) == (
        0.5, 1024, 2e-5, 0.1, 1.0,
    )  # fmt: skip
    assert v2.warmup == pytest.approx(5 / 600)


@pytest.mark.parametrize(("images", "steps"), [(400, 500), (30_000, 10_000), (600_000, 20_000)])
def test_the_hyperrule_follows_the_number_of_images(images, steps):
    made = planned("bit-hyperrule", num_images=images, weights="imagenet")
    assert abs(made.epochs * images / 512 - steps) <= images / 512 / 2  # epochs are whole
    assert (made.mixup > 0) == (images >= 20_000)


def test_the_rate_follows_the_batch():
    assert planned("he-cifar", batch_size=32).lr == pytest.approx(0.025)
    assert planned("rsb-a1", batch_size=512).lr == pytest.approx(2.5e-3)
    assert planned("rsb-a1", batch_size=512, lr=1e-3).lr == 1e-3
    assert planned("rsb-a2", epochs=20).warmup == 0.25
    assert planned("rsb-a2", epochs=5).warmup == 0.5


def test_more_effort_is_more_epochs():
    for weights in ("imagenet", None):
        epochs = [planned(effort, weights=weights).epochs for effort in EFFORTS]
        assert epochs == sorted(set(epochs))
    budgets = [planned(effort, weights="imagenet").budget_s for effort in EFFORTS]
    assert budgets[0] < budgets[1]
    assert budgets[2] is None
    assert planned("best").ema > planned("default").ema == 0.0


def test_few_images_end_early_where_nothing_gets_better():
    assert planned("default", weights="imagenet").patience >= 5
    assert planned("best", weights="imagenet").patience > 5
    assert planned("default", num_images=50_000, weights="imagenet").patience is None


def test_an_unplanned_optimizer_has_its_own_rate():
    assert planned("default", weights="imagenet", optimizer="sgd").lr > 10 * 5e-5
    assert planned("default", weights="imagenet", optimizer="sgd", lr=1e-4).lr == 1e-4
    assert planned("default", weights="imagenet", optimizer="adam").weight_decay < 1e-3


@pytest.mark.parametrize(
    ("name", "hint"), [("rsb_a1", "Did you mean 'rsb-a1'"), ("zzzz", "Known: fast, default, best")]
)
def test_an_unknown_preset_is_named(name, hint):
    with pytest.raises(ConfigError, match=rf"no such preset. Received: preset='{name}'. {hint}"):
        planned(name)


def test_a_stored_recipe_is_changed_only_where_it_is_told(tmp_path):
    stored = planned("rsb-a2")
    stored.save(tmp_path / "recipe.yaml")
    loaded = Recipe.load(tmp_path / "recipe.yaml")
    assert loaded == stored
    again = rerun(loaded, {"epochs": 3, "precision": "auto"})
    assert again.precision in ("float32", "bfloat16")
    assert again.model_dump() | {"epochs": 300} == stored.model_dump() | {
        "precision": again.precision
    }
    with pytest.raises(ConfigError, match=r"no such field. Received: 'epoch'. Did you mean 'epoc"):
        rerun(loaded, {"epoch": 3})
