"""kresnet's training inside of a keras_tuner search of your own, all in one process.

    import keras_tuner
    import kresnet

    hypermodel = kresnet.tune.ResNetHyperModel("photos/")
    tuner = keras_tuner.RandomSearch(hypermodel, objective="val_accuracy", max_trials=20)
    tuner.search()

`kresnet tune` is the same search with a process for each trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import keras
import keras_tuner
import numpy as np
import tensorflow as tf
from keras_tuner.errors import FatalError

from kresnet.console import Console
from kresnet.data.pipeline import evaluation_batches
from kresnet.errors import ConfigError
from kresnet.train.optimizer import optimizer_of
from kresnet.train.probe import fit_probe
from kresnet.train.recipe import Recipe, probe_settings, rerun
from kresnet.train.schedule import rate_at
from kresnet.train.stages import build_for, prepare_layers, preprocessing_for, training_data
from kresnet.train.step import errors_by
from kresnet.tune.space import Space
from kresnet.workflow import choose
from kresnet.zoo import Preprocessing

_LEFT_OUT: Final = (
    "accumulate",
    "ema",
    "progressive",
    "soup",
    "recalibrate",
    "larger_test",
    "patience",
    "budget_s",
    "cut_cache",
    "cut_views",
)
"""Fields of a recipe that mean nothing to `Model.fit`."""


class FitError(ConfigError, FatalError):
    """The search is called with something that no trial could use; keras_tuner ends at once."""


class ResNetHyperModel(keras_tuner.HyperModel):
    """A search space of kresnet's trainings, for any tuner of keras_tuner.

    `build` gives a compiled functional model: layer-wise learning rates, decay of kernels only, and
    frozen norms that stay frozen under `fit`. `fit` trains it on the recipe's augmented batches;
    the learning rate is set from a step's place in the whole training, so a trial that Hyperband
    promotes goes on with the rate of that place. Pretrained networks start with the head of a
    linear probe, which is fitted once for each network, image size and setting of the probe.

    The averages, soups, growing images, kept features, patience and budget of a recipe are
    `kresnet train`'s, and left out. Under Hyperband, let `max_epochs` be the recipe's epochs: the
    schedule is for them.

    Args:
        data: As in `kresnet.fit`. Test images, if it has any, are never read.
        variant: As in `kresnet.fit`.
        weights: As in `kresnet.fit`.
        preset: As in `kresnet.fit`.
        recipe: As in `kresnet.fit`.
        space: What to search: a `Space`, a YAML file of one, its fields, or None for the default
            space around the plan.
        name: Of the hypermodel.
        tunable: As in `keras_tuner.HyperModel`.
        console: Where to report; None reports to standard error.
        **settings: Fields of the recipe that are not searched, as `epochs=10`.

    Attributes:
        recipe: The plan, which the space is around.
        index: The images and their split.
        space: What is searched.

    Raises:
        ConfigError: A setting or the space is wrong.
        DataError: The images cannot be used.
    """

    def __init__(
        self,
        data: str | Path | None = None,
        *,
        variant: str | None = None,
        weights: str | None = "auto",
        preset: str = "default",
        recipe: str | Path | None = None,
        space: Space | Mapping[str, Any] | str | Path | None = None,
        name: str | None = None,
        tunable: bool = True,
        console: Console | None = None,
        **settings: Any,
    ) -> None:
        self._console = console or Console()
        planned, self.index = choose(
            data,
            variant=variant,
            weights=weights,
            preset=preset,
            recipe=recipe,
            console=self._console,
            **settings,
        )
        self.recipe = rerun(planned.recipe, {"cut_cache": "none"})
        self.space = _space(space, self.recipe)
        self.space.check(self.recipe, algorithm="")
        self._heads: dict[tuple[object, ...], tuple[np.ndarray, np.ndarray]] = {}
        self._held: dict[Preprocessing, tf.data.Dataset] = {}
        super().__init__(name=name, tunable=tunable)

    def recipe_of(self, hp: keras_tuner.HyperParameters) -> Recipe:
        """Return the whole recipe of a trial; `recipe_of(...).save(path)` for `kresnet train`.

        Args:
            hp: As `tuner.get_best_hyperparameters()` returns them.
        """
        return rerun(self.recipe, self.space.overrides(hp.values))

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """Return a compiled model that gives logits `(b, classes)` for images `(b, s, s, c)`."""
        hp.merge(self.space.hyperparameters(self.recipe), overwrite=False)
        recipe = self.recipe_of(hp)
        model = build_for(recipe, self.index, size=recipe.image_size, weights=recipe.weights)
        prepare_layers(model, recipe)
        optimizer = optimizer_of(recipe, model)
        optimizer.learning_rate = recipe.lr
        # Built already, so that the state of a promoted trial's optimizer is loaded, too.
        model.compile(
            optimizer,
            loss=errors_by(recipe.loss),
            metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")],
            jit_compile=False,  # compiling each trial anew takes longer than it saves
        )
        return model

    def fit(
        self, hp: keras_tuner.HyperParameters, model: keras.Model, *args: Any, **kwargs: Any
    ) -> keras.callbacks.History:
        """Train a model of `build` on the recipe's batches, and validate it after each epoch.

        Args:
            hp: The trial.
            model: Of `build`.
            *args: Nothing: the images are the hypermodel's.
            **kwargs: `epochs`, `initial_epoch`, `callbacks` and `verbose` of `Model.fit`.

        Raises:
            FitError: There is another argument.
        """
        unknown = [f"{len(args)} by place"] * bool(args) + sorted(kwargs.keys() - _OF_FIT)
        if unknown:
            raise FitError(
                f"`search` takes {', '.join(sorted(_OF_FIT))}. Received: {', '.join(unknown)}. "
                "Images, batches and validation are the hypermodel's; give it its settings."
            )
        recipe = self.recipe_of(hp)
        epochs = kwargs.get("epochs", recipe.epochs)
        first = kwargs.get("initial_epoch", 0)
        preprocessing = preprocessing_for(recipe, self.index, model)
        if recipe.weights is not None and not first:
            self._start_head(model, recipe, preprocessing)
        data = training_data(
            recipe,
            self.index.select("train"),
            preprocessing,
            num_classes=len(self.index.classes),
            tell=lambda problem: self._console.line("lost", f"{problem.path} {problem.reason}"),
        )
        horizon = max(self.recipe.epochs, epochs) if "tuner/epochs" in hp.values else epochs
        rate = _Rate(recipe, steps=data.steps, horizon=horizon)
        return model.fit(
            data.dataset(first * data.steps),
            steps_per_epoch=data.steps,
            epochs=epochs,
            initial_epoch=first,
            shuffle=False,  # it is, by the seed
            validation_data=self._validation(preprocessing),
            callbacks=[*(kwargs.get("callbacks") or ()), rate],
            verbose=kwargs.get("verbose", "auto"),
        )

    def _start_head(self, model: keras.Model, recipe: Recipe, preprocessing: Preprocessing) -> None:
        """Give the model the best linear head on its frozen features."""
        key = tuple(probe_settings(recipe).values())
        if key not in self._heads:
            rows = self.index.select("train")
            self._console.status(f"probe: features of {len(rows)} images")
            self._heads[key] = fit_probe(model, recipe, rows, preprocessing)
        model.get_layer("head").set_weights(self._heads[key])

    def _validation(self, preprocessing: Preprocessing) -> tf.data.Dataset:
        """Return the validation images and targets, decoded once for each preprocessing.

        It is the same object in all these trials: `fit` keeps what it makes of each new one.
        """
        if preprocessing not in self._held:
            rows, classes = self.index.select("val"), len(self.index.classes)
            batches = evaluation_batches(rows, preprocessing, batch_size=32)
            targets = batches.map(lambda images, labels: (images, tf.one_hot(labels, classes)))
            self._held[preprocessing] = targets.cache()
        return self._held[preprocessing]


_OF_FIT: Final = frozenset({"epochs", "initial_epoch", "callbacks", "verbose"})


class _Rate(keras.callbacks.Callback):
    """Sets the learning rate of each step from its place in the whole training.

    Args:
        recipe: With the peak rate and the schedule.
        steps: Of an epoch.
        horizon: Epochs that the schedule is for.
    """

    def __init__(self, recipe: Recipe, *, steps: int, horizon: int) -> None:
        super().__init__()
        self._recipe, self._steps, self._total = recipe, steps, steps * horizon
        self._first = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note how many steps the epochs before had."""
        self._first = epoch * self._steps

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Set the rate of the next step."""
        recipe, progress = self._recipe, (self._first + batch + 1) / self._total
        share = rate_at(progress, recipe.schedule, warmup=recipe.warmup, drops=recipe.drops)
        self.model.optimizer.learning_rate = recipe.lr * share


def _space(space: Space | Mapping[str, Any] | str | Path | None, recipe: Recipe) -> Space:
    """Return the space that is meant.

    Raises:
        ConfigError: It is none, or has a field that `Model.fit` does nothing with.
    """
    if space is None:
        found = Space.default(recipe)
    elif isinstance(space, Space):
        found = space
    else:
        found = Space.of(space) if isinstance(space, Mapping) else Space.load(space)
    idle = [name for name in _LEFT_OUT if name in found.entries]
    if idle:
        raise ConfigError(
            f"`Model.fit` does nothing with {', '.join(map(repr, idle))}. Received: a space with "
            "it. Leave it out, or search with `kresnet tune`."
        )
    return found
