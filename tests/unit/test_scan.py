"""Layouts, what is ignored, what is named as a problem, and the index on disk."""

import hashlib
import io
import os
import struct
import unicodedata

import numpy as np
import pytest
from PIL import Image

from kresnet.data.scan import Index, Problem, Row, scan
from kresnet.errors import DataError


def image(seed=0, height=9, width=14):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def encoded(kind="PNG", seed=0, **options):
    file = io.BytesIO()
    image(seed).save(file, kind, **options)
    return file.getvalue()


def write(path, contents=None, seed=0):
    """Write bytes, by default those of a PNG, whatever the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(seed=seed) if contents is None else contents)
    return path


def classes_in(root, *names, count=2):
    for name in names:
        for k in range(count):
            write(root / name / f"{k}.png", seed=k)
    return root


def reasons(index):
    return {os.path.relpath(p.path, index.root): p.reason for p in index.problems}


def test_flat_folder(tmp_path):
    classes_in(tmp_path, "bee", "ant")
    write(tmp_path / "bee" / "deep" / "er" / "x.png")
    index = scan(tmp_path)
    assert index.root == str(tmp_path)
    assert index.classes == ("ant", "bee")
    assert index.problems == ()
    assert [(os.path.relpath(r.path, tmp_path), r.label, r.split) for r in index.rows] == [
        ("ant/0.png", 0, None),
        ("ant/1.png", 0, None),
        ("bee/0.png", 1, None),
        ("bee/1.png", 1, None),
        ("bee/deep/er/x.png", 1, None),
    ]
    assert index.counts() == {None: {"ant": 2, "bee": 3}}
    assert index.select(None) == index.rows
    assert index.select("train") == ()


def test_row_has_upright_size_and_digest(tmp_path):
    classes_in(tmp_path, "a", "b")
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = encoded("JPEG", exif=exif)
    write(tmp_path / "a" / "turned.jpg", contents)
    row = next(row for row in scan(tmp_path).rows if "turned" in row.path)
    assert (row.height, row.width) == (14, 9)
    assert row.digest == hashlib.sha256(contents).hexdigest()


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders(tmp_path, val):
    for part, count in (("train", 3), (val, 1), ("test", 2)):
        classes_in(tmp_path / part, "bee", "ant", count=count)
    index = scan(tmp_path)
    assert index.counts() == {
        "train": {"ant": 3, "bee": 3},
        "val": {"ant": 1, "bee": 1},
        "test": {"ant": 2, "bee": 2},
    }
    assert all(f"/{val}/" in row.path for row in index.select("val"))


def test_when_folders_are_splits(tmp_path):
    """`train` beside another split, or nothing but splits; else they are classes."""
    only = classes_in(tmp_path / "only" / "train", "a", "b").parent
    assert scan(only).counts() == {"train": {"a": 2, "b": 2}}
    classes_in(only, "val/a", "other")
    index = scan(only)
    assert index.counts() == {"train": {"a": 2, "b": 2}, "val": {"a": 2, "b": 0}}
    assert reasons(index) == {"other": "beside the folders of the splits, so not one of them"}
    vehicles = classes_in(tmp_path / "vehicles", "train", "bus")
    assert scan(vehicles).classes == ("bus", "train")
    exams = classes_in(tmp_path / "exams", "test", "val", "essay")
    assert scan(exams).classes == ("essay", "test", "val")
    held_out = classes_in(tmp_path / "held out" / "val", "a", "b").parent
    assert scan(held_out).counts() == {"val": {"a": 2, "b": 2}}


def test_classes_are_matched_by_name_in_natural_order(tmp_path):
    names = ["10", "9", "Zebra 2", "zebra 10", "Äpfel", "火"]
    classes_in(tmp_path / "train", *names)
    classes_in(tmp_path / "val", "火", "9", unicodedata.normalize("NFD", "Äpfel"))
    index = scan(tmp_path)
    assert index.classes == ("9", "10", "Zebra 2", "zebra 10", "Äpfel", "火")
    assert [name for name, count in index.counts()["val"].items() if count] == ["9", "Äpfel", "火"]


def test_rows_are_in_natural_order(tmp_path):
    classes_in(tmp_path, "a", "b", count=11)
    names = [os.path.basename(row.path) for row in scan(tmp_path).rows if row.label == 0]
    assert names == [f"{k}.png" for k in range(11)]


def test_other_files_are_ignored(tmp_path):
    classes_in(tmp_path, "a", "b")
    for name in (
        "readme.md",
        "labels.csv",
        "a/notes.txt",
        "a/box.xml",
        "a/BMW.txt",
        "a/page.html",
        "a/Thumbs.db",
        "a/desktop.ini",
        "a/.hidden.jpg",
        "a/.ipynb_checkpoints/x.jpg",
        "__MACOSX/a/x.jpg",
        ".git/x.jpg",
    ):
        write(tmp_path / name, b"BM <html> is not an image")
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    index = scan(tmp_path, max_bad=0)
    assert len(index.rows) == 4
    assert index.problems == ()


def test_content_decides(tmp_path):
    classes_in(tmp_path, "a", "b")
    for name, kind in (
        ("png.jpg", "PNG"),
        ("jpeg.txt", "JPEG"),
        ("gif", "GIF"),
        ("webp.PNG", "WEBP"),
        ("bmp.dat", "BMP"),
    ):
        write(tmp_path / "a" / name, encoded(kind))
    index = scan(tmp_path, max_bad=0)
    assert index.counts() == {None: {"a": 7, "b": 2}}
    assert {(row.height, row.width) for row in index.rows} == {(9, 14)}


def test_unusable_files_are_named_with_a_reason(tmp_path):
    classes_in(tmp_path, "a", "b", count=10)
    jpeg, png, bmp, webp = (encoded(kind) for kind in ("JPEG", "PNG", "BMP", "WEBP"))
    cases = {
        "cut.jpg": (jpeg[:-40], "truncated JPEG"),
        "cut.png": (png[:-40], "truncated PNG"),
        "cut.bmp": (bmp[:-40], "truncated BMP"),
        "cut.webp": (webp[:-40], "truncated WebP"),
        "cut.gif": (encoded("GIF")[:-40], "truncated GIF"),
        "empty.jpg": (b"", "empty file"),
        "page.jpg": (b"\n<!DOCTYPE html><title>404", "HTML page named .jpg"),
        "text.PNG": (b"nothing", "not an image TensorFlow can decode: it starts with b'nothing'"),
        "scan.tif": (encoded("TIFF"), "TIFF is not supported: convert to PNG or JPEG"),
        "scan.jpg": (encoded("TIFF"), "TIFF is not supported: convert to PNG or JPEG"),
        "raw.cr2": (b"II*\0" + bytes(99), "TIFF is not supported: convert to PNG or JPEG"),
        "phone.heic": (b"\0\0\0\x18ftypheic", "HEIC is not supported: convert to PNG or JPEG"),
        "web.avif": (b"\0\0\0\x18ftypavif", "AVIF is not supported: convert to PNG or JPEG"),
        "new.jxl": (b"\xff\x0a\0\0", "JPEG XL is not supported: convert to PNG or JPEG"),
        "old.jp2": (
            b"\0\0\0\x0cjP  \r\n",
            "JPEG 2000 is not supported: convert to PNG or JPEG",
        ),
        "art.psd": (b"8BPS\0\1", "PSD is not supported: convert to PNG or JPEG"),
        "logo.svg": (b"<?xml?>\n<svg>", "SVG is not supported: convert to PNG or JPEG"),
        "bits.bmp": (
            bmp[:28] + b"\1" + bmp[29:],
            "not an image TensorFlow can decode: Number of channels inherent in the image must be "
            "1, 3 or 4, was 0",
        ),
        "damaged.png": (
            png[:60] + b"xxxx" + png[64:],
            f"not an image TensorFlow can decode: Invalid PNG data, size {len(png)}",
        ),
        "bomb.png": (
            png[:16] + struct.pack(">II", 30_000, 30_000) + png[24:],
            "more than 100 megapixels",
        ),
    }
    for name, (contents, _) in cases.items():
        write(tmp_path / "a" / name, contents)
    (tmp_path / "a" / "lost.jpg").symlink_to(tmp_path / "nowhere")
    expected = {f"a/{name}": reason for name, (_, reason) in cases.items()}
    expected["a/lost.jpg"] = "cannot be read: No such file or directory"

    index = scan(tmp_path, max_bad=0.6)
    assert reasons(index) == expected
    assert len(index.rows) == 20


def test_links_are_followed_but_not_in_circles(tmp_path):
    target = write(tmp_path / "elsewhere" / "x.png")
    root = classes_in(tmp_path / "root", "a")
    (root / "a" / "link.png").symlink_to(target)
    (root / "a" / "again").symlink_to(root / "a")
    (root / "b").symlink_to(target.parent)
    index = scan(root)
    assert [os.path.relpath(row.path, root) for row in index.rows] == [
        "a/0.png",
        "a/1.png",
        "a/link.png",
        "b/x.png",
    ]


def test_folders_without_images_are_no_classes_and_loose_images_are_told(tmp_path):
    classes_in(tmp_path, "a", "b")
    (tmp_path / "c").mkdir()
    write(tmp_path / "d" / "notes.txt", b"nothing")
    write(tmp_path / "loose.png")
    index = scan(tmp_path, max_bad=0)
    assert index.classes == ("a", "b")
    assert reasons(index) == {
        "loose.png": "not in a class folder",
        "c": "a folder without a usable image, so not a class",
        "d": "a folder without a usable image, so not a class",
    }


def test_progress_counts_every_file(tmp_path):
    classes_in(tmp_path, "a", "b")
    write(tmp_path / "a" / "notes.txt")
    told = []
    scan(tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(k, 5) for k in range(1, 6)]


def test_the_folder_is_not_changed_and_may_be_relative(tmp_path, monkeypatch):
    root = classes_in(tmp_path / "photos", "a", "b")
    write(root / "a" / "cut.jpg", encoded("JPEG")[:-40])

    def state():
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in tmp_path.rglob("*")}

    before = state()
    monkeypatch.chdir(tmp_path)
    index = scan("photos", max_bad=1)
    assert state() == before
    assert index.root == str(root)
    assert all(os.path.isabs(row.path) for row in index.rows)


def test_source_must_be_a_folder(tmp_path):
    with pytest.raises(DataError, match=r"must be in a folder. Received: .* which is not there"):
        scan(tmp_path / "absent")
    file = write(tmp_path / "file.png")
    with pytest.raises(DataError, match=r"which is not a folder. Give the path of a folder that"):
        scan(file)


def test_folder_must_hold_images(tmp_path):
    with pytest.raises(DataError, match=r"must hold images. Received: source=.*, with none. Put"):
        scan(tmp_path)
    write(tmp_path / "a" / "notes.txt", b"nothing")
    with pytest.raises(DataError, match=r"must hold images. Received: source=.*, with none. Put"):
        scan(tmp_path)


@pytest.mark.parametrize("place", [".", "train"])
def test_images_must_be_in_class_folders(tmp_path, place):
    write(tmp_path / place / "1.jpg")
    write(tmp_path / place / "2.JPG")
    with pytest.raises(DataError) as error:
        scan(tmp_path)
    assert str(error.value) == (
        f"Images must be in a folder for each class. Received: source={str(tmp_path / place)!r}, "
        "which has 2 images and no folder. Put them in <class>/ folders, or in train/<class>/ and "
        "val/<class>/ folders, one for each class."
    )


def test_one_class_is_not_enough(tmp_path):
    classes_in(tmp_path, "cat")
    (tmp_path / "dog").mkdir()
    with pytest.raises(DataError, match=r"at least two classes. Received: classes=\['cat'\]. Add"):
        scan(tmp_path)


def test_every_class_must_have_training_images(tmp_path):
    classes_in(tmp_path / "train", "a", "b")
    classes_in(tmp_path / "val", "a", "c")
    with pytest.raises(DataError, match=r"must have training images. Received: class='c', which"):
        scan(tmp_path)


def test_too_many_unusable_images(tmp_path):
    classes_in(tmp_path, "a", "b", count=10)
    for k in range(4):
        write(tmp_path / "a" / f"bad{k}.jpg", b"")
    with pytest.raises(DataError) as error:
        scan(tmp_path)
    bad = [f"'{tmp_path}/a/bad{k}.jpg' (empty file)" for k in range(3)]
    assert str(error.value) == (
        "At most 5% of the images may be unusable. Received: 4 of 24: "
        f"{', '.join(bad)}, .... Mend or remove them, or allow more with max_bad."
    )
    assert len(scan(tmp_path, max_bad=4 / 24).problems) == 4


NAMES = [
    "plain",
    "com,ma",
    'quo"te',
    "new\nline",
    "return\r",
    " space ",
    "=1+1",
    "日本 ü",
    "'",
    "\\",
]


def test_index_on_disk_is_exact(tmp_path):
    rows, problems = [], []
    for label, name in enumerate(NAMES):
        rows.append(Row(f"/data/{name}/{name}.png", label, "train", 3, 4, "ab" * 32))
        rows.append(Row(f"/data/{name}/deep/2", label, None, 5, 6, "cd" * 32))
        problems.append(Problem(f"/data/{name}/bad {name}", f"because, of\n{name}"))
    rows.append(Row("/data/x/" + os.fsdecode(b"\xff\xfe.png"), 0, "test", 1, 2, "ef" * 32))
    index = Index("/data", tuple(NAMES), tuple(rows), tuple(problems))
    index.save(tmp_path)
    assert Index.load(tmp_path) == index
    header = (tmp_path / "index.csv").read_bytes().split(b"\r\n")[0]
    assert header == b"path,label,split,height,width,digest"
    assert b"plain/plain.png,plain,train,3,4," in (tmp_path / "index.csv").read_bytes()


def test_optional_columns_are_written_where_they_say_something(tmp_path):
    plain = Row("/data/a.png", 0, "train", 3, 4, "ab" * 32)
    rich = Row(
        "/elsewhere/x.tar", 1, None, 5, 6, "cd" * 32, 512, 1234, "b/1, é.png", "g 1", 0.25,
        "exif-6 grey", b"not saved",
    )  # fmt: skip
    far = Row("gs://bucket/a//b.png", 1, "val", 5, 6, "ef" * 32, size=0, weight=0.0)
    index = Index("/data", ("a", "b"), (plain, rich, far), ())
    index.save(tmp_path)
    header, first, *_ = (tmp_path / "index.csv").read_text("utf-8").splitlines()
    assert header.endswith("digest,offset,size,member,group,weight,traits")
    assert first.startswith("a.png,a,train,3,4,")
    loaded = Index.load(tmp_path)
    assert loaded == index
    assert loaded.rows[1].look == b""
    assert loaded.rows[1].name == "/elsewhere/x.tar::b/1, é.png"


def test_scanned_index_survives_the_disk(tmp_path):
    root = tmp_path / "pho,tos"
    for name in NAMES:
        write(root / name / f"{name}.png")
        write(root / name / os.fsdecode(b"\xff\xfe"))
    write(root / "plain" / "bad\n.jpg", b"")
    index = scan(root, max_bad=0.1)
    assert len(index.rows) == 2 * len(NAMES)
    index.save(tmp_path)
    assert Index.load(tmp_path) == index


def test_real_photos(shared):
    index = scan(shared / "hymenoptera", max_bad=0)
    assert index.problems == ()
    assert index.counts() == {"train": {"ants": 123, "bees": 121}, "val": {"ants": 70, "bees": 83}}
