"""Searches whose trials take no time, or are small scripts; run as a program, they are killed.

python searching.py FOLDER ALGORITHM KILLS SEED searches once undisturbed, and once with the process
that searches killed by SIGKILL again and again, and prints what both have asked and found as JSON.
"""

import json
import math
import os
import signal
import sys
import time
import traceback
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import numpy as np

from kresnet.train.plan import plan
from kresnet.tune.executors import Outcome
from kresnet.tune.local import Local
from kresnet.tune.oracles import keras_tuner
from kresnet.tune.study import Study
from kresnet.tune.trials import Ledger

SPACE = {
    "lr": {"float": [1e-4, 1e-1], "log": True},
    "augment": {"choice": ["none", "light", "trivial"]},
    "color": {"float": [0.0, 0.4], "when": {"augment": "light"}},
    "norms": {"choice": ["train", "frozen"]},
}

WORKER = """
import json, math, os, sys, time
from pathlib import Path

job = json.loads(Path(sys.argv[1]).read_text())
recipe = job["recipe"]
with open(os.environ["STARTED"], "a") as file:
    file.write(f"{job['trial']} {os.getpid()}\\n")
time.sleep(float(os.environ.get("TAKES", "0")))
epochs = recipe["epochs"] if job["stop_after"] is None else job["stop_after"]
score = 0.9 - 0.1 * abs(math.log10(recipe["lr"]) + 2.5) + 0.01 * (recipe["augment"] == "light")
folder = Path(job["directory"])
folder.mkdir(parents=True, exist_ok=True)
(folder / ".outcome").write_text(json.dumps(
    {"ok": True, "score": score, "loss": 1 - score, "epochs": epochs, "seconds": 0.01}))
os.replace(folder / ".outcome", folder / "outcome.json")
"""


def score_of(recipe, epochs):
    """A score that a search can climb: best at a rate of 0.003, and better after more epochs."""
    away = abs(math.log10(recipe["lr"]) + 2.5)
    return 0.9 - 0.1 * away + 0.01 * (recipe["augment"] == "light") + 0.001 * epochs


def recipe_of(**fields):
    return plan(
        data="images",
        num_images=300,
        classes=("cat", "dog"),
        variant="resnet8_cifar",
        weights=None,
        image_size=32,
        overrides={"epochs": 9, "budget_s": None, "precision": "float32"} | fields,
    )


def new_study(folder, *, recipe=None, **changes):
    """Make a study of no images."""
    settings = {
        "name": "study",
        "kind": "train",
        "recipe": (recipe or recipe_of()).model_dump(mode="json"),
        "space": SPACE,
        "algorithm": "random",
        "seed": 0,
        "factor": 3,
        "trials": 8,
        "budget_s": None,
        "trial_s": None,
        "memory_bytes": None,
        "retries": 1,
        "keep": 3,
        "images": {"train": 200, "val": 50, "test": 50},
    }
    folder.mkdir(parents=True, exist_ok=True)
    return Ledger.create(folder, settings | changes)


class Instant:
    """An executor that has the answer at once.

    `answer` is called with a job; `polls` is how often one is asked before it has ended.
    """

    def __init__(self, answer=None, *, slots=1, polls=1):
        self.slots, self.jobs, self._answer, self._polls = slots, [], answer or good, polls

    def start(self, job):
        self.jobs.append(job)
        return _Answer(self._answer(job), self._polls)

    def close(self):
        pass


class _Answer:
    def __init__(self, outcome, polls):
        self._outcome, self._left = outcome, polls

    def poll(self):
        self._left -= 1
        return self._outcome if self._left <= 0 else None

    def kill(self):
        self._left = max(self._left, 10**9)


def good(job):
    epochs = job.recipe["epochs"] if job.stop_after is None else job.stop_after
    score = score_of(job.recipe, epochs)
    return Outcome(ok=True, score=score, loss=1.0 - score, epochs=epochs, seconds=0.5)


def asked(folder):
    """What a study has asked and found, without times."""
    ledger = Ledger(folder, read_only=True)
    found = [
        [t.number, t.status, dict(t.values), t.epochs, t.parent, t.oracle, t.score]
        for t in ledger.trials()
    ]
    ledger.close()
    return found


def ended(folder):
    return sum(row[1] in ("done", "failed") for row in asked(folder))


def search(folder, script, takes):
    os.environ |= {"STARTED": str(folder / "started.txt"), "TAKES": str(takes)}
    executor = Local(1, command=(sys.executable, str(script)))
    Study(Ledger(folder), executor).search()


def fork(function, *arguments):
    number = os.fork()
    if number:
        return number
    try:
        function(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stderr.flush()
        os._exit(code)


def main(root, algorithm, kills, seed):
    """See the first lines of this file."""
    keras_tuner()  # once, for all the processes that fork from this one
    rng, script = np.random.default_rng(seed), root / "worker.py"
    script.write_text(WORKER)
    limits = {"algorithm": algorithm, "trials": None if algorithm == "hyperband" else 14}
    if algorithm == "bayesian":
        limits["trials"] = 16  # of which 4 are the process's, after 3 for each of 4 dimensions
    for name in ("whole", "killed"):
        new_study(root / name, seed=3, **limits).close()
    number = fork(search, root / "whole", script, 0)
    assert os.waitpid(number, 0)[1] == 0
    # Spread over the search, and each at any moment of a trial.
    goals = [k * (len(asked(root / "whole")) - 2) // kills for k in range(kills)]
    statuses = []
    while True:
        number = fork(search, root / "killed", script, 0.2)
        if len(statuses) < kills:
            while ended(root / "killed") < goals[len(statuses)]:
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 0.3))
            os.kill(number, signal.SIGKILL)
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]))
        if statuses[-1] != -signal.SIGKILL:
            break
    started = [line.split() for line in (root / "killed" / "started.txt").read_text().splitlines()]
    until = time.monotonic() + 30.0  # a worker that was about to start has to notice, too
    while alive := [int(pid) for _, pid in started if Path(f"/proc/{pid}/cmdline").exists()]:
        if time.monotonic() > until:
            break
        time.sleep(0.1)
    return {
        "whole": asked(root / "whole"),
        "killed": asked(root / "killed"),
        "statuses": statuses,
        "starts": len(started),
        "alive": alive,
    }


if __name__ == "__main__":
    folder, algorithm, kills, seed = sys.argv[1:]
    print(json.dumps(main(Path(folder), algorithm, int(kills), int(seed))))
