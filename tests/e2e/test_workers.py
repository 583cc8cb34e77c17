"""Processes that train one model together, as on different hosts."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import working


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Folders with an untrained run of some settings, made once each."""
    made = {}

    def folder(**settings):
        key = json.dumps(settings, sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("untrained")
            working.make(made[key], **settings)
        new = tmp_path_factory.mktemp("run")
        shutil.copytree(made[key] / "new", new / "new")
        return new

    return folder


def by_epoch(folder):
    with (folder / "run" / "metrics.csv").open(newline="") as file:
        times = ("images_per_s", "wait")
        return [
            {k: float(v) for k, v in row.items() if k not in times} for row in csv.DictReader(file)
        ]


def far(mine, theirs):
    """The largest difference of a weight or a statistic."""
    assert set(mine) == set(theirs)
    known = ("kernel", "gamma", "beta", "bias", "moving_mean", "moving_variance")
    names = [name for name in mine if name.split("/")[1] in known]
    assert len(names) > 40
    return max(np.abs(mine[k] - theirs[k]).max() for k in names)


def same_bits(mine, theirs):
    return all(mine[k].tobytes() == theirs[k].tobytes() for k in mine if "seed" not in k)


def check_as_one(untrained, **settings):
    """22 steps of 12 images, of which two workers have six each; 42 images to validate."""
    one, two = untrained(**settings), untrained(**settings)
    assert working.trained(one, 1) == [0], working.said(one)
    assert working.trained(two, 2) == [0, 0], working.said(two)
    assert same_bits(working.left(two, 0), working.left(two, 1))
    assert far(working.left(one), working.left(one, when="begun")) > 3e-3
    assert far(working.left(two), working.left(one)) < 3e-6  # a thousandth of the way at most
    for mine, theirs in zip(by_epoch(two), by_epoch(one), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert json.loads((two / "run" / "run.json").read_text())["validation"]["n"] == 42


def test_two_workers_with_learning_norms_are_one_with_the_whole_batch(untrained):
    check_as_one(untrained)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"norms": "frozen"},
        {"norms": "frozen", "accumulate": 3, "clip_norm": None, "mixup": 0.0},
        {"norms": "train", "clip_norm": 0.1, "batch_size": 10},  # four of ten, then six
    ],
    ids=str,
)
def test_two_workers_are_one_with_the_whole_batch(untrained, settings):
    check_as_one(untrained, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_worker_that_is_killed_ends_the_others_and_changes_no_bit(untrained, rank):
    whole, killed = untrained(), untrained()
    assert working.trained(whole, 2) == [0, 0], working.said(whole)
    ports = working.free_ports(working.loopback(2))
    started = [
        working.start(killed, k, 2, ports=ports, **({"DIE_AT": "16"} if k == rank else {}))
        for k in range(2)
    ]
    codes = [process.wait(1200) for process in started]
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == 5, working.said(killed)
    assert "is gone or cannot be reached. Start all of them again" in working.said(killed)
    assert working.trained(killed, 2) == [0, 0], working.said(killed)
    assert "resume" in working.said(killed)
    assert same_bits(working.left(killed), working.left(whole))
    assert by_epoch(killed) == by_epoch(whole)


@pytest.mark.slow
def test_another_number_of_workers_goes_on_with_the_same_batches(untrained):
    whole, changed = untrained(), untrained()
    assert working.trained(whole, 1) == [0]
    for workers, more in ((3, {"DIE_AT": "8"}), (1, {"DIE_AT": "15"})):
        working.trained(changed, workers, **more)
    assert working.trained(changed, 2) == [0, 0], working.said(changed)
    assert "devices 3, now 1" in working.said(changed)
    assert far(working.left(changed), working.left(whole)) < 3e-6


@contextmanager
def hosts(count):
    """Network namespaces on one bridge, with an address each; they go in the end."""
    tag = f"kr{os.getpid() % 100_000}"
    addresses = [f"10.213.77.{k + 1}" for k in range(count)]
    ip = ["ip", "link"]
    commands = [[*ip, "add", tag, "type", "bridge"], [*ip, "set", tag, "up"]]
    for k, address in enumerate(addresses):
        name, outside = f"{tag}n{k}", f"{tag}v{k}"
        inside = ["ip", "-n", name]
        commands += [
            ["ip", "netns", "add", name],
            [*ip, "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name],
            [*ip, "set", outside, "master", tag, "up"],
            [*inside, "addr", "add", f"{address}/24", "dev", "eth0"],
            [*inside, "link", "set", "eth0", "up"],
            [*inside, "link", "set", "lo", "up"],
        ]
    try:
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
        yield tag, addresses
    finally:
        for k in range(count):
            subprocess.run(["ip", "netns", "del", f"{tag}n{k}"], capture_output=True)
            subprocess.run([*ip, "del", f"{tag}v{k}"], capture_output=True)
        subprocess.run([*ip, "del", tag], capture_output=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("ip") is None, reason="needs iproute2")
def test_three_hosts_train_and_end_when_a_link_goes_down(untrained):
    with hosts(3) as (tag, addresses):

        def started(folder, **env):
            return [
                working.start(
                    folder, k, 3, "ip", "netns", "exec", f"{tag}n{k}",
                    hosts=addresses, ports=[2222] * 3, **env,
                )
                for k in range(3)
            ]  # fmt: skip

        whole = untrained()
        assert [one.wait(1200) for one in started(whole)] == [0, 0, 0], working.said(whole)

        cut = untrained(epochs=2000)
        processes = started(cut, KRESNET_PATIENCE_S="8")
        try:
            wait_for(cut, "step 5", processes)
            subprocess.run(["ip", "link", "set", f"{tag}v1", "down"], check=True)
            # Without an end it would be hours; on an idle machine it is a quarter of a minute.
            assert [one.wait(1200) for one in processes] == [5, 5, 5], working.said(cut)
        finally:
            for one in processes:
                one.kill()
        assert working.said(cut).count("is gone or cannot be reached") == 3
        assert list((cut / "run" / "state").glob("step-*"))


def wait_for(folder, text, processes, timeout=1200):
    until = time.monotonic() + timeout
    while text not in working.said(folder):
        assert all(one.poll() is None for one in processes), working.said(folder)
        assert time.monotonic() < until, working.said(folder)
        time.sleep(0.2)


def launched(folder, data, *options, **popen):
    command = [
        *(sys.executable, "-m", "kresnet", "launch", "--workers", "2", "--", "train", str(data)),
        *("--variant", "resnet8_cifar", "--weights", "none", "--image-size", "32"),
        *("--batch-size", "8", "--set", "norms=train", "--precision", "float32", "--json"),
        *options,
    ]
    return subprocess.Popen(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **popen
    )


def wait_for_a_state(run, process, timeout=1200):
    until = time.monotonic() + timeout
    while not list((run / "state").glob("step-*")):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.1)


def computing():
    """The processes that are there and not only to be buried, each with its parent."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, parent = file.read_text().rpartition(")")[2].split()[:2]
            if state not in "ZX":
                found[int(file.parent.name)] = int(parent)
    return found


@pytest.mark.slow
def test_workers_end_with_a_launcher_that_is_killed(striped, tmp_path):
    process = launched(tmp_path, striped, "--epochs", "2000", "--name", "s")
    wait_for_a_state(tmp_path / "runs" / "s", process)
    workers = {one for one, parent in computing().items() if parent == process.pid}
    assert len(workers) == 2
    process.kill()
    process.communicate(timeout=120)  # their output ends with them
    assert not workers & set(computing())


@pytest.mark.slow
def test_launch_stops_and_goes_on_and_leaves_an_export(striped, tmp_path):
    first = launched(tmp_path, striped, "--epochs", "20", "--name", "s", start_new_session=True)
    wait_for_a_state(tmp_path / "runs" / "s", first)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=1200)
    assert first.returncode == 5, said
    assert re.search(r"^\[0\] kresnet: Stopped .* and saved. Continue with: ", said, re.MULTILINE)
    again = launched(tmp_path, striped, "--epochs", "20", "--name", "s")
    out, said = again.communicate(timeout=1200)
    assert again.returncode == 0, said
    assert "[0] resume  runs/s, which is not finished; another --name begins anew" in said
    assert "[0] devices 2 devices in 2 workers" in said
    result = json.loads(out)
    assert result["run"] == "runs/s"
    assert (tmp_path / result["export"] / "saved_model.pb").is_file()
    assert len(list((tmp_path / "runs").iterdir())) == 1  # the other worker wrote nothing


@pytest.mark.slow
def test_a_mistake_of_the_chief_is_told_by_the_launcher(tmp_path, striped):
    process = launched(tmp_path, striped, "--set", "accumulate=2")
    _, said = process.communicate(timeout=1200)
    assert process.returncode == 2, said
    assert "accumulate=2 and norms='train' on 2 devices" in said
    assert not (tmp_path / "runs").exists()
