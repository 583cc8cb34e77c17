"""One of the workers of a small training: python working.py FOLDER SETTINGS [DIE_AT].

TF_CONFIG says which one; without it, it trains alone. FOLDER/new, a run that `make` has made and
that is not trained, becomes FOLDER/run, or the training goes on from where FOLDER/run stands. In
the end the worker leaves the variables that it has, and nothing is exported. With DIE_AT it kills
itself in place of that step.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import numpy as np
from safetensors.numpy import load_file, save_file

HERE = Path(__file__)

SETTINGS = {
    "epochs": 2,
    "batch_size": 12,
    "image_size": 32,
    "lr": 0.005,  # at ten times this, errors of rounding grow by a half in each step
    "optimizer": "sgd",
    "precision": "float32",
    "norms": "train",
    "ema": 0.3,
    "augment": "light",
    "mixup": 0.2,
    "val": 0.25,
    "test": 0.0,
}


def make(folder, **settings):
    """Write images and a run that is not trained yet."""
    from kresnet.data.demo import write_digits
    from kresnet.data.prepare import prepare
    from kresnet.train.plan import plan
    from kresnet.train.run import Run

    digits = write_digits(folder / "digits")
    for number in range(10):
        for path in sorted((digits / str(number)).iterdir())[17:]:
            path.unlink()
    index = prepare(digits, val=0.25, test=0.0)
    recipe = plan(
        data=str(digits),
        num_images=len(index.select("train")),
        classes=index.classes,
        variant="resnet8_cifar",
        weights=None,
        image_size=32,
        overrides=SETTINGS | settings,
    )
    Run.create(folder, "new", recipe, index)


def start(folder, rank, workers, *arguments, hosts=None, ports=None, **env):
    """Start one worker of some; without others where `workers` is 1."""
    known = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
    if workers > 1:
        addresses = [f"{h}:{p}" for h, p in zip(hosts or loopback(workers), ports, strict=True)]
        known["TF_CONFIG"] = json.dumps(
            {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
        )
    with (folder / f"log-{rank}.txt").open("a") as log:
        return subprocess.Popen(
            [*arguments, sys.executable, str(HERE), str(folder)],
            env=known | {"TF_NUM_INTRAOP_THREADS": "1"} | env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )


def loopback(count):
    """Addresses of this machine that are as good as those of different hosts."""
    return [f"127.0.0.{k + 1}" for k in range(count)]


def free_ports(hosts):
    """A free port at each address."""
    import socket

    sockets = [socket.socket() for _ in hosts]
    for one, host in zip(sockets, hosts, strict=True):
        one.bind((host, 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def trained(folder, workers, *, timeout=1200, **env):
    """Train to the end with some workers; return their exit codes."""
    ports = free_ports(loopback(workers))
    started = [start(folder, k, workers, ports=ports, **env) for k in range(workers)]
    return [process.wait(timeout) for process in started]


def left(folder, rank=0, when="left"):
    """Return the variables that a worker has had in the end, or when it had "begun", by name."""
    return load_file(folder / f"{when}-{rank}.safetensors")


def said(folder):
    """Return what the workers have said."""
    return "\n".join(path.read_text() for path in sorted(folder.glob("log-*.txt")))


def main(folder):
    """See the first lines of this file."""
    from kresnet.console import Console
    from kresnet.train import loop
    from kresnet.train.distribute import assembled
    from kresnet.train.run import Run, as_guest, told_of
    from kresnet.train.stages import train_in
    from kresnet.zoo.processor import as_written

    if devices := int(os.environ.get("DEVICES", "1")) - 1:
        import tensorflow as tf

        (processor,) = tf.config.list_physical_devices("CPU")
        several = [tf.config.LogicalDeviceConfiguration()] * (devices + 1)
        tf.config.set_logical_device_configuration(processor, several)
    team = assembled()
    if team.is_chief and not (folder / "run").exists():
        shutil.copytree(folder / "new", folder / "run")
    with tempfile.TemporaryDirectory() as own:
        run = Run(folder / "run") if team.is_chief else None
        told = team.told(told_of(run) if run else None)
        run = run or as_guest(Path(own), told)
        watch(loop, team, folder, int(os.environ.get("DIE_AT", "-1")))
        # Alone, it sums norms as several do: other roundings grow from step to step.
        with as_written("norms"):
            train_in(team, run, Console())


def watch(loop, team, folder, die_at):
    """Save after every third step; die in one; leave what there is behind the last."""
    loop._SAVE_EVERY_S, loop._SAVING_SHARE = 0.0, 1e9
    learn, run = loop._Loop._learn, loop._Loop.run

    def dying(self, batch):
        if self._position == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        learn(self, batch)
        print("step", self._position, flush=True)

    def keep(self, when):
        values = {f"{k:03d}/{v.name}": np.array(v.numpy()) for k, v in enumerate(self._variables())}
        save_file(values, folder / f"{when}-{team.rank}.safetensors")

    def leaving(self):
        keep(self, "begun")
        run(self)
        keep(self, "left")

    loop._Loop._learn, loop._Loop.run = dying, leaving


if __name__ == "__main__":
    from kresnet.errors import KresnetError

    try:
        main(Path(sys.argv[1]))
    except KresnetError as error:
        print(f"kresnet: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
