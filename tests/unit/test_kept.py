"""What is kept is found whole under its own name, or not at all."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import STRIPES, randomize

from kresnet.data.pipeline import evaluation_batches
from kresnet.data.scan import scan
from kresnet.train.kept import Kept, key_of, network_of
from kresnet.train.probe import Frozen, View
from kresnet.zoo import Preprocessing, build

RNG = np.random.default_rng(9)
ARRAY = RNG.normal(size=(5, 3)).astype("float32")


def keep(kept, key, arrays):
    with kept.keeping(key) as write:
        for array in arrays:
            write(array)


def test_what_is_kept_in_parts_is_found_as_a_whole(tmp_path):
    kept = Kept(tmp_path / "new")
    assert kept.find("a", (5, 12)) is None
    keep(kept, "a", [ARRAY[:2], ARRAY[2:]])
    found = kept.find("a", (5, 12))
    assert np.array_equal(np.array(found).view(np.float32), ARRAY)
    assert not found.flags.writeable
    assert kept.find("b", (5, 12)) is None


@pytest.mark.parametrize("at", [0, 31, 60, -1])
def test_a_damaged_file_is_no_file(tmp_path, at):
    kept = Kept(tmp_path)
    keep(kept, "a", [ARRAY])
    path = tmp_path / "a"
    contents = bytearray(path.read_bytes())
    contents[at] ^= 4
    path.write_bytes(contents)
    assert kept.find("a", (5, 12)) is None
    assert not path.exists()


def test_a_file_of_another_length_or_name_is_no_file(tmp_path):
    kept = Kept(tmp_path)
    for change in (lambda c: c[:-1], lambda c: c + b"x", lambda c: b""):
        keep(kept, "a", [ARRAY])
        path = tmp_path / "a"
        path.write_bytes(change(path.read_bytes()))
        assert kept.find("a", (5, 12)) is None
    keep(kept, "a", [ARRAY])
    (tmp_path / "a").rename(tmp_path / "b")
    assert kept.find("b", (5, 12)) is None
    keep(kept, "a", [ARRAY])
    assert kept.find("a", (5, 11)) is None


def test_an_error_on_the_way_keeps_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError):
        keep(Kept(tmp_path), "a", (ARRAY * (1 // k) for k in (1, 0)))
    assert not list(tmp_path.iterdir())


def test_what_was_not_asked_for_the_longest_is_forgotten(tmp_path):
    kept = Kept(tmp_path, most=2 * 92)
    keep(kept, "a", [ARRAY])
    keep(kept, "b", [ARRAY])
    assert kept.find("a", (5, 12)) is not None
    keep(kept, "c", [ARRAY])
    assert {path.name for path in tmp_path.iterdir()} == {"a", "c"}


def test_a_name_is_of_all_its_parts():
    names = {key_of(a=1), key_of(a=2), key_of(b=1), key_of(a=[1]), key_of(a=1, b=1)}
    assert len(names) == 5
    assert key_of(a=1, b=2) == key_of(b=2, a=1)


def small(**options):
    model = build("resnet8_cifar", num_classes=4, input_shape=(32, 32), dtype="float32", **options)
    return randomize(model, seed=2)


def test_a_network_is_its_layers_and_weights_and_not_its_name_in_the_process():
    usual = network_of(small())
    assert network_of(small()) == usual
    assert network_of(small(activation="gelu")) != usual
    for place in (0, 7, -1):
        other = small()
        variable = other.variables[place]
        variable.assign(np.nextafter(np.array(variable), np.float32(9)))
        assert network_of(other) != usual


@pytest.fixture
def looks(monkeypatch, tmp_path):
    """How often images have been looked at, with a cache of its own."""
    monkeypatch.setenv("KRESNET_HOME", str(tmp_path / "home"))
    counted, inner = [], Frozen.features

    def counting(*args, **options):
        counted.append(1)
        return inner(*args, **options)

    monkeypatch.setattr(Frozen, "features", counting)
    return counted


@pytest.fixture
def rows(striped, tmp_path):
    """Copies of eight images, to be changed."""
    for name in STRIPES:
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(2):
            copy = tmp_path / "data" / name / f"{k}.png"
            copy.write_bytes((striped / name / f"{k}.png").read_bytes())
    return scan(tmp_path / "data").rows


PREPARED = Preprocessing(image_size=32)


def features_of(model, *args, precision="float32", **options):
    x, y = Frozen(model, precision=precision).features_of(*args, **options)
    assert y.tolist() == [row.label for row in args[0]]
    return x


def test_features_are_computed_once_and_the_same(looks, rows):
    model = small()
    first = features_of(model, rows, PREPARED)
    done = []
    again = features_of(small(), rows, PREPARED, progress=done.append)
    assert len(looks) == 1
    assert done == [8]
    assert np.array_equal(first, again)
    again += 1  # whoever gets them may change them
    expected, _ = Frozen(model, precision="float32").features(
        evaluation_batches(rows, PREPARED, batch_size=32)
    )
    assert np.array_equal(first, expected)


@pytest.mark.slow  # each is computed
def test_features_of_anything_else_are_computed(looks, rows, monkeypatch):
    def of(model=None, which=rows, preprocessing=PREPARED, view=None, precision="float32"):
        return features_of(model or small(), which, preprocessing, view, precision=precision)

    other = small()
    kernel = other.get_layer("stem_conv").kernel
    kernel.assign(np.array(kernel) * 1.5)
    usual = of()
    for number, given in enumerate(
        (
            {"model": other},
            {"which": rows[::-1]},
            {"which": rows[:5]},
            {"preprocessing": replace(PREPARED, crop_pct=0.7)},
            {"view": View(mirror=True)},
            {"view": View("narrow")},
            {"precision": "bfloat16"},
        ),
        start=2,
    ):
        found = of(**given)
        assert len(looks) == number
        assert found.shape != usual.shape or not np.array_equal(found, usual)
    with open(rows[3].path, "ab") as file:
        file.write(b" ")
    of()
    assert len(looks) == 9
    head = small()
    head.get_layer("head").kernel.assign(np.ones(head.get_layer("head").kernel.shape))
    of(model=head)
    assert len(looks) == 9  # the head has no part in it


def test_an_image_that_changes_meanwhile_is_not_kept(looks, rows, monkeypatch, tmp_path):
    inner = Frozen.features

    def changing(*args, **options):
        found = inner(*args, **options)
        with open(rows[0].path, "ab") as file:
            file.write(b" ")
        return found

    monkeypatch.setattr(Frozen, "features", changing)
    features_of(small(), rows, PREPARED)
    assert not (tmp_path / "home" / "features").exists()


def test_measurements_have_nothing_kept(looks, rows, monkeypatch, tmp_path):
    monkeypatch.setenv("KRESNET_KEEP_FEATURES", "0")
    for _ in range(2):
        features_of(small(), rows, PREPARED)
    assert len(looks) == 2
    assert not (tmp_path / "home" / "features").exists()


def test_a_folder_that_cannot_be_written_costs_nothing(looks, rows, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KRESNET_HOME", str(tmp_path / "file"))
    first, second = (features_of(small(), rows, PREPARED) for _ in range(2))
    assert len(looks) == 2
    assert np.array_equal(first, second)
