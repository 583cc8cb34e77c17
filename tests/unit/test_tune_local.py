"""Trials as processes: every way in which one can end is an outcome, and none is left running."""

import json
import math
import os
import sys
import textwrap
import time
from pathlib import Path

import pytest
from searching import WORKER

from kresnet.errors import ConfigError
from kresnet.tune.executors import Job
from kresnet.tune.local import LOG, Local, processor_seconds, resident_bytes


def command(tmp_path, script):
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent(script))
    return sys.executable, str(file)


def job(tmp_path, **changes):
    fields = {
        "trial": 7,
        "recipe": {"epochs": 3, "lr": 3e-3, "augment": "none"},
        "directory": str(tmp_path / "trials" / "0007"),
        "index": str(tmp_path / "images"),
    }
    return Job(**fields | changes)


def wait(handle, limit_s=60):
    until = time.monotonic() + limit_s
    while (outcome := handle.poll()) is None:
        assert time.monotonic() < until
        time.sleep(0.02)
    return outcome


def ended(tmp_path, script, **changes):
    executor = Local(1, command=command(tmp_path, script))
    return wait(executor.start(job(tmp_path, **changes)))


def test_a_good_trial_gives_its_score(tmp_path, monkeypatch):
    monkeypatch.setenv("STARTED", str(tmp_path / "started"))
    outcome = ended(tmp_path, WORKER)
    assert outcome.ok
    assert outcome.score == pytest.approx(0.9 - 0.1 * 0.0229, abs=1e-3)
    assert (outcome.epochs, outcome.error, outcome.kind) == (3, None, "")
    assert Job(**json.loads((tmp_path / "trials" / "0007.job.json").read_text())) == job(tmp_path)


ENDS = {
    "raise KeyError('wings')": ("crash", "exit code 1: KeyError: 'wings'"),
    "import sys; sys.exit(4)": ("crash", "exit code 4: it said nothing"),
    "import os; os.kill(os.getpid(), 9)": ("killed", "SIGKILL, perhaps for want of memory"),
    "import os; os.abort()": ("killed", "SIGABRT"),
    "print('all is well')": ("crash", "exit code 0: all is well"),  # and no outcome
}


@pytest.mark.parametrize("script", ENDS)
def test_every_other_end_is_one_line(tmp_path, script):
    outcome = ended(tmp_path, script)
    kind, said = ENDS[script]
    assert not outcome.ok
    assert outcome.kind == kind
    assert said in outcome.error
    assert outcome.again
    assert "\n" not in outcome.error
    assert outcome.seconds > 0


def test_a_worker_that_says_why_is_believed_and_an_old_word_is_not(tmp_path):
    say = """
        import json, pathlib, sys
        folder = pathlib.Path(json.loads(pathlib.Path(sys.argv[1]).read_text())["directory"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "outcome.json").write_text(json.dumps({"ok": False, "error": "E", "kind": "nan"}))
        sys.exit(2)
    """
    outcome = ended(tmp_path, say)
    assert (outcome.error, outcome.kind, outcome.again) == ("E", "nan", False)
    assert ended(tmp_path, "import sys; sys.exit(3)").kind == "crash"


def test_what_hangs_is_ended_with_its_children(tmp_path):
    hang = f"""
        import subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open({str(tmp_path / "child")!r}, "w").write(str(child.pid))
        time.sleep(600)
    """
    executor = Local(1, command=command(tmp_path, hang))
    handle = executor.start(job(tmp_path, deadline_s=3.0))
    outcome = wait(handle)
    assert outcome.kind == "hang"
    assert "3 s" in outcome.error
    assert gone(int((tmp_path / "child").read_text()))
    assert executor.start(job(tmp_path, deadline_s=0.0))  # its place is free again
    executor.close()


@pytest.mark.slow
def test_what_waits_for_ever_is_ended_and_what_computes_is_not(tmp_path):
    executor = Local(1, command=command(tmp_path, "import time; time.sleep(600)"), idle_s=2.0)
    outcome = wait(executor.start(job(tmp_path)))
    assert outcome.kind == "hang"
    assert "nothing for 2 s" in outcome.error
    executor = Local(1, command=command(tmp_path, "while True: pass"), idle_s=1.0)
    handle = executor.start(job(tmp_path, deadline_s=6.0))
    assert "deadline" in wait(handle).error
    assert processor_seconds(os.getpid()) > 0.1
    assert processor_seconds(2**22 + 1) == math.inf


def gone(process, limit_s=20):
    """Wait for a process to go; a zombie that nobody collects counts as gone."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_what_takes_too_much_memory_is_ended(tmp_path):
    grow = """
        import time
        held = []
        while True:
            held.append(bytearray(10_000_000))
            time.sleep(0.02)
    """
    executor = Local(1, command=command(tmp_path, grow), memory_bytes=200_000_000)
    outcome = wait(executor.start(job(tmp_path)))
    assert outcome.kind == "memory"
    assert "0.20 GB are allowed" in outcome.error
    assert resident_bytes() > 1_000_000
    assert resident_bytes(2**22 + 1) == 0


def test_a_worker_ends_with_the_search_that_started_it(tmp_path):
    script = (
        "import os, sys\n"
        "from kresnet.tune.worker import _follow_the_search\n"
        "_follow_the_search()\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "import time; time.sleep(600)\n"
    )
    number = os.fork()
    if not number:
        Local(1, command=command(tmp_path, script)).start(job(tmp_path))
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.02)
        os._exit(0)
    os.waitpid(number, 0)
    assert gone(int((tmp_path / "pid").read_text()))


def test_closing_lets_a_worker_save(tmp_path):
    save = f"""
        import signal, sys, time
        def handle(*_):
            open({str(tmp_path / "saved")!r}, "w").write("yes")
            sys.exit(5)
        signal.signal(signal.SIGTERM, handle)
        open({str(tmp_path / "ready")!r}, "w").write("yes")
        time.sleep(600)
    """
    executor = Local(1, command=command(tmp_path, save))
    handle = executor.start(job(tmp_path))
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    executor.close()
    assert (tmp_path / "saved").read_text() == "yes"
    outcome = handle.poll()
    assert not outcome.ok


def test_each_trial_has_cores_and_a_gpu_of_its_own(tmp_path, monkeypatch):
    cores = sorted(os.sched_getaffinity(0))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        monkeypatch.delenv(name, raising=False)
    executor = Local(len(cores), gpus=2)
    places = [place.environment() for place in executor._places]
    assert [place["KRESNET_CORES"] for place in places] == list(map(str, cores))
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places] == [
        str(k % 2) for k in range(len(cores))
    ]
    assert {place["OMP_NUM_THREADS"] for place in places} == {"1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    places = [place.environment() for place in Local(gpus=2)._places]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places] == ["3", "5"]
    assert len(Local(3 * len(cores))._places) == 3 * len(cores)  # more than there are cores
    whole = Local(1)._places[0]
    assert whole.cores == cores
    with pytest.raises(ConfigError, match="jobs=0"):
        Local(0)


def test_a_log_is_kept_of_everything_said(tmp_path):
    ended(tmp_path, "import sys; print('one'); print('two', file=sys.stderr); sys.exit(1)")
    said = (tmp_path / "trials" / f"0007.{LOG}").read_text()
    assert sorted(said.split()) == ["one", "two"]
