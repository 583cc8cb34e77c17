"""Trials on a real Ray cluster of two nodes on this machine, one of which is lost."""

import os
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from kresnet.data.demo import write_digits
from kresnet.data.prepare import prepare
from kresnet.errors import ConfigError, ResourceError
from kresnet.train.plan import plan
from kresnet.tune.executors import Job
from kresnet.tune.space import Space
from kresnet.tune.study import Study
from kresnet.tune.trials import Ledger

ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")
pytest.importorskip("keras_tuner", reason="the extra `tune` is not installed")

from ray.cluster_utils import Cluster  # noqa: E402

from kresnet.tune.ray_executor import Ray  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # warnings are Ray's own
SPACE = {"lr": {"float": [1e-3, 1e-2], "log": True}}
# A worker that trains nothing: it notes that it began, waits as long as there is a file "hold", and
# has a score.
IDLE = """
import json, os, sys, threading, time
from pathlib import Path
def leash():
    os.read(0, 1)
    os._exit(5)
threading.Thread(target=leash, daemon=True).start()
job = json.loads(Path(sys.argv[1]).read_text())
run = Path(job["directory"])
run.mkdir(exist_ok=True)
with (run.parent / "began").open("a") as file:
    file.write(f"{job['trial']} {os.getpid()} {os.environ['TF_NUM_INTRAOP_THREADS']}\\n")
while (run.parent / "hold").exists():
    time.sleep(0.05)
score = 0.5 + job["recipe"]["lr"]
(run / "outcome.json").write_text(json.dumps({"ok": True, "score": score, "loss": 1 - score}))
"""


@pytest.fixture
def cluster(monkeypatch):
    """A head of one core and a node of another; one trial fits on each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    found.node = found.add_node(num_cpus=1)
    yield found
    ray.shutdown()
    found.shutdown()


def write_study(folder, data, *, trials, **settings):
    index = prepare(data, val=0.25, test=0.0)
    recipe = plan(
        data=str(data), num_images=len(index.select("train")), classes=index.classes,
        variant="resnet8_cifar", weights=None, image_size=32,
        overrides={"epochs": 2, "batch_size": 16, "precision": "float32", "budget_s": None},
    )  # fmt: skip
    (folder / "images").mkdir(parents=True)
    index.save(folder / "images")
    return Ledger.create(
        folder,
        {
            "recipe": recipe.model_dump(mode="json"), "space": Space.of(SPACE).as_dict(),
            "algorithm": "random", "seed": 1, "factor": 3, "trials": trials, "budget_s": None,
            "trial_s": None, "retries": 1, "keep": 2,
        } | settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = write_digits(tmp_path_factory.mktemp("digits") / "digits")
    for number in range(10):
        for path in sorted((folder / str(number)).iterdir())[24:]:
            path.unlink()
    return folder


@pytest.fixture
def idle(tmp_path):
    script = tmp_path / "idle.py"
    script.write_text(IDLE)
    return (sys.executable, str(script))


def exists(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"


def search_and_lose(study, cluster, when):
    """Search, and kill the second node with all that runs on it once `when` says so."""
    lost = []
    wait = study._wait

    def waiting():
        if not lost and when():
            lost.append(True)
            for process in cluster.node.all_processes["raylet"]:
                process.process.kill()
                process.process.wait()  # as a zombie, it would count as alive
        wait()

    study._wait = waiting
    ending = study.search()
    assert lost
    return ending


def test_a_lost_node_costs_no_trial(cluster, digits, idle, tmp_path):
    folder = tmp_path / "study"
    ledger = write_study(folder, digits, trials=6)
    executor = Ray(cluster.address, command=idle)
    assert executor.slots == 2
    began, hold = (folder / "trials" / name for name in ("began", "hold"))
    began.parent.mkdir()
    hold.touch()
    said = []

    def tell(topic, text):
        said.append(text)
        if "was lost" in text:
            hold.unlink()

    study = Study(ledger, executor, tell=tell)

    def both_run():
        return began.exists() and len(began.read_text().splitlines()) == 2

    assert search_and_lose(study, cluster, both_run).reason == "trials"
    trials = ledger.trials()
    ledger.close()
    assert [(t.status, t.tries, t.error) for t in trials] == [("done", 1, None)] * 6
    assert [t.score for t in trials[1:]] == [0.5 + t.fields["lr"] for t in trials[1:]]
    lines = [line.split() for line in began.read_text().splitlines()]
    starts = Counter(int(number) for number, _, _ in lines)
    assert set(starts) == set(range(6))
    assert sum(starts.values()) == 7  # the lost one began twice
    assert {threads for _, _, threads in lines} == {"1"}
    again = [text for text in said if "Its machine was lost" in text]
    assert len(again) == 1
    assert "is tried again" in again[0]
    assert not any(exists(int(process)) for _, process, _ in lines)


@pytest.mark.timeout(1500)
def test_real_trainings_on_two_nodes_outlive_one_of_them(cluster, digits, tmp_path):
    folder = tmp_path / "study"
    ledger = write_study(folder, digits, trials=3)
    study = Study(ledger, Ray(cluster.address))
    metrics = [folder / "trials" / f"{number:04d}" / "metrics.csv" for number in (0, 1)]

    def both_train():
        return any(path.exists() for path in metrics)

    search_and_lose(study, cluster, both_train)
    trials = ledger.trials()
    ledger.close()
    assert [(t.status, t.tries, t.epochs_done) for t in trials] == [("done", 1, 2)] * 3
    assert all(0 < t.score <= 1 for t in trials)
    assert len({t.fields["lr"] for t in trials[1:]}) == 2


def test_a_task_is_ended_with_its_worker(cluster, digits, idle, tmp_path):
    write_study(tmp_path / "study", digits, trials=1).close()
    executor = Ray(cluster.address, command=idle)
    job = Job(
        trial=0, recipe={"lr": 0.1}, directory=str(tmp_path / "study" / "trials" / "0000"),
        index=str(tmp_path / "study" / "images"),
    )  # fmt: skip
    Path(job.directory).parent.mkdir()
    Path(job.directory).with_name("hold").touch()
    handle = executor.start(job)
    deadline = time.monotonic() + 120
    began = Path(job.directory).parent / "began"
    while not began.exists() and time.monotonic() < deadline:
        assert handle.poll() is None
        time.sleep(0.2)
    process = int(began.read_text().split()[1])
    assert exists(process)
    handle.kill()
    assert handle.poll().kind == "killed"
    while exists(process) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not exists(process)
    executor.close()


def test_what_cannot_run_is_one_line(cluster, digits, idle, tmp_path):
    with pytest.raises(ConfigError, match=r"must have room for a trial. Received: 64 CPU a trial"):
        Ray(cluster.address, cpus=64)
    executor = Ray(cluster.address, command=idle)
    hidden = Job(0, {}, directory=str(tmp_path / "trials" / "0000"), index="/nowhere/images")
    handle = executor.start(hidden)
    while (outcome := handle.poll()) is None:
        time.sleep(0.1)
    assert not outcome.ok
    assert "must see the study at the same path." in outcome.error
    assert "has no /nowhere/images. Put the study on a disk" in outcome.error
    executor.close()


def test_no_cluster_is_one_line():
    with pytest.raises(ResourceError, match=r"There must be a Ray cluster.*ray start --head"):
        Ray("127.0.0.1:1")
