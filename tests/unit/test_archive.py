"""Zip and tar files: what is in them, what is refused, and what is unpacked where."""

import contextlib
import gzip
import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from test_scan import encoded

from kresnet.data.pipeline import evaluation_batches
from kresnet.data.scan import Index, scan
from kresnet.data.sources import listing
from kresnet.errors import DataError, ResourceError
from kresnet.zoo import Preprocessing

NAMES = ["train/ant/0.png", "train/ant/deep/1.jpg", "train/bee, é/0.png", "val/ant/5.gif"]
KINDS = [
    "t.zip",
    "deflated.zip",
    "mixed.ZIP",
    "t.tar",
    "t.tar.gz",
    "t.tgz",
    "t.tar.bz2",
    "t.tar.xz",
]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("KRESNET_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def contents_of(names):
    kinds = {".png": "PNG", ".jpg": "JPEG", ".gif": "GIF"}
    return {n: encoded(kinds.get(Path(n).suffix, "PNG"), seed=k) for k, n in enumerate(names)}


def pack(path, contents):
    """Write an archive; the name tells the kind. None stands for a folder."""
    name = path.name.lower()
    if name.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            for k, (member, data) in enumerate(contents.items()):
                deflated = name.startswith("deflated") or (name.startswith("mixed") and k % 2)
                kind = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
                if data is None:
                    archive.mkdir(member)
                else:
                    archive.writestr(zipfile.ZipInfo(member), data, kind)
        return path
    mode = {"gz": "w:gz", "bz2": "w:bz2", "xz": "w:xz", "tgz": "w:gz"}.get(name.split(".")[-1], "w")
    with tarfile.open(path, mode) as archive:
        for member, data in contents.items():
            info = tarfile.TarInfo(member)
            if data is None:
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def told(index, root):
    prefix = str(root)
    return {p.path.removeprefix(prefix): p.reason for p in index.problems}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_archive(tmp_path, kind, home):
    contents = contents_of([*NAMES, "train/bee, é/.hidden.png", "__MACOSX/train/x.png"])
    (tmp_path / "data").mkdir()
    path = pack(tmp_path / "data" / kind, contents)
    before = path.read_bytes()
    index = scan(path)
    assert index.classes == ("ant", "bee, é")
    assert index.counts()["train"] == {"ant": 2, "bee, é": 1}
    assert index.counts()["val"] == {"ant": 1, "bee, é": 0}
    assert {row.member: row.read() for row in index.rows} == {n: contents[n] for n in NAMES}
    assert {Path(row.path).name for row in index.rows} == {kind}
    index.save(tmp_path)
    assert Index.load(tmp_path) == index
    # The pipeline reads the same bytes, and nothing appears beside the user's file.
    small = Preprocessing(image_size=8, crop_pct=1.0)
    images, labels = next(iter(evaluation_batches(index.rows, small, batch_size=9)))
    assert images.shape == (4, 8, 8, 3)
    assert labels.numpy().tolist() == [row.label for row in index.rows]
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [kind]
    is_plain = kind in ("t.zip", "t.tar")
    assert (home / "unpacked").exists() is not is_plain
    in_place = {row.path == str(path) for row in index.rows}
    assert in_place == ({True, False} if kind == "mixed.ZIP" else {is_plain})


def test_it_is_unpacked_once(tmp_path, home):
    path = pack(tmp_path / "a.tar.gz", contents_of(NAMES))
    first = scan(path)
    unpacked = Path(first.rows[0].path)
    stamp = unpacked.stat().st_mtime_ns
    (tmp_path / "copy").mkdir()
    path.rename(tmp_path / "copy" / "a.tar.gz")
    again = scan(tmp_path / "copy" / "a.tar.gz")
    assert again.rows == first.rows
    assert unpacked.stat().st_mtime_ns == stamp
    unpacked.write_bytes(b"cut")  # what is damaged is unpacked again
    assert [row.read() for row in scan(tmp_path / "copy" / "a.tar.gz").rows] == [
        contents_of(NAMES)[row.member] for row in first.rows
    ]
    (unpacked.parent / "parts.json").write_text("{")
    assert scan(tmp_path / "copy" / "a.tar.gz").rows == first.rows
    assert [p.name for p in unpacked.parent.parent.iterdir()] == [unpacked.parent.name]


@pytest.mark.parametrize("kind", ["t.zip", "t.tar", "t.tar.gz"])
def test_a_folder_around_the_classes_is_passed_through(tmp_path, kind):
    names = ["flowers/photos/rose/1.png", "flowers/photos/tulip/1.png", "flowers/LICENSE"]
    index = scan(pack(tmp_path / kind, contents_of(names) | {"flowers/photos/empty": None}))
    assert index.classes == ("rose", "tulip")
    assert told(index, tmp_path) == {
        f"/{kind}::flowers/photos/empty": "a folder without a usable image, so not a class"
    }
    only = pack(tmp_path / f"only {kind}", contents_of(["train/a/1.png", "train/b/1.png"]))
    assert scan(only).counts() == {"train": {"a": 1, "b": 1}}
    with pytest.raises(DataError, match=r"at least two classes. Received: classes=\['rose'\]"):
        scan(pack(tmp_path / f"one {kind}", contents_of(["f/rose/1.png", "f/rose/deep/2.png"])))


HOSTILE = [
    "../a/1.png", "a/../../1.png", "/etc/1.png", "..\\a\\1.png", "a\\..\\..\\1.png", "C:\\a\\1.png",
    "C:1.png", "\\\\host\\share\\1.png", "a/..", "..",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["t.zip", "deflated.zip", "t.tar", "t.tar.gz"])
@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_lead_out_are_refused(tmp_path, kind, name, home):
    contents = contents_of(NAMES) | {name: encoded()}
    with pytest.raises(DataError, match=r"must not lead out of it. Received: .* in '.*Do not unp"):
        scan(pack(tmp_path / kind, contents))
    assert not list(home.rglob("*.png"))
    assert sorted(p.name for p in tmp_path.iterdir() if p != home) == [kind]


@pytest.mark.parametrize("kind", ["t.tar", "t.tar.gz"])
def test_links_and_devices_are_not_followed(tmp_path, kind):
    path = tmp_path / kind
    with tarfile.open(path, "w:gz" if kind.endswith("gz") else "w") as archive:
        for name, data in contents_of(NAMES).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, sort in (
            ("soft", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("fifo", tarfile.FIFOTYPE),
            ("device", tarfile.CHRTYPE),
        ):  # fmt: skip
            info = tarfile.TarInfo(f"train/ant/{name}.png")
            info.type, info.linkname = sort, "/etc/passwd"
            archive.addfile(info)
    index = scan(path)
    assert len(index.rows) == 4
    assert told(index, path) == {
        f"::train/ant/{name}.png": "a link or a device, which is not followed"
        for name in ("soft", "hard", "fifo", "device")
    }


def test_links_and_encrypted_files_in_a_zip(tmp_path):
    path = pack(tmp_path / "t.zip", contents_of(NAMES))
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("train/ant/link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("train/ant/secret.png", encoded())
    data = bytearray(path.read_bytes())
    name = b"train/ant/secret.png"
    data[data.index(name) - 30 + 6] |= 1  # the flags in front of the member
    data[data.rindex(name) - 46 + 8] |= 1  # and in the directory
    path.write_bytes(data)
    assert told(scan(path), path) == {
        "::train/ant/link.png": "a link or a device, which is not followed",
        "::train/ant/secret.png": "encrypted",
    }


def test_of_two_members_of_one_name_the_last_counts(tmp_path):
    path = pack(tmp_path / "t.tar", contents_of(NAMES))
    new = encoded(seed=77)
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("./train/ant/0.png")
        info.size = len(new)
        archive.addfile(info, io.BytesIO(new))
    index = scan(path)
    assert len(index.rows) == 4
    assert new in [row.read() for row in index.rows]
    assert told(index, path) == {"::./train/ant/0.png": "in the archive more than once"}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_archives_are_named(tmp_path, kind):
    whole = pack(tmp_path / kind, contents_of(NAMES)).read_bytes()
    path = tmp_path / f"cut {kind}"
    rng = np.random.default_rng(5)
    for tenth in range(10):
        path.write_bytes(whole[: len(whole) * tenth // 10])
        _refused_or_told(path)
    for _ in range(30):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 20):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged)
        _refused_or_told(path)
    path.write_bytes(b"nothing of the kind" * 99)
    with pytest.raises(DataError, match=r"readable zip or tar file. Received: '.*' \(.*\). Pack"):
        listing(path)


def _refused_or_told(path):
    """Whatever is wrong with it, nothing but a DataError comes out, and no row is beyond it."""
    rows = ()
    with contextlib.suppress(DataError):
        rows = scan(path, max_bad=0.99).rows
    assert all(row.read() for row in rows)


def test_a_tar_header_may_not_ask_for_memory_or_lead_back(tmp_path):
    header = bytearray(tarfile.TarInfo("train/a/x").tobuf(tarfile.GNU_FORMAT)[:512])

    def with_size(size, kind):
        header[124:136] = b"\x80" + size.to_bytes(11, "big", signed=False) if size >= 0 else (
            b"\xff" + (256**11 + size).to_bytes(11, "big")
        )  # fmt: skip
        header[156:157] = kind
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        return bytes(header)

    for number, (size, kind) in enumerate(
        [(2**40, b"x"), (2**40, b"L"), (2**60, b"0"), (-512, b"0"), (-1024, b"x"), (2**30, b"x")]
    ):
        for wrap in (bytes, gzip.compress):
            path = tmp_path / f"{number}.tar"
            path.write_bytes(wrap(with_size(size, kind) + bytes(4096)))
            with pytest.raises(DataError):
                scan(path)


def test_bombs_are_refused_before_the_disk_is_full(tmp_path, home):
    zeros = bytes(2**20)
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb", 1) as file:
        info = tarfile.TarInfo("train/a/x.png")
        info.size = 2**30 - 1
        for name in "xy":
            info.name = f"train/a/{name}.png"
            file.write(info.tobuf())
            for _ in range(2**10):
                file.write(zeros)
    with pytest.raises(DataError, match=r"at most 100 times its size and 1 GiB. Received: .*bomb"):
        scan(path)
    assert list((home / "unpacked").iterdir()) == []

    path = tmp_path / "bomb.zip"
    pack(path.with_name("deflated.zip"), {f"train/a/{k}.png": zeros for k in range(4)})
    data = bytearray(path.with_name("deflated.zip").read_bytes())
    at = -1
    while (at := data.find(b"PK\1\2", at + 1)) >= 0:
        data[at + 24 : at + 28] = struct.pack("<I", 2**30 - 1)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"at most 100 times its size and 1 GiB. Received: .*bomb"):
        scan(path)


def test_a_full_disk_is_a_resource_error(tmp_path, monkeypatch):
    from collections import namedtuple

    from kresnet.data.sources import unpacked

    usage = namedtuple("usage", "total used free")(10**12, 10**12, 2**30 + 100)
    monkeypatch.setattr(unpacked.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ResourceError, match=r"room to unpack '.*t.tar.gz'. Received: .*KRESNET_HO"):
        scan(pack(tmp_path / "t.tar.gz", contents_of(NAMES)))


def test_an_image_of_an_archive_that_went_away_is_told(tmp_path):
    path = pack(tmp_path / "t.tar", contents_of(NAMES))
    index = scan(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(tf.errors.OpError, match="ends inside of the image"):
        list(evaluation_batches(index.rows, Preprocessing(image_size=8), batch_size=9))
