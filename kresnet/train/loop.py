"""The fine-tuning loop: resumable to the step, bounded in time, and honest about waiting."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from types import FrameType
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kresnet.console import Console, duration
from kresnet.data.pipeline import Batch, TrainingData
from kresnet.errors import ConfigError, Interrupted
from kresnet.train.judge import Judge, Score
from kresnet.train.optimizer import optimizer_for, warmup_cosine
from kresnet.train.recipe import Recipe
from kresnet.train.run import Run
from kresnet.train.state import load_state, restore, save_state

FINISHING_S = 25.0
"""Seconds of a budget that are kept for the evaluation and the export."""

_SAVE_EVERY_S = 30.0
"""Longest time that a kill -9 can cost."""


def fine_tune(
    run: Run,
    model: keras.Model,
    data: TrainingData,
    judge: Judge,
    best: Score | None,
    console: Console,
) -> Score | None:
    """Train `model` by the run's recipe and keep the weights of the best epoch in the run.

    Args:
        run: Where the recipe, the state and the kept weights are.
        model: What to train; its trainable variables are trained.
        data: Training batches.
        judge: Scores the model on the validation images.
        best: Score of the weights that the run already keeps, if any.
        console: Where to report.

    Returns:
        The score of the weights that the run keeps in the end; None if nothing could be trained
        within the budget.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the state is saved and the message says how to go on.
        ConfigError: The loss is not finite any more.
    """
    loop = _Loop(run, model, data, judge, best, console)
    with _signals(loop.stop):
        loop.run()
    return loop.best


class _Loop:
    def __init__(
        self,
        run: Run,
        model: keras.Model,
        data: TrainingData,
        judge: Judge,
        best: Score | None,
        console: Console,
    ) -> None:
        self._run, self._recipe, self._console = run, run.recipe, console
        self._model, self._data, self._judge = model, data, judge
        self.best = best
        self._epochs = self._recipe.epochs
        self._epoch = self._done = 0  # epochs done, and steps done in the epoch under way
        self._loss_sum = 0.0
        self._history: list[dict[str, Any]] = []
        self._stopping = False
        self._optimizer = optimizer_for(
            model,
            self._recipe.optimizer,
            weight_decay=self._recipe.weight_decay,
            layer_decay=self._recipe.layer_decay,
            clip_norm=self._recipe.clip_norm,
            scale_loss=self._recipe.precision == "float16",
        )
        self._step = train_step(model, self._optimizer, self._recipe)
        self._saved = time.monotonic()

    def stop(self) -> None:
        """End after the step under way."""
        self._stopping = True

    def run(self) -> None:
        """Train from the last saved state, or from the beginning, to the last epoch."""
        resumed = load_state(self._run.states)
        if resumed:
            self._restore(*resumed)
            at = f"epoch {self._epoch + 1}" if self._epoch < self._epochs else "the end"
            self._console.line("resume", f"{self._run.path} from {at} of {self._epochs}")
        else:
            self._keep_budget(self._timed_epoch())
            self._save()  # from here on, whatever happens, a resumed run is the same run
        batches = self._data.batches(self._epoch * self._data.steps + self._done)
        while self._epoch < self._epochs:
            started = time.monotonic()
            self._one_epoch(batches)
            if not resumed:  # a resumed run has an end already
                self._keep_budget(time.monotonic() - started)
            due = time.monotonic() - self._saved > _SAVE_EVERY_S
            if due or self._epoch == self._epochs:
                self._save()

    def _keep_budget(self, epoch_s: float) -> None:
        """Do fewer epochs if what is left of the budget is too short for all of them."""
        budget = self._recipe.budget_s
        if budget is None:
            return
        left = budget - (time.monotonic() - self._console.started) - FINISHING_S
        affordable = self._epoch + max(int(left / epoch_s), 0)
        if self.best is None:
            affordable = max(affordable, 1)  # there must be something to keep
        if affordable < self._epochs:
            self._console.line(
                "budget",
                f"{duration(budget)} allows {affordable} of {self._epochs} epochs; "
                "--budget or --epochs changes that",
            )
            self._epochs = affordable

    def _timed_epoch(self) -> float:
        """Time a few real steps and a validation, undo them, and return the time of an epoch."""
        if self._recipe.budget_s is None:
            return 0.0
        self._console.status("timing the first steps")
        before = [np.array(v) for v in self._variables()]
        steps: list[float] = []
        self._judge()  # the first time includes compiling and reading the images
        for batch in islice(self._data.batches(), 3):
            started = time.monotonic()
            float(self._step(*batch))
            steps.append(time.monotonic() - started)
        for variable, value in zip(self._variables(), before, strict=True):
            variable.assign(value)
        started = time.monotonic()
        self._judge()
        return self._data.steps * min(steps) + time.monotonic() - started

    def _one_epoch(self, batches: Iterator[Batch]) -> None:
        started, waited, images_done = time.monotonic(), 0.0, 0
        before = self._done
        while self._done < self._data.steps:
            asked = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - asked
            self._optimizer.learning_rate = self._rate()
            self._loss_sum += float(self._step(*batch))
            self._done += 1
            images_done += len(batch[1])
            if self._stopping:
                self._save()
                raise Interrupted(
                    f"Stopped in epoch {self._epoch + 1} of {self._epochs}, and saved. "
                    f"Continue with: kresnet resume {self._run.path}"
                )
            elapsed = time.monotonic() - started
            left = (elapsed / (self._done - before)) * (
                (self._epochs - self._epoch) * self._data.steps - self._done
            )
            self._console.status(
                f"epoch {self._epoch + 1}/{self._epochs}  step {self._done}/{self._data.steps}  "
                f"loss {self._loss_sum / self._done:.3f}  {images_done / elapsed:.1f} images/s  "
                f"wait {waited / elapsed:.0%}  eta {duration(left)}"
            )
        self._end_epoch(time.monotonic() - started, waited, images_done)

    def _rate(self) -> float:
        """Return the learning rate of the next step."""
        done = self._epoch * self._data.steps + self._done + 1
        progress = done / (self._epochs * self._data.steps)
        return self._recipe.lr * warmup_cosine(progress, warmup=self._recipe.warmup)

    def _end_epoch(self, seconds: float, waited: float, images: int) -> None:
        loss = self._loss_sum / max(self._done, 1)
        if not math.isfinite(loss):
            raise ConfigError(
                f"The loss must stay finite. Received: loss={loss} in epoch {self._epoch + 1}. "
                f"Lower --lr, which was {self._recipe.lr:g}."
            )
        rate = float(self._optimizer.learning_rate)
        score = self._judge()
        kept = score.beats(self.best)
        if kept:
            self.best = score
            self._run.save_weights(self._model)
            self._run.update(kept="fine-tune", validation=asdict(score))
        self._history.append(
            {
                "epoch": self._epoch + 1,
                "loss": round(loss, 6),
                "val_loss": round(score.loss, 6),
                "val_accuracy": round(score.accuracy, 6),
                "lr": f"{rate:.3g}",
                "images_per_s": round(images / seconds, 1),
                "wait": round(waited / seconds, 3),
            }
        )
        self._run.write_metrics(self._history)
        self._epoch, self._done, self._loss_sum = self._epoch + 1, 0, 0.0
        self._console.line(
            f"{self._epoch:3d}/{self._epochs}",
            f"loss {loss:.3f}  val {score.accuracy:.3f} (loss {score.loss:.3f})  lr {rate:.1e}  "
            f"{images / seconds:.1f} images/s  wait {waited / seconds:.0%}"
            + ("  best" if kept else ""),
        )

    def _variables(self) -> list[Any]:
        return [*self._model.variables, *self._optimizer.variables]

    def _save(self) -> None:
        meta = {
            "epochs": self._epochs,
            "epoch": self._epoch,
            "done": self._done,
            "loss_sum": self._loss_sum,
            "history": self._history,
            "best": asdict(self.best) if self.best else None,
        }
        step = self._epoch * self._data.steps + self._done
        save_state(self._run.states, step, self._variables(), meta)
        self._saved = time.monotonic()

    def _restore(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        restore(self._variables(), arrays)
        self._epochs, self._epoch, self._done = meta["epochs"], meta["epoch"], meta["done"]
        self._loss_sum, self._history = meta["loss_sum"], meta["history"]
        self.best = Score(**meta["best"]) if meta["best"] else None


def train_step(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, recipe: Recipe
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]:
    """Return a compiled function that learns from one batch and gives its mean loss.

    It takes images `(b, s, s, 3)`, targets `(b, classes)` and weights `(b,)`, float32. The loss is
    the mean over the batch of weight times cross-entropy. It is not divided by the weights of the
    batch: their mean over all training images is 1, so gradients of small batches stay unbiased.
    """
    classes = model.output_shape[-1]
    variables = model.trainable_variables
    size = recipe.image_size

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, size, size, model.input_shape[-1]), tf.float32),
            tf.TensorSpec((None, classes), tf.float32),
            tf.TensorSpec((None,), tf.float32),
        ]
    )
    def step(images: tf.Tensor, targets: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            errors = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
            loss = tf.reduce_mean(weights * errors)
            scaled = optimizer.scale_loss(loss)
        optimizer.apply(tape.gradient(scaled, variables), variables)
        return loss

    return step


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into a call of `stop`; the second ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    previous = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}

    def handle(kind: int, frame: FrameType | None) -> None:
        stop()
        for number, handler in previous.items():
            signal.signal(number, handler)

    for kind in previous:
        signal.signal(kind, handle)
    try:
        yield
    finally:
        for kind, handler in previous.items():
            signal.signal(kind, handler)
