"""Search for a better fine-tuning with KerasTuner, in a script of one's own.

    python recipes/tune_flowers.py FOLDER [--weights PATH --variant NAME] [--trials N] [--epochs N]

FOLDER holds one folder of images for each class, as the five of tf_flowers. Of 20 trials, of 5
epochs each, a Gaussian process chooses all but the first, which are random.

kresnet makes the model (layer-wise learning rates, frozen norms, the head of a linear probe) and
the batches; the tuner, its space and its files are KerasTuner's. What it finds is written as a
recipe, which `kresnet train --recipe` trains, exports and scores on test images that no trial has
seen. `kresnet tune FOLDER` is the same search with a process for each trial, which outlives crashes
and kills.

Machine: two cores of an Intel Xeon without AMX, float32, kept busy by other work.
Time: 12:23 for 20 trials on 600 photos with the embedded backbone (`--variant resnet10t --weights
    embedded`); about 2 minutes of the processors for 6 trials of 2 epochs.
Result: 6 trials of 2 epochs find 80.4 % (78.9 to 82.2 over three seeds) of 90 photos to validate
    on; 20 of 5 epochs, one seed, 81.1 %, where the first has 80.0 %. What those found, trained
    again by `kresnet train --recipe`, has 82.2 % (95 %: 73.1 to 88.8) of 90 test photos.
    recipes/measured.md has what `kresnet tune` reaches beside other searches.
Source: Snoek et al. 2012, arXiv:1206.2944, for the search by a Gaussian process; the space is
    part of what `kresnet tune` searches by default.
"""

from __future__ import annotations

import argparse
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
    folder: str, variant: str, weights: str, trials: int, epochs: int, out: str, seed: int = 0
) -> Path:
    """Search, print the best trials, and return the file of the best recipe."""
    hypermodel = kresnet.tune.ResNetHyperModel(
        folder, variant=variant, weights=weights, space=SPACE, epochs=epochs, seed=seed
    )
    import keras_tuner

    tuner = keras_tuner.BayesianOptimization(
        hypermodel,
        objective="val_accuracy",
        max_trials=trials,
        seed=seed,
        max_retries_per_trial=1,
        max_consecutive_failed_trials=trials,  # else three in a row end the search
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--variant", default="resnet50")
    parser.add_argument("--weights", default="imagenet", help="a tag, a checkpoint's path, or none")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", default="studies/tune_flowers")
    parser.add_argument("--seed", type=int, default=0)
    try:
        main(**vars(parser.parse_args()))
    except kresnet.KresnetError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
