"""A training on a Ray cluster of two nodes on this machine, one of which is lost."""

import threading
import time

import pytest

from kresnet.cluster.training import run_on_ray
from kresnet.data.demo import write_digits
from kresnet.errors import ConfigError, ResourceError
from kresnet.train.run import Run

ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")

from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # warnings are Ray's own


EPOCHS = 60  # more than half a minute on two processes, after which there is a state


@pytest.fixture
def cluster(monkeypatch):
    """A head of one core and a node of another; one worker fits on each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else they wait for all that is busy here
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    found.node = found.add_node(num_cpus=1)
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture
def digits(tmp_path):
    folder = write_digits(tmp_path / "digits")
    for number in range(10):
        for path in sorted((folder / str(number)).iterdir())[24:]:
            path.unlink()
    return folder


def command(digits, epochs):
    return [
        "train", str(digits), "--variant", "resnet8_cifar", "--weights", "none", "--name", "small",
        "--image-size", "32", "--batch-size", "16", "--precision", "float32",
        "--epochs", str(epochs),
    ]  # fmt: skip


def saved(run):
    """The step of the newest state."""
    return max(
        (int(path.name.removeprefix("step-")) for path in run.states.glob("step-*")), default=0
    )


class Heard(list):
    def say(self, rank, stream, line):
        self.append((rank, stream, line))

    def tell(self, topic, text):
        self.append((topic, text))


def test_a_training_that_loses_a_node_finishes(cluster, digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    heard, run = Heard(), Run(tmp_path / "runs" / "small")
    known = []

    def lose():
        while saved(run) < 20:  # in the second epoch or later
            time.sleep(0.1)
        known.extend(run.metrics)
        for process in cluster.node.all_processes["raylet"]:
            process.process.kill()
            process.process.wait()  # as a zombie, it would count as alive

    threading.Thread(target=lose, daemon=True).start()
    code = run_on_ray(
        command(digits, EPOCHS), cluster.address, workers=2, say=heard.say, tell=heard.tell
    )
    assert code == 0, heard
    assert len(known) < EPOCHS
    teams = [one[1] for one in heard if one[0] == "workers"]
    assert [len(team.split(", ")) for team in teams] == [2, 1]
    assert ("restart", "a worker was lost; 1 of 3 restarts") in heard
    assert [int(row["epoch"]) for row in run.metrics] == list(range(1, EPOCHS + 1))
    assert run.metrics[0] == known[0]  # with its speed: it was not trained again
    assert run.info["status"] == "complete"
    assert (tmp_path / "saved_models" / "small" / "1" / "saved_model.pb").is_file()
    assert not (tmp_path / "runs" / "small-2").exists()
    results = [one[2] for one in heard if len(one) == 3 and one[:2] == (0, "stdout")]
    assert any("validation accuracy" in line for line in results)


def test_a_mistake_ends_it_at_once(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    heard = Heard()
    code = run_on_ray(
        ["train", "nowhere"], cluster.address, workers=1, say=heard.say, tell=heard.tell
    )
    assert code == 3
    assert any("must be in a folder" in str(one[-1]) for one in heard)
    assert not any(one[0] == "restart" for one in heard)
    with pytest.raises(ConfigError, match=r"room for a worker. Received: 64 CPU each"):
        run_on_ray(["train"], cluster.address, workers=1, cpus=64, say=heard.say, tell=heard.tell)


def test_no_cluster_is_one_line():
    with pytest.raises(ResourceError, match=r"There must be a Ray cluster.*ray start --head"):
        run_on_ray(["train"], "127.0.0.1:1", workers=2, say=print, tell=print)
