"""Labels that were changed on purpose, on real photos, found again by the whole command."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("cleanlab", reason="the extra `labels` is not installed")

pytestmark = pytest.mark.slow


def planted(source, target, seed):
    """Copy a folder of class folders and move 5 % of the images to a wrong class."""
    files = sorted(path for path in source.rglob("*.jpg"))
    classes = sorted({path.parent.name for path in files})
    rng = np.random.default_rng(seed)
    wrong = set(rng.choice(len(files), round(0.05 * len(files)), replace=False).tolist())
    moved = set()
    for k, path in enumerate(files):
        label = path.parent.name
        if k in wrong:
            label = classes[(classes.index(label) + rng.integers(1, len(classes))) % len(classes)]
            moved.add(f"{label}/{k}.jpg")
        (target / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / label / f"{k}.jpg")
    return moved, len(files)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["hymenoptera", "flowers"])
def test_most_are_in_the_worst_tenth(shared, tmp_path, name, seed):
    moved, count = planted(shared / name, tmp_path / "data", seed)
    weights = next((shared / "weights" / "resnet50_imagenet").glob("*.npz"))
    command = [
        sys.executable, "-m", "kresnet", "check", "data", "--labels", "--json",
        "--variant", "resnet50_v1", "--weights", str(weights),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode in (3, 7), done.stderr
    ranking = json.loads(done.stdout)["labels"]["ranking"]
    assert len(ranking) == count
    worst = {one["path"] for one in ranking[: count // 10]}
    assert len(moved & worst) >= 0.85 * len(moved), f"{len(moved & worst)} of {len(moved)}"
    assert (tmp_path / "labels.csv").is_file()
    assert (tmp_path / "labels.png").stat().st_size > 20_000
