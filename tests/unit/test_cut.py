"""Training behind the cut is training the whole network on the same views, and is never stale."""

import os
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import randomize
from PIL import Image

from kresnet.data.augment import Augmentation
from kresnet.data.pipeline import TrainingData, evaluation_batches
from kresnet.data.scan import scan
from kresnet.errors import ConfigError, DataError, ResourceError
from kresnet.train import cut as cuts
from kresnet.train import cut_plan, kept
from kresnet.train.cut import Cut, CutData, Looked, divided, epochs_within, names_of, preparing
from kresnet.train.kept import Kept
from kresnet.train.optimizer import freeze_before, optimizer_for
from kresnet.train.plan import explained
from kresnet.train.recipe import Recipe, rerun
from kresnet.train.state import Circumstances
from kresnet.train.step import train_step
from kresnet.zoo import Preprocessing, build, freeze_norms, measure
from kresnet.zoo.size import measure_front
from kresnet.zoo.variants import variant_config

SIZE, VIEWS, BATCH, COUNT = 32, 2, 6, 22
PREPARED = Preprocessing(image_size=SIZE)
AUGMENTATION = Augmentation(policy="light", min_area=0.5, smoothing=0.1)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    root = tmp_path_factory.mktemp("cut")
    rng = np.random.default_rng(4)
    for k in range(COUNT):
        folder = root / f"{k % 3}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40 + k, 44, 3), np.uint8)).save(folder / f"{k}.png")
    return scan(root).rows


def network(stage=3, variant="resnet8_cifar", dtype="float32", **options):
    """A network with random weights, of which the stages from one on learn."""
    config = variant_config(variant)
    small = replace(config, depths=(1,) * len(config.depths))
    model = build(small, num_classes=3, input_shape=(SIZE, SIZE), dtype=dtype, **options)
    randomize(model, seed=3)
    freeze_before(model, stage)
    freeze_norms(model)
    return model


def data(rows, views=VIEWS, **given):
    options = {
        "num_classes": 3, "batch_size": BATCH, "augmentation": AUGMENTATION, "seed": 11,
        "balancing": "sqrt", "views": views,
    }  # fmt: skip
    return TrainingData(rows, PREPARED, **options | given)


def behind(rows, cut, **given):
    options = {"rows": len(rows), "views": VIEWS, "at_once": BATCH}
    return CutData(data(rows), cut, **options | given)


# ---------------------------------------------------------------- the network in two


@pytest.mark.parametrize(
    ("variant", "stage", "options"),
    [
        ("resnet8_cifar", 2, {}),
        ("resnet50", 4, {"drop_rate": 0.2}),
        ("resnet50_v2", 3, {}),
        ("resnet50d", 2, {"activation": "silu"}),
    ],
)
def test_both_parts_are_the_whole_and_what_learns_is_behind(variant, stage, options):
    model = network(stage, variant, **options)
    cut = divided(model)
    images = np.random.default_rng(1).normal(size=(2, SIZE, SIZE, 3)).astype("float32")
    said = cut.tail(cut.front(images, training=False), training=False)
    np.testing.assert_allclose(said, model(images, training=False), rtol=1e-5, atol=1e-6)
    assert not cut.front.trainable_variables
    assert {id(v) for v in cut.tail.trainable_variables} == {
        id(v) for v in model.trainable_variables
    }
    # Nothing frozen but the norms' statistics is computed again.
    again = {v.path for v in cut.tail.variables} - {v.path for v in model.trainable_variables}
    assert all("moving_" in path or "seed" in path for path in again), again
    known = {v.path for v in model.variables}
    assert {v.path for v in (*cut.front.variables, *cut.tail.variables)} == known
    assert [layer.name for layer in model.layers] == [
        layer.name for layer in network(stage, variant, **options).layers
    ]


def test_what_nothing_is_frozen_of_cannot_be_cut():
    with pytest.raises(ConfigError, match=r"whose first layers do. Freeze them with train_from"):
        divided(network(1))


def test_what_is_random_is_behind_the_cut():
    model = network(3, drop_path_rate=0.5)
    front = divided(model).front
    assert not any(getattr(layer, "rate", 0) for layer in front.layers)
    assert front.layers[-1].name.startswith("stage1")  # which drops nothing, and stage 2 does


@pytest.mark.parametrize("variant", ["resnet8_cifar", "resnet50_v2", "resnet50d"])
def test_what_comes_before_a_stage_is_counted(variant):
    config = replace(variant_config(variant), depths=(1, 2, 1))
    model = build(config, num_classes=3, input_shape=(64, 64), dtype="float32")
    freeze_before(model, 3)
    front = divided(model).front
    found = measure_front(config, 3, image_size=64)
    assert found.values == np.prod(front.output_shape[1:])
    macs = sum(
        int(np.prod(layer.kernel.shape) * np.prod(layer.output.shape[1:3]))
        for layer in front.layers
        if hasattr(layer, "kernel")
    )
    assert found.macs == macs
    assert 0 < found.macs < measure(config, image_size=64).macs


# ---------------------------------------------------------------- the same training


@pytest.mark.slow  # it trains
@pytest.mark.parametrize(("stage", "parts"), [(3, 1), (2, 3)])
def test_the_weights_are_those_of_training_the_whole_network_on_the_same_views(rows, stage, parts):
    """Over more than all views, so that each comes again, and batches go over their ends."""
    found = []
    for is_cut in (False, True):
        keras.utils.set_random_seed(5)
        model = network(stage)
        start = [np.array(v) for v in model.variables]
        optimizer = optimizer_for(model, "adamw", weight_decay=0.05, layer_decay=0.5, clip_norm=1.0)
        optimizer.learning_rate = 3e-3
        cut = divided(model)
        batches = behind(rows, cut) if is_cut else data(rows)
        step = train_step(cut.tail if is_cut else model, optimizer, parts=parts)
        losses = [float(step(*batch)) for batch in islice(batches.batches(), 14)]
        found.append((losses, [np.array(v) for v in model.variables]))
        learned = {v.path for v in model.trainable_variables}
        for before, variable in zip(start, model.variables, strict=True):
            is_same = np.array_equal(before, np.array(variable))
            assert is_same == (variable.path not in learned), variable.path
    (losses, whole), (cut_losses, tail) = found
    np.testing.assert_allclose(losses, cut_losses, rtol=1e-5)
    for one, other in zip(whole, tail, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_there_are_as_many_views_as_asked_for_and_no_more(rows):
    seen = {}
    stream = data(rows)
    images = np.concatenate([np.array(b[0]) for b in islice(stream.batches(), 22)])
    which, passes = (
        np.concatenate(found) for found in zip(*map(stream.shown, range(22)), strict=True)
    )
    for image, row, number in zip(images, which, passes, strict=True):
        seen.setdefault((row, number % VIEWS), []).append(image)
    assert len(seen) == COUNT * VIEWS
    assert all(np.array_equal(one, other) for one, *more in seen.values() for other in more)
    assert max(map(len, seen.values())) > 2
    firsts = [shown[0] for shown in seen.values()]
    assert len({image.tobytes() for image in firsts}) == len(firsts)
    assert [len(set(which[22 * k : 22 * k + 22])) for k in range(6)] == [22] * 6
    for number in range(VIEWS):
        laid_out = np.concatenate([np.array(part) for part in stream.view(number, 5)])
        for row in range(COUNT):
            assert np.array_equal(laid_out[row], seen[row, number][0])


@pytest.mark.parametrize("worker", [(0, 1), (1, 2)])
def test_passes_are_those_that_the_images_of_batches_are_of(rows, worker):
    stream = data(rows, worker=worker)
    for start in range(9):
        for count in (1, 2, 7):
            shown = [stream.shown(number)[1] for number in range(start, start + count)]
            assert set(stream.passes(start, count)) == set(np.concatenate(shown).tolist())


def test_without_a_number_of_views_each_pass_has_its_own(rows):
    images = [np.array(b[0]) for b in islice(data(rows, views=None).batches(), 22)]
    shown = {image.tobytes() for image in np.concatenate(images)}
    assert len(shown) == 22 * BATCH


@pytest.mark.slow  # many streams are set up
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_a_stream_that_is_gone_on_with_is_the_same_bit_for_bit(rows, tmp_path, dtype, on_disk):
    def stream(number):
        cut = divided(network(dtype=dtype))
        if not on_disk:
            return behind(rows, cut)
        names = names_of(cut.front, rows, PREPARED, AUGMENTATION, seed=11, at_once=BATCH)
        return behind(rows, cut, kept=Kept(tmp_path / str(number)), name_of=names)

    whole = list(islice(stream(0).batches(), 10))
    assert whole[0][0].dtype == {"float32": tf.float32}.get(dtype, tf.bfloat16)
    for number, start in enumerate((0, 3, 7), 1):
        for one, other in zip(whole[start:], stream(number).batches(start), strict=False):
            for a, b in zip(one, other, strict=True):
                assert np.array_equal(np.array(a), np.array(b))


def test_what_was_kept_is_found_and_not_computed_again(rows, tmp_path, monkeypatch):
    cut = divided(network())
    names = names_of(cut.front, rows, PREPARED, AUGMENTATION, seed=11, at_once=BATCH)
    options = {"kept": Kept(tmp_path), "name_of": names}
    first = next(behind(rows, cut, **options).batches())
    assert len(list(tmp_path.iterdir())) == 1  # the view that was asked for
    monkeypatch.setattr(TrainingData, "view", None)
    again = next(behind(rows, cut, **options).batches())
    assert np.array_equal(first[0], again[0])
    other = names_of(cut.front, rows, PREPARED, AUGMENTATION, seed=12, at_once=BATCH)
    with pytest.raises(TypeError):
        next(behind(rows, cut, kept=Kept(tmp_path), name_of=other).batches())


def test_views_are_computed_beforehand_and_one_part_at_a_time(rows):
    stream = behind(rows, divided(network()))
    assert list(preparing(stream, 0, 1)) == [6, 12, 18, 22]
    assert list(preparing(stream, 0, 2)) == []
    assert list(preparing(stream, 1, 3)) == [6, 12, 18, 22]  # batch 3 goes over the end
    assert list(preparing(stream, 50, 9)) == []
    assert list(preparing(data(rows), 0, 9)) == []


def test_a_budget_counts_the_views_that_are_still_to_be_computed(rows):
    stream = behind(rows, divided(network()), views=4)
    stream._view_s = 10.0
    stream._features = {0: None}
    assert epochs_within(stream, 40.0, 2.0) == 3  # of 12 s each
    assert epochs_within(stream, 50.0, 2.0) == 10  # 30 s, and 20 s of epochs
    assert epochs_within(stream, -5.0, 2.0) == 0
    assert epochs_within(data(rows), 50.0, 2.0) == 25


@pytest.mark.slow  # many streams are set up
def test_an_image_that_is_lost_is_replaced(rows, tmp_path):
    copies = []
    for row in rows:
        path = tmp_path / row.path.replace(os.sep, "-")
        path.write_bytes(row.read())
        copies.append(replace(row, path=str(path)))
    told = []
    cut = divided(network())
    made = data(copies, max_bad=0.1, tell=told.append)
    stream = CutData(made, cut, rows=COUNT, views=VIEWS, at_once=BATCH)
    list(stream.prepare(0, 1))
    Path(copies[8].path).unlink()
    batches = list(islice(stream.batches(), 14))
    assert [problem.path for problem in told] == [copies[8].path]
    assert np.isfinite(np.concatenate([np.array(b[0]) for b in batches])).all()
    (lost,) = {8}
    shown = np.concatenate([made.shown(k)[0] for k in range(14)])
    assert lost not in shown
    for copy in copies[:5]:
        Path(copy.path).unlink()
    fresh = CutData(data(copies, max_bad=0.1), cut, rows=COUNT, views=VIEWS, at_once=BATCH)
    with pytest.raises(DataError, match=r"At most 10% of the images may be lost"):
        next(fresh.batches())


def test_validation_images_are_looked_at_once(rows):
    cut = divided(network())
    seen = []

    class Counting:
        def __iter__(self):
            seen.append(1)
            return iter(evaluation_batches(rows, PREPARED, batch_size=BATCH))

    batches = Looked(cut.front, Counting())
    first, second = list(batches), list(batches)
    assert seen == [1]
    labels = np.concatenate([np.array(y) for _, y in first])
    assert labels.tolist() == [row.label for row in rows]
    images = np.concatenate([np.array(x) for x, _ in Counting()])
    expected = cut.front(images, training=False)
    found = np.concatenate([np.array(x) for x, _ in second])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- never stale


def name(rows, **given):
    """The name of a view, with something else than usual."""
    stage, dtype, view = given.pop("stage", 3), given.pop("dtype", "float32"), given.pop("view", 0)
    model = network(stage, dtype=dtype)
    change = given.pop("change", None)
    if change:
        change(model)
    options = {"seed": 11, "at_once": BATCH, "preprocessing": PREPARED} | given
    augmentation = options.pop("augmentation", AUGMENTATION)
    preprocessing = options.pop("preprocessing")
    return names_of(divided(model).front, rows, preprocessing, augmentation, **options)(view)


def nudge(model):
    variable = divided(model).front.variables[-1]
    value = np.array(variable)
    value.flat[-1] = np.nextafter(value.flat[-1], np.float32(9))
    variable.assign(value)


OTHERS = {
    "weights": {"change": nudge},
    "the network's part": {"stage": 2},
    "numeric type": {"dtype": "mixed_bfloat16"},
    "image size": {"preprocessing": replace(PREPARED, image_size=48)},
    "crop": {"preprocessing": replace(PREPARED, crop_pct=0.9)},
    "interpolation": {"preprocessing": replace(PREPARED, interpolation="bicubic")},
    "mean": {"preprocessing": replace(PREPARED, mean=(0.4, 0.5, 0.6))},
    "std": {"preprocessing": replace(PREPARED, std=(0.2, 0.3, 0.4))},
    "policy": {"augmentation": replace(AUGMENTATION, policy="trivial")},
    "smallest crop": {"augmentation": replace(AUGMENTATION, min_area=0.4)},
    "mirroring": {"augmentation": replace(AUGMENTATION, flip=False)},
    "upside down": {"augmentation": replace(AUGMENTATION, vertical_flip=True)},
    "colour": {"augmentation": replace(AUGMENTATION, color=0.3)},
    "erasing": {"augmentation": replace(AUGMENTATION, erase=0.5)},
    "seed": {"seed": 12},
    "view": {"view": 1},
    "images at a time": {"at_once": 7},
}


@pytest.fixture(scope="module")
def usual(rows):
    assert name(rows) == name(rows)
    return name(rows)


@pytest.mark.parametrize("what", OTHERS)
def test_another_setting_is_another_name(rows, usual, what):
    assert name(rows, **OTHERS[what]) != usual


def test_every_setting_of_preprocessing_and_augmentation_is_tried():
    tried = {
        (kind, field.name)
        for other in OTHERS.values()
        for kind, usual in (("preprocessing", PREPARED), ("augmentation", AUGMENTATION))
        if kind in other
        for field in fields(usual)
        if getattr(other[kind], field.name) != getattr(usual, field.name)
    }
    of_view = {field.name for field in fields(Augmentation)}
    of_view -= {"mixup", "cutmix", "repeats", "smoothing"}  # not of one image
    assert tried == {("preprocessing", field.name) for field in fields(Preprocessing)} | {
        ("augmentation", one) for one in of_view
    }


def test_other_images_are_another_name(rows, usual, tmp_path):
    assert name(rows[::-1]) != usual
    assert name(rows[:-1]) != usual
    copy = tmp_path / "copy.png"
    copy.write_bytes(rows[5].read())
    moved = (*rows[:5], replace(rows[5], path=str(copy)), *rows[6:])
    assert name(moved) == usual  # the same bytes elsewhere
    contents = bytearray(copy.read_bytes())
    contents[-20] ^= 1
    stamp = copy.stat()
    copy.write_bytes(contents)
    os.utime(copy, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # of the same length and time
    assert name(moved) != usual
    copy.unlink()
    with pytest.raises(DataError, match=r"must stay where they are. Received: .*copy.png"):
        name(moved)


@pytest.mark.parametrize(
    ("target", "value"),
    [
        ("kresnet.train.kept._code", lambda: "other"),
        ("kresnet.train.kept._devices", lambda: ["a GPU"]),
        ("keras.__version__", "99"),
    ],
)
def test_another_code_or_machine_is_another_name(rows, usual, monkeypatch, target, value):
    monkeypatch.setattr(target, value)
    assert name(rows) != usual


@pytest.mark.parametrize("field", ["threads", "processor", "tensorflow"])
def test_another_circumstance_is_another_name(rows, usual, monkeypatch, field):
    here = Circumstances.here()
    other = replace(here, **{field: 77 if field == "threads" else "other"})
    monkeypatch.setattr(Circumstances, "here", classmethod(lambda cls: other))
    assert name(rows) != usual


def test_a_setting_of_the_environment_is_another_name(rows, usual, monkeypatch):
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    assert name(rows) != usual


def test_the_code_is_that_of_the_packages_that_compute(tmp_path, monkeypatch):
    for part in kept._CODE:
        (tmp_path / part / "deep").mkdir(parents=True)
        (tmp_path / part / "deep" / "a.py").write_text("1")
    monkeypatch.setattr(kept.kresnet, "__file__", str(tmp_path / "__init__.py"))
    names = [kept._code.__wrapped__()]
    for part in kept._CODE:
        (tmp_path / part / "deep" / "a.py").write_text("2")
        names.append(kept._code.__wrapped__())
    assert len(set(names)) == 1 + len(kept._CODE)


# ---------------------------------------------------------------- full disks, and settings


def test_a_disk_that_is_full_is_told_in_a_line(rows, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    stream = behind(rows, divided(network()), kept=Kept(blocked), name_of=str)
    with pytest.raises(ResourceError, match=r"features at the cut must be writable.*cut_cache=non"):
        next(stream.batches())


def test_a_view_that_is_left_half_way_leaves_nothing(rows, tmp_path):
    stream = behind(rows, divided(network()), kept=Kept(tmp_path), name_of=str)
    steps = stream.prepare(0, 1)
    assert next(steps) == BATCH
    steps.close()
    assert not list(tmp_path.iterdir())


def planned(preset="fast", num_images=420, **given):
    return explained(
        data="photos", num_images=num_images, classes=("a cat", "a dog"), variant="resnet50",
        weights="imagenet", image_size=224, preset=preset,
        overrides={"precision": "bfloat16"} | given,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("train_from", 1), ("mixup", 0.2), ("cutmix", 1.0), ("repeats", 2), ("progressive", 0.5),
        ("drop_path_rate", 0.1),
    ],
)  # fmt: skip
def test_what_changes_the_images_of_a_step_is_refused_and_not_planned(field, value):
    with pytest.raises(ConfigError, match=rf"Received: cut_cache='disk' with {field}={value}\."):
        planned(cut_cache="disk", **{field: value})
    made = planned(**{field: value})
    assert made.recipe.cut_cache == "none"
    assert f"{field}={value}" in made.reasons["cut_cache"]
    with pytest.raises(ConfigError, match=rf"with {field}={value}"):
        rerun(planned(cut_cache="memory").recipe, {field: value})


def test_the_plan_cuts_where_it_is_said_to_and_where_it_pays(monkeypatch):
    monkeypatch.setattr(cut_plan, "memory", lambda: 8 * 10**9)
    made = planned()
    assert (made.recipe.cut_cache, made.recipe.train_from, made.recipe.epochs) == ("memory", 4, 5)
    # Of 5 epochs: 5 of 4.09 + 2 * .81 billion multiplications, or 2 of 3.28 and 5 of 3 * .81.
    assert made.recipe.cut_views == 2
    assert "66% of the work of 5 epochs, in 337 MB" in made.reasons["cut_cache"]
    assert "at most 75%" in made.reasons["cut_views"]
    assert planned(epochs=30).recipe.cut_views == 8
    assert planned(epochs=2).recipe.cut_cache == "none"
    assert "2 epochs: too few to pay" in planned(epochs=2).reasons["cut_cache"]
    assert "cut_cache" not in planned(epochs=0).reasons
    large = planned(num_images=19_000, epochs=30)
    assert large.recipe.cut_cache == "none"
    assert "two views of 19,000 images take 15.3 GB" in large.reasons["cut_cache"]
    some = planned(num_images=1_000, epochs=30)
    assert (some.recipe.cut_cache, some.recipe.cut_views) == ("memory", 4)


def test_other_presets_are_as_they_were_measured():
    made = planned("default")
    assert made.recipe.cut_cache == "none"
    assert "preset default" in made.reasons["cut_cache"]
    assert planned("default", cut_cache="memory", cut_views=3).recipe.cut_views == 3
    assert Recipe.model_fields["cut_cache"].default == "none"


def test_a_cut_is_what_it_is_made_of():
    model = network()
    cut = divided(model)
    assert isinstance(cut, Cut)
    assert cuts.FOLDER == "cut"
    assert cut.front.output_shape[1:] == cut.tail.input_shape[1:]
