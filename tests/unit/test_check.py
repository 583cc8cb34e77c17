"""The check names every trouble, refuses nothing, changes nothing and stays small."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser

import hostile
import pytest
from hostile import encode, picture
from typer.testing import CliRunner

from kresnet.cli import app
from kresnet.data.check import check
from kresnet.data.check_page import page
from kresnet.data.examine import Facts, examine
from kresnet.data.items import Item
from kresnet.errors import DataError


def state(root):
    """Everything that could be changed of a tree, as one hash; a sparse file's start is enough."""
    told = hashlib.sha256()
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted([*folders, *files]):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            told.update(repr((path, status.st_mode, status.st_size, status.st_mtime_ns)).encode())
            if os.path.islink(path):
                told.update(os.fsencode(os.readlink(path)))
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    told.update(file.read(10**6))
    return told.hexdigest()


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    root = tmp_path_factory.mktemp("zoo") / "zoo"
    bad, odd = hostile.build(root)
    hostile.add_traps(root)
    before = state(root)
    report = check(root)
    assert state(root) == before
    return root, bad, odd, report


def found(report, kind):
    """What is said of a kind, as `{path below the source: what}`."""
    start = len(os.path.abspath(report.source)) + 1
    return {
        path[start:]: finding.what
        for finding in report.findings
        if finding.kind == kind
        for path in finding.paths
    }


def severities(report):
    return {finding.kind: finding.severity for finding in report.findings}


def test_every_bad_file_of_the_zoo_is_named_with_its_reason(zoo):
    _, bad, _, report = zoo
    assert len(bad) >= 70
    told = {path: what.split(": ", 1)[1] for path, what in found(report, "unusable").items()}
    assert told == bad


def test_every_odd_file_of_the_zoo_is_used_and_its_traits_are_told(zoo):
    root, _, odd, report = zoo
    for name, traits in odd.items():
        facts = examine(Item(str(root / name), "x"))
        assert isinstance(facts, Facts), (name, facts)
        assert sorted(facts.traits.split()) == sorted(traits.split()), name
    words = [word.split("-")[0] for traits in odd.values() for word in traits.split()]
    for trait in ("exif", "grey", "cmyk", "palette", "alpha", "animated", "renamed", "appended"):
        assert len(found(report, trait)) == report.traits[trait] == words.count(trait) > 0
    assert list(found(report, "16-bit")) == ["good/16.png"]
    assert set(found(report, "extreme-aspect")) == {"good/1x3000.png", "good/3000x1.jpg"}
    assert set(found(report, "tiny")) == {"good/1x1.png", "good/1x3000.png", "good/3000x1.jpg"}


def test_traps_between_the_files_are_named(zoo):
    _, _, _, report = zoo
    assert set(found(report, "link-loop")) == {"good/loop", "bad/loop"}
    assert list(found(report, "special-file")) == ["bad/pipe.jpg"]
    assert list(found(report, "folder-named-image")) == ["bad/folder.jpg"]
    assert list(found(report, "empty-folder")) == ["empty"]
    assert list(found(report, "hidden")) == [".hidden"]
    assert "bad/folder.jpg/inside.jpg" in {
        os.path.relpath(name, report.source) for name in report.items
    }
    collisions = next(f for f in report.findings if f.kind == "name-collision").groups
    names = [tuple(map(os.path.basename, group)) for group in collisions]
    composed = [unicodedata.normalize(form, "Kätzchen.jpg") for form in ("NFD", "NFC")]
    assert sorted(names) == [("Case.jpg", "case.JPG"), tuple(composed)]
    odd = {os.path.basename(path) for path in found(report, "odd-name")}
    assert odd == {"new\nline.png", "tab\t.png", os.fsdecode(b"not utf-8 \xff\xfe.png")}


def test_text_and_json_are_printable_whatever_the_names(zoo):
    _, _, _, report = zoo
    text = str(report)
    assert text.replace("\n", "").isprintable()
    assert r"new\nline.png" in text
    assert r"not utf-8 \xff\xfe.png" in text
    told = json.loads(json.dumps(report.as_dict(), ensure_ascii=False).encode())
    assert any(path.endswith("new\nline.png") for f in told["findings"] for path in f["paths"])


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


def test_page_has_thumbnails_and_nothing_that_names_could_smuggle_in(zoo):
    _, _, _, report = zoo
    text = page(report)
    text.encode()
    tags = Tags(text).tags
    assert "script" not in {tag for tag, _ in tags}
    sources = [attributes["src"] for tag, attributes in tags if tag == "img"]
    assert len(sources) >= 20
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert "http" not in text.replace("http-equiv", "")
    assert "&lt;img src=x onerror=alert(1)&gt;.png" in text
    assert "{{ 7 * 7 }}.png" in text
    sections = {attributes["class"] for tag, attributes in tags if tag == "section"}
    assert sections == {"error", "warning", "note"}
    assert "hostile" not in text


MEMORY = """
import json, resource, sys
from kresnet.data.check import check
check(sys.argv[1])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
idle = peak()
report = check(sys.argv[2])
print(json.dumps([peak() - idle, report.images]))
"""


@pytest.mark.slow
def test_memory_stays_small_with_many_threads(zoo, tmp_path):
    """Beside the zoo, images that are just small enough, of which two do not fit."""
    root, _, odd, _ = zoo
    small = tmp_path / "small"
    for name in ("a", "b"):
        (small / name).mkdir(parents=True)
        (small / name / "x.png").write_bytes(encode(picture(ord(name)), "PNG"))
    large = root / "large"
    large.mkdir()
    bomb = hostile.png_bomb(9_000)
    for k in range(3):
        (large / f"{k}.png").write_bytes(bomb + bytes([k + 1]))
    code = MEMORY.replace("import json", "import os; os.cpu_count = lambda: 8\nimport json", 1)
    done = subprocess.run(
        [sys.executable, "-c", code, str(small), str(root)],
        env=os.environ | {"KRESNET_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=True,
    )
    shutil.rmtree(large)
    grown, images = json.loads(done.stdout)
    assert images >= len(odd) + 3
    print(f"grown by {grown / 1024:.0f} MiB")
    assert grown < 500_000  # KiB


def folder(root, counts, start=0):
    """Write pictures of their own into folders."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for k in range(count):
            image = picture(start + 1000 * number + k, 50, 60)
            (root / name / f"{k}.png").write_bytes(encode(image, "PNG"))
    return root


def test_clean_data(tmp_path):
    report = check(folder(tmp_path / "d", {"ant": 10, "bee": 12}))
    assert report.findings == ()
    assert (report.severity, report.exit_code) == (None, 0)
    assert report.counts == {"all": {"ant": 10, "bee": 12}}
    assert str(report) == "22 usable images of 22 files, 2 classes: nothing to remark"
    assert "22 usable images" in page(report)


def test_source_must_be_there(tmp_path):
    with pytest.raises(DataError, match="which is not there"):
        check(tmp_path / "absent")


@pytest.mark.parametrize(
    ("counts", "kind", "what"),
    [
        ({"a": 10}, "one-class", r"There is only one class, 'a'"),
        ({"a": 0, "b": 0}, "no-images", "There is no usable image"),
        ({"val/a": 10, "test/b": 10}, "no-training-images", "All images are in val or test"),
        ({"a": 10, "b": 1}, "class-too-small", "1 class with a single image: 'b'"),
        (
            {"train/Cat": 10, "train/dog": 10, "val/Cats": 10, "val/dog": 10},
            "class-mismatch",
            "The class 'Cats' is in val, but has no training images",
        ),
    ],
)
def test_what_training_would_refuse_is_an_error_among_others(tmp_path, counts, kind, what):
    report = check(folder(tmp_path / "d", counts))
    assert (report.severity, report.exit_code) == ("error", 3)
    assert next(f.what for f in report.findings if f.kind == kind) == what


def test_a_class_name_that_was_meant_is_suggested(tmp_path):
    counts = {"train/Cat": 10, "train/dog": 10, "val/Cats": 10, "val/dog": 10}
    report = check(folder(tmp_path / "d", counts))
    assert next(f.fix for f in report.findings if f.kind == "class-mismatch") == (
        "Is it 'Cat'? Rename it."
    )
    assert severities(report)["class-not-in-split"] == "warning"


def test_a_folder_without_classes_is_examined_all_the_same(tmp_path):
    root = folder(tmp_path / "d", {".": 3})
    (root / "cut.jpg").write_bytes(encode(picture(1), "JPEG")[:-50])
    report = check(root)
    layout = next(f for f in report.findings if f.kind == "layout")
    assert layout.severity == "error"
    assert layout.what.startswith("Images must be in a folder for each class, but received source=")
    assert layout.fix.startswith("Put them in <class>/ folders")
    assert list(found(report, "unusable")) == ["cut.jpg"]
    assert report.images == 3


@pytest.mark.parametrize(
    ("counts", "kind", "what"),
    [
        ({"a": 11, "b": 121}, "imbalance", "'b' has 121 images and 'a' has 11"),
        (
            {"a": 12, "b": 9},
            "few-images",
            "1 class with fewer than 10 images to train on: 'b'",
        ),
        (
            {"Cat 1": 10, "cat_1": 10},
            "class-names-alike",
            "The classes 'Cat 1', 'cat_1' differ only in case or signs",
        ),
        (
            {"train/a": 10, "train/b": 10, "val/a": 10},
            "class-not-in-split",
            "1 class without images in val: 'b'",
        ),
    ],
)
def test_what_a_model_suffers_from_is_a_warning(tmp_path, counts, kind, what):
    report = check(folder(tmp_path / "d", counts))
    assert (report.severity, report.exit_code) == ("warning", 7)
    assert {f.kind: f.what for f in report.findings} == {kind: what}


def test_too_many_unusable_files(tmp_path):
    root = folder(tmp_path / "d", {"a": 19, "b": 19})
    for k in range(2):
        (root / "a" / f"bad{k}.jpg").write_bytes(b"")
    assert severities(check(root)) == {"unusable": "error"}
    (root / "a" / "bad3.jpg").write_bytes(b"")
    assert severities(check(root)) == {"unusable": "error", "too-many-unusable": "error"}


def test_duplicates_are_told_by_what_they_do(tmp_path):
    root = tmp_path / "d"
    folder(root, {"train/a": 10, "train/b": 10, "val/a": 10, "val/b": 10})
    train, val = root / "train", root / "val"
    shutil.copy(train / "a" / "0.png", val / "a" / "leak.png")
    shutil.copy(train / "a" / "1.png", train / "b" / "contradiction.png")
    shutil.copy(train / "a" / "2.png", train / "a" / "again.png")
    image = picture(1003, 50, 60)  # train/b/3.png
    (val / "b" / "packed.png").write_bytes(encode(image, "PNG", compress_level=0))
    (val / "b" / "mirror.jpg").write_bytes(
        encode(picture(1004, 50, 60).transpose(0), "JPEG", quality=60)
    )
    small = picture(1005, 50, 60).resize((45, 35))
    (train / "b" / "small.jpg").write_bytes(encode(small, "JPEG"))
    bright = picture(1006, 50, 60).point(lambda level: 30 + level * 0.8)
    (train / "a" / "bright.jpg").write_bytes(encode(bright, "JPEG"))
    report = check(root)
    groups = {f.kind: f.groups for f in report.findings}
    start = len(str(root)) + 1
    told = {kind: {tuple(p[start:] for p in g) for g in some} for kind, some in groups.items()}
    assert told == {
        "leak": {
            ("train/a/0.png", "val/a/leak.png"),
            ("train/b/3.png", "val/b/packed.png"),
        },
        "contradiction": {("train/a/1.png", "train/b/contradiction.png")},
        "duplicate": {("train/a/2.png", "train/a/again.png")},
        "near-leak": {("train/b/4.png", "val/b/mirror.jpg")},
        "near-duplicate": {("train/b/5.png", "train/b/small.jpg")},
        "near-contradiction": {("train/a/bright.jpg", "train/b/6.png")},
    }
    assert severities(report) == {
        "leak": "error",
        "contradiction": "error",
        "duplicate": "warning",
        "near-leak": "warning",
        "near-contradiction": "warning",
        "near-duplicate": "note",
    }


def test_command(tmp_path):
    run = CliRunner()
    data = folder(tmp_path / "d", {"ant": 10, "bee": 12})
    done = run.invoke(app, ["check", str(data)])
    assert (done.exit_code, done.stdout.strip()) == (0, str(check(data)))
    shutil.copy(data / "ant" / "0.png", data / "ant" / "again.png")
    html = tmp_path / "report.html"
    done = run.invoke(app, ["check", str(data), "--json", "--html", str(html)])
    assert done.exit_code == 7
    told = json.loads(done.stdout)
    assert told["severity"] == "warning"
    assert told["counts"] == {"all": {"ant": 11, "bee": 12}}
    paths = [str(data / "ant" / name) for name in ("0.png", "again.png")]
    assert [(f["kind"], f["groups"]) for f in told["findings"]] == [("duplicate", [paths])]
    assert html.read_text("utf-8").count("<img ") == 2
    (data / "bee" / "cut.png").write_bytes(encode(picture(1), "PNG")[:500])
    done = run.invoke(app, ["check", str(data)])
    assert done.exit_code == 3
    assert "truncated PNG" in done.stdout
    done = run.invoke(app, ["check", str(data), "--html", str(tmp_path / "no" / "x.html")])
    assert "The folder of `--html` must exist" in str(done.exception)
