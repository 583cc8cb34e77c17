"""Tables of images: CSV, JSON lines, Parquet, and Hugging Face's metadata files."""

import json
import os
import sys

import pytest
from test_scan import classes_in, encoded, reasons, write

from kresnet.data.scan import Index, scan
from kresnet.data.sources import listing
from kresnet.errors import DataError, ResourceError

LINES = [
    {"path": "a/0.png", "label": "ant", "split": "train", "group": "g1", "weight": 2.5},
    {"path": "a/1.png", "label": "bee", "split": "Validation", "group": "", "weight": 0},
    {"path": "deep/er/x, é.png", "label": "bee", "split": "", "group": "g1", "weight": 1},
    {"path": "b/0.png", "label": "ant", "split": "TEST", "group": "g2", "weight": 1},
]


@pytest.fixture
def images(tmp_path):
    for number, line in enumerate(LINES):
        write(tmp_path / line["path"], encoded(seed=number))
    return tmp_path


def as_csv(path, lines, delimiter=","):
    import csv

    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(lines)
    return path


def as_json_lines(path, lines):
    path.write_text("\n\n".join(json.dumps(line) for line in lines), "utf-8")
    return path


def as_parquet(path, lines):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.Table.from_pylist(lines), path)
    return path


@pytest.mark.parametrize(
    ("name", "write_table"),
    [
        ("m.csv", as_csv),
        ("M.CSV", lambda path, lines: as_csv(path, lines, ";")),
        ("tabs.csv", lambda path, lines: as_csv(path, lines, "\t")),
        ("m.jsonl", as_json_lines),
        ("m.parquet", as_parquet),
    ],
)
def test_a_manifest_says_all(images, name, write_table):
    index = scan(write_table(images / name, LINES))
    assert index.root == str(images)
    assert index.classes == ("ant", "bee")
    told = {
        os.path.relpath(row.path, images): {
            "path": os.path.relpath(row.path, images),
            "label": index.classes[row.label],
            "split": row.split,
            "group": row.group,
            "weight": row.weight,
        }
        for row in index.rows
    }
    splits = ("train", "val", None, "test")
    assert list(told.values()) != []
    assert told == {
        line["path"]: line | {"split": split} for line, split in zip(LINES, splits, strict=True)
    }
    index.save(images)
    assert Index.load(images) == index


def test_path_and_label_are_enough_and_paths_may_be_absolute(images, tmp_path_factory):
    elsewhere = write(tmp_path_factory.mktemp("elsewhere") / "far.png", encoded(seed=9))
    lines = [
        {"label": "ant", "unknown": "1", "path": "a/0.png"},
        {"label": 7, "unknown": "2", "path": str(elsewhere)},
        {"label": "ant", "unknown": "3", "path": "./b/../a/1.png"},
    ]
    index = scan(as_csv(images / "m.csv", lines))
    assert index.classes == ("7", "ant")
    assert {row.path for row in index.rows} == {
        str(images / "a/0.png"), str(elsewhere), str(images / "a/1.png")
    }  # fmt: skip
    assert {(row.split, row.group, row.weight) for row in index.rows} == {(None, "", 1.0)}


def test_a_file_that_is_not_there_is_a_problem(images):
    lines = [*LINES, {**LINES[0], "path": "gone.png"}, {**LINES[0], "path": "README"}]
    index = scan(as_csv(images / "m.csv", lines), max_bad=0.5)
    assert reasons(index)["gone.png"] == "cannot be read: No such file or directory"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"must have the columns path \(or file_name\) and label. Received: none in .*m.csv"),
        ("path,class\na.png,x\n", r"columns path .* Received: path, class in .*m.csv"),
        ("path,label\na.png,x\n,y\n", r"must have a path. Received: none, in line 3 of .*m.csv"),
        ("path,label\na.png\n", r"must have a label. Received: none, in line 2"),
        ("path,label\na.png,\n", r"must have a label. Received: none, in line 2"),
        ("path,label\n../a.png,x\n", r"must stay in .* path='../a.png', in line 2 .* absolute"),
        ("path,label\nb/../../a.png,x\n", r"must stay in .* path='b/../../a.png', in line 2"),
        ("path,label,split\n\na.png,x,dev\n", r"split must be .* split='dev', in line 3"),
        ("path,label,weight\na.png,x,-1\n", r"weight must be .* weight='-1', in line 2"),
        ("path,label,weight\na.png,x,nan\n", r"weight must be .* weight='nan', in line 2"),
        ("path,label,weight\na.png,x,1e999\n", r"weight must be .* weight='1e999', in line 2"),
        ("path,label\na,b.png,x\n", r"There are 2 columns. Received: 3 values, in line 2"),
        ('path,label\n"a.png,x\n', r"correct CSV. Received: .*m.csv, which is wrong near line"),
        (
            "path,label\na,x\nb,y\na,y\n",
            r"one label. .* in line 4 .* line 2, which says 'x'",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path, text, message):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        listing(tmp_path / "m.csv")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b'{"path": "a", "label": "x"}\n[1]\n', r"JSON object. Received: '\[1\]', in line 2"),
        (b'{"path": "a", "label": "x"}\n{"path"\n', r"JSON object. Received: .*, in line 2"),
        (b"[" * 100_000, r"JSON object. Received: .*, in line 1"),
        (b'{"path": "a"}\n', r"columns path .* Received: path in line 1 of"),
        (b'{"path": "a", "label": [1]}\n', r"label must be a name. Received: label=\[1\], in li"),
        ('{"path": "é", "label": 1}'.encode("latin-1"), r"in UTF-8. Received: .* at byte 10"),
    ],
)
def test_what_is_wrong_in_json_lines(tmp_path, contents, message):
    (tmp_path / "m.jsonl").write_bytes(contents)
    with pytest.raises(DataError, match=message):
        listing(tmp_path / "m.jsonl")


def test_a_damaged_parquet_file(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "m.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match=r"readable Parquet file. Received: .*m.parquet"):
        listing(tmp_path / "m.parquet")


def test_parquet_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "m.parquet").write_bytes(b"")
    with pytest.raises(ResourceError, match=r"pip install 'kresnet\[parquet\]'"):
        listing(tmp_path / "m.parquet")


def test_an_image_that_is_listed_twice_counts_once(images):
    listed = listing(as_csv(images / "m.csv", [*LINES, {**LINES[1], "path": "./a/1.png"}]))
    assert len(listed.items) == len(LINES)
    assert [(p.path, p.reason) for p in listed.problems] == [
        (str(images / "a/1.png"), "listed twice, in lines 3 and 6")
    ]


def test_a_folder_of_hugging_face(images):
    lines = [{"file_name": line["path"], "label": line["label"], "text": "?"} for line in LINES]
    as_csv(images / "metadata.csv", lines)
    index = scan(images)
    assert index.counts() == {None: {"ant": 2, "bee": 2}}
    assert index.problems == ()


@pytest.mark.parametrize("above", ["", "data"])
def test_split_folders_of_hugging_face(tmp_path, above):
    for split in ("train", "validation"):
        folder = tmp_path / above / split
        lines = [{"file_name": f"{k}.png", "label": "xy"[k % 2]} for k in range(4)]
        for k in range(4):
            write(folder / f"{k}.png", encoded(seed=k))
        as_json_lines(folder / "metadata.jsonl", lines)
    index = scan(tmp_path)
    assert index.counts() == {"train": {"x": 2, "y": 2}, "val": {"x": 2, "y": 2}}


def test_metadata_of_something_else_leaves_class_folders_alone(tmp_path):
    classes_in(tmp_path, "a", "b")
    as_csv(tmp_path / "metadata.csv", [{"image": "a/0.png", "diagnosis": "x"}])
    assert scan(tmp_path).counts() == {None: {"a": 2, "b": 2}}
    (tmp_path / "only").mkdir()
    as_csv(tmp_path / "only" / "metadata.csv", [{"image": "a/0.png", "diagnosis": "x"}])
    with pytest.raises(DataError, match=r"must have the columns path"):
        scan(tmp_path / "only")
