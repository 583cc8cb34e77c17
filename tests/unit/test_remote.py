"""Packed images behind URLs: listed without fetching them, read in parts, each once a pass."""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scan import encoded, write

from kresnet.data import remote, scan_cache
from kresnet.data.augment import Augmentation
from kresnet.data.items import Item, exists
from kresnet.data.pack import pack
from kresnet.data.pipeline import TrainingData, evaluation_batches
from kresnet.data.scan import Row, scan
from kresnet.data.sources import absolute, listing, name_of, unlabelled
from kresnet.data.split import split
from kresnet.errors import DataError, ResourceError
from kresnet.workflow.images import restore
from kresnet.zoo import Preprocessing

fsspec = pytest.importorskip("fsspec", reason="the extra `cluster` is not installed")
pytest.importorskip("tensorflow_datasets", reason="the extra `tfds` is not installed")

SMALL = Preprocessing(image_size=8, crop_pct=1.0)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Twenty images of two classes in three shards."""
    root = tmp_path_factory.mktemp("remote") / "photos"
    for number in range(20):
        name = ("ant", "bee, é")[number % 2]
        write(root / name / f"{number}.png", encoded("PNG", seed=number))
    return pack(scan(root), root.parent / "packed", shards=3).path


def upload(folder, url):
    for file in folder.iterdir():
        if url.startswith("ram://"):
            tf.io.gfile.makedirs(url)
            with tf.io.gfile.GFile(f"{url}/{file.name}", "wb") as out:
                out.write(file.read_bytes())
        else:
            with fsspec.open(f"{url}/{file.name}", "wb") as out:
                out.write(file.read_bytes())


@pytest.fixture(params=["memory://bucket/photos", "ram://bucket/photos"])
def url(packed, request):
    upload(packed, request.param)
    yield request.param
    if request.param.startswith("ram"):
        tf.io.gfile.rmtree(request.param)
    else:
        fsspec.filesystem("memory").rm("/bucket", recursive=True)


def batches_of(rows, count):
    data = TrainingData(
        rows, SMALL, num_classes=2, batch_size=6, augmentation=Augmentation(), seed=3
    )
    stream = data.batches()
    return [[part.numpy() for part in next(stream)] for _ in range(count)]


@pytest.fixture
def fetched(monkeypatch):
    """How often each part of each file was read."""
    seen, read = Counter(), remote.read

    def counted(path, offset=0, size=-1):
        seen[path, offset, size] += 1
        return read(path, offset, size)

    monkeypatch.setattr(remote, "read", counted)
    return seen


def test_images_behind_a_url_train_as_those_on_the_disk(packed, url, fetched, monkeypatch):
    here = scan(packed)
    monkeypatch.setattr(scan_cache, "examine", None)  # nothing is decoded to be listed
    there = scan(f"{url}/")
    assert not any("tfrecord" in path for path, _, _ in fetched)
    assert there.classes == here.classes
    assert there.counts() == here.counts()
    facts = [(r.label, r.digest, r.offset, r.size, r.member, r.look) for r in here.rows]
    assert [(r.label, r.digest, r.offset, r.size, r.member, r.look) for r in there.rows] == facts
    assert {row.path.rpartition("/")[0] for row in there.rows} == {url}
    assert [row.read() for row in there.rows] == [row.read() for row in here.rows]
    assert there.rows[0].read(9) == here.rows[0].read(9)
    for one, other in zip(batches_of(there.rows, 5), batches_of(here.rows, 5), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    divided = split(there), split(here)
    assert [row.split for row in divided[0].rows] == [row.split for row in divided[1].rows]
    assert len(unlabelled(url).items) == 20
    assert (absolute(url), name_of(f"{url}/")) == (url, "photos")


def test_each_worker_fetches_its_own_images_only(packed, url, fetched):
    rows = scan(url).rows
    fetched.clear()
    for worker in range(3):
        for images, _ in evaluation_batches(rows, SMALL, batch_size=4, worker=(worker, 3)):
            assert images.shape[1:] == (8, 8, 3)
    assert fetched == {(row.path, row.offset, row.size): 1 for row in rows}


def numbered(number):
    return Row("memory://none", number % 2, None, 8, 8, "", offset=number, size=1)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 60), st.integers(2, 40), st.integers(1, 4), st.integers(0, 2**31),
    st.integers(0, 5),
)  # fmt: skip
def test_no_image_is_lost_or_repeated_whatever_the_workers(count, batch, workers, seed, later):
    batch = min(batch, count)
    workers = min(workers, (batch + 1) // 2)
    rows = [numbered(number) for number in range(count)]
    each = [
        TrainingData(
            rows, SMALL, num_classes=2, batch_size=batch, augmentation=Augmentation(), seed=seed,
            worker=(worker, workers),
        )
        for worker in range(workers)
    ]  # fmt: skip
    start = later * count  # batches after which a pass begins with a batch
    shown = [
        row.offset
        for number in range(start, start + -(-3 * count // batch))
        for data in each
        for row in data.rows_of(number)
    ]
    passes = [shown[number * count : (number + 1) * count] for number in range(3)]
    for one in passes:
        assert sorted(one) == list(range(count))
    if count > 20:  # of so many images, two orders are never the same
        assert len({tuple(one) for one in passes}) == 3


@pytest.mark.parametrize("kind", ["shorter", "gone"])
def test_a_shard_that_is_not_whole_is_named(packed, kind):
    url = "memory://damaged/photos"
    upload(packed, url)
    files = fsspec.filesystem("memory")
    shard = sorted(files.glob("/damaged/photos/*.tfrecord*"))[1]
    whole = files.cat_file(shard)
    files.rm(shard)
    if kind == "shorter":
        files.pipe_file(shard, whole[:-1])
    reason = f"{len(whole) - 1} bytes long, not {len(whole)}" if kind == "shorter" else "unreadable"
    with pytest.raises(DataError, match=rf"as it was packed. Received: 'memory:.*{reason}"):
        scan(url)
    files.rm("/damaged", recursive=True)


def test_damaged_tables_and_what_is_not_packed_are_told(packed):
    url = "memory://tables/photos"
    files = fsspec.filesystem("memory")
    with pytest.raises(DataError, match=r"that `kresnet data pack` wrote, copied there"):
        scan(url)
    upload(packed, url)
    files.pipe_file("/tables/photos/kresnet_images.csv", b"shard\n")
    with pytest.raises(DataError, match=r"as it was written.*kresnet_images.csv is damaged"):
        scan(url)
    said = json.loads((packed / "kresnet_shards.json").read_text())
    del said["images"]
    files.pipe_file("/tables/photos/kresnet_shards.json", json.dumps(said).encode())
    with pytest.raises(DataError, match=r"it names no kresnet_images.csv"):
        scan(url)
    files.rm("/tables", recursive=True)


def test_what_was_packed_before_there_were_tables_is_read(packed, tmp_path):
    older = tmp_path / "older"
    older.mkdir()
    for file in packed.glob("*tfrecord*"):
        (older / file.name).write_bytes(file.read_bytes())
    said = json.loads((packed / "kresnet_shards.json").read_text())
    del said["images"]
    (older / "kresnet_shards.json").write_text(json.dumps(said))
    found = [(item.member, item.offset, item.read()) for item in listing(older).items]
    assert found == [(item.member, item.offset, item.read()) for item in listing(packed).items]


def test_a_run_finds_its_images_again(packed, url, monkeypatch):
    index = scan(url)
    monkeypatch.setattr("kresnet.workflow.images.listing", None)  # nothing is to be unpacked
    restore(SimpleNamespace(index=index, recipe=None))
    assert all(exists(row.path) for row in index.rows)
    assert not exists(f"{url}/absent")
    assert exists(str(packed))
    assert not exists(str(packed / "absent"))


def test_what_cannot_be_reached_is_one_line():
    with pytest.raises(ResourceError, match=r"does not read nothing://.*pip install 'fsspec"):
        scan("nothing://bucket/photos")
    with pytest.raises(OSError, match="absent"):
        Item("memory://absent", "a").read()


def test_whole_files_behind_urls_are_read_in_tf_data():
    files = fsspec.filesystem("memory")
    files.pipe_file("/whole/1.png", encoded("PNG", seed=1))
    rows = [Row("memory://whole/1.png", 0, None, 9, 14, "")]
    ((images, _),) = evaluation_batches(rows, SMALL, batch_size=2)
    assert images.shape == (1, 8, 8, 3)
    files.rm("/whole", recursive=True)
