"""A state is whole or absent, whatever happens while it is written."""

import keras
import numpy as np
import pytest
from safetensors import SafetensorError

from kresnet.errors import ResourceError
from kresnet.train import state
from kresnet.train.state import load_state, restore, save_state


@pytest.fixture
def variables():
    rng = np.random.default_rng(0)
    return [
        keras.Variable(rng.normal(size=(3, 4)), name="a"),
        keras.Variable(7, dtype="int64", name="b"),
        keras.Variable([1, 2], dtype="uint32", name="seed"),
    ]


def test_round_trip_keeps_the_newest_only(tmp_path, variables):
    save_state(tmp_path, 9, variables, {"epoch": 1})
    save_state(tmp_path, 10, variables, {"epoch": 2, "best": None})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000010"]
    arrays, meta = load_state(tmp_path)
    assert meta == {"epoch": 2, "best": None}
    values = [np.array(v) for v in variables]
    for v in variables:
        v.assign(keras.ops.zeros_like(v))
    restore(variables, arrays)
    for v, value in zip(variables, values, strict=True):
        np.testing.assert_array_equal(np.array(v), value)


def test_no_state_is_none(tmp_path):
    assert load_state(tmp_path / "state") is None


def test_a_crash_while_writing_leaves_the_last_state(tmp_path, variables, monkeypatch):
    save_state(tmp_path, 1, variables, {"epoch": 1})

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(state, "save_file", die)
    with pytest.raises(KeyboardInterrupt):
        save_state(tmp_path, 2, variables, {"epoch": 2})
    assert load_state(tmp_path)[1] == {"epoch": 1}
    monkeypatch.undo()
    save_state(tmp_path, 2, variables, {"epoch": 2})  # the remains do not stand in the way
    assert load_state(tmp_path)[1] == {"epoch": 2}


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),  # of a real full disk
    ],
)
def test_a_full_disk_is_one_line_and_leaves_the_last_state(tmp_path, variables, monkeypatch, error):
    save_state(tmp_path, 1, variables, {"epoch": 1})

    def full(*_):
        raise error

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(ResourceError, match=r"No space left on device.*last saved state is intact"):
        save_state(tmp_path, 2, variables, {"epoch": 2})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_a_state_of_another_model_is_refused(tmp_path, variables):
    save_state(tmp_path, 1, variables[:2], {})
    arrays, _ = load_state(tmp_path)
    with pytest.raises(ResourceError, match=r"exactly this run's variables. Received: 1 that dif"):
        restore(variables, arrays)
