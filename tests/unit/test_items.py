"""Bytes of an image, from Python and inside of tf.data, whole files and parts of them."""

import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from kresnet.data import items
from kresnet.data.items import Item

CONTENTS = np.random.default_rng(3).bytes(5000)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff \xc3\xa9,'.bin")
    path.write_bytes(CONTENTS)
    return str(path)


def places(file):
    return [
        Item(file, "a"),
        Item(file, "a", offset=0, size=7, member="first"),
        Item(file, "b", offset=4000, size=1000, member="to the end"),
        Item(file, "b", offset=123, size=0, member="empty"),
    ]


EXPECTED = [CONTENTS, CONTENTS[:7], CONTENTS[4000:], b""]


def test_items_are_read_whole_or_in_part(file):
    assert [item.read() for item in places(file)] == EXPECTED
    assert [item.read(5) for item in places(file)] == [part[:5] for part in EXPECTED]
    assert places(file)[0].name == file
    assert places(file)[1].name == f"{file}::first"


def test_the_pipeline_reads_the_same(file):
    dataset = tf.data.Dataset.from_tensor_slices(items.places(places(file)))
    assert list(dataset.map(items.read, 2).as_numpy_iterator()) == EXPECTED


def test_urls_are_read_through_tensorflow(tmp_path):
    tf.io.gfile.GFile("ram://folder/x.bin", "wb").write(CONTENTS)
    parts = [Item("ram://folder/x.bin", "a"), Item("ram://folder/x.bin", "a", offset=9, size=80)]
    assert [part.read() for part in parts] == [CONTENTS, CONTENTS[9:89]]
    assert parts[1].read(3) == CONTENTS[9:12]
    dataset = tf.data.Dataset.from_tensor_slices(items.places(parts))
    assert list(dataset.map(items.read).as_numpy_iterator()) == [CONTENTS, CONTENTS[9:89]]
    with pytest.raises(OSError, match="absent"):
        Item("ram://folder/absent", "a").read()


def test_a_part_beyond_its_file_is_an_error(file):
    beyond = Item(file, "a", offset=4990, size=11, member="x")
    with pytest.raises(OSError, match="ends inside of the image") as error:
        beyond.read()
    assert error.value.strerror
    dataset = tf.data.Dataset.from_tensor_slices(items.places([beyond])).map(items.read)
    with pytest.raises(tf.errors.OpError, match="ends inside of the image"):
        list(dataset)


def test_parts_become_files_and_files_stay_what_they_are(file, tmp_path):
    paths = items.as_files(places(file), tmp_path)
    assert paths[0] == file
    assert [Path(path).read_bytes() for path in paths] == EXPECTED
