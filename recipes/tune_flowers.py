"""Search for a better fine-tuning with KerasTuner, in a script of one's own.

    python recipes/tune_flowers.py FOLDER [WEIGHTS [VARIANT [TRIALS [EPOCHS]]]]

FOLDER holds one folder of images for each class, as the five of tf_flowers. WEIGHTS is "imagenet",
which downloads once, the path of a checkpoint of VARIANT (resnet50), or "none". Of TRIALS (20), of
EPOCHS (5) epochs each, a Gaussian process chooses all but the first, which are random.

kresnet makes the model (layer-wise learning rates, frozen norms, the head of a linear probe) and
the batches; the tuner, its space and its files are KerasTuner's. What it finds is written as a
recipe, which `kresnet train --recipe` trains, exports and scores on test images that no trial has
seen. `kresnet tune FOLDER` is the same search with a process for each trial, which outlives crashes
and kills.

Measured: see "Search" in README.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import kresnet

SPACE = {
    "lr": {"float": [1e-5, 1e-3], "log": True},
    "layer_decay": {"choice": [0.3, 0.5, 0.7, 1.0]},
    "weight_decay": {"float": [0.005, 0.5], "log": True},
    "train_from": {"int": [1, 3]},
    "augment": {"choice": ["none", "light", "trivial"]},
    "color": {"float": [0.0, 0.4], "when": {"augment": "light"}},
    "label_smoothing": {"float": [0.0, 0.2]},
}


def main(
    folder: str,
    weights: str = "imagenet",
    variant: str = "resnet50",
    trials: str = "20",
    epochs: str = "5",
    out: str = "studies/tune_flowers",
) -> Path:
    """Search, print the best trials, and return the file of the best recipe."""
    hypermodel = kresnet.tune.ResNetHyperModel(
        folder, variant=variant, weights=weights, space=SPACE, epochs=int(epochs), seed=0
    )
    import keras_tuner

    tuner = keras_tuner.BayesianOptimization(
        hypermodel,
        objective="val_accuracy",
        max_trials=int(trials),
        seed=0,
        max_retries_per_trial=1,
        max_consecutive_failed_trials=int(trials),  # else three in a row end the search
        directory=Path(out).parent,
        project_name=Path(out).name,
    )
    tuner.search(verbose=1 if sys.stdout.isatty() else 0)  # bars are for terminals
    for trial in tuner.oracle.get_best_trials(5):
        fields = hypermodel.space.overrides(trial.hyperparameters.values)
        print(f"{trial.score:.3f}", fields)
    best = Path(out) / "best.yaml"
    hypermodel.recipe_of(tuner.get_best_hyperparameters()[0]).save(best)
    print(best)
    return best


if __name__ == "__main__":
    if len(sys.argv) not in range(2, 7):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except kresnet.KresnetError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
