"""Each topic of the speed bench from end to end, on networks and images as small as they get."""

import json
from dataclasses import replace

import pytest

from kresnet.bench.facts import missing
from kresnet.bench.speed.results import table
from kresnet.bench.speed.rotation import Process
from kresnet.bench.speed.topics import Options, bench

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TINY = Options(variant="resnet18", image_size=32, batch=2, rounds=2, steps=1, images=16)


def needs(*packages):
    """Skip where a package is missing, without importing any."""
    if said := missing(packages):
        pytest.skip(said)


def measured(topic, work, **options):
    found = bench(topic, replace(TINY, **options), work=work)
    assert json.loads(json.dumps(found))["topic"] == topic
    assert found["machine"]["cores"] >= 1
    lines = table(found).splitlines()
    rows = [row for group in found["groups"] for row in group["rows"]]
    for row in rows:
        assert any(line.startswith(f"| {row['name']} |") for line in lines)
        if not row["failed"]:
            assert min(row["seconds"]) > 0
            assert row["peak_mb"] > 5
    for group in found["groups"]:
        assert group["rows"][0]["failed"] is None
    return found["groups"], found


def test_train(tmp_path):
    needs("keras_hub")
    groups, found = measured("train", tmp_path, variant="resnet50", against=("keras", "keras_hub"))
    frozen, learning = groups
    assert [row["failed"] for row in frozen["rows"] + learning["rows"]] == [None] * 6
    assert {name for name in found["limits"]} == {
        "product float32 GFLOP/s", "product bfloat16 GFLOP/s", "convolution float32 GFLOP/s",
        "convolution bfloat16 GFLOP/s", "convolution int8 GFLOP/s", "copy GB/s",
    }  # fmt: skip
    for row in frozen["rows"]:
        assert 0 < row["share_of_limit"] < 1
    assert set(frozen["rows"][1]["tried"]) == {"mixed_bfloat16", "float32"}
    assert {"keras", "tensorflow", "keras_hub"} <= set(found["versions"])


def test_what_a_library_does_not_have_is_said(tmp_path):
    groups, _ = measured("train", tmp_path, against=("keras",))
    assert "The variant must be one of resnet50" in groups[0]["rows"][1]["failed"]


@pytest.mark.parametrize(
    ("norms", "compiled"), [("learning", False), ("kept", True), ("fixed", False)]
)
@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_train_with_torch(library, norms, compiled, tmp_path):
    needs("torch", library)
    arguments = {
        "library": library, "norms": norms, "compiled": compiled, "bfloat16": True,
        "variant": "resnet18", "image_size": 32, "batch": 2, "steps": 1,
    }  # fmt: skip
    make = "kresnet.bench.speed.torch_steps:train"
    with Process(make, arguments, tmp_path, warm_up=1, patience_s=1200) as process:
        assert process.turn() > 0
        assert process.peak_mb > 100


def test_infer(tmp_path):
    needs("onnxruntime", "openvino", "timm")
    peers = ("keras", "onnxruntime", "openvino", "timm")
    groups, _ = measured("infer", tmp_path, against=peers)
    assert [group["unit"] for group in groups] == ["ms", "images/s"]
    for group in groups:
        assert len(group["rows"]) == 6
        integers = group["rows"][0]
        assert (integers["name"], integers["setting"]) == (
            "kresnet SavedModel in int8, TensorFlow", "int8",
        )  # fmt: skip
        assert 1e-4 < integers["facts"]["differs_by"] < 0.5
        for row in group["rows"][1:]:
            assert row["failed"] is None
            # OpenVINO may compute in bfloat16, others do where it is faster; other weights would
            # differ by more.
            exact = "OpenVINO" not in row["name"] and "bfloat16" not in row["setting"]
            assert row["facts"]["differs_by"] < (1e-4 if exact else 0.1)


def test_input(striped, tmp_path):
    needs("timm", "torchvision")
    groups, _ = measured(
        "input", tmp_path, data=str(striped), against=("keras", "timm", "torchvision")
    )
    assert [len(group["rows"]) for group in groups] == [5, 3]
    assert [row["failed"] for row in groups[0]["rows"][:4]] == [None] * 4


def test_probe(striped, tmp_path):
    (group, last), _ = measured(
        "probe", tmp_path, variant="resnet50", data=str(striped), against=("keras",)
    )
    assert [row["failed"] for row in group["rows"] + last["rows"]] == [None] * 4
    kept, again = last["rows"]
    assert kept["peak_mb"] > 100 < again["peak_mb"]


def test_coldstart(tmp_path):
    groups, _ = measured("coldstart", tmp_path, rounds=1, against=("onnxruntime", "openvino"))
    assert [row["failed"] for group in groups for row in group["rows"]] == [None] * 7


def test_growth(tmp_path):
    groups, _ = measured("growth", tmp_path, sizes=(40, 80), sides=(32, 64), rounds=1)
    for group in groups:
        assert [row["failed"] for row in group["rows"]] == [None] * len(group["rows"])
        assert isinstance(group["growth"]["time_exponent"], float)
