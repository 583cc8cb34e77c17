"""Lists of runs, and comparisons, from files as runs leave them."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from kresnet.errors import ConfigError, DataError
from kresnet.evaluate.predictions import FILE, Prediction, load_predictions, table
from kresnet.evaluate.runs import as_table, compare, list_runs, mcnemar, paired_interval

CLASSES = ("a", "b, grey", 'c "\n')


def write_run(path, said, *, time="2026-01-02T03:04:05+00:00", classes=CLASSES, **recipe):
    path.mkdir(parents=True)
    fields = {"variant": "resnet50", "data": "photos", "lr": 0.1} | recipe
    (path / "recipe.yaml").write_text(json.dumps(fields))
    (path / "environment.json").write_text(json.dumps({"time": time}))
    (path / "run.json").write_text(json.dumps({"status": "created"}))
    if said is not None:
        import csv

        with (path / FILE).open("w", newline="", errors="surrogateescape") as file:
            csv.writer(file).writerows(table(said, classes))
    return path


def said(digest, label, predicted, split="test", name=None):
    scores = {one: 0.2 for one in CLASSES} | {predicted: 0.6}
    return Prediction(name or f"{digest}.jpg", digest, split, label, predicted, 0.6, scores)


def test_predictions_come_back_as_they_were_whatever_the_names(tmp_path):
    told = [said("d1", CLASSES[2], "a", name="x/\udcff,\n.jpg"), said("d2", "a", "a", "val")]
    write_run(tmp_path / "run", told)
    assert load_predictions(tmp_path / "run") == told
    assert [one.is_right for one in told] == [False, True]


def test_predictions_of_very_many_classes_have_no_column_each(tmp_path):
    names = tuple(f"c{k}" for k in range(101))
    one = Prediction("x.jpg", "d", "test", "c1", "c1", 0.5, {})
    write_run(tmp_path / "run", [one], classes=names)
    assert load_predictions(tmp_path / "run") == [one]
    assert len((tmp_path / "run" / FILE).read_text().splitlines()[0].split(",")) == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"A finished run holds predictions.csv.*kresnet resume"),
        ("path,score\nx,1\n", r"as kresnet wrote it.*split"),
        ("path,digest,split,label,predicted,score\nx,d,train,a,a,1\n", r"split='train'"),
        ("path,digest,split,label,predicted,score\nx,d,val,a,a,high\n", r"high"),
    ],
)
def test_predictions_that_are_not_there_or_damaged_are_told(tmp_path, content, message):
    write_run(tmp_path / "run", None)
    if content is not None:
        (tmp_path / "run" / FILE).write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_predictions(tmp_path / "run")


# ---------------------------------------------------------------- comparing


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_the_p_value_is_that_of_scipys_binomial_test(first, second):
    oracle = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(oracle, rel=1e-9)
    assert mcnemar(first, second) == mcnemar(second, first)


def test_a_known_case_and_a_huge_one():
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 1024)
    assert 0 < mcnemar(4000, 4400) < 1e-4


def test_the_interval_of_a_difference_holds_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):  # P(only first) 0.05, P(only second) 0.12
        first, second, _ = rng.multinomial(120, [0.05, 0.12, 0.83])
        low, high = paired_interval(first, second, 120)
        assert -1 <= low < (second - first) / 120 < high <= 1
        held += low < 0.07 < high
    assert 368 <= held <= 395  # 95 %


def two_runs(tmp_path, first, second, **recipe):
    return compare(
        write_run(tmp_path / "one", first), write_run(tmp_path / "two", second, **recipe)
    )


def test_runs_are_compared_on_the_test_images_that_both_have(tmp_path):
    first = [said(f"d{k}", "a", "a" if k < 15 else "b, grey") for k in range(30)]
    second = [said(f"d{k}", "a", "b, grey" if k < 2 else "a", name="moved.jpg")
              for k in range(35)][::-1]  # fmt: skip
    first += [said("d40", "a", "a", "val")]  # validated the first, tests the second: not counted
    second += [said("d40", "a", "b, grey")]
    found = two_runs(tmp_path, first, second, lr=0.2, epochs=3)
    assert (found.split, found.n, found.left_out) == ("test", 30, 0)
    assert (found.first_right, found.second_right) == (15, 28)
    assert (found.only_first, found.only_second) == (2, 15)
    assert found.p_value == pytest.approx(binomtest(2, 17).pvalue)
    assert found.settings == {"lr": (0.1, 0.2), "epochs": (None, 3)}
    text = str(found)
    assert f"{tmp_path / 'two'} is better. They part on 17 images, of which" in text
    assert "second - first" in text
    assert "+43.3%" in text
    assert "lr: 0.1 -> 0.2" in text
    assert json.loads(json.dumps(found.as_dict()))["verdict"] == found.verdict


def test_a_difference_that_may_be_chance_is_called_so(tmp_path):
    first = [said(f"d{k}", "a", "a" if k < 20 else "b, grey") for k in range(30)]
    second = [said(f"d{k}", "a", "a" if 1 < k < 25 else "b, grey") for k in range(30)]
    found = two_runs(tmp_path, first, second)
    assert found.verdict.startswith("No difference is proven. They part on 7 images, of which")
    assert "has 5 right; chance alone does that in 45.3% of cases" in found.verdict
    assert found.interval[0] < 0 < found.interval[1]


@pytest.mark.parametrize(
    ("answers", "verdict"),
    [(("a", "a"), "on the same images"), (("b, grey", "a"), "each has half")],
)
def test_equal_runs_are_called_equal(tmp_path, answers, verdict):
    first = [said("d1", "a", answers[0]), said("d2", "a", answers[1])]
    second = [said("d1", "a", answers[1]), said("d2", "a", answers[0])]
    found = two_runs(tmp_path, first, second)
    assert verdict in found.verdict
    assert found.p_value == 1


def test_without_shared_test_images_held_out_ones_are_taken_and_it_is_said(tmp_path):
    first = [said("d1", "a", "a", "val"), said("d2", "b, grey", "a", "val"), said("d3", "a", "a")]
    second = [said("d1", "a", "a"), said("d2", "a", "a"), said("d4", "a", "a")]
    found = two_runs(tmp_path, first, second)
    assert (found.split, found.n, found.left_out) == ("held-out", 1, 1)
    assert "its own choices may flatter it" in str(found)
    assert "1 images that the runs label differently are left out" in str(found)


def test_copies_of_an_image_count_once(tmp_path):
    told = [said("d1", "a", "a"), said("d1", "a", "a", name="copy.jpg"), said("d2", "a", "a")]
    assert two_runs(tmp_path, told, told).n == 2


def test_runs_that_share_nothing_cannot_be_compared(tmp_path):
    with pytest.raises(DataError, match=r"share 0 images.*--keep-split .*one/index.csv"):
        two_runs(tmp_path, [said("d1", "a", "a")], [said("d2", "a", "a")])


# ---------------------------------------------------------------- listing


def test_runs_are_listed_the_oldest_first(tmp_path):
    write_run(tmp_path / "b", None, time="2026-01-01T00:00:00+00:00")
    done = write_run(tmp_path / "a", None, time="2026-02-01T00:00:00+00:00")
    part = {"accuracy": 0.9, "n": 50, "interval": [0.8, 0.95], "balanced_accuracy": 0.9}
    result = {"validation": part, "test": part, "export": "saved_models/a/1"}
    (done / "run.json").write_text(
        json.dumps({"status": "complete", "kept": "probe", "result": result})
    )
    (done / "metrics.csv").write_text("epoch\n1\n2\n")
    (tmp_path / "no run").mkdir()
    first, second = list_runs(tmp_path)
    assert (first.path, first.status, first.test) == (str(tmp_path / "b"), "created", None)
    assert (second.epochs, second.kept, second.test) == (2, "probe", part)
    text = as_table([first, second]).splitlines()
    assert f"unfinished: kresnet resume {tmp_path / 'b'}" in text[1]
    assert "90.0% (80.0%-95.0%, n=50)" in text[2]


def test_a_folder_that_is_not_there_and_a_damaged_run_are_told(tmp_path):
    with pytest.raises(ConfigError, match=r"folder of the runs must exist.*--out"):
        list_runs(tmp_path / "nowhere")
    (write_run(tmp_path / "a", None) / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"run.json must be readable"):
        list_runs(tmp_path)


def test_runs_are_listed_and_compared_without_tensorflow(tmp_path):
    told = [said("d1", "a", "a"), said("d2", "a", CLASSES[1])]
    one, other = (write_run(tmp_path / name, told) for name in ("one", "two"))
    for path in (one, other):
        (path / "run.json").write_text(json.dumps({"status": "complete"}))
    code = (
        "import sys\nfrom kresnet.cli import app\n"
        f"app(['runs', '--out', {str(tmp_path)!r}], standalone_mode=False)\n"
        f"app(['compare', {str(one)!r}, {str(other)!r}], standalone_mode=False)\n"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *shown, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    assert "one" in shown[1]
    assert "two" in shown[2]
