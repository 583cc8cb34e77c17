"""The study file: what is written is there, whatever happens to the process."""

import os
import signal
import sqlite3

import pytest

from kresnet.errors import ConfigError, ResourceError
from kresnet.tune.trials import Ledger


def add(ledger, **changes):
    fields = {"values": {"lr": 3e-4}, "fields": {"lr": 3e-4}, "horizon": 9, "epochs": 3}
    return ledger.add(**fields | changes)


def test_a_study_is_read_as_it_was_written(tmp_path):
    ledger = Ledger.create(tmp_path, {"algorithm": "grid", "space": {"lr": [1, None, "a"]}})
    first = add(ledger, values={"lr": 0.1 + 0.2, "norms": "train"}, oracle="0000")
    second = add(ledger, parent=0, epochs=9)
    ledger.change(0, status="running", tries=1)
    ledger.close()
    again = Ledger(tmp_path)
    assert again.settings == {"algorithm": "grid", "space": {"lr": [1, None, "a"]}}
    assert [t.number for t in again.trials()] == [0, 1]
    assert again.trial(0).values == {"lr": 0.1 + 0.2, "norms": "train"}
    assert (again.trial(0).status, again.trial(0).tries) == ("running", 1)
    assert again.trial(1) == second
    assert first.directory != second.directory
    assert (first.fraction, second.fraction) == (1 / 3, 1.0)


def test_asked_and_told_keep_their_order(tmp_path):
    ledger = Ledger.create(tmp_path, {})
    for _ in range(3):
        add(ledger)
    ledger.change(2, status="done", score=0.5)
    ledger.change(0, status="failed", error="no")
    add(ledger)
    ledger.change(0, error="still no")  # what has been told once stays where it was
    events = [(event.kind, event.trial.number) for event in ledger.events()]
    assert events == [
        ("asked", 0), ("asked", 1), ("asked", 2), ("told", 2), ("told", 0), ("asked", 3),
    ]  # fmt: skip
    assert not ledger.trial(1).ended


def test_a_killed_writer_leaves_whole_changes_only(tmp_path):
    Ledger.create(tmp_path, {"n": 0}).close()
    read, write = os.pipe()
    number = os.fork()
    if not number:
        ledger = Ledger(tmp_path)
        for k in range(10_000):
            add(ledger, values={"k": k, "text": "x" * 5000})
            ledger.change(k, status="done", score=k / 10_000)
            os.write(write, b".")
    told = len(os.read(read, 20)) if number else 0
    while told < 20:
        told += len(os.read(read, 20))
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    trials = Ledger(tmp_path).trials()
    assert len(trials) >= 20
    assert [t.values["k"] for t in trials] == list(range(len(trials)))
    assert all(t.status == "done" for t in trials[:-1])
    assert trials[-1].status in ("waiting", "done")


def test_a_study_can_be_looked_at_while_it_is_written(tmp_path):
    writer = Ledger.create(tmp_path, {})
    reader = Ledger(tmp_path, read_only=True)
    add(writer)
    assert len(reader.trials()) == 1
    with pytest.raises(ResourceError, match="readonly"):
        reader.update(trials=3)


@pytest.mark.parametrize("content", [None, b"", b"not a database at all, but longer than a page"])
def test_what_is_no_study_is_told(tmp_path, content):
    if content is not None:
        (tmp_path / "study.sqlite").write_bytes(content)
    with pytest.raises(ConfigError, match=r"[Ss]tudy.*Received: .*" + tmp_path.name):
        Ledger(tmp_path).trials()


def test_a_name_in_use_is_not_written_over(tmp_path):
    Ledger.create(tmp_path, {"n": 1})
    with pytest.raises(ResourceError, match="new"):
        Ledger.create(tmp_path, {"n": 2})
    assert Ledger(tmp_path).settings == {"n": 1}


def test_writes_reach_the_disk_before_the_call_returns(tmp_path):
    ledger = Ledger.create(tmp_path, {})
    connection: sqlite3.Connection = ledger._connection
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
