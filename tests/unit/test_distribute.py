"""What a cluster is said to be, what is refused, and devices of one process that train together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kresnet.cli import app
from kresnet.cli.launch import worst
from kresnet.errors import ConfigError
from kresnet.train import distribute
from kresnet.train.distribute import ALONE, Cluster, Team, assembled, check_team
from kresnet.train.plan import plan
from kresnet.train.run import Run
from kresnet.workflow.job import unfinished

HERE = Path(__file__)


def config(cluster, kind="worker", index=0):
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


TWO = {"worker": ["a:1", "b:2"]}
WITH_CHIEF = {"worker": ["b:2", "c:3"], "chief": ["a:1"], "evaluator": ["e:9"]}


@pytest.mark.parametrize(
    ("text", "rank", "addresses"),
    [
        (config(TWO), 0, ["a:1", "b:2"]),
        (config(TWO, index=1), 1, ["a:1", "b:2"]),
        (config(WITH_CHIEF, "chief"), 0, ["a:1", "b:2", "c:3"]),
        (config(WITH_CHIEF, index=0), 1, ["a:1", "b:2", "c:3"]),  # the chief comes first
        (config(TWO, index="1"), 1, ["a:1", "b:2"]),  # as some schedulers write it
    ],
)
def test_tf_config_names_the_workers_and_the_place_of_this_one(text, rank, addresses):
    cluster = Cluster.read(text)
    assert cluster.rank == rank
    assert [address for _, address in cluster.workers] == addresses


@pytest.mark.parametrize("text", ["{}", config({"worker": ["a:1"]}), config({"chief": ["a:1"]})])
def test_a_cluster_of_one_is_no_cluster(text):
    assert Cluster.read(text) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "TF_CONFIG must be as"),
        ("[]", "TF_CONFIG must be as"),
        (config(TWO, index="x"), "TF_CONFIG must be as"),
        (config(TWO, index=2), "this one is worker 2. Leave other tasks out."),
        (config({**TWO, "ps": ["p:1"]}), "worker, ps"),
        (config(WITH_CHIEF, "evaluator"), "this one is evaluator 0"),
    ],
)
def test_what_tf_config_must_not_be(text, said):
    with pytest.raises(ConfigError, match=said):
        Cluster.read(text)


def test_workers_must_meet_before_tensorflow_computes_anything(monkeypatch):
    import tensorflow as tf

    tf.constant(0)
    monkeypatch.setattr(distribute.tf.distribute, "MultiWorkerMirroredStrategy", _too_late)
    with pytest.raises(ConfigError, match="before TensorFlow computes anything"):
        assembled(config(TWO))


def _too_late(**options):
    raise RuntimeError("Collective ops must be configured at program startup")


def test_one_device_without_a_cluster_is_alone():
    assert assembled("") is ALONE
    assert ALONE.any(True)
    assert ALONE.told({"a": 1}) == {"a": 1}


class Many(Team):
    def __init__(self, replicas):
        super().__init__()
        self.replicas = replicas


def recipe(**settings):
    return plan(
        data="photos", num_images=100, classes=("a", "b"), variant="resnet8_cifar", weights=None,
        image_size=32, overrides={"batch_size": 8, "norms": "frozen"} | settings,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "batch_size=8 for 5 devices"),
        ({"batch_size": 16, "accumulate": 2, "norms": "train"}, "accumulate=2 and norms='train'"),
    ],
)
def test_what_devices_cannot_do_together_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        check_team(recipe(**settings), Many(5))


def test_what_devices_can_do_together_is_not_refused():
    check_team(recipe(batch_size=10), Many(5))
    check_team(recipe(accumulate=2, norms="train"), ALONE)
    check_team(recipe(accumulate=2, batch_size=16), Many(5))


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([0, 0], 0),
        ([5, -9], 5),  # one killed: to be gone on with
        ([2, 5, 5], 2),  # a mistake of one, for which the others leave
        ([-9, -9], 137),
        ([0, 5], 5),
    ],
)
def test_the_launcher_ends_with_the_code_that_says_most(codes, code):
    assert worst(codes) == code


def test_the_launcher_starts_trainings_only():
    done = CliRunner().invoke(app, ["launch", "--", "serve", "x"])
    assert "`train` or `resume`" in str(done.exception)
    assert "Received: 'serve'" in str(done.exception)


@pytest.fixture
def runs(tmp_path):
    from kresnet.data.scan import Index

    def made(name, **info):
        wanted = recipe(data=str(tmp_path / "photos"))
        run = Run.create(tmp_path, name, wanted, Index(str(tmp_path), ("a",), (), ()))
        run.update(**info)
        return run

    return made


def test_a_run_that_is_not_complete_is_found_again(runs, tmp_path):
    photos = tmp_path / "photos"
    assert unfinished(tmp_path, "x", photos) is None
    runs("x", trackers=[], status="complete")
    assert unfinished(tmp_path, "x", photos) is None
    second = runs("x", trackers=[])
    assert second.path.name == "x-2"
    assert unfinished(tmp_path, "x", photos) == second
    assert unfinished(tmp_path, "x", tmp_path / "others") is None  # of other images
    runs("y")  # killed while it was made
    assert unfinished(tmp_path, "y", photos) is None


@pytest.fixture(scope="module")
def steps():
    """What steps on one device and on three of one process have left, by their settings."""
    done = subprocess.run(
        [sys.executable, str(HERE)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, HERE.parents[1:3]))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("settings", ["frozen", "learning", "parts", "float16", "refused"])
def test_devices_of_one_process_make_the_step_of_one(steps, settings):
    found = steps[settings]
    if settings == "refused":
        assert "2 parts on 3 devices, with norms='train'" in found["error"]
        return
    assert found["alike"]  # bit for bit on all devices
    rounding = 1e-2 if settings == "float16" else 1e-5
    assert found["losses"][0] == pytest.approx(found["losses"][1], rel=rounding)
    assert found["moved"] > 0.005
    # Scaled losses are rounded to float16 image by image, in convolutions of another size.
    assert found["apart"] < rounding * found["moved"]


def _steps():
    import numpy as np
    import tensorflow as tf
    from conftest import randomize

    from kresnet.train.average import Average
    from kresnet.train.optimizer import optimizer_for
    from kresnet.train.step import train_step
    from kresnet.zoo import build, freeze_norms

    (processor,) = tf.config.list_physical_devices("CPU")
    several = [tf.config.LogicalDeviceConfiguration()] * 3
    tf.config.set_logical_device_configuration(processor, several)

    def batch(seed, size=8):  # uneven: 2, 3 and 3
        rng = np.random.default_rng(seed)
        arrays = (
            rng.normal(1.0, 2.0, (size, 32, 32, 3)),
            rng.dirichlet([1, 1, 1], size),
            rng.uniform(0.5, 2, size),
        )
        return [tf.constant(array, tf.float32) for array in arrays]

    def trained(team, *, frozen=False, parts=1, dtype="float32"):
        with team.scope():
            model = randomize(build("resnet8_cifar", num_classes=3, dtype=dtype), 1)
            if frozen:
                freeze_norms(model)
            optimizer = optimizer_for(
                model, "sgd", weight_decay=1e-3, layer_decay=0.5, clip_norm=1.0,
                scale_loss=dtype == "mixed_float16", summed=team.replicas > 1,
            )  # fmt: skip
            step = train_step(model, optimizer, parts=parts, team=team)
            optimizer.learning_rate = 0.05
            average = Average(model, reach=0.3)
            losses = []
            for k in range(2):
                losses.append(float(step(*batch(k))))
                average.update(k + 1, 2)
        variables = [*model.variables, *average.variables]
        if team.strategy:
            copies = [team.strategy.experimental_local_results(v.value) for v in model.variables]
            alike = all(len({c.numpy().tobytes() for c in same}) == 1 for same in copies)
        else:
            alike = True
        return losses, [v.numpy().astype(float) for v in variables], alike

    kinds = {
        "frozen": {"frozen": True},
        "learning": {},
        "parts": {"frozen": True, "parts": 2},
        "float16": {"frozen": True, "dtype": "mixed_float16"},
        "refused": {"parts": 2},
    }
    found = {}
    for name, options in kinds.items():
        team = assembled("")
        try:
            losses, values, alike = trained(team, **options)
        except ConfigError as error:
            found[name] = {"error": str(error)}
            continue
        of_one, expected, _ = trained(ALONE, **options)
        start = [v.numpy() for v in randomize(build("resnet8_cifar", num_classes=3), 1).variables]
        moved = max(np.abs(a - b).max() for a, b in zip(start, expected, strict=False))
        apart = max(np.abs(a - b).max() for a, b in zip(values, expected, strict=True))
        found[name] = {
            "losses": [losses, of_one],
            "alike": alike,
            "moved": float(moved),
            "apart": float(apart),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    _steps()
