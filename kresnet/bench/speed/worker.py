"""A contender's process: `python -m kresnet.bench.speed.worker`.

It reads a job from its standard input, answers when it is warm, and then does a turn for each line
that it reads. Answers are lines of JSON; what libraries print goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kresnet.bench.speed.work import Work


def main() -> None:
    """Do what is asked until nothing more is asked."""
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())

    def answer(**said: Any) -> None:
        answers.write(json.dumps(said | {"peak_mb": peak_mb()}) + "\n")

    module, _, name = job["make"].partition(":")
    made = getattr(importlib.import_module(module), name)(**job["arguments"])
    if not isinstance(made, Work):
        return answer(facts=made)
    for _ in range(job["warm_up"]):
        made.turn()
    answer(facts=dict(made.facts))
    for _ in sys.stdin:
        began = time.process_time()
        seconds = made.turn()
        answer(seconds=seconds, processor_s=time.process_time() - began)
    return None


def peak_mb() -> float:
    """Return the most memory that this process and those that it started have had, in MB.

    It is the sum of those that live, or that of the largest that has ended, whichever is more.
    """
    living = sum(_peak_kb(pid) for pid in _family(os.getpid()))
    ended = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(living, ended) * 1024 / 1e6


def _peak_kb(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:  # it has just ended
        return 0
    found = re.search(r"VmHWM:\s+(\d+)", status)
    return int(found[1]) if found else 0


def _family(pid: int) -> Iterator[int]:
    yield pid
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = path.read_text(encoding="utf-8").split()
        except OSError:
            continue
        for child in children:
            yield from _family(int(child))


if __name__ == "__main__":
    main()
