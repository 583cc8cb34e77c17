"""Records: packed by kresnet, prepared by TFDS, or somebody else's; images read at their place."""

import gzip
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from test_manifest import as_csv
from test_scan import classes_in, encoded, write
from typer.testing import CliRunner

from kresnet.cli import app
from kresnet.data.pack import pack
from kresnet.data.pipeline import evaluation_batches
from kresnet.data.scan import scan
from kresnet.data.sources import listing, name_of
from kresnet.data.split import split
from kresnet.errors import ConfigError, DataError, ResourceError
from kresnet.zoo import Preprocessing

tfds = pytest.importorskip("tensorflow_datasets")

KINDS = {"png": "PNG", "jpg": "JPEG", "gif": "GIF", "webp": "WEBP", "bmp": "BMP"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("KRESNET_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def photos(tmp_path):
    """Split folders with images of every format, and one that cannot be used."""
    root = tmp_path / "photos"
    number = 0
    for part, count in (("train", 12), ("val", 4), ("test", 3)):
        for name in ("ant", "bee, é"):
            for k in range(count):
                number += 1
                suffix = list(KINDS)[k % len(KINDS)]
                write(root / part / name / f"{k}.{suffix}", encoded(KINDS[suffix], seed=number))
    write(root / "train" / "ant" / "bad.jpg", b"")
    return root


def what_is_in(index):
    """Class, split and bytes of every image, whatever the order."""
    return sorted((index.classes[r.label], r.split or "", r.digest, r.read()) for r in index.rows)


def test_packed_images_come_back_as_they_were(photos, tmp_path):
    index = scan(photos)
    told = []
    packed = pack(
        index, tmp_path / "My flowers", shards=3, progress=lambda *counts: told.append(counts)
    )
    assert packed.images == {"test": 6, "train": 24, "validation": 8}
    assert packed.shards == {"test": 3, "train": 3, "validation": 3}
    assert told == [(k, 38) for k in range(1, 39)]
    again = scan(packed.path, max_bad=0)
    assert again.classes == index.classes
    assert again.counts() == index.counts()
    assert what_is_in(again) == what_is_in(index)
    assert {row.member.split(" ", 1)[1] for row in again.rows} == {
        os.path.relpath(row.path, photos) for row in index.rows
    }
    assert not (tmp_path / "home" / "unpacked").exists()  # no copy was made
    small = Preprocessing(image_size=16, crop_pct=1.0)
    batches = [
        {row.digest: image for row, image in zip(rows, images.numpy(), strict=True)}
        for rows in (index.rows, again.rows)
        for images, _ in evaluation_batches(rows, small, batch_size=50)
    ]
    for digest, image in batches[0].items():
        np.testing.assert_array_equal(batches[1][digest], image)


def test_tfds_reads_what_was_packed(photos, tmp_path):
    for file in photos.glob("val/*/*.[gw]*"):  # TFDS decodes all frames of GIF and WebP, and fails
        file.unlink()
    index = scan(photos)
    packed = pack(index, tmp_path / "2 flowers", shards=2)
    builder = tfds.builder_from_directory(packed.path)
    assert builder.info.features["label"].names == ["ant", "bee, é"]
    assert {n: s.num_examples for n, s in builder.info.splits.items()} == packed.images
    assert builder.info.supervised_keys == ("image", "label")
    raw = builder.as_dataset(
        split="train+validation+test", decoders={"image": tfds.decode.SkipDecoding()}
    )
    found = sorted(
        (index.classes[e["label"]], e["image"], e["name"].decode()) for e in raw.as_numpy_iterator()
    )
    assert found == sorted(
        (index.classes[r.label], r.read(), os.path.relpath(r.path, photos)) for r in index.rows
    )
    images = [e["image"] for e in builder.as_dataset(split="validation").as_numpy_iterator()]
    assert {image.shape for image in images} == {(9, 14, 3)}


def test_packing_is_deterministic_and_images_are_mixed(photos, tmp_path):
    moved = shutil.copytree(photos, tmp_path / "elsewhere")
    first = pack(scan(photos), tmp_path / "a" / "out", shards=2)
    second = pack(scan(moved), tmp_path / "b" / "out", shards=2)
    for file in sorted(first.path.iterdir()):
        assert file.read_bytes() == (second.path / file.name).read_bytes(), file.name
    assert len(list(second.path.iterdir())) == len(list(first.path.iterdir()))
    labels = [item.label for item in listing(first.path).items if item.split == "train"]
    assert labels != sorted(labels)


def test_groups_weights_and_images_without_a_split_are_kept(tmp_path):
    classes_in(tmp_path, "a", "b", count=4)
    lines = [
        {"path": f"{n}/{k}.png", "label": n, "group": f"g{k // 2}", "weight": 0.5 + k}
        for n in "ab"
        for k in range(4)
    ]
    index = scan(as_csv(tmp_path / "m.csv", lines))
    packed = pack(index, tmp_path / "out")
    assert packed.images == {"train": 8}
    again = scan(packed.path)
    assert again.counts() == index.counts() == {None: {"a": 4, "b": 4}}
    assert sorted((r.digest, r.group, r.weight) for r in again.rows) == sorted(
        (r.digest, r.group, r.weight) for r in index.rows
    )
    first, second = split(index), split(again)
    assert {r.digest: r.split for r in first.rows} == {r.digest: r.split for r in second.rows}


def test_a_damaged_or_missing_shard_is_named(photos, tmp_path):
    packed = pack(scan(photos), tmp_path / "out", shards=2)
    shard = sorted(packed.path.glob("*train*"))[1]
    whole = shard.read_bytes()
    for damaged in (whole[:-1], whole + b"x", bytes([whole[0] ^ 1]) + whole[1:], b""):
        shard.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"as it was packed. Received: .*{shard.name}.*damag"):
            scan(packed.path)
    shard.unlink()
    with pytest.raises(DataError, match=rf"as it was packed. Received: .*{shard.name}.*missing"):
        scan(packed.path)
    (packed.path / "kresnet_shards.json").write_text('{"classes": []}')
    with pytest.raises(DataError, match=r"as it was written. Received: .*KeyError: 'shards'"):
        scan(packed.path)


def test_packing_is_all_or_nothing(photos, tmp_path):
    index = scan(photos)
    Path(index.rows[7].path).write_bytes(encoded(seed=99))
    with pytest.raises(DataError, match=r"stay as they are .* Received: .*, which has changed"):
        pack(index, tmp_path / "made" / "out")
    assert list((tmp_path / "made").iterdir()) == []
    with pytest.raises(ConfigError, match=r"must be a new folder. Received: .*, which is there"):
        pack(index, photos)
    with pytest.raises(ConfigError, match=r"`shards` must be 1 or more. Received: shards=0"):
        pack(index, tmp_path / "out", shards=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"writable and have room"):
        pack(scan(photos), tmp_path / "file" / "out")


def test_the_command(photos, tmp_path):
    arguments = ["data", "pack", str(photos), str(tmp_path / "out"), "--shards", "2", "--json"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "path": str(tmp_path / "out"),
        "images": {"test": 6, "train": 24, "validation": 8},
        "shards": {"test": 2, "train": 2, "validation": 2},
        "left_out": 1,
    }


def test_without_tensorflow_datasets(photos, tmp_path, monkeypatch):
    packed = pack(scan(photos), tmp_path / "out")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert len(scan(packed.path).rows) == 38  # reading needs no package
    with pytest.raises(ResourceError, match=r"pip install 'kresnet\[tfds\]'"):
        pack(scan(photos), tmp_path / "again")
    with pytest.raises(ResourceError, match=r"source='tfds:x'. Install it: pip install 'kresnet"):
        scan("tfds:x")


class StripedPhotos(tfds.core.GeneratorBasedBuilder):
    """A data set as TFDS's users write them."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [  # noqa: RUF012
        tfds.core.BuilderConfig(name="small"), tfds.core.BuilderConfig(name="single"),
        tfds.core.BuilderConfig(name="unlabelled"),
    ]  # fmt: skip

    def _info(self):
        features = {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names=["rose", "tulip"]),
            "id": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label") if self.builder_config.name == "small" else None,
        )

    def _split_generators(self, manager):
        if self.builder_config.name == "single":
            return {"train": self._generate_examples(0, 10)}
        return {
            "train": self._generate_examples(0, 10),
            "validation": self._generate_examples(10, 14),
            "extra": self._generate_examples(14, 17),
        }

    def _generate_examples(self, start, stop):
        for k in range(start, stop):
            import io

            is_odd = self.builder_config.name == "unlabelled" and k % 5 == 0
            label = -1 if is_odd else k % 2
            kind = "JPEG" if k % 3 else "PNG"
            file = io.BytesIO(encoded(kind, seed=k))
            yield str(k), {"image": file, "label": label, "id": f"i{k}"}


def expected_image(k):
    return encoded("JPEG" if k % 3 else "PNG", seed=k)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Real data sets of TFDS, generated here, in both of its file formats."""
    folders = {}
    for kind in ("tfrecord", "array_record"):
        if kind == "array_record":
            pytest.importorskip("array_record")
        folders[kind] = tmp_path_factory.mktemp(kind)
        for config in ("small", "single", "unlabelled"):
            builder = StripedPhotos(
                data_dir=folders[kind], config=config, file_format=kind
            )  # fmt: skip
            options = tfds.download.DownloadConfig(try_download_gcs=False, num_shards=3)
            builder.download_and_prepare(download_config=options)
    return folders


@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
def test_data_sets_of_tfds(prepared, kind, monkeypatch, home):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared[kind]))
    index = scan("tfds:striped_photos:small", max_bad=0)
    assert index.classes == ("rose", "tulip")
    assert index.counts() == {"train": {"rose": 5, "tulip": 5}, "val": {"rose": 2, "tulip": 2}}
    assert [p.reason for p in index.problems] == ["split 'extra': ask for it with @extra"]
    found = {row.read(): row for row in index.rows}
    assert set(found) == {expected_image(k) for k in range(14)}
    for k in range(14):
        row = found[expected_image(k)]
        assert (row.label, row.split) == (k % 2, "train" if k < 10 else "val")
    assert (home / "unpacked").exists() is (kind == "array_record")
    images, labels = next(
        iter(evaluation_batches(index.rows, Preprocessing(image_size=8), batch_size=20))
    )
    assert images.shape == (14, 8, 8, 3)
    assert labels.numpy().tolist() == [row.label for row in index.rows]
    same = scan(prepared[kind] / "striped_photos" / "small" / "1.0.0", max_bad=0)
    assert same == index


@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
@pytest.mark.parametrize(
    ("expression", "splits"),
    [
        ("train", {"train": 10}),
        ("train[:3]+train[7:]+validation", {"train": 6, "val": 4}),
        ("train[20%:70%]", {"train": 5}),
        ("train[-2:] + extra", {"train": 2, None: 3}),
    ],
)
def test_splits_and_parts_of_them(prepared, kind, expression, splits, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared[kind]))
    listed = listing(f"tfds:striped_photos:small:1.0.0@{expression}")
    found = [item.split for item in listed.items]
    assert {split: found.count(split) for split in found} == splits
    builder = tfds.builder("striped_photos/small", data_dir=prepared[kind])
    options = {
        "split": expression.replace(" ", ""),
        "decoders": {"image": tfds.decode.SkipDecoding()},
    }
    if kind == "tfrecord":
        raw = builder.as_dataset(**options).as_numpy_iterator()
    else:
        raw = builder.as_data_source(**options)
    assert sorted(item.read() for item in listed.items) == sorted(e["image"] for e in raw)


def test_a_data_set_with_one_split_has_none_yet(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared["tfrecord"]))
    assert scan("tfds:striped_photos:single").counts() == {None: {"rose": 5, "tulip": 5}}
    assert {item.split for item in listing("tfds:striped_photos:single@train[:4]").items} == {None}


def test_images_without_a_label_are_told(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared["tfrecord"]))
    listed = listing("tfds:striped_photos:unlabelled@train")
    assert len(listed.items) == 8
    assert sum(int(problem.reason.split()[0]) for problem in listed.problems) == 2
    assert {problem.reason.split(" ", 1)[1] for problem in listed.problems} == {
        "images without a label"
    }


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tfds:", r"given as tfds:NAME\[:CONFIG\]\[@SPLITS\]. Received: source='tfds:'"),
        ("tfds:a b", r"given as tfds:NAME"),
        ("tfds:no_such_data_set_here", r"knows or has prepared. Received: source='tfds:no_such"),
        ("tfds:striped_photos:none", r"knows or has prepared. Received: source='tfds:striped_"),
        ("tfds:striped_photos:small@dev", r"one of train, validation, extra.* Received: 'dev' in"),
        ("tfds:striped_photos:small@train[:", r"one of train, .* Received: 'train\[:' in"),
    ],
)
def test_wrong_names_are_told(prepared, spec, message, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared["tfrecord"]))
    with pytest.raises(DataError, match=message) as error:
        listing(spec)
    assert "\n" not in str(error.value)


def test_without_a_network_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(ResourceError) as error:
        scan("tfds:striped_photos:small")
    message = str(error.value)
    assert "source='tfds:striped_photos:small', error=" in message
    assert "with `tfds build striped_photos/small`, and copy the folder to" in message
    assert str(tmp_path / "striped_photos" / "small" / "1.0.0") in message


def example(**features):
    kinds = {
        bytes: lambda v: tf.train.Feature(bytes_list=tf.train.BytesList(value=[v])),
        int: lambda v: tf.train.Feature(int64_list=tf.train.Int64List(value=[v])),
        float: lambda v: tf.train.Feature(float_list=tf.train.FloatList(value=[v])),
    }
    made = {name.replace("__", "/"): kinds[type(value)](value) for name, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()


def shard(path, records, options=None):
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path), options) as file:
        for record in records:
            file.write(record)
    return path


def imagenet_like(start, stop):
    return [
        example(image__encoded=encoded(seed=k), image__class__label=k % 3, image__width=14)
        for k in range(start, stop)
    ]


def test_shards_of_somebody_else(tmp_path, home):
    root = tmp_path / "shards"
    for number in range(2):
        shard(root / f"train.tfrecord-{number}-of-2", imagenet_like(6 * number, 6 * number + 6))
    shard(root / "validation.tfrecord.gz", imagenet_like(20, 24), "GZIP")
    (root / "labels.txt").write_text("ant\nbee, é\ncat\n", "utf-8")
    index = scan(root, max_bad=0)
    assert index.classes == ("ant", "bee, é", "cat")
    assert {s: sum(c.values()) for s, c in index.counts().items()} == {"train": 12, "val": 4}
    labels = {row.read(): row.label for row in index.rows}
    assert labels == {encoded(seed=k): k % 3 for k in [*range(12), *range(20, 24)]}
    assert len(list((home / "unpacked").iterdir())) == 1  # only what was gzipped
    (root / "train.tfrecord-1-of-2").unlink()
    with pytest.raises(DataError, match=r"must be there. Received: '.*train.tfrecord-1-of-2' is"):
        scan(root)


def test_a_single_file_of_records_and_classes_as_text(tmp_path):
    records = [example(image=encoded(seed=k), label=b"xy"[k % 2 : k % 2 + 1]) for k in range(6)]
    index = scan(shard(tmp_path / "some.tfrecords", records))
    assert index.counts() == {None: {"x": 3, "y": 3}}
    assert [row.member for row in index.rows] == ["0", "2", "4", "1", "3", "5"]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([b"\xff\xff nothing"], r"whose record 0 has no tf.train.Example"),
        ([example(picture=b"x", label=1)], r"whose record 0 has only label, picture. Records mu"),
        ([example(image=encoded())], r"whose record 0 has only image"),
        (
            [example(image=encoded(), label=1), example(image=3, label=1)],
            r"whose record 1 has 0 encoded images called 'image'",
        ),
        ([], r"must hold images"),
    ],
)
def test_records_of_something_else(tmp_path, records, message):
    with pytest.raises(DataError, match=message):
        scan(shard(tmp_path / "some.tfrecord", records))


def test_damaged_shards_are_named(tmp_path):
    path = shard(tmp_path / "some.tfrecord", imagenet_like(0, 9))
    whole = path.read_bytes()
    for damaged in (whole[:-3], whole[:1000], whole[:700] + b"\0\0" + whole[702:], b"\x1f\x8b\x08"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"whole file of records. Received: '.*some.tfrecord'"):
            scan(path)
    path.write_bytes(gzip.compress(whole)[:-30])
    with pytest.raises(DataError, match=r"whole file of records. Received: '.*some.tfrecord'"):
        scan(path)
    path = tmp_path / "some.array_record"
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"whole file of records. Received: '.*some.array_record'"):
        scan(path)


@pytest.mark.parametrize(
    ("source", "name"),
    [("tfds:mnist@train", "mnist"), ("x/flowers.tar.gz", "flowers"), ("x/my.photos", "my")],
)
def test_names_of_sources(source, name, tmp_path):
    assert name_of(source) == name
    (tmp_path / "my.photos").mkdir()
    assert name_of(tmp_path / "my.photos") == "my.photos"
