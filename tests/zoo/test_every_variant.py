"""Every variant: its size, its outputs, its gradients, and what can be done with it.

Runs on any Keras backend. Without `-m slow` it takes one variant of each kind.
"""

import contextlib
import csv
import fcntl
import json
import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import randomize, relative_error
from torch_oracle import has_timm, randomized, run, state_of, timm_model

from kresnet.zoo import (
    VARIANTS,
    build,
    features,
    fold,
    load_weights,
    measure,
    to_keras,
    to_torch,
    with_dtype,
)

# Parameters and multiplications at the variant's own size: counted by torch's FlopCounterMode on
# timm's models, by summing the layers of keras.applications, and as the papers give them. None of
# it by kresnet.
SIZES = {
    row["variant"]: (int(row["params"]), int(row["macs"]))
    for row in csv.DictReader((Path(__file__).parent / "sizes.csv").read_text().splitlines())
}
MEMORY = Path("/proc/meminfo")
# One of each kind of block, stem, shortcut, norm, attention and pooling.
TYPICAL = (
    *("resnet18", "resnet50_gn", "resnext50_32x4d", "seresnet18", "skresnet18", "resnest14d"),
    *("resnetblur18", "resnetv2_18d", "resnetv2_50x1_bit", "resnet20_cifar", "wrn16_8_cifar"),
)
# Of these, too, gradients, rewriting and saving: plain, split, with norms before activations.
FEWER = ("resnet18", "resnest14d", "resnetv2_18d")
# Standardised kernels cannot be damped, so errors of rounding grow as they do in torch's own
# float32; these reach the bound's order at 50 layers.
LOOSER = {name: 1e-4 for name in VARIANTS if name.endswith("_bit")}


@pytest.fixture(autouse=True)
def forget():
    """Free each test's models: hundreds of them, some of gigabytes, pass through a process."""
    yield
    keras.utils.clear_session()  # collects garbage, too


def marked(names, quick=TYPICAL):
    """All variants, those that are not among the quick ones for `-m slow`."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def small(name):
    """The variant with at most two blocks a stage: one that opens it, one that goes on."""
    config = VARIANTS[name]
    width = min(config.width, 64)
    stem = tuple(min(n, 64 * (1 if config.stem != "deep" else 2)) for n in config.stem_filters)
    depths = tuple(min(depth, 2) for depth in config.depths)
    return replace(config, depths=depths, width=width, stem_filters=stem)


def images(height, width, seed=0):
    return np.random.default_rng(seed).normal(size=(2, height, width, 3)).astype("float32")


def test_every_variant_has_a_size_to_compare_with():
    assert set(SIZES) == set(VARIANTS)


@pytest.mark.parametrize("name", marked(VARIANTS))
def test_size(name):
    params, macs = SIZES[name]
    size = measure(VARIANTS[name])
    assert size.params == params
    assert abs(size.macs - macs) <= 1e-3 * macs


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in VARIANTS if VARIANTS[n].image_size == 224])
def test_torch_counts_the_same(name):
    """Where the numbers in sizes.csv are from."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    if not has_timm(name):
        pytest.skip("timm has no such model")
    with torch.device("meta"):
        model = timm_model(name).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 224, 224))
    params = sum(p.numel() for p in model.parameters())
    assert (params, counter.get_total_flops() // 2) == SIZES[name]


# What neither timm has nor a paper: the code they are compared with has a test of its own.
ELSEWHERE = {
    **{f"resnet{depth}_v1": "parity/test_keras_applications.py" for depth in (50, 101, 152)},
    **{f"resnet{depth}_v2": "parity/test_foreign_keras_v2.py" for depth in (50, 101, 152)},
    **{f"resnet{depth}_vd": "parity/test_foreign_kerashub.py" for depth in (18, 34, 200)},
    "resnet8_cifar": "parity/test_foreign_mlperf.py",
}


def oracle_of(name, double):
    from paper_oracle import paper_model

    model = timm_model(name) if has_timm(name) else paper_model(name)
    return randomized(model, double=double)


def test_what_is_compared_elsewhere_is():
    for name, file in ELSEWHERE.items():
        text = (Path(__file__).parents[1] / file).read_text()
        depth = name.removeprefix("resnet").partition("_")[0]
        assert f'"{name}"' in text or re.search(rf"\b{depth}\b", text)


@contextlib.contextmanager
def memory_for(size):
    """Skip where there is no room for `size` bytes; of those that need 2 GiB, one at a time."""
    with open(Path(tempfile.gettempdir()) / "kresnet-giants.lock", "w") as lock:
        if size > 2 << 30:
            fcntl.flock(lock, fcntl.LOCK_EX)
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
        with contextlib.suppress(OSError):  # what Linux can make free is more
            free = 1024 * int(re.search(r"MemAvailable: +(\d+)", MEMORY.read_text())[1])
        if size > free:
            pytest.skip(f"needs {size / 2**30:.0f} GiB of memory, {free / 2**30:.0f} are free")
        yield


@pytest.mark.parametrize("name", marked(n for n in VARIANTS if n not in ELSEWHERE))
def test_outputs_are_those_of_torch(name):
    """Of timm, or of the papers' networks written in torch."""
    pytest.importorskip("torch")
    params = SIZES[name][0]
    with memory_for(24 * params):
        compare_with_torch(name, params)


def compare_with_torch(name, params):
    oracle = oracle_of(name, double=params < 2e8)
    model = build(name)
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == params
    state = state_of(oracle)
    load_weights(model, state)
    back = to_torch(model)
    assert back.keys() == state.keys()
    for key, value in state.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)
    compared = 0
    for height, width in ((64, 96), (75, 107)):
        if VARIANTS[name].image_size == 32:
            height, width = height // 2, width // 2
        x = images(height, width)
        try:
            expected = run(oracle, x)
        except RuntimeError:  # timm's average-pool members fail on odd sizes
            assert VARIANTS[name].antialias == "avg"
            continue
        compared += 1
        assert relative_error(model(x, training=False), expected) < LOOSER.get(name, 1e-5)
    assert compared == (1 if VARIANTS[name].antialias == "avg" else 2)


@pytest.mark.parametrize("stride", [8, pytest.param(16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["resnet18", "resnet50d", "resnetblur18", "resnetv2_18d"])
def test_dilated_outputs_are_those_of_timm(name, stride):
    oracle = randomized(timm_model(name, output_stride=stride))
    model = build(name, output_stride=stride)
    load_weights(model, state_of(oracle))
    for height, width in ((64, 96), (75, 107)):
        x = images(height, width)
        assert relative_error(model(x, training=False), run(oracle, x)) < 1e-5
    last = features(model, (stride,))(images(64, 96))
    assert last.shape[1:3] == (64 // stride, 96 // stride)


@pytest.mark.parametrize("kind", ["leaky_relu", "elu", "silu", "gelu"])
def test_activations_are_those_of_timm(kind):
    for name in ("resnet18", "resnetv2_18"):
        oracle = randomized(timm_model(name, act_layer=kind))
        model = build(name, activation=kind)
        load_weights(model, state_of(oracle))
        x = images(64, 75)
        assert relative_error(model(x, training=False), run(oracle, x)) < 1e-5


@pytest.mark.parametrize("name", marked(VARIANTS, FEWER))
def test_gradients_reach_every_variable(name):
    model = randomize(build(small(name), num_classes=5))
    model.compile(
        keras.optimizers.SGD(10.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=keras.backend.backend() == "tensorflow",  # one step is not worth a graph
    )
    before = [np.array(v) for v in model.trainable_variables]
    model.train_on_batch(images(64, 64), np.array([1, 4]))
    still = [
        v.path
        for v, value in zip(model.trainable_variables, before, strict=True)
        if np.array_equal(np.array(v), value)
    ]
    # A kernel in front of a norm that learns its statistics has a bias without effect.
    assert [path for path in still if not path.endswith("fc1/bias")] == []


@pytest.mark.parametrize("name", marked(VARIANTS, FEWER))
def test_features_rewrites_saving_and_precision(name, tmp_path):
    model = randomize(build(small(name), num_classes=5))
    x = images(65, 96)
    expected = model(x, training=False)

    strides = (1, 2, 4) if VARIANTS[name].image_size == 32 else (2, 4, 8, 16, 32)
    for stride, found in zip(strides, features(model, strides)(x), strict=True):
        # The average-pool of the anti-aliased stem leaves the odd row out, as timm's does.
        height = 64 if VARIANTS[name].antialias == "avg" and stride > 2 else 65
        assert found.shape[1:3] == (-(-height // stride), 96 // stride)

    for rewritten in (to_keras(model), fold(model)):
        assert relative_error(rewritten(x, training=False), expected) < 1e-5
        assert not any("kresnet" in type(layer).__module__ for layer in rewritten.layers)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert relative_error(loaded(x, training=False), expected) == 0.0

    for policy, bound in (("mixed_bfloat16", 0.2), ("mixed_float16", 0.02)):
        half = with_dtype(model, policy)(x, training=False)
        assert keras.backend.standardize_dtype(half.dtype) == "float32"
        assert relative_error(half, expected) < bound
    json.loads(model.to_json())


@pytest.mark.parametrize("name", TYPICAL)
def test_layers_lie_flat_and_are_named_by_their_place(name):
    model = build(small(name))
    for layer in model.layers:
        assert not isinstance(layer, keras.Model)
        if layer.weights:
            assert layer.name.startswith(("stem_", "stage", "norm", "head")), layer.name
