"""The benches of gradients and steps measure what they say they measure."""

import sys

import pytest

from kresnet.bench import gradients, step


@pytest.mark.parametrize(
    ("shape", "ways"),
    [
        ((1, 1, 5, 4, 6), {"convolution", "matmul"}),
        ((1, 2, 6, 4, 6), {"convolution", "matmul"}),
        ((3, 1, 5, 4, 6), {"convolution", "shifts", "patches"}),
        ((3, 2, 5, 4, 6), {"convolution", "shifts", "patches"}),
    ],
)
def test_every_way_of_a_shape_is_timed(shape, ways):
    assert set(gradients.timed(shape, batch_size=2, dtype="float32", turns=2)) == ways


def test_a_line_says_what_is_fastest_and_what_is_taken():
    times = {"convolution": 3.0, "shifts": 2.0, "patches": 4.0}
    line = gradients.line((3, 1, 56, 64, 64), times, "bfloat16")
    assert line == (
        "| 3x3 | 1 | 56x56 | 64 -> 64 | 3.0 | shifts 2.0, patches 4.0 | shifts | convolution |"
    )


@pytest.mark.slow  # they train
@pytest.mark.parametrize("options", [["--norms", "trainable"], ["--part", "gradients"]])
def test_both_steps_are_timed_in_turns(options, capsys, monkeypatch):
    small = ["--variant", "resnet8_cifar", "--image-size", "32", "--batch-size", "2"]
    monkeypatch.setattr(sys, "argv", ["step", *small, "--turns", "2", *options])
    step.main()
    table = capsys.readouterr().out.splitlines()[-3:]
    assert [row.split("|")[1].strip() for row in table] == ["as written", "as run", "float32"]
    assert float(table[0].split("|")[4]) == 1.0


def test_a_ratio_above_one_is_faster():
    table = step.table({"as written": [2.0, 4.0, 8.0], "as run": [1.0, 2.0, 2.0]}, 32)
    assert table.splitlines()[-1] == "| as run | 16.0 | 16.0-32.0 | 2.00 | 2.00-4.00 |"
