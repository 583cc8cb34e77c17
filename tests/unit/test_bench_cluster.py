"""What more workers bring, by hand, and the page that says so."""

import re
from pathlib import Path

import pytest

from kresnet.bench import cluster

PAGE = Path(__file__).parents[2] / "recipes" / "cluster" / "README.md"


def test_a_ring_sends_two_rounds_of_all_parts_but_one():
    network = cluster.Network(gbit=8.0, reached=0.5, turn_s=0.001)  # 500 million bytes a second
    assert network.sum_s(1_000_000_000, 1) == 0.0
    # Two workers: two turns with half of the bytes each.
    assert network.sum_s(1_000_000_000, 2) == pytest.approx(2 * (1.0 + 0.001))
    # Five: eight turns with a fifth each.
    assert network.sum_s(1_000_000_000, 5) == pytest.approx(8 * (0.4 + 0.001))


def test_the_bytes_are_those_of_the_trained_variables():
    import keras

    import kresnet

    model = kresnet.build("resnet20_cifar", num_classes=10)
    counted = sum(4 * keras.ops.size(variable) for variable in model.trainable_variables)
    assert cluster.gradient_bytes("resnet20_cifar") == counted


def test_a_step_is_in_proportion_to_the_multiplications():
    at = {"like": "resnet50", "images_per_second": 100.0, "batch": 50}
    assert cluster.step_s("resnet50", **at) == 0.5
    # 11.51 and 4.09 billion, as torchvision publishes them
    assert cluster.step_s("resnet152", **at) == pytest.approx(0.5 * 11.51 / 4.09, rel=5e-3)


def test_more_workers_keep_less_of_their_speed_and_faster_links_more():
    rows = cluster.table(
        ("resnet50",),
        [cluster.Network(gbit) for gbit in (10.0, 100.0)],
        (1, 2, 64),
        images_per_second=1000.0,
        batch=128,
    ).splitlines()[-2:]
    slow, fast = ([int(x) for x in re.findall(r"(\d+)%", row)] for row in rows)
    assert slow[0] == 100
    assert slow == sorted(slow, reverse=True)
    assert all(a <= b for a, b in zip(slow, fast, strict=True))
    assert slow[-1] < fast[-1]


@pytest.mark.parametrize("arguments", [[], ["--images-per-second", "1000", "--batch", "128"]])
def test_the_page_has_the_tables_that_the_command_prints(arguments, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["cluster", *arguments])
    cluster.main()
    printed = capsys.readouterr().out.strip()
    assert " ".join(["python -m kresnet.bench.cluster", *arguments]) in PAGE.read_text("utf-8")
    assert printed in PAGE.read_text(encoding="utf-8")
