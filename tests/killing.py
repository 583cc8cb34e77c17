"""Trains small runs that are killed again and again: python killing.py FOLDER KILLS SEED SETTINGS.

One process imports TensorFlow, without running anything of it, and forks for each training, which
saves the seconds of starting it anew. The first training is left alone. The others are killed with
SIGKILL, in the probe, in the fine-tuning and in the middle of writing a state, and resumed until
one lives to its end. What each left behind goes to standard output, as JSON.
"""

import csv
import json
import os
import shutil
import signal
import sys
import time
import traceback
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import numpy as np
from safetensors.numpy import save, save_file

from kresnet.console import Console
from kresnet.data.demo import write_digits
from kresnet.data.pipeline import evaluation_batches
from kresnet.data.prepare import prepare
from kresnet.train import loop, state
from kresnet.train.plan import plan
from kresnet.train.run import Run
from kresnet.train.stages import train
from kresnet.train.statistics import Recalibration
from kresnet.zoo import build

SETTINGS = {
    "epochs": 3,
    "batch_size": 15,
    "image_size": 64,
    "lr": 1e-3,
    "precision": "float32",
    "norms": "train",
    "train_from": 1,
    "ema": 0.3,
    "drop_rate": 0.2,
    "drop_path_rate": 0.2,
    "mixup": 0.2,
    "balance": "full",
    "cache": "disk",
    "progressive": 0.5,
    "soup": 2,
    "recalibrate": True,
    "val": 0.25,
    "test": 0.0,
}
TIMES = ("images_per_s", "wait")


def make(folder, settings):
    """Write images, weights and a run that is not yet trained."""
    digits = write_digits(folder / "digits")
    for number in range(10):  # from 12 to 30 of each, so that balancing has something to do
        for path in sorted((digits / str(number)).iterdir())[12 + 2 * number :]:
            path.unlink()
    index = prepare(digits, val=settings["val"], test=settings["test"])
    rows = index.select("train")
    recipe = plan(
        data=str(digits),
        num_images=len(rows),
        classes=index.classes,
        variant="resnet8_cifar",
        weights=str(folder / "weights.safetensors"),
        image_size=32,
        overrides=settings,
    )
    model = build("resnet8_cifar", num_classes=10)
    # Random weights with the right statistics, so that the norms go on from where they are.
    expected = replace(model.preprocessing, image_size=recipe.image_size)
    batches = evaluation_batches(rows, expected, batch_size=50)
    Recalibration(model, lambda: iter(batches))()
    arrays = {f"{la.name}/{v.name}": v.numpy() for la in model.layers for v in la.weights}
    save_file(arrays, recipe.weights)
    Run.create(folder, "new", recipe, index)


def go_on(path, *, die_at_write=0):
    """Train a run to its end; with `die_at_write`, be killed half-way through that state."""
    loop._SAVE_EVERY_S, loop._SAVING_SHARE = 0.0, 0.3  # many states in a training of seconds
    written = []

    def half(arrays, file):
        written.append(file)
        if len(written) != die_at_write:
            return save_file(arrays, file)
        contents = save(arrays)
        Path(file).write_bytes(contents[: len(contents) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    state.save_file = half
    train(Run.open(path), Console(quiet=True))


def fork(log, function, *arguments, **options):
    """Run a function in a new process; return its number."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 2)
            os.dup2(file.fileno(), 1)
        function(*arguments, **options)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(number):
    """Wait for a process; tell whether it came to its end, rather than being killed."""
    _, status = os.waitpid(number, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a training ended with {code}; see the log")
    return code == 0


def left_by(path):
    """Return what a training that came to its end must have left, whatever happened to it."""
    run = Run.open(path)
    with (path / "metrics.csv").open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    info = run.info
    last = max(run.states.glob("step-*"))  # weights, optimizer, average and random seeds
    files = [run.weights, last / "variables.safetensors", *run.states.glob("*.safetensors")]
    return {
        "sha256": {file.name: sha256(file.read_bytes()).hexdigest() for file in sorted(files)},
        "metrics": rows,
        "validation": info["validation"],
        "kept": [info["kept"], info.get("kept_weights")],
        "refined": info.get("refined"),
        "probe": {k: v for k, v in info["probe"].items() if k != "seconds"},
    }


def under_way(path):
    """Return what a killed training was doing, as far as its files show it."""
    if "probe" not in Run.open(path).info:
        return "probe"
    names = (
        sorted(p.name for p in (path / "state").glob("*step-*"))
        if (path / "state").exists()
        else []
    )
    return " ".join(["fine-tune", *names])


def main(folder, kills, seed, settings):
    """See the first lines of this file."""
    rng, log = np.random.default_rng(seed), folder / "log.txt"
    started = time.monotonic()
    assert ended(fork(log, make, folder, settings))
    whole = folder / "whole"
    shutil.copytree(folder / "new", whole)
    began = time.monotonic()
    number = fork(log, go_on, whole)
    while not (whole / "model.weights.safetensors").exists():
        time.sleep(0.01)
    probe_s = time.monotonic() - began
    assert ended(number)
    whole_s = time.monotonic() - began
    moments, found = [], []
    while len(moments) < kills:
        run = folder / f"run-{len(found)}"
        shutil.copytree(folder / "new", run)
        # Of each training the first moment lies in the probe; the second, as others, in a write.
        for turn in range(5):
            if len(moments) == kills:
                break
            in_write = turn % 3 == 1
            at = rng.uniform(0, probe_s if turn == 0 else 0.8 * whole_s)
            number = fork(log, go_on, run, die_at_write=int(rng.integers(1, 7)) * in_write)
            began = time.monotonic()
            while not in_write and time.monotonic() - began < at:
                if os.waitid(os.P_PID, number, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    break
                time.sleep(0.005)
            if not in_write:
                os.kill(number, signal.SIGKILL)
            if ended(number):
                break
            moments.append(under_way(run))
        assert ended(fork(log, go_on, run))
        found.append(left_by(run))
        shutil.rmtree(run)
    spent = round(time.monotonic() - started, 1)
    return {"expected": left_by(whole), "found": found, "moments": moments, "seconds": spent}


if __name__ == "__main__":
    arguments = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    print(json.dumps(main(*arguments, SETTINGS | json.loads(sys.argv[4]))))
