"""A state is whole or absent, whatever happens while it is written."""

import subprocess
from dataclasses import asdict

import keras
import numpy as np
import pytest
from safetensors import SafetensorError

from kresnet.errors import ResourceError
from kresnet.train import state
from kresnet.train.state import Circumstances, load_state, restore, save_state


@pytest.fixture
def variables():
    rng = np.random.default_rng(0)
    return [
        keras.Variable(rng.normal(size=(3, 4)), name="a"),
        keras.Variable(7, dtype="int64", name="b"),
        keras.Variable([1, 2], dtype="uint32", name="seed"),
    ]


def step_of(directory, tell=lambda text: None):
    return load_state(directory, tell)[1]["epoch"]


def test_round_trip_keeps_the_newest_two(tmp_path, variables):
    for step in (8, 9, 10):
        save_state(tmp_path, step, variables, {"epoch": step, "best": None})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000009", "step-00000010"]
    arrays, meta = load_state(tmp_path)
    assert meta == {"epoch": 10, "best": None}
    values = [np.array(v) for v in variables]
    for v in variables:
        v.assign(keras.ops.zeros_like(v))
    restore(variables, arrays)
    for v, value in zip(variables, values, strict=True):
        np.testing.assert_array_equal(np.array(v), value)


def test_the_checksums_are_those_of_sha256sum(tmp_path, variables):
    save_state(tmp_path, 1, variables, {"epoch": 1})
    (saved,) = tmp_path.iterdir()
    assert {p.name for p in saved.iterdir()} == {"SHA256SUMS", "meta.json", "variables.safetensors"}
    done = subprocess.run(
        ["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=saved, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.count(": OK")) == (0, 2), done.stderr


def truncated(path):
    path.write_bytes(path.read_bytes()[:-7])


def emptied(path):
    path.write_bytes(b"")


def flipped(path):
    contents = bytearray(path.read_bytes())
    contents[-3] ^= 4
    path.write_bytes(contents)


def removed(path):
    path.unlink()


@pytest.mark.parametrize("name", ["variables.safetensors", "meta.json", "SHA256SUMS"])
@pytest.mark.parametrize("damage", [truncated, emptied, flipped, removed])
def test_a_damaged_state_is_told_and_the_one_before_it_is_used(tmp_path, variables, name, damage):
    save_state(tmp_path, 1, variables, {"epoch": 1})
    before = {key: value.copy() for key, value in load_state(tmp_path)[0].items()}
    variables[0].assign(variables[0] * 2)
    save_state(tmp_path, 2, variables, {"epoch": 2})
    newest, said = tmp_path / "step-00000002", []
    damage(newest / name)
    arrays, meta = load_state(tmp_path, said.append)
    assert meta == {"epoch": 1}
    assert all(np.array_equal(arrays[key], value) for key, value in before.items())
    (line,) = said
    assert line.startswith("step-00000002 is damaged (")
    assert line.endswith("going back to the state before it")
    assert "\n" not in line

    damage(tmp_path / "step-00000001" / name)
    with pytest.raises(ResourceError, match=r"must be whole.*Received: 2 in .*step-00000001 is da"):
        load_state(tmp_path, said.append)


def test_a_half_written_state_is_no_state(tmp_path, variables):
    save_state(tmp_path, 1, variables, {"epoch": 1})
    whole, half = tmp_path / "step-00000001", tmp_path / ".step-00000002.partial"
    half.mkdir()
    contents = (whole / "variables.safetensors").read_bytes()
    (half / "variables.safetensors").write_bytes(contents[: len(contents) // 2])
    assert step_of(tmp_path) == 1
    save_state(tmp_path, 3, variables, {"epoch": 3})
    assert not half.exists()
    assert step_of(tmp_path) == 3


def test_after_a_damaged_state_no_more_than_two_are_kept(tmp_path, variables):
    """The damaged one is of a later step than the next that is saved."""
    for step in (4, 9):
        save_state(tmp_path, step, variables, {"epoch": step})
    flipped(tmp_path / "step-00000009" / "meta.json")
    assert step_of(tmp_path) == 4
    save_state(tmp_path, 6, variables, {"epoch": 6})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000004", "step-00000006"]
    assert step_of(tmp_path) == 6


def test_a_change_of_circumstances_is_named():
    here = Circumstances.here()
    assert here.threads >= 1
    assert here.processor
    assert here.differences(asdict(here)) == []
    other = asdict(here) | {"threads": here.threads + 3}
    assert here.differences(other) == [f"threads {here.threads + 3}, now {here.threads}"]
    assert here.differences({}) == []


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
