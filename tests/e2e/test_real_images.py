"""Published weights on real photos: what they are known for, they do here."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kresnet.data.scan import scan
from kresnet.evaluate.predict import predict
from kresnet.zoo import build


@pytest.fixture(scope="module")
def imagenet_weights(shared):
    (path,) = (shared / "weights" / "resnet50_imagenet").glob("*.npz")
    return path


def test_imagenet_weights_recognise_imagenet_photos(shared, imagenet_weights):
    index = scan(shared / "imagenet_samples")
    lines = (imagenet_weights.parent / "imagenet_labels_1000.txt").read_text().splitlines()
    positions = {line.split()[0]: k for k, line in enumerate(lines)}
    model = build("resnet50_v1", weights=imagenet_weights, dtype="float32")
    said = predict(model, index.rows, model.preprocessing).argmax(axis=1)
    truth = np.array([positions[index.classes[row.label]] for row in index.rows])
    assert len(truth) == 125
    assert (said == truth).mean() >= 0.85


def test_cifar_weights_recognise_cifar_images(shared):
    index = scan(shared / "cifar10_train1000")
    (path,) = (shared / "weights" / "cifar10").glob("resnet20*.th")
    model = build("resnet20_cifar", weights=path, dtype="float32")
    said = predict(model, index.rows, model.preprocessing, batch_size=100).argmax(axis=1)
    assert len(said) == 1000
    assert (said == [row.label for row in index.rows]).mean() >= 0.995


def train(data, folder, *options):
    done = subprocess.run(
        [sys.executable, "-m", "kresnet", "train", data, "--json", *options],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_weights_that_come_along_know_ants_from_bees(shared, tmp_path):
    options = ["--weights", "embedded", "--epochs", "0"]
    result = train(shared / "hymenoptera", tmp_path, *options)
    assert result["validation"]["n"] == 153
    assert result["validation"]["accuracy"] >= 0.77
    assert result["kept"] == "probe"
    assert (Path(tmp_path) / result["export"] / "saved_model.pb").exists()


@pytest.mark.slow
def test_a_probe_alone_classifies_ants_and_bees(shared, imagenet_weights, tmp_path):
    options = ["--variant", "resnet50_v1", "--weights", imagenet_weights, "--epochs", "0"]
    result = train(shared / "hymenoptera", tmp_path, *options)
    assert result["validation"]["n"] == 153
    assert result["validation"]["accuracy"] >= 0.96
    assert result["kept"] == "probe"
    assert (tmp_path / result["export"] / "saved_model.pb").exists()


@pytest.mark.slow
def test_ants_and_bees_in_one_command(shared, imagenet_weights, tmp_path):
    options = ["--variant", "resnet50_v1", "--weights", imagenet_weights]
    result = train(shared / "hymenoptera", tmp_path, *options)
    assert result["validation"]["accuracy"] >= 0.97
    assert result["validation"]["accuracy"] >= result["probe"]["accuracy"]


@pytest.mark.slow
def test_flowers_in_one_command(shared, imagenet_weights, tmp_path):
    options = ["--variant", "resnet50_v1", "--weights", imagenet_weights]
    result = train(shared / "flowers", tmp_path, *options)
    assert result["validation"]["accuracy"] >= result["probe"]["accuracy"]
    assert result["test"]["n"] == 90
    assert result["test"]["accuracy"] >= 0.8
