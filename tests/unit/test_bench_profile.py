"""The profile of a step counts every convolution, and each second once."""

import time
from functools import partial

import pytest

from kresnet.bench import profile
from kresnet.bench.step import drawn, training_step
from kresnet.zoo import measure
from kresnet.zoo.variants import variant_config

BATCH = 4


@pytest.fixture(scope="module", params=[("frozen", "float32"), ("trainable", "bfloat16")])
def traced(request):
    norms, precision = request.param
    step = training_step("resnet8_cifar", norms, 32, precision)
    batch = drawn(BATCH, 32)
    turns, called = profile.traced(lambda: step(*batch).numpy(), lambda: time.sleep(0.01), 2)
    assert min(called) >= 0.01
    return step.get_concrete_function().graph, turns


def test_arithmetic_is_that_of_the_network(traced):
    graph, turns = traced
    flop = profile.flop_by_kind(graph, BATCH, turns[0])
    of = {
        pass_: sum(value for kind, value in flop.items() if kind.startswith(pass_))
        for pass_ in ("forward", "gradient of inputs", "gradient of kernels")
    }
    config = variant_config("resnet8_cifar")
    head = 64 * 10
    assert of["forward"] == 2 * BATCH * (measure(config, image_size=32, num_classes=10).macs - head)
    assert of["gradient of kernels"] == of["forward"]
    first = 2 * BATCH * 32 * 32 * 3 * 16 * 9  # whose input is the image
    assert of["gradient of inputs"] == of["forward"] - first


def test_every_kind_of_convolution_is_timed_and_nothing_is_counted_twice(traced):
    graph, turns = traced
    seconds = profile.seconds_by_kind(turns, partial(profile.kind_of, graph))
    assert all(value >= 0 for value in seconds.values())
    for kind in profile.flop_by_kind(graph, BATCH, turns[0]):
        if "kernels" not in kind:  # which may be computed as products
            assert seconds[kind] > 0
    assert seconds["optimizer"] > 0
    whole = sum(sum(turn.values()) for turn in turns) / len(turns)
    assert sum(seconds.values()) == pytest.approx(whole)
    for turn in turns:
        ran = [name for name in turn if "Conv2D" in name and "Backprop" not in name]
        assert len(ran) == 9  # of three blocks, with two shortcuts, and the stem


def test_an_answers_convolutions_are_told_apart_from_its_photos():
    turns = [
        {"a:_MklNativePadWithFusedConv2D": 3.0, "b:_MklNativeFusedConv2D": 1.0, "c:Pad": 0.5},
        {"b:Conv2D": 2.0, "d:ScaleAndTranslate": 1.0, "e:SelectV2": 0.25, profile.BETWEEN: 0.5},
    ]
    assert profile.seconds_by_kind(turns, profile.part_of) == {
        profile.CONVOLUTIONS: 3.0,
        "pooling and padding": 0.25,
        "preparing the photos": 0.5,
        "all else": 0.125,
        profile.BETWEEN: 0.25,
    }


def test_the_table_tells_rates_of_what_is_arithmetic():
    seconds = {"forward, 3 x 3": 0.5, "optimizer": 0.3, profile.BETWEEN: 0.2}
    lines = profile.table(seconds, {"forward, 3 x 3": 60e9}, 240.0).splitlines()
    assert lines[2:] == [
        "| forward, 3 x 3 | 0.500 | 50.0 | 120 | 50 |",
        "| optimizer | 0.300 | 30.0 | - | - |",
        f"| {profile.BETWEEN} | 0.200 | 20.0 | - | - |",
        "| the whole step | 1.000 | 100.0 | 60 | 25 |",
    ]
