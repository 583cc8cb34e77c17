"""What to try next: keras_tuner's oracles, asked and told without its tuners, and rebuilt exactly.

keras_tuner's files are not written: they are not safe against a kill. An oracle that was asked and
told the same in the same order is in the same state, so the study file is all that is kept. For
that, the generators of an oracle are set before each question from the study's seed and the number
of trials before it, and from nothing else.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Literal

import numpy as np
from threadpoolctl import threadpool_limits

from kresnet.errors import ConfigError, ResourceError
from kresnet.tune.trials import Event

Algorithm = Literal["hyperband", "bayesian", "random", "grid"]

ALGORITHMS: Final[Mapping[Algorithm, str]] = {
    "hyperband": "many for a few epochs, the best third of them for three times as many, and on",
    "bayesian": "a Gaussian process on what is known says where to look",
    "random": "anywhere in the space",
    "grid": "every combination, in order",
}

_FIRST: Final = "planned"  # the oracle's name of trial 0, where it is told of it
_OWN: Final = "tuner/"  # what the names of hyperband's own values begin with
_DRAWS: Final = 10_000  # numbers that one question may draw from a generator
_TIE: Final = 1e-6  # what a nat of loss counts where accuracies are equal


@dataclass(frozen=True, slots=True)
class Asked:
    """What an oracle wants to know.

    Attributes:
        id: Its name of the trial.
        values: Of the space.
        epochs: Epochs after which the trial stops; None is its horizon.
        parent: The oracle's name of the trial that it goes on from.
    """

    id: str
    values: dict[str, Any]
    epochs: int | None = None
    parent: str | None = None


class Oracle:
    """One of keras_tuner's oracles.

    Args:
        algorithm: A key of `ALGORITHMS`.
        hyperparameters: The space, as keras_tuner has it.
        seed: Of all that it draws, from 0 on.
        max_epochs: Epochs of a whole training, for hyperband.
        factor: What hyperband divides the number of trials by, and multiplies their epochs with.
        endless: Begin hyperband anew where it has come to its end.

    Raises:
        ResourceError: keras_tuner is not installed.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        hyperparameters: Any,
        *,
        seed: int,
        max_epochs: int,
        factor: int = 3,
        endless: bool = False,
    ) -> None:
        tuner = keras_tuner()
        self.algorithm, self._seed = algorithm, seed
        common: dict[str, Any] = {
            "objective": tuner.Objective("score", "max"),
            "hyperparameters": hyperparameters,
            "allow_new_entries": False,
            "tune_new_entries": False,
            "seed": seed + 1,  # 0 would be none
            "max_consecutive_failed_trials": 2**62,  # nothing that fails ends a search
        }
        oracles = tuner.oracles
        self._oracle: Any
        if algorithm == "hyperband":
            self._oracle = oracles.HyperbandOracle(
                **common,
                max_epochs=max_epochs,
                factor=factor,
                hyperband_iterations=None if endless else 1,
            )
        elif algorithm == "bayesian":
            self._oracle = oracles.BayesianOptimizationOracle(**common, max_trials=None)
        elif algorithm == "random":
            self._oracle = oracles.RandomSearchOracle(**common, max_trials=None)
        else:
            self._oracle = oracles.GridSearchOracle(**common, max_trials=None)
        self._oracle.verbose = 0
        self._oracle.save = lambda: None
        self._oracle._save_trial = lambda trial: None

    def first(self, values: Mapping[str, Any] | None) -> str | None:
        """Let the oracle know of the planner's recipe, and return its name of the trial.

        Args:
            values: The recipe as a point of the space; None where it lies outside.

        Returns:
            None where it need not know: hyperband compares trials of equal epochs only.
        """
        if values is None or self.algorithm == "hyperband":
            return None
        if self.algorithm == "grid":
            asked = self.ask()
            return asked.id if isinstance(asked, Asked) else None
        tuner = keras_tuner()
        hp = self._oracle.get_space()
        hp.values = dict(values)
        trial = tuner.engine.trial.Trial(hyperparameters=hp, trial_id=_FIRST, status="RUNNING")
        self._oracle.trials[_FIRST] = self._oracle.ongoing_trials[_FIRST] = trial
        self._oracle.start_order.append(_FIRST)
        self._oracle._record_values(trial)
        return _FIRST

    def ask(self) -> Asked | Literal["idle", "stopped"]:
        """Return the next trial, "idle" if it takes a result to know it, "stopped" if it ends."""
        count = len(self._oracle.trials)
        self._oracle._seed_state = (self._seed + 1) * 1_000_000_007 + count * _DRAWS
        if self.algorithm == "bayesian":
            self._oracle._random_state = np.random.RandomState([self._seed, count])
        with _quiet(), threadpool_limits(1):  # more threads sum in other orders
            trial = self._oracle.create_trial(f"worker-{count}")
        if trial.status == "RUNNING":
            return _asked(trial)
        return "stopped" if trial.status == "STOPPED" else "idle"

    def tell(self, name: str, score: float | None, loss: float | None) -> None:
        """Tell the result of a trial.

        Args:
            name: The oracle's name of it.
            score: Validation accuracy in 0..1; None if it failed.
            loss: Validation loss in nats, which decides between equal accuracies.
        """
        trial = self._oracle.get_trial(name)
        with _quiet():
            if score is None:
                trial.status = "FAILED"
            else:
                value = score - _TIE * min(loss or 0.0, 100.0)
                self._oracle.update_trial(name, {"score": value})
                trial.status = "COMPLETED"
            self._oracle.end_trial(trial)

    def replay(self, events: Iterable[Event]) -> None:
        """Bring a new oracle to where another one was that was asked and told the same.

        Raises:
            ConfigError: It asks for something else, as another version of keras_tuner may.
        """
        for event in events:
            trial = event.trial
            if trial.oracle is None:
                continue
            if event.kind == "told":
                self.tell(trial.oracle, trial.score, trial.loss)
                continue
            if trial.number == 0:
                self.first(trial.values)
                continue
            if self.algorithm == "bayesian":  # the process would be fitted again for each
                with self._answering(trial.values):
                    asked = self.ask()
            else:
                asked = self.ask()
            if (
                not isinstance(asked, Asked)
                or asked.id != trial.oracle
                or asked.values != dict(trial.values)
            ):
                raise ConfigError(
                    "A study must be resumed with the keras_tuner that it was begun with. "
                    f"Received: {keras_tuner().__version__}, which has something else for trial "
                    f"{trial.number}. Install the other version or start a new study."
                )

    def promotable(self) -> set[str]:
        """Return the names of trials that others may yet go on from, as they stand."""
        if self.algorithm != "hyperband":
            return set()
        found: set[str] = set()
        for bracket in self._oracle._brackets:
            for number, rounds in enumerate(bracket["rounds"][:-1]):
                after = bracket["rounds"][number + 1]
                taken = {one["past_id"] for one in after}
                size = self._oracle._get_size(bracket["bracket_num"], number + 1)
                trials = [self._oracle.trials[one["id"]] for one in rounds]
                done = [t for t in trials if t.status == "COMPLETED"]
                ranked = sorted(done, key=lambda t: t.score, reverse=True)[:size]
                found |= {t.trial_id for t in ranked} - taken
        return found

    @contextmanager
    def _answering(self, values: Mapping[str, Any]) -> Iterator[None]:
        """Let the oracle find these values next."""
        self._oracle.populate_space = lambda name: {"status": "RUNNING", "values": dict(values)}
        try:
            yield
        finally:
            del self._oracle.populate_space


def hyperband_budget(max_epochs: int, factor: int = 3) -> tuple[int, int]:
    """Return how many trials hyperband makes, and how many epochs they take together.

    There are brackets b from B down to 0, with B the largest for which `max_epochs` / `factor`^B is
    1 or more. Round r of bracket b, from 0 to b, has ceil(E / (b + 1) * `factor`^(b - r)) trials,
    E = ceil(1 + log(`max_epochs`) / log(`factor`)), that are trained up to epoch
    ceil(`max_epochs` / `factor`^(b - r)); each that is promoted goes on from the epoch where it
    stopped. So 9 epochs and factor 3 are 23 trials and 75 epochs, 27 epochs are 70 trials and 375.

    Li et al. 2018, arXiv:1603.06560, as keras_tuner 1.4 counts it.

    Args:
        max_epochs: Epochs of a whole training, at least 1.
        factor: At least 2.
    """
    trials = epochs = 0
    brackets = 0
    while max_epochs / factor**brackets >= 1:
        brackets += 1
    end = math.ceil(1 + math.log(max_epochs, factor))
    for bracket in range(brackets):
        before = 0
        for number in range(bracket + 1):
            size = math.ceil(end / (bracket + 1) * factor ** (bracket - number))
            until = math.ceil(max_epochs / factor ** (bracket - number))
            trials += size
            epochs += size * (until - before)
            before = until
    return trials, epochs


def keras_tuner() -> ModuleType:
    """Import keras_tuner.

    Raises:
        ResourceError: It is not installed; the message says how to.
    """
    try:
        import keras_tuner as found
        import keras_tuner.engine.trial
        import keras_tuner.oracles
    except ImportError as error:
        raise ResourceError(
            f"A search needs keras_tuner. Received: {error.name!r} missing. "
            "Install it: pip install 'kresnet[tune]'"
        ) from None
    return found


def _asked(trial: Any) -> Asked:
    values = dict(trial.hyperparameters.values)
    own = {name: values.pop(name) for name in list(values) if name.startswith(_OWN)}
    return Asked(trial.trial_id, values, own.get("tuner/epochs"), own.get("tuner/trial_id"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Pass over what keras_tuner calls by its old name, and processes that fit badly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
