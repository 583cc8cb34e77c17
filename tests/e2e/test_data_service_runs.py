"""Trainings whose batches a tf.data service makes, in processes of its own that are killed."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import working
from batch_service import Parts

from kresnet.train.run import Run

pytestmark = pytest.mark.slow


@pytest.fixture
def serve():
    """Starts the dispatcher of a service with workers, and returns its address and all of them."""
    parts = Parts()

    def start(workers):
        dispatcher, address = parts.start(0)
        return address, [dispatcher, *(parts.start(1, address)[0] for _ in range(workers))]

    yield start
    parts.end()


@pytest.fixture
def untrained(tmp_path):
    """Makes folders with the same untrained run, which has a service or none."""
    working.make(tmp_path, epochs=6)  # 66 steps, of which few are made ahead

    def folder(name, address=None):
        run = Run(tmp_path / name / "run")
        shutil.copytree(tmp_path / "new", run.path)
        run.update(data_service=address)
        return run.path.parent

    return folder


def same_bits(mine, theirs):
    return all(mine[k].tobytes() == theirs[k].tobytes() for k in mine if "seed" not in k)


def steps_done(folder):
    return len(re.findall(r"^step \d+$", working.said(folder), re.MULTILINE))


def wait_for(folder, steps, process):
    until = time.monotonic() + 1200
    while steps_done(folder) < steps:
        assert process.poll() is None, working.said(folder)
        assert time.monotonic() < until, working.said(folder)
        time.sleep(0.1)


def test_kills_change_no_bit(untrained, serve):
    whole = untrained("whole")
    assert working.trained(whole, 1) == [0], working.said(whole)

    address, parts = serve(3)
    served = untrained("served", address)
    assert working.trained(served, 1, DIE_AT="9") == [-signal.SIGKILL], working.said(served)
    process = working.start(served, 0, 1)
    wait_for(served, 14, process)
    parts[1].kill()  # one of the workers; what it had in hand is lost
    assert process.wait(1200) == 0, working.said(served)
    assert same_bits(working.left(served), working.left(whole))


def test_a_service_that_is_gone_ends_the_training_with_all_saved(untrained, serve):
    whole = untrained("whole")
    assert working.trained(whole, 1) == [0], working.said(whole)

    address, parts = serve(1)
    served = untrained("served", address)
    process = working.start(served, 0, 1, KRESNET_PATIENCE_S="3")
    wait_for(served, 3, process)
    for part in parts:
        part.kill()
    assert process.wait(1200) == 5, working.said(served)
    said = working.said(served)
    assert "kresnet: A data service must stay until the end. Received: nothing for" in said
    assert f"Continue with: kresnet resume {served / 'run'}" in said
    assert "Traceback" not in said
    assert (served / "run" / "state" / f"step-{steps_done(served):08d}").is_dir()

    Run(served / "run").update(data_service=None)
    assert working.trained(served, 1) == [0], working.said(served)
    assert same_bits(working.left(served), working.left(whole))


def test_the_commands_do_the_whole_job(tmp_path):
    working.make(tmp_path)
    kresnet = [sys.executable, "-m", "kresnet"]
    with subprocess.Popen(
        [*kresnet, "data", "serve", "--host", "127.0.0.1", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        address = process.stdout.readline().split()[-1]
        options = ["--variant", "resnet8_cifar", "--weights", "none", "--image-size", "32"]
        more = ["--epochs", "1", "--data-service", address, "--json"]
        done = subprocess.run(
            [*kresnet, "train", str(tmp_path / "digits"), *options, *more],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        process.terminate()
        assert process.wait(600) == 0
    assert done.returncode == 0, done.stderr
    assert f"service {address} makes the batches" in done.stderr
    assert Run(tmp_path / json.loads(done.stdout)["run"]).info["data_service"] == address


def test_two_hosts_have_the_same_weights_with_the_service(untrained, serve):
    whole = untrained("whole")
    assert working.trained(whole, 2) == [0, 0], working.said(whole)
    address, _ = serve(2)
    served = untrained("served", address)
    assert working.trained(served, 2) == [0, 0], working.said(served)
    assert same_bits(working.left(served, 0), working.left(whole, 0))
    assert same_bits(working.left(served, 1), working.left(whole, 1))
