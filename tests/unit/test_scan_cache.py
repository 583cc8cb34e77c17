"""The cache saves decoding, never lies, and survives everything that can happen to a file."""

import os
import random
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hostile import encode, picture

from kresnet.data import scan_cache
from kresnet.data.examine import Facts
from kresnet.data.items import Item
from kresnet.data.scan_cache import ScanCache, examine_all

OLD = 1_600_000_000 * 10**9


def images(root, count=6):
    """Files that have not changed for long: some pictures and a damaged one."""
    root.mkdir(parents=True)
    for k in range(count):
        contents = encode(picture(k), "JPEG")
        (root / f"{k}.jpg").write_bytes(contents if k else contents[:100])
        os.utime(root / f"{k}.jpg", ns=(OLD, OLD))
    return [Item(str(root / f"{k}.jpg"), "x") for k in range(count)]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("KRESNET_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "scan.sqlite"


@pytest.fixture
def examined(monkeypatch):
    """The paths that were really examined."""
    seen, examine = [], scan_cache.examine

    def watched(item):
        seen.append(Path(item.path).name)
        return examine(item)

    monkeypatch.setattr(scan_cache, "examine", watched)
    return seen


def test_what_has_not_changed_is_not_read_again(tmp_path, home, examined):
    items = images(tmp_path / "d")
    first = examine_all(items)
    assert first[0] == "truncated JPEG"
    assert all(isinstance(facts, Facts) and len(facts.look) == 1028 for facts in first[1:])
    assert len(examined) == 6
    assert examine_all(items) == first
    assert len(examined) == 6
    Path(items[2].path).write_bytes(encode(picture(50), "JPEG"))
    os.utime(items[2].path, ns=(OLD + 10**9, OLD + 10**9))
    os.utime(items[3].path, ns=(OLD + 1, OLD + 1))
    second = examine_all(items)
    assert examined[6:] == ["2.jpg", "3.jpg"]
    assert second[2] != first[2]
    assert second[3:] == first[3:]
    assert examine_all(items) == second
    assert len(examined) == 8


def test_parts_of_a_file_are_told_apart(tmp_path, home, examined):
    made = [encode(picture(k), "JPEG") for k in range(2)]
    path = tmp_path / "shard"
    path.write_bytes(b"".join(made))
    os.utime(path, ns=(OLD, OLD))
    lengths = [len(contents) for contents in made]
    items = [
        Item(str(path), "x", None, 0, lengths[0], "a.jpg"),
        Item(str(path), "x", None, lengths[0], lengths[1], "b.jpg"),
    ]
    first = examine_all(items)
    assert first[0].digest != first[1].digest
    assert examine_all(items) == first
    assert len(examined) == 2


def test_a_file_that_may_still_change_is_not_remembered(tmp_path, home, examined):
    items = images(tmp_path / "d", 2)
    os.utime(items[1].path)
    examine_all(items)
    examine_all(items)
    assert examined == ["0.jpg", "1.jpg", "1.jpg"]


def test_what_does_not_depend_on_the_file_is_not_remembered(tmp_path, home, examined):
    items = images(tmp_path / "d", 1)
    link, text = tmp_path / "d" / "link.jpg", tmp_path / "d" / "notes.txt"
    link.symlink_to(tmp_path / "absent.jpg")
    text.write_bytes(b"nothing")
    items += [Item(str(link), "x"), Item(str(text), "x")]
    assert examine_all(items) == examine_all(items)
    assert examined == ["0.jpg", "link.jpg", "notes.txt", "link.jpg", "notes.txt"]


def test_another_examiner_forgets_everything(tmp_path, home, examined, monkeypatch):
    items = images(tmp_path / "d", 2)
    examine_all(items)
    monkeypatch.setattr(scan_cache, "EXAMINER", scan_cache.EXAMINER + 1)
    examine_all(items)
    examine_all(items)
    assert len(examined) == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda contents: b"",
        lambda contents: b"not a database " * 500,
        lambda contents: contents[: len(contents) // 2],
        lambda contents: contents[:100] + bytes(4000) + contents[4100:],
        lambda contents: contents[:4096] + random.Random(1).randbytes(len(contents) - 4096),
        lambda contents: contents.replace(b"JPEG", b"GIFS"),
    ],
    ids=["empty", "text", "cut", "zeros", "noise", "another answer"],
)
def test_a_damaged_cache_is_made_anew(tmp_path, home, examined, damage):
    items = images(tmp_path / "d", 20)
    first = examine_all(items)
    home.write_bytes(damage(home.read_bytes()))
    assert examine_all(items) == first
    assert len(examined) > 20
    examine_all(items)
    before = len(examined)
    assert examine_all(items) == first
    assert len(examined) == before


def test_a_cache_without_its_table_is_made_anew(tmp_path, home, examined):
    items = images(tmp_path / "d", 2)
    examine_all(items)
    with sqlite3.connect(home) as database:
        database.execute("DROP TABLE images")
    database.close()
    for _ in range(3):
        examine_all(items)
    assert len(examined) == 4


def test_where_nothing_can_be_kept_everything_is_examined(tmp_path, home, examined):
    items = images(tmp_path / "d", 2)
    home.parent.mkdir()
    home.mkdir()
    first = examine_all(items)
    assert examine_all(items) == first
    assert len(examined) == 4
    home.rmdir()
    home.parent.rmdir()
    home.parent.write_text("a file where the folder should be")
    assert examine_all(items) == first


def test_its_size_is_bounded(tmp_path):
    path = tmp_path / "scan.sqlite"
    answer = Facts(3, 4, "ab" * 32, "grey", bytes(range(256)) * 4)
    with ScanCache(path, max_bytes=300_000) as cache:
        for k in range(0, 2000, 50):
            stamps = [(b"/d/%d" % n, 0, -1, 9, OLD) for n in range(k, k + 50)]
            cache.put((stamp, answer) for stamp in stamps)
            assert cache.get(stamps[-1:]) == {0: answer}
    assert path.stat().st_size < 500_000


def test_a_locked_cache_is_done_without(tmp_path, monkeypatch):
    path = tmp_path / "scan.sqlite"
    stamp, answer = (b"/d", 0, -1, 9, OLD), Facts(3, 4, "ab" * 32)
    with ScanCache(path) as cache:
        cache.put([(stamp, answer)])
    connect = sqlite3.connect
    monkeypatch.setattr(scan_cache.sqlite3, "connect", lambda path, timeout: connect(path, 0.1))
    holder = connect(path)
    holder.execute("BEGIN EXCLUSIVE")
    with ScanCache(path) as cache:
        assert cache.get([stamp]) == {}
        cache.put([(stamp, answer)])
    holder.close()
    with ScanCache(path) as cache:
        assert cache.get([stamp]) == {0: answer}


PROCESS = """
import sys
from kresnet.data.items import Item
from kresnet.data.scan_cache import examine_all
sys.stdin.readline()
for _ in range(20):
    results = examine_all([Item(path, "x") for path in sys.argv[1:]])
print(len(results))
"""


def test_processes_may_share_it(tmp_path, home, examined):
    items = images(tmp_path / "d", 30)
    paths = [item.path for item in items]
    code = PROCESS.replace("import sys\n", f"import sys; sys.path[:0] = {sys.path!r}\n", 1)
    one = subprocess.Popen(
        [sys.executable, "-c", code, *paths[:20]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"KRESNET_HOME": str(home.parent)},
        text=True,
    )
    one.stdin.write("go\n")
    one.stdin.flush()
    for _ in range(20):
        first = examine_all(items[10:])
    assert one.communicate()[0] == "20\n"
    examined.clear()
    assert examine_all(items)[10:] == first
    assert examined == []


def test_threads_with_a_cache_each_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "scan.sqlite"
    answer = Facts(3, 4, "ab" * 32, "grey", bytes(1028))
    wrong = []

    def work(number):
        with ScanCache(path) as cache:
            for k in range(30):
                stamp = (b"/%d/%d" % (number, k), 0, -1, 9, OLD)
                cache.put([(stamp, answer)])
                if cache.get([stamp]) != {0: answer}:
                    wrong.append(stamp)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
