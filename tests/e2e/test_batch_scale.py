"""Batch inference of many images, killed again and again; and on a cluster that loses a node."""

import random
import threading
import time

import pytest
from batches import kill_after, paths_in, run, write_images
from small_export import write_small

pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")

from kresnet.batch.job import parts_of
from kresnet.batch.predict import predict
from kresnet.console import Console
from kresnet.errors import ResourceError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    home = tmp_path_factory.mktemp("export") / "small"
    write_small(home / "1")
    return home


def test_20000_images_killed_three_times_are_each_once_in_the_output(export, tmp_path):
    images = write_images(tmp_path / "images", 20_000, bad=(0, 12_345))
    output = tmp_path / "out.parquet"
    for _ in range(3):
        kill_after(random.Random(7).randint(5, 20), export, images, output, "--jobs", 2)
        assert not output.exists()
    done = run(export, images, output, "--jobs", 2)
    assert done.returncode == 0, done.stderr
    assert "19998 answered" in done.stdout
    assert paths_in(output) == dict.fromkeys(map(str, images.rglob("*.png")), 1)


@pytest.fixture
def cluster(monkeypatch):
    """A head of one core and a node of another; one worker fits on each."""
    ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else they wait for all that is busy here
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    found.node = found.add_node(num_cpus=1)
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.mark.filterwarnings("ignore")  # warnings are Ray's own
def test_a_lost_node_costs_no_image_and_repeats_none(cluster, export, tmp_path):
    images = write_images(tmp_path / "images", 6_000)
    output = tmp_path / "out.parquet"
    lost = []

    def lose():
        while len(list(parts_of(output).glob("[0-9]*.parquet"))) < 4:
            time.sleep(0.05)
        for process in cluster.node.all_processes["raylet"]:
            process.process.kill()
            process.process.wait()
        lost.append(len(list(parts_of(output).glob("[0-9]*.parquet"))))

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    summary = predict(export, images, output, ray=cluster.address, console=Console(quiet=True))
    thread.join()
    assert lost[0] < 24
    assert (summary.images, summary.answered) == (6_000, 6_000)
    assert paths_in(output) == dict.fromkeys(map(str, images.rglob("*.png")), 1)


def test_no_cluster_is_one_line(export, tmp_path):
    pytest.importorskip("ray", reason="the extra `cluster` is not installed")
    images = write_images(tmp_path / "images", 1)
    with pytest.raises(ResourceError, match=r"There must be a Ray cluster.*ray start --head"):
        predict(
            export, images, tmp_path / "x.parquet", ray="127.0.0.1:1", console=Console(quiet=True)
        )
