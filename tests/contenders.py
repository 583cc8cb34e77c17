"""Cheap contenders for the tests of the speed bench; they run in processes of their own."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from kresnet.bench.speed.work import Work


def scripted(values, *, name="", log=None, facts=None):
    """Says what it is told to say, and writes down when it was asked."""
    left = list(values)

    def turn():
        if log:
            with Path(log).open("a") as file:
                file.write(f"{name}\n")
        return left.pop(0)

    print("this is not an answer")  # libraries print, too
    return Work(turn, facts or {})


def broken(*, last):
    print("first words", file=sys.stderr)
    raise ValueError(last)


def crashing(*, turns):
    left = [1.0] * turns

    def turn():
        if not left:
            os._exit(3)
        return left.pop()

    return Work(turn)


def silent():
    return Work(lambda: time.sleep(60) or 1.0)


def sleeping():
    return Work(lambda: time.sleep(0.2) or 0.2)


def spinning():
    """Two threads, each for a tenth of a second of its own time."""

    def spin():
        until = time.thread_time() + 0.1
        while time.thread_time() < until:
            pass

    def turn():
        threads = [threading.Thread(target=spin) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return 1.0

    return Work(turn)


def watching(*, folder):
    """Counts the other processes of the folder that are not stopped, its own children apart."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    mine = {os.getpid(), child.pid}
    for pid in mine:
        (Path(folder) / str(pid)).touch()

    def turn():
        until = time.monotonic() + 20
        while (awake := _awake(folder, mine)) and time.monotonic() < until:
            time.sleep(0.01)
        return float(awake)

    return Work(turn)


def _awake(folder, mine):
    states = [
        state(int(path.name)) for path in Path(folder).iterdir() if int(path.name) not in mine
    ]
    return sum(one not in ("T", "gone") for one in states)


def state(pid):
    """The letter by which the system tells what a process does, or "gone"."""
    try:
        said = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    return "gone" if said in "ZX" else said


def heavy(*, megabytes):
    kept = bytearray(megabytes * 1_000_000)
    kept[::4096] = b"x" * len(kept[::4096])
    return Work(lambda: float(len(kept)))


def facts(*, number):
    return {"twice": 2 * number}
