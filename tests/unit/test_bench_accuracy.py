"""The accuracy bench: what is measured is what is said, and nothing is measured twice."""

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import STRIPES, randomize
from scipy.stats import binomtest
from typer.testing import CliRunner

from kresnet.bench.accuracy import checking, compare, results, start
from kresnet.bench.accuracy.ours import scores_of, write_table
from kresnet.bench.accuracy.results import GUIDE, Line
from kresnet.bench.accuracy.task import Answer, Task, softmax
from kresnet.data.scan import scan
from kresnet.errors import ConfigError, DataError, WeightsError
from kresnet.evaluate.predictions import Prediction
from kresnet.zoo import VARIANTS, build, card_for
from kresnet.zoo.convert import save_torch

CLASSES = tuple(sorted(STRIPES))


def a_task(folder, **changed):
    fields = {
        "method": "any",
        "data": "striped",
        "seed": 0,
        "budget_s": 30.0,
        "started": 0.0,
        "folder": str(folder),
        "variant": "resnet20_cifar",
        "weights": str(folder / "weights.safetensors"),
        "start": str(folder),
        "precision": "float32",
        "image_size": 32,
        "classes": CLASSES,
        "train": (),
        "test": (),
    }
    return Task(**fields | changed)


def labelled(root):
    return tuple((str(p), CLASSES.index(p.parent.name)) for p in sorted(root.rglob("*.png")))


def a_line(method, right, *, seed=0, best=None, failed=None, **facts):
    right = tuple(bool(one) for one in right)
    best = tuple(0.75 for _ in right) if best is None else best
    return Line(
        "flowers", method, seed, 90.0, "abc", right, best, 80.0, failed, facts, {"keras": "3"}
    )


def test_images_are_divided_by_class_and_by_seed_alone():
    rng = np.random.default_rng(3)
    images = [(f"{k}.jpg", int(label)) for k, label in enumerate(rng.integers(0, 3, 200))]
    train, test = compare.divided(images, 1)
    assert sorted(train + test) == sorted(images)
    for label in range(3):
        of_class = sum(one == label for _, one in images)
        assert abs(sum(one == label for _, one in test) - 0.3 * of_class) <= 1
    assert compare.divided(images, 1) == (train, test)
    assert compare.divided(images, 2)[1] != test


def test_a_class_of_one_image_cannot_be_divided():
    with pytest.raises(DataError, match=r"two images and more. Received"):
        compare.divided([("a", 0), ("b", 0), ("c", 0), ("d", 1)], 0)


def test_tasks_and_answers_come_back_as_they_were(tmp_path):
    task = a_task(tmp_path, train=(("ä b.png", 3),), test=(("c,d.png", 0), ("e", 1)))
    assert Task.load(task.save()) == task
    scores = softmax(np.random.default_rng(0).normal(size=(2, 4)) * 300)
    np.testing.assert_allclose(scores.sum(axis=1), 1)
    Answer(scores, {"epochs": 3}).save(tmp_path)
    again = Answer.load(tmp_path)
    np.testing.assert_array_equal(again.scores, scores)
    assert again.facts == {"epochs": 3}


def test_lines_come_back_without_the_one_that_was_cut_off(tmp_path):
    file = tmp_path / "lines.jsonl"
    assert results.load(file) == []
    lines = [a_line("a", [1, 0, 1], epochs=2), a_line("b", [], failed="exit code 1: no")]
    for line in lines:
        results.append(file, line)
    with file.open("a") as out:
        out.write('{"data": "flo')
    assert results.load(file) == lines


def test_seeds_are_taken_together_and_held_against_the_guide():
    rng = np.random.default_rng(5)
    ours, theirs = rng.random((2, 3, 60)) < np.array([0.85, 0.7]).reshape(2, 1, 1)
    lines = [a_line("kresnet default", ours[k], seed=k, images_per_s=10.0 + k) for k in range(3)]
    lines += [a_line(GUIDE, theirs[k], seed=k) for k in (2, 0)]  # one is missing
    mine, guide = results.summaries(lines)
    assert mine["accuracy"] == pytest.approx(ours.mean())
    shares = ours.mean(axis=1)
    assert (mine["least"], mine["most"]) == (shares.min(), shares.max())
    assert (mine["n"], mine["seeds"], mine["images_per_s"]) == (180, 3, 11.0)
    assert mine["ece"] == pytest.approx(np.abs(shares - 0.75).mean())
    assert mine["ece_together"] == pytest.approx(abs(ours.mean() - 0.75))
    wilson = binomtest(int(ours.sum()), 180).proportion_ci(method="wilson")
    assert mine["interval"] == pytest.approx((wilson.low, wilson.high))
    above = mine["above_guide"]
    same = [0, 2]
    assert above["difference"] == pytest.approx(ours[same].mean() - theirs[same].mean())
    assert above["interval"][0] < above["difference"] < above["interval"][1]
    assert guide["above_guide"] is None


def test_the_table_has_a_row_for_what_could_not_be_run():
    lines = [
        a_line("fastai fine_tune", [], failed="not installed: fastai"),
        a_line("kresnet probe", [1, 1, 1, 0], epochs=0),
    ]
    found = results.summaries(lines)
    rows = results.table(found).splitlines()
    assert len({row.count("|") for row in rows}) == 1
    assert "not installed: fastai" in rows[2]
    assert rows[3].startswith(
        "| flowers | kresnet probe | 75.0 % (75.0-75.0) | 30.1-95.4 (n=4) | -"
    )
    json.dumps(found)


@pytest.fixture
def contenders(monkeypatch, striped):
    """Contenders without processes, and the list of who was run; all answer at random."""
    ran, failing, told = [], set(), []

    def run(module, task, most_s):
        ran.append((module, task.seed))
        told.append((task.weights, task.image_size))
        if (module, task.seed) in failing:
            return "exit code 1: on purpose"
        if module == "stop":
            raise KeyboardInterrupt
        if module != "start":
            rng = np.random.default_rng(len(ran))
            scores = softmax(rng.normal(size=(len(task.test), len(task.classes))))
            Answer(scores, {"epochs": 1}).save(Path(task.folder))
        return None

    monkeypatch.setattr(compare, "_run", run)
    monkeypatch.setattr(
        compare,
        "PEERS",
        {
            "keras": compare.Contender(GUIDE, "keras_guide", ("keras",)),
            "stop": compare.Contender("stop", "stop", ()),
            "absent": compare.Contender("absent", "absent", ("no_such_package",)),
        },
    )
    return Contenders(ran, failing, told)


class Contenders(NamedTuple):
    """Who was run with which seed, who is to fail, and with which weights and side of the input."""

    ran: list
    failing: set
    told: list


def bench(striped, tmp_path, *against, seeds=2, weights=None, variant="resnet20_cifar"):
    (tmp_path / "weights.npz").write_bytes(b"any")
    return compare.compare(
        {"striped": striped},
        weights=weights or tmp_path / "weights.npz",
        variant=variant,
        budget_s=30.0,
        seeds=seeds,
        presets=("probe",),
        against=against,
        out=tmp_path / "out",
    )


def test_a_bench_that_was_stopped_goes_on(striped, tmp_path, contenders):
    ran = contenders.ran
    with pytest.raises(KeyboardInterrupt):
        bench(striped, tmp_path, "keras", "stop")
    assert ran == [("ours", 0), ("start", 0), ("keras_guide", 0), ("stop", 0)]
    ran.clear()
    found = bench(striped, tmp_path, "keras")
    assert ran == [("ours", 1), ("start", 1), ("keras_guide", 1)]
    assert [(one["method"], one["seeds"]) for one in found] == [("kresnet probe", 2), (GUIDE, 2)]
    assert found[0]["n"] == 2 * 15  # 30 % of 48, rounded up
    written = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [one["method"] for one in written["rows"]] == ["kresnet probe", GUIDE]
    assert written["machine"]["cores"] >= 1


def test_what_failed_is_told_and_tried_again(striped, tmp_path, contenders):
    ran, failing, _ = contenders
    failing.add(("keras_guide", 1))
    found = bench(striped, tmp_path, "keras", "absent")
    assert [one["seeds"] for one in found] == [2, 1, 0]
    assert found[1]["failed"] == "exit code 1: on purpose"
    assert found[2]["failed"] == "not installed: no_such_package"
    assert "absent" not in {module for module, _ in ran}
    failing.clear()
    ran.clear()
    found = bench(striped, tmp_path, "keras")
    assert ran == [("keras_guide", 1)]
    assert (found[1]["seeds"], found[1]["failed"]) == (2, None)


def test_weights_are_a_file_or_a_tag_with_its_own_side(striped, tmp_path, contenders):
    bench(striped, tmp_path, seeds=1)
    bench(striped, tmp_path, seeds=1, weights="embedded", variant="resnet10t")
    card = card_for("resnet10t", "embedded")
    assert contenders.told == [
        (str(tmp_path / "weights.npz"), 32),
        ("embedded", card.preprocessing.image_size),
    ]
    assert card.preprocessing.image_size != VARIANTS["resnet10t"].image_size
    with pytest.raises(WeightsError, match=r"nowhere\.npz"):
        bench(striped, tmp_path, weights="nowhere.npz")


def test_other_seconds_are_another_result(striped, tmp_path, contenders):
    bench(striped, tmp_path, "keras", seeds=1)
    assert results.load(tmp_path / "out" / "lines.jsonl")[0].key[3] == 30.0
    line = results.load(tmp_path / "out" / "lines.jsonl")[0]
    assert replace(line, budget_s=60.0).key != line.key != replace(line, weights="else").key


def test_an_unknown_contender_is_refused(striped, tmp_path, contenders):
    with pytest.raises(ConfigError, match=r"`against` must be some of.*Received: 'pytorch'"):
        bench(striped, tmp_path, "pytorch")


def test_the_command_refuses_images_without_a_name():
    from kresnet.cli import app

    done = CliRunner().invoke(app, ["bench", "accuracy", "--data", "photos", "--weights", "w.npz"])
    assert isinstance(done.exception, ConfigError)
    assert "NAME=DATA" in str(done.exception)


def test_our_own_job_gets_the_splits_of_the_task(striped, tmp_path):
    train, test = compare.divided(labelled(striped), 0)
    table = write_table(a_task(tmp_path, train=train, test=test), tmp_path / "images.csv")
    index = scan(table)
    assert {(row.path, row.label) for row in index.select("test")} == set(test)
    assert {(row.path, row.label) for row in index.select("train")} == set(train)


def test_scores_are_found_by_the_bytes_of_the_image(striped):
    images = labelled(striped)[::7]
    rng = np.random.default_rng(2)
    scores = softmax(rng.normal(size=(len(images), 4)))
    digests = {row.path: row.digest for row in scan(striped).rows}
    told = []
    for split, sign in (("val", -1), ("test", 1)):
        for (path, _), one in zip(images, sign * scores, strict=True):
            said = dict(zip(CLASSES, map(float, one), strict=True))
            told.append(Prediction("x", digests[path], split, "", "", 0.0, said))
    order = rng.permutation(len(told))
    found = scores_of([told[k] for k in order], images, CLASSES)
    np.testing.assert_array_equal(found, scores)


@pytest.fixture
def folded(tmp_path):
    """A small network whose norms only add, and its file; outputs differ from image to image."""
    model = randomize(build("resnet20_cifar", num_classes=4, input_shape=(32, 32)), seed=4)
    for layer in model.layers:
        if hasattr(layer, "moving_mean"):
            layer.gamma.assign(np.ones(layer.filters))
            layer.moving_mean.assign(np.zeros(layer.filters))
            layer.moving_variance.assign(np.full(layer.filters, 1 - layer.epsilon))
    save_torch(model, tmp_path / "weights.safetensors")
    return model


def test_folded_norms_get_statistics_and_the_network_stays_the_same(folded):
    images = np.random.default_rng(0).normal(size=(24, 32, 32, 3)).astype("float32")
    before = np.array(folded(images, training=False))
    scale = np.abs(before).max()
    assert start.is_folded(folded)
    start.give_statistics(folded, [images[:5], images[5:]])
    assert not start.is_folded(folded)
    np.testing.assert_allclose(folded(images, training=False), before, atol=1e-4 * scale)
    # Learning them from the very same images changes nothing, either.
    np.testing.assert_allclose(folded(images, training=True), before, atol=1e-3 * scale)


def test_folded_norms_are_no_statistics_to_learn_from(folded):
    images = np.random.default_rng(0).normal(size=(24, 32, 32, 3)).astype("float32")
    before = np.array(folded(images, training=False))
    far = np.array(folded(images, training=True))
    assert np.abs(far - before).max() > 0.1 * np.abs(before).max()


@pytest.mark.slow
def test_starting_weights_are_checked_by_their_features(folded, striped, tmp_path):
    import keras

    start.contend(a_task(tmp_path, train=labelled(striped)))
    base = keras.saving.load_model(tmp_path / checking.KERAS, compile=False)
    images = checking.images_to_check(str(tmp_path))
    assert images.shape == (4, 32, 32, 3)
    assert checking.check(str(tmp_path), base.predict_on_batch(images)) < 1e-4
    mean, std = checking.normalization(str(tmp_path))
    assert np.abs(images * std + mean - 0.5).max() <= 0.5 + 1e-5  # pixels again
    layer = base.layers[5] if base.layers[5].weights else base.layers[4]
    layer.set_weights([1.01 * w for w in layer.get_weights()])
    with pytest.raises(ValueError, match=r"agree with ours within 0.001. Received"):
        checking.check(str(tmp_path), base.predict_on_batch(images))


@pytest.mark.parametrize(
    "variant", ["resnet18", pytest.param("resnet50_v1", marks=pytest.mark.slow)]
)
def test_torch_networks_have_our_features(variant, striped, tmp_path, torchvision_models):
    from kresnet.bench.accuracy import torch_parts

    model = randomize(build(variant, num_classes=7, input_shape=(64, 64)), seed=1)
    save_torch(model, tmp_path / "weights.safetensors")
    task = a_task(tmp_path, variant=variant, image_size=64, train=labelled(striped)[:8])
    start.contend(task)
    network, difference = torch_parts.network(task, torchvision_models.get_model)
    assert difference < 1e-4
    assert not network.training
    if variant.endswith("_v1"):  # the other layout has the same shapes, and other features
        with pytest.raises(ValueError, match="agree with ours"):
            torch_parts.network(replace(task, variant="resnet50"), torchvision_models.get_model)
    with pytest.raises(ValueError, match=r"one of.*resnet18.*Received: seresnet50"):
        torch_parts.network(replace(task, variant="seresnet50"), torchvision_models.get_model)
