"""A soup is the mean of exactly the chosen weights, and its ingredients survive what states do."""

import numpy as np
import pytest
from conftest import randomize
from safetensors import SafetensorError

from kresnet.errors import ResourceError
from kresnet.train import soup
from kresnet.train.average import moving_variables
from kresnet.train.score import Score
from kresnet.train.soup import Ingredient, Ingredients, from_meta, greedy, pour, ranked, read
from kresnet.zoo import build


@pytest.fixture(scope="module")
def model():
    return build("resnet8_cifar", num_classes=3)


def one(epoch, accuracy, kind="weights", loss=1.0):
    return Ingredient(epoch, kind, Score(accuracy, loss))


def values(model):
    return [v.numpy() for v in moving_variables(model)]


def names(folder):
    return sorted(path.name.removesuffix(".safetensors") for path in folder.iterdir())


def test_the_best_of_each_kind_are_kept_with_their_values(model, tmp_path):
    kept = Ingredients(tmp_path, model, most=2)
    offered = {}
    for epoch, accuracy, kind in [
        (1, 0.5, "weights"), (1, 0.6, "average"), (2, 0.8, "weights"), (2, 0.55, "average"),
        (3, 0.7, "weights"), (4, 0.1, "weights"), (4, 0.9, "average"),
    ]:  # fmt: skip
        randomize(model, seed=10 * epoch + len(kind))
        candidate = one(epoch, accuracy, kind)
        offered[candidate] = values(model)
        kept.offer(candidate)
    assert list(map(str, kept.best)) == ["average of epoch 4", "epoch 2", "epoch 3"]
    for candidate in kept.best:
        for found, value in zip(read(tmp_path, candidate), offered[candidate], strict=True):
            np.testing.assert_array_equal(found, value)


def test_a_file_stays_until_no_saved_state_names_it(model, tmp_path):
    """Two states are kept, so a training may go back by one."""
    kept = Ingredients(tmp_path, model, most=1)
    saved, there = [], []
    for epoch in (1, 2, 3):
        kept.offer(one(epoch, epoch / 10))
        saved.append(kept.meta())
        there.append(names(tmp_path))  # while the state is written
        kept.tidy()
        there.append(names(tmp_path))
    first, second, third = (f"weights-0000{k}" for k in (1, 2, 3))
    assert there[:4] == [[first], [first], [first, second], [first, second]]
    assert there[4:] == [[first, second, third], [second, third]]
    assert [meta[0]["epoch"] for meta in saved] == [1, 2, 3]
    again = Ingredients(tmp_path, model, most=1)
    again.restore(saved[1])
    assert again.best == from_meta(saved[1]) == (one(2, 0.2),)
    assert read(tmp_path, again.best[0]) is not None


def test_what_cannot_be_read_is_left_out_of_a_soup(model, tmp_path):
    kept = Ingredients(tmp_path, model, most=1)
    kept.offer(one(1, 0.5))
    path = tmp_path / "weights-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    assert read(tmp_path, one(1, 0.5)) is None
    assert read(tmp_path, one(2, 0.5)) is None


def test_a_full_disk_is_one_line(model, tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(soup, "save_file", full)
    with pytest.raises(ResourceError, match=r"must be writable. Received: .*No space left.*resume"):
        Ingredients(tmp_path, model, most=1).offer(one(1, 0.5))
    assert names(tmp_path) == []


def test_a_soup_is_the_mean_of_its_ingredients_and_of_nothing_else(model):
    several = []
    for seed in (1, 2, 5):
        several.append(values(randomize(model, seed=seed)))
    still = [v.numpy() for v in model.variables if "seed" in v.path]
    pour(model, several)
    for found, *parts in zip(values(model), *several, strict=True):
        np.testing.assert_allclose(found, np.mean(np.float64(parts), axis=0), rtol=1e-6, atol=1e-7)
    assert [v.numpy().tolist() for v in model.variables if "seed" in v.path] == [
        s.tolist() for s in still
    ]
    pour(model, several[:1])
    for found, value in zip(values(model), several[0], strict=True):
        np.testing.assert_array_equal(found, value)


def test_greedy_adds_what_helps_and_passes_over_what_does_not():
    worth = {
        ("a",): (0.7, 1.0),
        ("a", "b"): (0.6, 0.1),
        ("a", "c"): (0.7, 0.9),  # as accurate, and likelier
        ("a", "c", "d"): (0.7, 0.9),  # no better
    }
    tasted = []

    def score_of(parts):
        tasted.append(tuple(parts))
        return Score(*worth[tuple(parts)])

    assert greedy("abcd", score_of) == (["a", "c"], Score(0.7, 0.9))
    assert tasted == list(worth)
    assert greedy("a", score_of) == (["a"], Score(0.7, 1.0))


def test_the_best_come_first_and_of_equals_the_earliest():
    several = [one(3, 0.5), one(1, 0.5), one(2, 0.5, loss=0.5), one(9, 0.6)]
    assert [i.epoch for i in ranked(several)] == [9, 2, 1, 3]
