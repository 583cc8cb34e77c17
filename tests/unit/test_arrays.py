"""NumPy files and TIFF of many channels: what they decode to, and what is refused."""

import contextlib
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from test_archive import pack as pack_archive
from test_scan import classes_in, encoded, reasons, write

from kresnet.data import arrays, pixels
from kresnet.data.augment import Augmentation
from kresnet.data.pack import pack
from kresnet.data.pipeline import TrainingData, evaluation_batches
from kresnet.data.scan import Index, scan
from kresnet.data.split import split
from kresnet.errors import DataError
from kresnet.zoo import Preprocessing


def npy(values, **options):
    file = io.BytesIO()
    np.save(file, values, **options)
    return file.getvalue()


def tiff(values, **options):
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def random(shape, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return (1e4 * rng.normal(size=shape)).astype(dtype)
    return rng.integers(0, min(np.iinfo(dtype).max, 2**20), shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "int32", "float16", "float64"])
def test_numpy_files(dtype):
    values = random((9, 14, 5), dtype if dtype != "float16" else "float32")
    values = (values / 1e4 if dtype == "float16" else values).astype(dtype)
    np.testing.assert_array_equal(arrays.decode(npy(values)), values.astype("float32"))
    channels_first = npy(np.moveaxis(values, -1, 0))
    np.testing.assert_array_equal(arrays.decode(channels_first), values.astype("float32"))
    one = arrays.decode(npy(values[..., 0]))
    np.testing.assert_array_equal(one, values[..., :1].astype("float32"))
    ordered = npy(np.asfortranarray(values))
    np.testing.assert_array_equal(arrays.decode(ordered), values.astype("float32"))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "lzw"}])
def test_tiff_files(dtype, options):
    if options:
        pytest.importorskip("imagecodecs")
    pages = random((5, 9, 14), dtype)
    decoded = arrays.decode(tiff(pages, photometric="minisblack", **options))
    np.testing.assert_array_equal(decoded, np.moveaxis(pages, 0, -1).astype("float32"))
    rgb = random((9, 14, 3), dtype)
    decoded = arrays.decode(tiff(rgb, photometric="rgb", **options))
    np.testing.assert_array_equal(decoded, rgb.astype("float32"))
    grey = arrays.decode(tiff(pages[0], photometric="minisblack", **options))
    np.testing.assert_array_equal(grey[..., 0], pages[0].astype("float32"))


class Trap:
    """Unpickling it would be noticed."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was read",))


def with_shape(shape, descr="<f4"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


REFUSED = {
    "pickle.npy": (npy(np.array([Trap()]), allow_pickle=True), "not numbers but object: pickles"),
    "text.npy": (npy(np.array([["a", "b"], ["c", "d"]])), "not numbers but str32: pickles"),
    "complex.npy": (npy(np.ones((3, 4), complex)), "not numbers but complex128"),
    "nan.npy": (npy(np.array([[1.0, np.nan], [2.0, 3.0]])), "values that are not finite"),
    "line.npy": (npy(np.arange(5)), "no image: its shape is (5,)"),
    "empty.npy": (npy(np.zeros((0, 5))), "no image: its shape is (0, 5)"),
    "film.npy": (npy(random((3, 4, 5, 6))), "no image: its shape is (3, 4, 5, 6)"),
    "bomb.npy": (with_shape((10**6, 10**6)), "more than 100 million values"),
    "lies.npy": (with_shape((300, 300)) + bytes(99), "truncated NumPy file"),
    "many.npy": (npy(np.zeros((600, 20, 600), "uint8")), "more than 512 channels"),
    "header.npy": (npy(random((3, 4)))[:20], "damaged NumPy header"),
    "garbage.npy": (b"\x93NUMPY\x01\x00\x10\x00{'descr': !!!!!!", "damaged NumPy header"),
    "version.npy": (b"\x93NUMPY\x09\x00" + bytes(90), "damaged NumPy header"),
    "cut.tif": (b"II*\0\x08\0\0\0", "not a TIFF that can be decoded"),
}


def folder_of_arrays(root, count=10, shape=(12, 9, 5)):
    for label, name in enumerate("ab"):
        for k in range(count):
            values = random(shape, "uint16", seed=k + 100 * label)
            write(root / name / f"{k}.npy", npy(values))
    return root


def test_what_is_wrong_is_told(tmp_path):
    pytest.importorskip("tifffile")
    folder_of_arrays(tmp_path)
    for name, (contents, _) in REFUSED.items():
        write(tmp_path / "a" / name, contents)
    write(tmp_path / "a" / "other.npy", npy(random((12, 9, 4))))
    write(tmp_path / "a" / "phone.heic", b"\0\0\0\x18ftypheic")
    index = scan(tmp_path, max_bad=0.6)
    told = {path.removeprefix("a/"): reason for path, reason in reasons(index).items()}
    assert told.pop("other.npy") == "4 channels, not 5"
    assert told.pop("phone.heic") == "HEIC is not supported: convert to PNG or JPEG"
    assert set(told) == set(REFUSED)
    for name, (_, reason) in REFUSED.items():
        assert told[name].startswith(reason), name
    assert len(index.rows) == 20


@pytest.mark.parametrize("kind", ["npy", "tiff"])
def test_damage_is_told_and_nothing_else_happens(kind):
    values = random((3, 9, 14), "uint16")
    whole = npy(values) if kind == "npy" else tiff(values, photometric="minisblack")
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(100):
        damaged = bytearray(whole)
        damaged[int(rng.integers(6, 250 if number % 2 else len(whole)))] = int(rng.integers(256))
        try:
            assert arrays.decode(bytes(damaged)).ndim == 3
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017 - the damage may as well do no harm
    assert refused > 10


@pytest.mark.parametrize("kind", ["npy", "tiff", "pages", "packed pages"])
def test_a_truncated_file_never_gives_wrong_values(kind):
    """Of a TIFF whole pages may be lost, and then it has fewer channels than the others."""
    values = random((9, 14, 3), "uint16")
    pages = np.moveaxis(values, -1, 0)
    options = {
        "tiff": {},
        "pages": {"metadata": None},
        "packed pages": {"metadata": None, "compression": "zlib"},
    }
    whole = npy(values) if kind == "npy" else (
        tiff(pages, photometric="minisblack", **options[kind])
    )  # fmt: skip
    refused = 0
    for tenth in range(1, 10):
        decoded = None
        with contextlib.suppress(ValueError):
            decoded = arrays.decode(whole[: len(whole) * tenth // 10])
        if decoded is None:
            refused += 1
        else:
            np.testing.assert_array_equal(decoded, values[..., : decoded.shape[-1]])
    assert refused >= 4
    if kind == "npy":
        assert refused == 9


def test_beside_photos_arrays_are_no_images(tmp_path):
    folder_of_arrays(tmp_path)
    classes_in(tmp_path, "a", "b")
    index = scan(tmp_path)
    assert {row.path.rsplit(".")[-1] for row in index.rows} == {"png"}
    assert arrays.channels(index.rows) is None


def test_a_folder_of_arrays(tmp_path):
    pytest.importorskip("tifffile")
    folder_of_arrays(tmp_path / "data")
    values = random((5, 20, 11), "uint16", 7)
    write(tmp_path / "data" / "b" / "pages.tif", tiff(values, photometric="minisblack"))
    index = scan(tmp_path / "data", max_bad=0)
    assert index.counts() == {None: {"a": 10, "b": 11}}
    assert arrays.channels(index.rows) == 5
    assert {(r.height, r.width, r.traits) for r in index.rows} == {
        (12, 9, "channels-5"), (20, 11, "channels-5")
    }  # fmt: skip
    index.save(tmp_path)
    assert Index.load(tmp_path) == index
    with pytest.raises(DataError, match="TFDS's images are photos"):
        pack(index, tmp_path / "out")


@pytest.mark.parametrize("kind", ["t.tar", "t.zip", "t.tar.gz"])
def test_arrays_in_archives(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("KRESNET_HOME", str(tmp_path / "home"))
    contents = {f"{n}/{k}.npy": npy(random((8, 9, 2), seed=k)) for n in "ab" for k in range(3)}
    index = scan(pack_archive(tmp_path / kind, contents))
    small = Preprocessing(image_size=8, mean=(0.0, 0.0), std=(1.0, 1.0))
    images, _ = next(iter(evaluation_batches(index.rows, small, batch_size=9)))
    assert images.shape == (6, 8, 8, 2)


def test_mean_and_std_are_those_of_all_values(tmp_path):
    index = scan(folder_of_arrays(tmp_path, count=4))
    offset = np.array([1e6, 0, -3, 5, 5])
    for row in index.rows:
        values = arrays.decode(row.read()) + offset
        values[..., 4] = 5.0  # never changes
        write(tmp_path / "new" / row.path[-7:].replace("/", "_"), npy(values))
    rows = [row for name in "ab" for row in index.rows if f"/{name}/" in row.path]
    rows = [
        replace(row, path=str(tmp_path / "new" / row.path[-7:].replace("/", "_")))
        for row in index.rows
    ]
    found = arrays.measured(Preprocessing(interpolation="bicubic"), rows)
    values = np.concatenate([np.load(row.path).reshape(-1, 5) for row in rows])
    expected = values.astype("float32").astype("float64")
    np.testing.assert_allclose(np.array(found.mean) * 255, expected.mean(axis=0), rtol=1e-12)
    std = expected.std(axis=0)
    assert std[4] == 0
    np.testing.assert_allclose(np.array(found.std) * 255, [*std[:4], 1], rtol=1e-9)
    assert found.interpolation == "bilinear"


def test_batches_are_normalised_in_the_units_of_the_files(tmp_path):
    index = split(scan(folder_of_arrays(tmp_path, shape=(16, 16, 5))), val=0.3)
    rows = index.select("train")
    preprocessing = arrays.measured(Preprocessing(image_size=16, crop_pct=1.0), rows)
    images = np.concatenate([x for x, _ in evaluation_batches(rows, preprocessing, batch_size=4)])
    assert images.shape == (len(rows), 16, 16, 5)
    np.testing.assert_allclose(images.mean(axis=(0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(images.std(axis=(0, 1, 2)), 1, rtol=1e-4)
    data = TrainingData(
        rows, preprocessing, num_classes=2, batch_size=4, augmentation=Augmentation(), seed=0
    )
    assert data.augmentation.policy == "none"  # colours are of photos
    batch = next(data.batches())[0]
    assert batch.shape == (4, 16, 16, 5)
    assert np.isfinite(batch).all()


def test_photos_are_decoded_as_ever(tmp_path):
    rows = scan(classes_in(tmp_path, "a", "b")).rows
    assert arrays.decoder(rows) is pixels.decode
    contents = tf.constant(encoded())
    assert arrays.decoder(rows)(contents).dtype == tf.uint8


def test_training_on_arrays(tmp_path):
    from kresnet.console import Console
    from kresnet.errors import ConfigError
    from kresnet.workflow import export_run, fit

    root = folder_of_arrays(tmp_path / "data", count=6, shape=(32, 32, 5))
    result = fit(
        root, variant="resnet8_cifar", weights=None, epochs=1, batch_size=4, precision="float32",
        val=0.34, out=tmp_path / "runs", exports=tmp_path / "exports", console=Console(quiet=True),
    )  # fmt: skip
    assert result.export is None
    assert result.as_dict()["export"] is None
    assert result.validation.n == 4
    said = json.loads((result.run / "preprocessing.json").read_text())
    assert len(said["mean"]) == len(said["std"]) == 5
    assert (result.run / "model.weights.safetensors").is_file()
    assert not (tmp_path / "exports").exists()
    with pytest.raises(ConfigError, match="on photos can be exported"):
        export_run(result.run)
