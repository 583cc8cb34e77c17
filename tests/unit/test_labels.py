"""Wrong labels and outliers, on features that are known."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import stripes

pytest.importorskip("cleanlab", reason="the extra `labels` is not installed")

from kresnet.data.prepare import read_exclusions
from kresnet.data.scan import Index, Row
from kresnet.errors import DataError
from kresnet.evaluate.labels import judge_labels


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Three clouds of 60 points, nine of them with a wrong label, and two points far off."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 40)) * 2
    truth = np.repeat([0, 1, 2], 60)
    x = (centres[truth] + rng.normal(size=(180, 40))).astype("float32")
    x[[20, 100]] += 40 * rng.normal(size=(2, 40))
    wrong = rng.choice(np.setdiff1d(np.arange(180), [20, 100]), 9, replace=False)
    labels = truth.copy()
    labels[wrong] = (truth[wrong] + rng.integers(1, 3, 9)) % 3
    for k in range(180):
        stripes(rng, k % 4).save(root / f"{k}.png")
    rows = tuple(
        Row(str(root / f"{k}.png"), int(labels[k]), None, 40, 47, f"{k:064x}") for k in range(180)
    )
    index = Index(str(root), ("ant", "bee", "fly"), rows, ())
    return judge_labels(index, rows, x), truth, set(wrong.tolist())


def number(judgement):
    return int(judgement.row.digest, 16)


def test_wrong_labels_lead_the_ranking_with_the_right_suggestion(judged):
    labels, truth, wrong = judged
    ranking = [one for one in labels.ranking if number(one) not in (20, 100)]
    assert {number(one) for one in ranking[:9]} == wrong
    assert wrong <= {number(one) for one in labels.suspects}
    assert len(labels.suspects) < 16
    assert all(one.suggested == truth[number(one)] for one in ranking[:9])
    quality = [one.quality for one in labels.ranking]
    assert quality == sorted(quality)
    assert 0 <= quality[0] < quality[-1] <= 1


def test_points_far_off_are_outliers(judged):
    assert {20, 100} <= {number(one) for one in judged[0].ranking if one.is_outlier}


def test_the_table_is_what_training_leaves_out(judged, tmp_path):
    labels, _, wrong = judged
    labels.save(tmp_path / "labels.csv")
    left_out = read_exclusions(tmp_path / "labels.csv")
    assert {f"{k}.png" for k in wrong} <= left_out
    assert len(left_out) == len(labels.suspects) + len(labels.outliers)
    with (tmp_path / "labels.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["kind"] for line in lines[:9]] == ["label"] * 9
    assert float(lines[0]["quality"]) <= float(lines[8]["quality"])
    assert len(labels.index.without(left_out, "x").rows) == 180 - len(left_out)


def test_the_judgements_are_json_and_findings(judged, tmp_path):
    labels, _, _ = judged
    told = json.loads(json.dumps(labels.as_dict()))
    assert told["images"] == len(told["ranking"]) == 180
    assert told["ranking"][0]["exclude"] is True
    assert told["ranking"][-1]["kind"] in ("", "outlier")
    warning, *_ = labels.findings("labels.csv")
    assert (warning.severity, warning.kind) == ("warning", "label")
    assert warning.paths[0] == labels.ranking[0].row.path
    trusted = tuple(replace(one, is_suspect=False) for one in labels.ranking)
    (note,) = replace(labels, ranking=trusted).findings("labels.csv")
    assert (note.severity, note.kind) == ("note", "outlier")
    assert {"20.png", "100.png"} <= {path.rpartition("/")[2] for path in note.paths}


def test_the_sheet_shows_them(judged):
    labels, _, _ = judged
    sheet = labels.sheet(most=5)
    assert sheet.width > 5 * 160
    assert (
        len(np.unique(np.asarray(sheet).reshape(-1, 3), axis=0)) > 500
    )  # pictures, not an empty sheet


def test_a_class_of_one_image_cannot_be_judged(judged):
    labels, _, _ = judged
    rows = [one.row for one in labels.ranking if one.row.label < 2]
    rows.append(next(one.row for one in labels.ranking if one.row.label == 2))
    x = np.random.default_rng(0).normal(size=(len(rows), 8)).astype("float32")
    with pytest.raises(DataError, match=r"at least 2 images.* Received: class='fly' with 1"):
        judge_labels(labels.index, rows, x)
