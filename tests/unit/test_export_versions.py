"""Versions appear whole or not at all, whoever publishes, and whatever kills it."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from typer.testing import CliRunner

from kresnet.cli import app
from kresnet.errors import ConfigError, ExportError, ResourceError
from kresnet.export.contract import Contract, FormatCheck
from kresnet.export.versions import latest_version, list_versions, new_version, roll_back
from kresnet.zoo import Preprocessing


def contract(name="photos", **fields):
    check = FormatCheck(
        bytes=1000, max_difference=1e-6, top1_agreement=1.0, images=90, accuracy=0.9,
        reference_accuracy=0.91,
    )  # fmt: skip
    return Contract(
        **{
            "name": name,
            "variant": "resnet50",
            "classes": ("a", "b"),
            "preprocessing": Preprocessing(),
            "versions": {},
            "created": "2026-11-20T10:00:00+00:00",
            "formats": {"saved_model": check},
        }
        | fields
    )


def publish(root, text, name="photos"):
    with new_version(root / name) as version:
        (version.directory / "saved_model.pb").write_text(text)
        (version.directory / "variables").mkdir()
        (version.directory / "variables" / "weights").write_text(text * 100)
        contract(name).save(version.directory)
    return version.path


def content(root, number, name="photos"):
    return (root / name / str(number) / "saved_model.pb").read_text()


def test_versions_count_up_and_the_newest_is_the_latest(tmp_path):
    paths = [publish(tmp_path, str(k)) for k in range(11)]
    assert [path.name for path in paths] == [str(k) for k in range(1, 12)]
    home = tmp_path / "photos"
    assert latest_version(home) == home / "11"  # as numbers: "9" is not after "11"
    assert latest_version(home / "3") == home / "3"
    (home / "012").mkdir()  # TensorFlow Serving's numbers have no zeros in front
    (home / "backup").mkdir()
    assert publish(tmp_path, "next").name == "12"
    assert [v.number for v in list_versions(tmp_path, "photos")] == list(range(1, 13))


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), new_version(tmp_path / "photos") as version:  # noqa: PT012
        (version.directory / "saved_model.pb").write_text("half")
        raise KeyError
    assert list((tmp_path / "photos").iterdir()) == []


def test_a_version_can_be_read_by_the_server(tmp_path):
    path = publish(tmp_path, "x")
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o777 & ~umask


PUBLISHER = """
import sys, time
from pathlib import Path
from kresnet.export.versions import new_version
with new_version(Path(sys.argv[1])) as version:
    (version.directory / "saved_model.pb").write_text("half")
    print(version.directory.name, flush=True)
    time.sleep(60)
"""


def publisher(home):
    process = subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, str(home)], stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def test_a_killed_publisher_leaves_nothing_visible_and_is_cleaned_up_after(tmp_path):
    home = tmp_path / "photos"
    publish(tmp_path, "first")
    (killed, remains), (living, partial) = publisher(home), publisher(home)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert remains.startswith(".")
    assert (home / remains / "saved_model.pb").read_text() == "half"
    assert [v.number for v in list_versions(tmp_path)] == [1]
    assert latest_version(home) == home / "1"

    publish(tmp_path, "second")
    assert not (home / remains).exists()
    assert (home / partial / "saved_model.pb").exists()  # its process still writes
    assert content(tmp_path, 2) == "second"
    living.kill()
    living.communicate()
    publish(tmp_path, "third")
    assert sorted(path.name for path in home.iterdir()) == ["1", "2", "3"]


def test_publishers_at_the_same_time_get_versions_of_their_own(tmp_path):
    texts = [f"publisher {k}" for k in range(40)]
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda text: publish(tmp_path, text), texts))
    assert sorted(int(path.name) for path in paths) == list(range(1, 41))
    for path, text in zip(paths, texts, strict=True):
        assert (path / "saved_model.pb").read_text() == text
        assert (path / "variables" / "weights").read_text() == text * 100


def test_going_back_publishes_the_older_version_again(tmp_path):
    for text in ("one", "two", "three"):
        publish(tmp_path, text)
    back = roll_back(tmp_path, "photos")
    assert (back.number, back.contract.copy_of) == (4, 2)
    assert content(tmp_path, 4) == "two"
    assert latest_version(tmp_path / "photos").name == "4"
    assert [content(tmp_path, k) for k in (1, 2, 3)] == ["one", "two", "three"]
    assert Contract.load(tmp_path / "photos" / "2").copy_of is None  # files are shared, not this
    weights = [tmp_path / "photos" / k / "variables" / "weights" for k in "24"]
    assert weights[0].stat().st_ino == weights[1].stat().st_ino

    again = roll_back(tmp_path, "photos")  # from a copy of 2, back is 1
    assert (again.number, again.contract.copy_of) == (5, 1)
    with pytest.raises(ExportError, match=r"needs an older version. Received: 'photos' with 1, 2"):
        roll_back(tmp_path, "photos")
    chosen = roll_back(tmp_path, "photos", 4)
    assert (chosen.number, chosen.contract.copy_of, content(tmp_path, 6)) == (6, 2, "two")
    with pytest.raises(ExportError, match=r"asked for 17"):
        roll_back(tmp_path, "photos", 17)


def test_files_are_copied_where_they_cannot_be_linked(tmp_path, monkeypatch):
    publish(tmp_path, "one")
    publish(tmp_path, "two")
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    roll_back(tmp_path, "photos")
    assert content(tmp_path, 3) == "one"


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(ResourceError, match=r"folder must be writable. Received: .*No space left"):
        publish(tmp_path, "x")
    assert list((tmp_path / "photos").iterdir()) == []


def command(*arguments):
    result = CliRunner().invoke(app, ["exports", *map(str, arguments)])
    return result.stdout, result.exception


def test_the_command_lists_exports_and_goes_back(tmp_path):
    publish(tmp_path, "one")
    publish(tmp_path, "two")
    publish(tmp_path, "other", name="pets")
    text, _ = command("--exports", tmp_path)
    assert "photos 1  2026-11-20T10:00:00+00:00  resnet50, 2 classes" in text
    assert "pets 1" in text
    assert "90.0%" in text
    listed = json.loads(command("photos", "--exports", tmp_path, "--json")[0])
    assert [v["version"] for v in listed] == [1, 2]
    assert listed[0]["formats"]["saved_model"]["accuracy"] == 0.9
    assert listed[0]["bytes"] > 300
    (back,) = json.loads(command("photos", "--rollback", "1", "--exports", tmp_path, "--json")[0])
    assert (back["version"], back["copy_of"]) == (3, 1)
    assert "photos 3, again version 1" in command("photos", "--exports", tmp_path)[0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["nope"], ExportError, r"one of those in .*: photos. Received: 'nope'"),
        (["photos", "1"], ConfigError, r"Received: 1 without --rollback. Add it."),
        (["--rollback"], ConfigError, r"needs the NAME of an export"),
        (["photos", "--rollback"], ExportError, r"needs an older version"),
    ],
)
def test_mistakes_are_told(tmp_path, arguments, error, message):
    publish(tmp_path, "one")
    _, raised = command(*arguments, "--exports", tmp_path)
    with pytest.raises(error, match=message):
        raise raised
