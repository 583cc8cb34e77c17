"""keras_tuner's oracles, asked directly: their budget, and that they can be rebuilt."""

import math
import sys

import pytest
from searching import SPACE, recipe_of, score_of

from kresnet.errors import ConfigError, ResourceError
from kresnet.train.recipe import rerun
from kresnet.tune import oracles
from kresnet.tune.oracles import Asked, Oracle, hyperband_budget
from kresnet.tune.space import Space
from kresnet.tune.trials import Ledger

pytest.importorskip("keras_tuner")


def new(algorithm, *, space=None, seed=5, epochs=9, **settings):
    space = Space.of(space or SPACE)
    hp = space.hyperparameters(recipe_of())
    return space, Oracle(algorithm, hp, seed=seed, max_epochs=epochs, **settings)


def answer(space, asked):
    recipe = rerun(recipe_of(), space.overrides(asked.values)).model_dump()
    score = score_of(recipe, asked.epochs or 9)
    return score, 1.0 - score


@pytest.mark.parametrize(("epochs", "factor"), [(2, 2), (9, 3), (10, 3), (27, 3), (16, 4)])
def test_hyperband_spends_what_it_is_said_to_spend(epochs, factor):
    space, oracle = new("hyperband", epochs=epochs, factor=factor)
    done, spent = {}, 0
    while isinstance(asked := oracle.ask(), Asked):
        before = done[asked.parent][0] if asked.parent else 0
        if asked.parent:  # the same configuration goes on
            assert done[asked.parent][1] == asked.values
        assert before < asked.epochs <= epochs
        spent += asked.epochs - before
        done[asked.id] = (asked.epochs, asked.values)
        oracle.tell(asked.id, *answer(space, asked))
    assert asked == "stopped"
    assert (len(done), spent) == hyperband_budget(epochs, factor)
    assert any(until == epochs for until, _ in done.values())


def test_the_budgets_in_the_documentation_are_true():
    said = " ".join((hyperband_budget.__doc__ or "").split())
    assert hyperband_budget(9) == (23, 75)
    assert "9 epochs and factor 3 are 23 trials and 75 epochs" in said
    trials, epochs = hyperband_budget(27)
    assert f"27 epochs are {trials} trials and {epochs}" in said
    rough = 27 * math.log(27, 3) ** 2  # keras_tuner's own documentation; "approximately"
    assert not math.isclose(epochs, rough, rel_tol=0.1)


def run(space, oracle, ledger, *, most, slots, first=None):
    """Search as a study does, some trials side by side; the last asked are not answered."""
    name = oracle.first(first)
    ledger.add(values=first or {}, fields={}, horizon=9, epochs=9, oracle=name)
    under_way, count = [(0, Asked(name, first))] if name else [], 1
    while count < most:
        while len(under_way) < slots and count < most:
            asked = oracle.ask()
            if not isinstance(asked, Asked):
                break
            ledger.add(
                values=asked.values, fields={}, horizon=9, epochs=asked.epochs or 9, oracle=asked.id
            )
            under_way.append((count, asked))
            count += 1
        if not under_way:
            return
        number, asked = under_way.pop(len(under_way) // 2)  # not in the order of their start
        if number % 5 == 3:
            ledger.change(number, status="failed")
            oracle.tell(asked.id, None, None)
        else:
            score, loss = answer(space, asked)
            ledger.change(number, status="done", score=score, loss=loss)
            oracle.tell(asked.id, score, loss)


@pytest.mark.parametrize("algorithm", ["hyperband", "bayesian", "random", "grid"])
def test_an_oracle_rebuilt_from_the_file_asks_the_same(tmp_path, algorithm):
    space, oracle = new(algorithm)
    ledger = Ledger.create(tmp_path, {})
    first = None if algorithm == "hyperband" else space.values_of(rerun(recipe_of(), {"lr": 1e-3}))
    if algorithm == "grid":
        first = space.values_of(recipe_of())
    run(space, oracle, ledger, most=17, slots=3, first=first)
    _, other = new(algorithm)
    other.replay(ledger.events())
    for _ in range(3):
        asked, again = oracle.ask(), other.ask()
        assert asked == again
        # The other two may have to wait for a result.
        assert isinstance(asked, Asked) or algorithm in ("hyperband", "grid")
    assert oracle.promotable() == other.promotable()


def test_another_seed_asks_for_something_else_and_so_does_the_next_question():
    _, one = new("random", seed=0)
    _, same = new("random", seed=0)
    _, other = new("random", seed=1)
    values = [one.ask().values for _ in range(4)]
    assert values == [same.ask().values for _ in range(4)]
    assert values[0] != other.ask().values
    assert len({v["lr"] for v in values}) == 4


def test_a_study_of_another_space_is_not_gone_on_with(tmp_path):
    space, oracle = new("random")
    ledger = Ledger.create(tmp_path, {})
    run(space, oracle, ledger, most=4, slots=1)
    _, other = new("random", space={"lr": {"float": [0.1, 0.2]}})
    with pytest.raises(ConfigError, match="begun with"):
        other.replay(ledger.events())


def test_the_process_learns_where_the_best_is():
    space, oracle = new("bayesian", space={"lr": {"float": [1e-4, 1e-1], "log": True}})
    rates = []
    for _ in range(14):
        asked = oracle.ask()
        rates.append(asked.values["lr"])
        oracle.tell(asked.id, *answer(space, asked))
    away = [abs(math.log10(rate) + 2.5) for rate in rates]
    assert min(away[3:]) < 0.05
    assert sum(away[-4:]) < sum(away[:4])


def test_failures_end_neither_hyperband_nor_a_grid():
    _, oracle = new("hyperband")
    count = 0
    while isinstance(asked := oracle.ask(), Asked):
        oracle.tell(asked.id, None, None)
        count += 1
    assert asked == "stopped"
    assert count == 9 + 5 + 3  # the first round of each bracket; nobody is promoted
    _, oracle = new("grid", space={"norms": SPACE["norms"], "augment": SPACE["augment"]})
    seen = []
    while isinstance(asked := oracle.ask(), Asked):
        oracle.tell(asked.id, None, None)
        seen.append(tuple(sorted(asked.values.items())))
    assert len(set(seen)) == len(seen) == 6


def test_only_what_may_be_promoted_is_kept():
    space, oracle = new("hyperband")
    scores = {}
    for _ in range(9):
        asked = oracle.ask()
        scores[asked.id] = answer(space, asked)[0]
        oracle.tell(asked.id, scores[asked.id], 0.5)
        best = sorted(scores, key=lambda name: -scores[name])[:3]
        assert oracle.promotable() == set(best)
    assert oracle.ask().parent == best[0]
    assert oracle.promotable() == set(best[1:])


def test_without_keras_tuner_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_tuner", None)
    with pytest.raises(ResourceError, match=r"pip install 'kresnet\[tune\]'"):
        oracles.keras_tuner()
