"""A study whose trials were not trained but made up, so that what is found in it is known."""

import math

import numpy as np

from kresnet.train.plan import plan
from kresnet.tune.space import Space
from kresnet.tune.trials import Ledger

SPACE = {
    "lr": {"float": [1e-5, 1e-3], "log": True},
    "augment": {"choice": ["none", "light", "trivial"]},
    "color": {"float": [0.0, 0.4], "when": {"augment": "light"}},
    "train_from": {"int": [1, 4]},
}


def accuracy(fields):
    """The score of a trial: the rate decides, then the augmentation, and the rest does nothing."""
    off = math.log10(fields["lr"] / 2e-4)
    return 0.9 - 0.12 * off**2 + {"none": -0.03, "light": 0.0, "trivial": 0.01}[fields["augment"]]


def recipe_for(data="photos", **fields):
    return plan(
        data=str(data), num_images=600, classes=("a", "b"), variant="resnet50_v1",
        weights="imagenet", image_size=224, overrides={"precision": "float32"} | fields,
    )  # fmt: skip


def write_study(folder, *, trials=24, seed=0, **settings):
    """Write a study of trials that are drawn at random; two of them have failed."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    recipe = recipe_for()
    ledger = Ledger.create(
        folder,
        {
            "recipe": recipe.model_dump(mode="json"), "space": Space.of(SPACE).as_dict(),
            "algorithm": "random", "seed": 3, "factor": 3, "trials": trials, "budget_s": None,
            "trial_s": None, "retries": 1, "keep": 3, "spent_s": 4000.0,
            "images": {"train": 420, "val": 90, "test": 90},
        } | settings,
    )  # fmt: skip
    for number in range(trials):
        fields = {
            "lr": float(10 ** rng.uniform(-5, -3)),
            "augment": str(rng.choice(["none", "light", "trivial"])),
            "train_from": int(rng.integers(1, 5)),
        }
        if fields["augment"] == "light":
            fields["color"] = float(rng.uniform(0, 0.4))
        planned = {name: getattr(recipe, name) for name in fields}
        if number == 0:
            fields = {}
        trial = ledger.add(values=fields, fields=fields, horizon=10, epochs=10)
        ledger.change(trial.number, status="running", tries=1)
        if number in (4, 9):
            ledger.change(trial.number, status="failed", tries=2, error="Ended by SIGKILL <b>.")
            continue
        score = accuracy(planned | fields) + float(rng.normal(0, 0.002))
        ledger.change(
            trial.number, status="done", score=score, loss=1 - score, epochs_done=10,
            seconds=100.0 + number, tries=2 if number == 7 else 1,
        )  # fmt: skip
    return ledger
