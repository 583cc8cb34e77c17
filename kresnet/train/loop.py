"""The fine-tuning loop: resumable to the step, bounded in time, and honest about waiting."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import islice
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kresnet.console import Console, duration
from kresnet.data.pipeline import Batch, TrainingData
from kresnet.data.service import Gone
from kresnet.errors import Interrupted, ResourceError
from kresnet.train.average import Average
from kresnet.train.cut import CutData, epochs_within, preparing
from kresnet.train.distribute import ALONE, Team
from kresnet.train.judge import Judge
from kresnet.train.optimizer import optimizer_of
from kresnet.train.run import Run
from kresnet.train.schedule import rate_at, size_at
from kresnet.train.score import Score
from kresnet.train.signals import stoppable
from kresnet.train.soup import Ingredient, Ingredients
from kresnet.train.state import Circumstances, load_state, restore, save_state
from kresnet.train.step import Step, train_step
from kresnet.train.trouble import NotFinite, Troubles, suspects

FINISHING_S = 25.0
"""Seconds of a budget that are kept for the evaluation and the export."""

_SAVE_EVERY_S = 30.0
"""Longest time that a kill -9 can cost, where a state is written in less than 1.5 seconds."""

_SAVING_SHARE = 0.05
"""Largest share of the time that goes into writing states."""


def fine_tune(
    run: Run,
    model: keras.Model,
    data: Callable[[int], TrainingData | CutData],
    judge: Judge,
    best: Score | None,
    console: Console,
    *,
    learner: keras.Model | None = None,
    team: Team = ALONE,
) -> Score | None:
    """Train `model` by the run's recipe and keep the weights of the best epoch in the run.

    Args:
        run: Where the recipe, the state and the kept weights are.
        model: What to train; its trainable variables are trained.
        data: Returns the training batches whose images have the given side in pixels; for each
            side as many of the same images.
        judge: Scores the model on the validation images.
        best: Score of the weights that the run already keeps, if any.
        console: Where to report.
        learner: The part of the model that takes the batches and learns; None is all of it.
        team: The devices that train together; each of its processes calls this, in its scope, with
            a run of its own and its share of the data. The chief's is what counts.

    Returns:
        The score of the weights that the run keeps in the end; None if nothing could be trained
        within the budget.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the state is saved and the message says how to go on.
        ConfigError: The loss is not finite, at lower learning rates neither.
        ResourceError: Not one image fits into memory, or the state cannot be saved.
        Lost: Another process of the team is gone.
        Gone: The data service is; the state is saved.
    """
    loop = _Loop(run, model, data, judge, best, console, learner or model, team)
    with stoppable(loop.stop):
        loop.run()
    return loop.best


class _Loop:
    def __init__(
        self,
        run: Run,
        model: keras.Model,
        data: Callable[[int], TrainingData | CutData],
        judge: Judge,
        best: Score | None,
        console: Console,
        learner: keras.Model,
        team: Team,
    ) -> None:
        self._run, self._recipe, self._console = run, run.recipe, console
        self._team = team
        self._model, self._data_of, self._judge = model, data, judge
        self._learner = learner
        self.best = best
        self._epochs = self._recipe.epochs
        self._epoch = self._done = 0  # epochs done, and steps done in the epoch under way
        self._loss_sum = 0.0
        self._history: list[dict[str, Any]] = []
        self._asked = self._stopping = False  # by somebody, here; and whether all know of it
        # Of this stage, whatever was kept before it, as a probe: the best score, and epochs since.
        self._peak: Score | None = None
        self._stale = 0
        self._troubles = Troubles(run)
        self._average = Average(model, reach=self._recipe.ema) if self._recipe.ema else None
        self._optimizer = optimizer_of(self._recipe, model, summed=team.replicas > 1)
        soup = self._recipe.soup if team.is_chief else 0
        self._ingredients = Ingredients(run.states, model, most=soup) if soup else None
        # Of the image size of the epoch under way; `_go_back` sets it.
        self._data: TrainingData | CutData
        self._step = self._compiled()
        self._saved, self._saving_s = time.monotonic(), 0.0
        self._elsewhere: list[str] = []  # in what this machine is not as it was at the last state

    def stop(self) -> None:
        """End after the step under way."""
        self._asked = True

    def _agree(self) -> None:
        """Stop where anybody in the team has been asked to: all after the same step."""
        self._stopping = self._team.any(self._asked)

    def run(self) -> None:
        """Train from the last saved state, or from the beginning, to the last epoch."""
        resumed = self._go_back()
        if resumed:
            at = f"epoch {self._epoch + 1}" if self._epoch < self._epochs else "the end"
            self._console.line("resume", f"{self._run.path} from {at} of {self._epochs}")
            if self._elsewhere:
                self._console.line(
                    "resume", f"the last bits may differ: {'; '.join(self._elsewhere)}"
                )
        while True:
            try:
                self._train(keep_budget=not resumed)  # a resumed run has an end already
                return self._leave_ingredients()
            except tf.errors.ResourceExhaustedError:
                if self._team.size > 1:  # the others have had room for it, and wait
                    raise ResourceError(
                        f"A worker's part of a batch of {self._recipe.batch_size} must fit into "
                        "its memory. Received: one that does not. Take more workers, or start "
                        "again under another --name with --accumulate."
                    ) from None
                said = self._troubles.out_of_memory(self.best)
                self._step = self._compiled()
            except NotFinite as error:
                said = self._troubles.not_finite(error, self.best)
            self._console.line("trouble", said)
            self._go_back()

    def _leave_ingredients(self) -> None:
        """Tell the run what a soup can be made of."""
        if self._ingredients:
            self._run.update(ingredients=[asdict(one) for one in self._ingredients.best])

    def _train(self, *, keep_budget: bool) -> None:
        if not self._has_state:
            self._keep_budget(self._timed_epoch(), self._size)
            self._save()  # from here on, whatever happens, a resumed run is the same run
        self._team.share(self._variables())
        batches, size = self._data.batches(self._position), self._size
        while self._epoch < self._epochs:
            if self._epoch == self._run.pause_after:
                self.stop()
                self._agree()
                self._save_or_stop()
            self._prepare()
            started = time.monotonic()
            if size != self._size:
                self._data, size = self._data_of(self._size), self._size
                batches = self._data.batches(self._position)
            self._one_epoch(batches)
            if keep_budget:
                self._keep_budget(time.monotonic() - started, size)
            self._stop_early()
            self._agree()
            self._save_or_stop(due=self._epoch == self._epochs)

    def _go_back(self) -> bool:
        """Return to the last saved state, if there is one; tell whether there is."""
        state = load_state(self._run.states, lambda text: self._console.line("state", text))
        if state:
            restore(self._variables(), state[0])
        meta = self._team.told(state[1] if state else None)  # arrays come before the first step
        self._has_state = meta is not None
        if meta:
            self._restore(meta)
        self._data = self._data_of(self._size)
        return self._has_state

    def _compiled(self) -> Step:
        return train_step(
            self._learner,
            self._optimizer,
            loss=self._recipe.loss,
            parts=self._troubles.parts,
            team=self._team,
        )

    @property
    def _size(self) -> int:
        """Side of the images of the epoch under way, in pixels."""
        progress = self._epoch / max(self._epochs, 1)
        return size_at(progress, self._recipe.image_size, growing=self._recipe.progressive)

    @property
    def _position(self) -> int:
        """Steps done."""
        return self._epoch * self._data.steps + self._done

    def _prepare(self) -> None:
        """Compute what the epoch reads and is not there yet."""
        for done in preparing(self._data, self._position, self._data.steps - self._done):
            self._console.status(f"epoch {self._epoch + 1}: features of {done} images")
            if self._asked and self._team.size == 1:
                self._stopping = True
                self._save_or_stop()

    def _stop_early(self) -> None:
        """End where no epoch has been better for as many as the recipe is patient."""
        patience = self._recipe.patience
        if patience and self._stale >= patience and self._epoch < self._epochs:
            self._console.line("stop", f"{patience} epochs without a better one")
            self._epochs = self._epoch

    def _keep_budget(self, epoch_s: float, size: int) -> None:
        """Do fewer epochs if what is left of the budget is too short for all of them.

        Args:
            epoch_s: Seconds that an epoch took.
            size: Side of its images in pixels.
        """
        budget = self._recipe.budget_s
        if budget is None:
            return
        left = budget - (time.monotonic() - self._console.started) - FINISHING_S
        epoch_s *= (self._recipe.image_size / size) ** 2  # the largest images are at the end
        affordable = self._epoch + epochs_within(self._data, left, epoch_s)
        if self.best is None:
            affordable = max(affordable, 1)  # there must be something to keep
        affordable = self._team.told(affordable)
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
        try:
            for batch in islice(self._data.batches(), 3):
                started = time.monotonic()
                float(self._step(*batch))
                steps.append(time.monotonic() - started)
        finally:
            for variable, value in zip(self._variables(), before, strict=True):
                variable.assign(value)
        started = time.monotonic()
        self._judge()
        judging = time.monotonic() - started
        return self._data.steps * min(steps) + judging * (2 if self._average else 1)

    def _one_epoch(self, batches: Iterator[Batch]) -> None:
        started, waited, images_done = time.monotonic(), 0.0, 0
        before = self._done
        while self._done < self._data.steps:
            asked = time.monotonic()
            batch = self._next(batches)
            waited += time.monotonic() - asked
            self._optimizer.learning_rate = self._rate()
            self._learn(batch)
            images_done += self._data.batch_size  # of all workers
            if self._done < self._data.steps or self._stopping:
                self._save_or_stop()
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

    def _next(self, batches: Iterator[Batch]) -> Batch:
        """Return the next batch.

        Raises:
            Gone: There is none; where the training stands is saved, and the message says so.
        """
        try:
            return next(batches)
        except Gone as error:
            self._save()
            raise Gone(f"{error} Continue with: kresnet resume {self._run.path}") from None

    def _save_or_stop(self, *, due: bool = False) -> None:
        """Save where it is time to, and end where somebody has asked for it.

        Raises:
            Interrupted: It is saved, and the message says how to go on.
        """
        pause = max(_SAVE_EVERY_S, self._saving_s / _SAVING_SHARE)
        if due or self._stopping or time.monotonic() - self._saved > pause:
            self._save()
        if self._stopping:
            at = f"in epoch {self._epoch + 1}" if self._epoch < self._epochs else "after the last"
            raise Interrupted(
                f"Stopped {at} of {self._epochs}, and saved. "
                f"Continue with: kresnet resume {self._run.path}"
            )

    def _learn(self, batch: Batch) -> None:
        """Make one step.

        Raises:
            NotFinite: The loss is not finite; the weights are not what they should be any more.
        """
        loss = float(self._step(*batch))
        if not math.isfinite(loss):
            raise NotFinite(
                f"loss {loss} in epoch {self._epoch + 1}, step {self._done + 1}",
                suspects(self._data.rows_of(self._position), batch[0]),
            )
        self._loss_sum += loss
        self._done += 1
        self._agree()
        if self._average:
            self._average.update(self._position, self._epochs * self._data.steps)

    def _rate(self) -> float:
        """Return the learning rate of the next step."""
        recipe = self._recipe
        progress = (self._position + 1) / (self._epochs * self._data.steps)
        share = rate_at(progress, recipe.schedule, warmup=recipe.warmup, drops=recipe.drops)
        return recipe.lr * share * self._troubles.rate_share

    def _end_epoch(self, seconds: float, waited: float, images: int) -> None:
        loss = self._loss_sum / max(self._done, 1)
        rate = float(keras.ops.convert_to_numpy(self._optimizer.learning_rate))
        score, averaged = self._scores()
        kept = self._keep(score, averaged)
        self._stock(score, averaged)
        self._stale += 1
        for one in (score, averaged):
            if one and one.beats(self._peak):
                self._peak, self._stale = one, 0
        row = {
            "epoch": self._epoch + 1,
            "loss": round(loss, 6),
            "val_loss": round(score.loss, 6),
            "val_accuracy": round(score.accuracy, 6),
            "lr": f"{rate:.3g}",
        }
        if averaged:
            row |= {
                "average_val_loss": round(averaged.loss, 6),
                "average_val_accuracy": round(averaged.accuracy, 6),
            }
        self._history.append(
            row | {"images_per_s": round(images / seconds, 1), "wait": round(waited / seconds, 3)}
        )
        self._run.write_metrics(self._history)
        self._epoch, self._done, self._loss_sum = self._epoch + 1, 0, 0.0
        self._console.line(
            f"{self._epoch:3d}/{self._epochs}",
            f"loss {loss:.3f}  val {score}"
            + (f"  average {averaged}" if averaged else "")
            + f"  lr {rate:.1e}  {images / seconds:.1f} images/s  wait {waited / seconds:.0%}"
            + (f"  best{' (average)' * (kept == 'average')}" if kept else ""),
        )

    def _scores(self) -> tuple[Score, Score | None]:
        """Return the score of the weights, and that of their average if there is one.

        Raises:
            NotFinite: A score is not finite.
        """
        score, averaged = self._judge(), None
        if self._average:
            with self._average.in_place():
                averaged = self._judge()
        for one in (score, averaged):
            if one and not math.isfinite(one.loss):
                raise NotFinite(f"validation loss {one.loss} after epoch {self._epoch + 1}")
        return score, averaged

    def _keep(self, score: Score, averaged: Score | None) -> str:
        """Keep the weights or their average if they are the best so far; return which.

        Raises:
            NotFinite: A variable is not finite, though its score is.
        """
        average = averaged is not None and averaged.beats(score)
        better = averaged if averaged is not None and average else score
        if not better.beats(self.best):
            return ""
        self._check_finite()
        self.best = better
        with self._average.in_place() if average and self._average else nullcontext():
            self._run.save_weights(self._model)
        kind = "average" if average else "weights"
        self._run.update(
            kept="fine-tune",
            kept_weights=kind,
            kept_epoch=self._epoch + 1,
            validation=asdict(better),
        )
        return kind

    def _stock(self, score: Score, averaged: Score | None) -> None:
        """Put the epoch's weights, and their average, among the ingredients of a soup."""
        if self._ingredients is None:
            return
        self._ingredients.offer(Ingredient(self._epoch + 1, "weights", score))
        if averaged and self._average:
            with self._average.in_place():
                self._ingredients.offer(Ingredient(self._epoch + 1, "average", averaged))

    def _variables(self) -> list[Any]:
        averages = self._average.variables if self._average else []
        return [*self._model.variables, *self._optimizer.variables, *averages]

    def _save(self) -> None:
        """Save where the training stands.

        Raises:
            NotFinite: A variable is not finite: nobody would want to resume from here.
            ResourceError: The disk is full or not writable.
        """
        self._check_finite()
        meta = {
            "epochs": self._epochs,
            "epoch": self._epoch,
            "done": self._done,
            "loss_sum": self._loss_sum,
            "history": self._history,
            "best": asdict(self.best) if self.best else None,
            "peak": asdict(self._peak) if self._peak else None,
            "stale": self._stale,
            "ingredients": self._ingredients.meta() if self._ingredients else [],
            "circumstances": asdict(self._circumstances()),
        }
        started = time.monotonic()
        if self._team.is_chief:
            save_state(self._run.states, self._position, self._variables(), meta)
        if self._ingredients:
            self._ingredients.tidy()
        self._has_state, self._saved = True, time.monotonic()
        self._saving_s = self._saved - started

    def _circumstances(self) -> Circumstances:
        return replace(Circumstances.here(), devices=self._team.replicas)

    def _check_finite(self) -> None:
        floating = (v.value for v in self._variables() if v.dtype.startswith("float"))
        if not all(bool(tf.reduce_all(tf.math.is_finite(value))) for value in floating):
            raise NotFinite(f"weights in epoch {self._epoch + 1}, step {self._done}")

    def _restore(self, meta: dict[str, Any]) -> None:
        self._epochs, self._epoch, self._done = meta["epochs"], meta["epoch"], meta["done"]
        self._loss_sum, self._history = meta["loss_sum"], meta["history"]
        self._peak = Score(**meta["peak"]) if meta.get("peak") else None
        self._stale = meta.get("stale", 0)
        if self._ingredients:
            self._ingredients.restore(meta.get("ingredients", []))
        self._elsewhere = self._circumstances().differences(meta.get("circumstances", {}))
        self.best = Score(**meta["best"]) if meta["best"] else None
        kept = self._troubles.best  # weights kept after this state, in a training not gone on with
        if kept and kept.beats(self.best):
            self.best = kept
