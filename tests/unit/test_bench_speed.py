"""The speed bench: turns are taken as they should be, and the tables say what was measured."""

import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import contenders
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from kresnet.bench.speed import coldstart, results, topics
from kresnet.bench.speed.limits import INTEGERS
from kresnet.bench.speed.pictures import written
from kresnet.bench.speed.rotation import Contender, Failed, Outcome, Process, once, rotate
from kresnet.bench.speed.topics import PEERS, Demand, Group, Options
from kresnet.cli import speed
from kresnet.errors import ConfigError, ResourceError

TESTS = Path(__file__).parents[1]
STARTS = pytest.mark.slow  # it starts processes


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """Let the processes of contenders import those of the tests."""
    old = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *([old] if old else [])]))


def a_contender(name, make, /, *packages, settings=None, **arguments):
    return Contender(name, f"contenders:{make}", settings or {"usual": arguments}, packages)


def told(name, /, *values, **more):
    """A contender that says these seconds after 9.0 for its warm-up."""
    return a_contender(name, "scripted", values=[9.0, *values], name=name, **more)


@STARTS
def test_everyone_takes_turns_with_the_reference(tmp_path):
    log = tmp_path / "log.txt"
    ours = told("a", 1.0, 2.0, 3.0, 4.0, log=str(log), facts={"precision": "bfloat16"})
    others = [told("b", 5.0, 7.0, log=str(log)), told("c", 6.0, 8.0, log=str(log))]
    first, *rest = rotate(ours, others, rounds=2, logs=tmp_path)
    warm_ups_and_turns = "a b abab c acac".replace(" ", "")
    assert log.read_text().split() == list(warm_ups_and_turns)
    assert (first.name, first.seconds, first.before) == ("a", (1.0, 2.0, 3.0, 4.0), ())
    assert first.facts == {"precision": "bfloat16"}
    assert [one.seconds for one in rest] == [(5.0, 7.0), (6.0, 8.0)]
    assert [one.before for one in rest] == [(1.0, 2.0), (3.0, 4.0)]
    assert not any(one.failed or one.tried for one in (first, *rest))


@STARTS
def test_without_others_the_reference_is_measured_alone(tmp_path):
    (only,) = rotate(told("a", 1.0, 2.0), [], rounds=2, logs=tmp_path)
    assert only.seconds == (1.0, 2.0)


@STARTS
def test_the_fastest_setting_takes_part(tmp_path):
    settings = {
        "slow": {"values": [9.0, 4.0, 4.0]},
        "none": {"values": []},
        "fast": {"values": [9.0, 1.0, 2.0, 3.0]},
        "slower": {"values": [9.0, 5.0, 5.0]},
    }
    other = a_contender("b", "scripted", settings=settings)
    _, found = rotate(told("a", 1.0), [other], rounds=1, logs=tmp_path)
    assert (found.setting, found.seconds) == ("fast", (3.0,))
    assert {name: found.tried[name] for name in ("slow", "fast", "slower")} == {
        "slow": 4.0, "fast": 1.5, "slower": 5.0,
    }  # fmt: skip
    assert found.tried["none"] == "exit code 1: IndexError: pop from empty list"


@STARTS
def test_what_fails_is_listed_and_the_others_go_on(tmp_path):
    others = [
        a_contender("absent", "scripted", "no_such_package", values=[]),
        a_contender("broken", "broken", last="no such network"),
        a_contender("crashing", "crashing", turns=2),
        told("b", 2.0, 2.5),
    ]
    ours = told("a", *[1.0] * 8)
    _, *found = rotate(ours, others, rounds=2, logs=tmp_path)
    assert [one.failed for one in found] == [
        "not installed: no_such_package",
        "exit code 1: ValueError: no such network",
        "exit code 3: ",
        None,
    ]
    assert [one.seconds for one in found] == [(), (), (), (2.0, 2.5)]


@STARTS
def test_who_does_not_answer_is_given_up(tmp_path):
    with pytest.raises(Failed, match="no answer in 1 s"):
        Process("contenders:silent", {}, tmp_path, warm_up=1, patience_s=1)


@STARTS
def test_a_reference_that_fails_ends_the_bench(tmp_path):
    with pytest.raises(ResourceError, match=r"Received: a: exit code 1: ValueError: no weights\."):
        rotate(a_contender("a", "broken", last="no weights"), [], rounds=1, logs=tmp_path)
    with pytest.raises(ResourceError, match=r"Received: a: exit code 3"):
        rotate(a_contender("a", "crashing", turns=2), [told("b", 1, 1)], rounds=2, logs=tmp_path)


@STARTS
def test_all_but_one_are_stopped_and_all_end(tmp_path):
    folder = tmp_path / "pids"
    folder.mkdir()
    logs = tmp_path / "logs"
    logs.mkdir()
    a, b = (a_contender(name, "watching", folder=str(folder)) for name in "ab")
    found = rotate(a, [b, replace(b, name="c")], rounds=2, logs=logs)
    assert [set(one.seconds) for one in found] == [{0.0}] * 3
    pids = [int(path.name) for path in folder.iterdir()]
    assert len(pids) == 6
    wait_for(lambda: {contenders.state(pid) for pid in pids} == {"gone"})


@STARTS
def test_no_process_outlives_a_bench_that_was_killed(tmp_path):
    program = (
        "import sys, time, pathlib\n"
        "from kresnet.bench.speed.rotation import Process\n"
        "logs = pathlib.Path(sys.argv[1])\n"
        "arguments = {'folder': sys.argv[2]}\n"
        "Process('contenders:watching', arguments, logs, warm_up=1, patience_s=60)\n"
        "(logs / 'ready').touch()\n"
        "time.sleep(600)"
    )
    folder = tmp_path / "pids"
    folder.mkdir()
    bench = subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(folder)])
    try:
        wait_for((tmp_path / "ready").exists)
        pids = [int(path.name) for path in folder.iterdir()]
        wait_for(lambda: [contenders.state(pid) for pid in pids] == ["T", "T"])
    finally:
        bench.send_signal(signal.SIGKILL)
        bench.wait()
    wait_for(lambda: {contenders.state(pid) for pid in pids} == {"gone"})


def wait_for(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@STARTS
def test_memory_is_that_of_the_contender(tmp_path):
    small, large = (a_contender(str(n), "heavy", megabytes=n) for n in (1, 120))
    first, second = rotate(small, [large], rounds=1, logs=tmp_path)
    assert 110 < second.peak_mb - first.peak_mb < 130


@STARTS
def test_processor_time_is_that_of_all_threads_and_not_of_sleep(tmp_path):
    told = [a_contender(name, name) for name in ("sleeping", "spinning")]
    sleeping, spinning = rotate(told[0], told[1:], rounds=2, logs=tmp_path)
    assert sleeping.processor_s < 0.1
    assert 0.2 <= spinning.processor_s < 0.4


@STARTS
def test_a_function_runs_once_in_a_process_of_its_own(tmp_path):
    assert once("contenders:facts", {"number": 21}, logs=tmp_path) == {"twice": 42}
    with pytest.raises(ResourceError, match=r"prepared. Received: contenders:broken.*no room"):
        once("contenders:broken", {"last": "no room"}, logs=tmp_path)


@STARTS
def test_a_process_is_ended_with_what_it_was_asked_for(tmp_path):
    with Process(
        "contenders:scripted", {"values": [1.0]}, tmp_path, warm_up=0, patience_s=60
    ) as process:
        assert process.turn() == 1.0
    process.end()  # a second time does nothing


def a_group(**changed):
    made = Group("A step", "images/s", told("ours"), (told("theirs"),), images=8)
    return replace(made, **changed)


def test_rows_have_medians_quartiles_and_ratios_of_neighbours():
    rng = np.random.default_rng(4)
    before, seconds = rng.uniform(1, 2, 9), rng.uniform(3, 5, 9)
    outcomes = [
        Outcome("ours", "x", tuple(before), peak_mb=10.0),
        Outcome("theirs", "y", tuple(seconds), tuple(before), 20.0, tried={"y": 1.0, "z": "no"}),
    ]
    ours, theirs = results.summary(a_group(), outcomes, [0.5, 0.5])["rows"]
    np.testing.assert_allclose(theirs["value"], np.quantile(8 / seconds, [0.25, 0.5, 0.75]))
    np.testing.assert_allclose(theirs["ratio"], np.quantile(seconds / before, [0.25, 0.5, 0.75]))
    assert ours["ratio"] is None
    assert ours["share_of_limit"] == pytest.approx(0.5 / np.median(before))
    assert theirs["peak_mb"] == 20.0
    by_unit = {
        unit: results.summary(a_group(unit=unit), outcomes[:1], [None])["rows"][0]["value"][1]
        for unit in ("ms", "s")
    }
    assert by_unit["ms"] == pytest.approx(1e3 * np.median(before))
    assert by_unit["s"] == pytest.approx(np.median(before))


def test_slopes_are_those_of_a_power_law():
    sizes = [1_000, 10_000, 100_000]
    rows = [
        {
            "failed": None,
            "seconds": [3e-6 * n**1.5] * 3,
            "processor_s": 2e-6 * n**1.2,
            "peak_mb": 50 + 2e-3 * n,
        }
        for n in sizes
    ]
    found = results.growth(sizes, rows)
    assert found["time_exponent"] == pytest.approx(1.5)
    assert found["last_exponent"] == pytest.approx(1.5)
    assert found["processor_exponent"] == pytest.approx(1.2)
    assert found["kb_each"] == pytest.approx(2)
    steady = [row | {"seconds": [0.2 + 4e-5 * n]} for n, row in zip(sizes, rows, strict=True)]
    found = results.growth(sizes, steady)
    assert found["s_each"] == pytest.approx(4e-5)
    assert found["time_exponent"] < found["last_exponent"] < 1
    alone = [rows[0], {"failed": "exit code 1"}, {"failed": "exit code 1"}]
    assert set(results.growth(sizes, alone).values()) == {None}


def test_the_limit_is_arithmetic_or_memory():
    limits = {
        "product float32 GFLOP/s": 300.0, "product bfloat16 GFLOP/s": 1250.0,
        "convolution float32 GFLOP/s": 310.0, "convolution bfloat16 GFLOP/s": 1900.0,
        "copy GB/s": 20.0,
    }  # fmt: skip
    assert Demand(flop=3.8e12).seconds(limits) == pytest.approx(2.0)
    assert Demand(flop=1.0, weights=25e6).seconds(limits) == pytest.approx(2.5e-3)
    only = {name: value for name, value in limits.items() if "bfloat16" not in name}
    assert Demand(flop=3.1e11, weights=25e6).seconds(only) == pytest.approx(1.0)
    assert Demand(flop=1.0, weights=25e6).seconds(only) == pytest.approx(5e-3)


def test_8_bits_have_a_limit_of_their_own():
    limits = {"convolution float32 GFLOP/s": 300.0, INTEGERS: 1200.0, "copy GB/s": 20.0}
    demand = Demand(flop=3e11, weights=1.0)
    assert demand.seconds(limits) == pytest.approx(1.0)
    assert demand.seconds(limits, integers=True) == pytest.approx(0.25)
    assert Demand(flop=1.0, weights=25e6).seconds(limits, integers=True) == pytest.approx(1.25e-3)


def test_the_table_shows_what_failed_and_what_was_tried():
    outcomes = [
        Outcome("ours", "x", (2.0,), peak_mb=1234.0, facts={"differs_by": 1.25e-5}),
        Outcome("theirs", "y", (5.0,), (2.0,), 20.0, tried={"y": 5.0, "z": "exit code 1: a | b"}),
        Outcome("absent", failed="not installed: absent"),
    ]
    found = {
        "machine": {"processor": "P", "cores": 2, "flags": ["avx2"], "python": "3.11"},
        "versions": {"numpy": "2.1"}, "date": "2026-01-02", "load": [0.1, 1.9], "rounds": 1,
        "limits": {"copy GB/s": 12.345},
        "groups": [results.summary(a_group(notes=("One note.",)), outcomes, [1.0] * 3)],
    }  # fmt: skip
    json.dumps(found)
    lines = results.table(found).splitlines()
    assert (
        "| what | best setting | images/s | ours is faster by | % of limit | peak memory, MB |"
        in (lines)
    )
    assert "| ours | x | 4 (4-4) | - | 50 | 1234 |" in lines
    assert "| theirs | y | 1.6 (1.6-1.6) | 2.5 (2.5-2.5) | 20 | 20 |" in lines
    assert "| absent | not installed: absent | - | - | - | - |" in lines
    assert "Limits of this machine: copy GB/s 12.3." in lines
    assert "- theirs, settings tried: y 5 s a turn, z exit code 1: a | b." in lines
    assert "- ours: differs by 1.25e-05." in lines
    assert "- One note." in lines


def every_group(options, work, monkeypatch):
    """All groups of all topics, as if what they run were prepared."""
    for module in ("infer", "input", "coldstart"):
        monkeypatch.setattr(
            f"kresnet.bench.speed.{module}.once",
            lambda make, arguments, logs: (
                _bound(make, arguments) or {"version": "v", "photo": "p.jpg", "integers": True}
            ),
            raising=False,
        )
    for topic in ("train", "infer", "input", "probe", "coldstart", "growth"):
        yield from importlib.import_module(f"kresnet.bench.speed.{topic}").groups(options, work)


def _bound(make, arguments):
    """Make sure that a function takes the arguments that its process will call it with."""
    module, _, name = make.partition(":")
    inspect.signature(getattr(importlib.import_module(module), name)).bind(**arguments)
    json.dumps(arguments)


def test_contenders_can_be_called_as_they_are_described(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    groups = list(every_group(Options(data="photos"), tmp_path, monkeypatch))
    assert len(groups) == 2 + 2 + 2 + 2 + 2 + 5
    for group in groups:
        assert not group.sizes or len(group.sizes) == 1 + len(group.others)
        for contender in (group.reference, *group.others):
            for arguments in contender.settings.values():
                _bound(contender.make, arguments)


def test_only_what_is_asked_for_is_compared(tmp_path, monkeypatch):
    groups = every_group(Options(data="photos", against=("timm",)), tmp_path, monkeypatch)
    names = [one.name for group in groups if not group.sizes for one in group.others]
    assert [name for name in names if "timm" in name] == [
        "timm, norms frozen", "timm, norms learning", "timm", "timm", "PyTorch DataLoader, timm",
    ]  # fmt: skip
    assert [name for name in names if "timm" not in name] == [
        "kresnet SavedModel, TensorFlow", "kresnet SavedModel, TensorFlow",
        "kresnet, what frozen stages say computed again",
        "python -c pass", "import tensorflow", "TensorFlow: import, load, predict",
    ]  # fmt: skip


def test_photos_of_one_size_are_made_of_others(striped, tmp_path):
    before = {path: path.read_bytes() for path in striped.rglob("*.png")}
    files = written(str(striped), tmp_path / "photos", 50, size=(60, 45))
    assert len(set(files)) == 50  # of 48
    for file in files[::10]:
        with Image.open(file) as image:
            assert (image.size, image.format) == ((60, 45), "JPEG")
    assert len({Path(file).parent.name for file in files[:9]}) == 4  # classes mix
    assert {path: path.read_bytes() for path in striped.rglob("*.png")} == before
    drawn = written(None, tmp_path / "drawn", 3, size=(60, 45))
    assert len({Path(file).read_bytes() for file in drawn}) == 3


@STARTS
def test_fresh_processes_are_timed_and_must_succeed():
    work = coldstart.fresh(command=[sys.executable, "-c", "pass"])
    assert work.turn() > 0
    wrong = coldstart.fresh(command=[sys.executable, "-c", "raise SystemExit('no export')"])
    with pytest.raises(RuntimeError, match="exit code 1: no export"):
        wrong.turn()


@STARTS
def test_the_bench_itself_stays_small():
    program = (
        "import sys, pathlib\n"
        "from kresnet.bench.speed import coldstart, growth, infer, input, probe, results, train\n"
        "from kresnet.bench.speed.topics import Options\n"
        "for topic in (train, growth):\n"
        "    list(topic.groups(Options(), pathlib.Path()))\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "kresnet" in loaded, done.stderr
    assert not loaded & {"tensorflow", "keras", "torch", "numpy"}


def run(*arguments):
    from kresnet.cli import app

    return CliRunner().invoke(app, ["bench", *arguments])


def test_the_commands_hand_over_their_options(monkeypatch):
    asked = []

    def fake(topic, options, *, work, tell):
        assert work.is_dir()
        asked.append((topic, options))
        return {"topic": topic}

    monkeypatch.setattr(topics, "bench", fake)
    done = run("train", "--against", "timm,keras", "--batch", "4", "--rounds", "2", "--json")
    assert json.loads(done.stdout) == {"topic": "train"}
    assert asked[0][1] == Options(against=("timm", "keras"), batch=4, rounds=2, steps=2)
    for arguments in (
        ["infer", "--weights", "w.npz"], ["input", "--data", "photos"], ["growth", "--rows", "5,9"],
        ["probe", "--data", "photos", "--images", "10"], ["coldstart", "--export", "flowers"],
    ):  # fmt: skip
        assert run(*arguments, "--json").exit_code == 0
    assert [topic for topic, _ in asked] == [
        "train", "infer", "input", "growth", "probe", "coldstart",
    ]  # fmt: skip
    assert asked[1][1].weights == "w.npz"
    assert (asked[3][1].sizes, asked[5][1].export) == ((5, 9), "flowers")
    assert ",".join(PEERS) == speed._ALL


@pytest.mark.parametrize("rows", ["3,2", "1,,2", "0,1", "1,1", "a", ""])
def test_sizes_must_rise(rows):
    done = run("growth", "--rows", rows)
    assert isinstance(done.exception, ConfigError)
    assert "`--rows` must be whole numbers above zero that rise" in str(done.exception)


def test_unknown_peers_and_missing_photos_are_refused(tmp_path):
    done = run("train", "--against", "keras,caffe")
    assert isinstance(done.exception, ConfigError)
    assert "`--against` must be some of keras" in str(done.exception)
    assert "Received: 'caffe'" in str(done.exception)
    with pytest.raises(ConfigError, match="needs photos to read"):
        topics.bench("input", Options(), work=tmp_path / "work")
    assert run("input").exit_code == 2
