"""A search: an oracle asks, processes train, the study file keeps all that is known.

Whatever becomes of a trial, or of the search itself, the next process goes on from the file.
"""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from kresnet.console import duration
from kresnet.errors import ConfigError, Interrupted, KresnetError
from kresnet.train.recipe import Recipe, rerun, validated
from kresnet.train.signals import stoppable
from kresnet.tune.board import in_words, ranked, winner
from kresnet.tune.executors import Executor, Handle, Job, Outcome
from kresnet.tune.oracles import Asked, Oracle
from kresnet.tune.space import Space
from kresnet.tune.trials import Ledger, Trial
from kresnet.tune.worker import outcome_of

_PAUSES_S: Final = (0.002, 0.2)  # between two looks at what is under way: longer and longer
_NOTE_S: Final = 10.0  # between two notes of the time spent
_MOST_LOST: Final = 10  # machines that a trial may lose, before it is at fault itself
_MOST_REPEATS: Final = 20  # in a row, after which there is nothing new to try
_HEAVY: Final = ("state", "model.weights.safetensors")


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a search came to its end.

    Attributes:
        reason: "trials", "budget" or "space": all of them are done, the time is spent, or the
            oracle has nothing left to ask.
        seconds: Time spent, that of earlier processes included.
    """

    reason: str
    seconds: float


class Study:
    """A search under way.

    Args:
        ledger: Its file, with these settings: `recipe` (fields of the planner's recipe), `space`,
            `algorithm`, `seed`, `factor`, `trials` (None is no limit), `budget_s`, `trial_s`,
            `retries` and `keep`.
        executor: What runs the trials.
        tell: Called with a topic of one word and a line about it.
        status: Called with what is going on.

    Raises:
        ConfigError: Another process is at it.
        ResourceError: keras_tuner is not installed.
    """

    def __init__(
        self,
        ledger: Ledger,
        executor: Executor,
        *,
        tell: Callable[[str, str], None] = lambda topic, text: None,
        status: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._ledger, self._executor = ledger, executor
        self._tell, self._status = tell, status
        settings = ledger.settings
        self._recipe: Recipe = validated(settings["recipe"])
        self._space = Space.of(settings["space"])
        self._most: int | None = settings["trials"]
        self._budget_s: float | None = settings["budget_s"]
        self._trial_s: float | None = settings["trial_s"]
        self._retries, self._keep = int(settings["retries"]), int(settings["keep"])
        self._options: dict[str, Any] | None = settings.get("options")
        self._oracle = Oracle(
            settings["algorithm"],
            self._space.hyperparameters(self._recipe),
            seed=int(settings["seed"]),
            max_epochs=max(self._recipe.epochs, 1),
            factor=int(settings["factor"]),
            endless=self._most is not None or self._budget_s is not None,
        )
        self._spent_s = float(settings.get("spent_s", 0.0))
        self._noted = self._began = time.monotonic()
        self._pause_s = _PAUSES_S[0]
        self._under_way: dict[int, Handle] = {}
        self._lost: dict[int, int] = {}
        self._exhausted = self._stopping = False

    def search(self) -> Ending:
        """Run trials until there are enough, the time is spent or the oracle is at its end.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; every trial under way can be gone on with.
        """
        with _only_one(self._ledger.folder / ".lock"), stoppable(self._stop):
            self._began = time.monotonic()
            self._oracle.replay(self._ledger.events())
            self._recover()
            try:
                while not (self._stopping or self._is_late) and self._fill():
                    if not self._collect():
                        self._wait()
            finally:
                self._leave()
        if self._stopping:
            raise Interrupted(
                f"Stopped, and every result is saved. Continue with: kresnet tune --resume "
                f"{self._ledger.folder}"
            )
        reason = "budget" if self._is_late else "space" if self._exhausted else "trials"
        return Ending(reason, self._seconds)

    def _stop(self) -> None:
        self._stopping = True

    @property
    def _seconds(self) -> float:
        return self._spent_s + time.monotonic() - self._began

    @property
    def _is_late(self) -> bool:
        return self._budget_s is not None and self._seconds >= self._budget_s

    def _recover(self) -> None:
        """Take up what another process has left: results that it did not see, and the rest."""
        for trial in self._ledger.trials():
            if trial.status != "running":
                continue
            left = outcome_of(self._directory(trial))
            if left is not None and left.ok:
                self._end(trial.number, left)
            else:  # that the search was killed is no fault of the trial's
                self._ledger.change(trial.number, status="waiting", tries=trial.tries - 1)

    def _fill(self) -> bool:
        """Start what there is room for; tell whether anything is under way."""
        while len(self._under_way) < self._executor.slots:
            trial = self._next()
            if trial is None:
                break
            self._start(trial)
        return bool(self._under_way)

    def _next(self) -> Trial | None:
        """Return a trial to start, or None if there is none now."""
        trials = self._ledger.trials()
        waiting = [t for t in trials if t.status == "waiting"]
        if waiting:
            return waiting[0]
        if not trials:
            return self._add_planned()
        for _ in range(_MOST_REPEATS):
            if self._exhausted or (self._most is not None and len(trials) >= self._most):
                return None
            asked = self._oracle.ask()
            if not isinstance(asked, Asked):
                self._exhausted = asked == "stopped"
                return None
            trial = self._add(asked, trials)
            same = self._like(trial, trials)
            if same is None:
                return trial
            self._end(trial.number, Outcome(True, same.score, same.loss, same.epochs_done))
            trials = self._ledger.trials()
        self._exhausted = True
        return None

    def _like(self, trial: Trial, others: Sequence[Trial]) -> Trial | None:
        """Return a trial that has shown already what this one would: some oracles ask twice."""
        planned = {name: getattr(self._recipe, name) for name in self._space.entries}

        def trained(one: Trial) -> tuple[dict[str, Any], int]:
            fields = planned | dict(one.fields)
            return {name: _comparable(value) for name, value in fields.items()}, one.epochs

        if trial.parent is not None:
            return None
        wanted = trained(trial)
        return next((t for t in others if t.status == "done" and trained(t) == wanted), None)

    def _add_planned(self) -> Trial:
        """Add trial 0, the planner's recipe."""
        values = self._space.values_of(self._recipe)
        name = self._oracle.first(values)
        epochs = self._recipe.epochs
        return self._ledger.add(
            values=values or {}, fields={}, horizon=epochs, epochs=epochs, oracle=name
        )

    def _add(self, asked: Asked, trials: Sequence[Trial]) -> Trial:
        fields = self._space.overrides(asked.values)
        horizon = int(fields.get("epochs", self._recipe.epochs))
        parents = {t.oracle: t.number for t in trials if t.oracle is not None}
        return self._ledger.add(
            values=asked.values,
            fields=fields,
            horizon=horizon,
            epochs=min(asked.epochs or horizon, horizon) if horizon else 0,
            parent=parents[asked.parent] if asked.parent is not None else None,
            oracle=asked.id,
        )

    def _start(self, trial: Trial) -> None:
        trial = self._ledger.change(trial.number, status="running", tries=trial.tries + 1)
        try:
            recipe = rerun(self._recipe, trial.fields)
        except KresnetError as error:
            self._end(trial.number, Outcome(ok=False, error=str(error), kind="config"))
            return
        parent = None if trial.parent is None else self._ledger.trial(trial.parent)
        directory = self._directory(trial)
        directory.parent.mkdir(exist_ok=True)  # other machines must see it
        job = Job(
            trial=trial.number,
            recipe=recipe.model_dump(mode="json"),
            directory=str(directory),
            index=str((self._ledger.folder / "images").absolute()),
            stop_after=trial.epochs if trial.epochs < trial.horizon else None,
            go_on_from=None if parent is None else str(self._directory(parent)),
            deadline_s=self._trial_s,
            options=self._options,
        )
        self._under_way[trial.number] = self._executor.start(job)

    def _collect(self) -> bool:
        """Take the results that there are; tell whether there was one."""
        ended = [(n, o) for n, h in self._under_way.items() if (o := h.poll()) is not None]
        for number, outcome in ended:
            del self._under_way[number]
            self._end(number, outcome)
            self._pause_s = _PAUSES_S[0]
        return bool(ended)

    def _end(self, number: int, outcome: Outcome) -> None:
        """Write down what became of a trial, and tell the oracle if that is the last word."""
        trial = self._ledger.trial(number)
        if outcome.ok and not _is_number(outcome.score):
            outcome = Outcome(ok=False, error="Its score is not finite.", kind="nan")
        lost = self._lost[number] = self._lost.get(number, 0) + (outcome.kind == "lost")
        tries = trial.tries - (outcome.kind == "lost" and lost <= _MOST_LOST)
        again = outcome.again and tries <= self._retries
        trial = self._ledger.change(
            number,
            status="done" if outcome.ok else "waiting" if again else "failed",
            score=outcome.score,
            loss=outcome.loss,
            epochs_done=outcome.epochs,
            tries=tries,
            seconds=outcome.seconds,
            error=outcome.error,
        )
        if trial.ended and trial.oracle is not None:
            self._oracle.tell(trial.oracle, trial.score if outcome.ok else None, trial.loss)
        trials = self._ledger.trials()
        self._say(trial, trials, again=again)
        self._prune(trials)

    def _say(self, trial: Trial, trials: Sequence[Trial], *, again: bool) -> None:
        ended = sum(t.ended for t in trials)
        of = f"/{self._most}" if self._most is not None else ""
        if trial.score is None:
            said = f"failed{', and is tried again' if again else ''}: {trial.error}"
        else:
            leader = winner(trials)
            best = "" if leader is None else f"best {leader.score:.3f} by {leader.number}"
            part = f" after {trial.epochs}/{trial.horizon} epochs" if trial.fraction < 1 else ""
            said = (
                f"val {trial.score:.3f} (loss {trial.loss or 0.0:.3f}){part} in "
                f"{duration(trial.seconds)}  {in_words(trial)}  {best}"
            )
        self._tell("trial", f"{trial.number:3d} ({ended}{of})  {said}")

    def _wait(self) -> None:
        now = time.monotonic()
        if now - self._noted > _NOTE_S:
            self._noted = now
            self._ledger.update(spent_s=self._seconds)
        running = ", ".join(map(str, self._under_way))
        self._status(f"trials under way: {running}  {duration(self._seconds)}")
        time.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, _PAUSES_S[1])

    def _leave(self) -> None:
        """End what is under way so that it can be gone on with, and note the time spent."""
        self._executor.close()
        for number, handle in self._under_way.items():
            handle.kill()
            outcome = handle.poll()
            trial = self._ledger.trial(number)
            if outcome is not None and outcome.ok:
                self._end(number, outcome)
            else:
                self._ledger.change(number, status="waiting", tries=trial.tries - 1)
        self._under_way.clear()
        self._ledger.update(spent_s=self._seconds)

    def _prune(self, trials: Sequence[Trial]) -> None:
        """Remove weights and states of trials that nothing will go on from."""
        kept = {trial.number for trial in ranked(trials)[: self._keep]}
        open_ = self._oracle.promotable()
        kept |= {trial.number for trial in trials if trial.oracle in open_}
        kept |= {trial.number for trial in trials if not trial.ended}
        kept |= {t.parent for t in trials if not t.ended and t.parent is not None}
        for trial in trials:
            if trial.number not in kept:
                for name in _HEAVY:
                    _remove(self._directory(trial) / name)

    def _directory(self, trial: Trial) -> Path:
        return (self._ledger.folder / trial.directory).absolute()


def _comparable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _only_one(file: Path) -> Iterator[IO[str]]:
    """Hold a study's lock.

    Raises:
        ConfigError: Another process has it.
    """
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"A study is searched by one process. Received: {file.parent}, which another "
                "process is at. Wait for it or end it."
            ) from None
        lock.write(str(os.getpid()))
        lock.flush()
        yield lock
