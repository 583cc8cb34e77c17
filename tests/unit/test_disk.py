"""A disk that is too small is told before anything is trained, with both numbers and the fix."""

import os
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

import kresnet
from kresnet.console import Console
from kresnet.data.scan import Row
from kresnet.errors import ResourceError
from kresnet.train import disk
from kresnet.train.average import Average
from kresnet.train.disk import Disk, check_room, disk_needed
from kresnet.train.optimizer import optimizer_for
from kresnet.train.plan import plan
from kresnet.zoo import build


def recipe(**given):
    return plan(
        data="photos", num_images=90, classes=("a cat", "a dog"), variant="resnet20_cifar",
        weights=None, image_size=32, overrides={"precision": "float32", "epochs": 3} | given,
    )  # fmt: skip


def rows(*sizes):
    return [Row(f"/{k}.png", 0, "train", h, w, f"{k}") for k, (h, w) in enumerate(sizes)]


@pytest.mark.parametrize(("optimizer", "ema"), [("adamw", 0.1), ("sgd", 0.0), ("rmsprop", 0.0)])
def test_states_and_weights_are_no_larger_than_that_and_not_much_smaller(tmp_path, optimizer, ema):
    model = build("resnet20_cifar", num_classes=7)
    slots = optimizer_for(model, optimizer, weight_decay=0.1, layer_decay=1.0, clip_norm=None)
    averages = Average(model, reach=ema).variables if ema else []
    arrays = {
        f"{k}": np.asarray(v.numpy(), order="C")
        for k, v in enumerate([*model.variables, *slots.variables, *averages])
    }
    save_file(arrays, tmp_path / "state")
    save_file({f"{k}": np.asarray(v) for k, v in enumerate(model.weights)}, tmp_path / "weights")
    state, weights = (os.path.getsize(tmp_path / name) for name in ("state", "weights"))
    need = disk_needed(recipe(optimizer=optimizer, ema=ema), rows((40, 40)), num_classes=7)
    assert 0.9 * (3 * state + 2 * weights) < need.run < 1.2 * (3 * state + 2 * weights)
    assert weights < need.exports < 1.2 * weights + 8e6


def test_only_what_is_written_is_counted():
    images = rows((30, 40), (50, 20))
    plain = disk_needed(recipe(), images, num_classes=2)
    cached = disk_needed(recipe(cache="disk"), images, num_classes=2)
    assert cached.run - plain.run == 3 * (30 * 40 + 50 * 20)
    cut = {"train_from": 3, "cut_cache": "disk", "cut_views": 2}
    features = disk_needed(recipe(**cut), images, num_classes=2)
    assert features.run - plain.run == 2 * 2 * 16 * 16 * 32 * 4  # images, views, values, bytes
    one = disk_needed(recipe(**cut | {"epochs": 1}), images, num_classes=2)
    assert one.run - plain.run == 2 * 16 * 16 * 32 * 4
    soup = disk_needed(recipe(soup=3, ema=0.1), images, num_classes=2)
    average = disk_needed(recipe(ema=0.1), images, num_classes=2)
    assert soup.run - average.run == 9 * (average.run - plain.run) / 3
    assert disk_needed(recipe(epochs=0), images, num_classes=2).run < plain.run / 3
    assert disk_needed(recipe(), images, num_classes=2, exported=False) == Disk(plain.run, 0)


def test_two_folders_of_one_disk_share_its_room(tmp_path, monkeypatch):
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000_000))
    out, exports = tmp_path / "not" / "yet", tmp_path / "exports"
    check_room(Disk(600_000_000, 300_000_000), out=out, exports=exports)
    with pytest.raises(ResourceError) as told:
        check_room(Disk(800_000_000, 300_000_000), out=out, exports=exports)
    message = str(told.value)
    assert f"needs 1.1 GB of disk in {out} and {exports}. Received: 1.0 GB free." in message
    assert message.endswith("with --out and --exports.")
    assert "\n" not in message


def test_each_disk_is_looked_at_by_itself(tmp_path, monkeypatch):
    def existing(folder):
        name = "small" if "small" in str(folder) else "large"
        return SimpleNamespace(stat=lambda: SimpleNamespace(st_dev=name), name=name)

    monkeypatch.setattr(disk, "_existing", existing)
    room = {"small": 50_000_000, "large": 10**12}
    monkeypatch.setattr(
        disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=room[path.name])
    )
    need = Disk(900_000_000, 40_000_000)
    check_room(need, out=tmp_path / "large", exports=tmp_path / "small")
    with pytest.raises(ResourceError, match=r"900.0 MB .*small. Received: 50.0 MB.* with --out\.$"):
        check_room(need, out=tmp_path / "small", exports=tmp_path / "large")


@pytest.fixture
def small_disk(tmp_path):
    """A real disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None:
        pytest.skip("there is no mount command")
    command = [mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a tmpfs may not be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_nothing_is_begun_on_a_disk_that_is_too_small(small_disk, striped, tmp_path, monkeypatch):
    def trained(*args, **options):
        raise AssertionError("it began")

    monkeypatch.setattr("kresnet.workflow.job.train_in", trained)
    with pytest.raises(ResourceError, match=r"needs \d+\.\d MB .*Received: 1\.0 MB free\."):
        kresnet.fit(
            striped, variant="resnet20_cifar", weights=None, epochs=2, precision="float32",
            out=small_disk / "runs", exports=tmp_path / "exports", console=Console(quiet=True),
        )  # fmt: skip
    assert not list(small_disk.iterdir())
