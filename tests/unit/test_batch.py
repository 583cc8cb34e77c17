"""Batch inference: each image once, whatever happens to those who answer."""

import csv
import json
import os
import shutil
import sys
import threading

import pytest
from batches import kill_after, paths_in, run, write_images
from small_export import CLASSES, write_small

pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
import pyarrow.parquet as parquet

from kresnet.batch import job as jobs
from kresnet.batch.hand import Hand
from kresnet.batch.predict import predict
from kresnet.batch.rows import as_parquet
from kresnet.batch.worker import Settings
from kresnet.cli import app
from kresnet.console import Console
from kresnet.data.items import Item
from kresnet.errors import ConfigError, DataError, ExportError, ResourceError
from kresnet.serve.answer import Answer
from kresnet.serve.engine import Engine


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    home = tmp_path_factory.mktemp("export") / "small"
    write_small(home / "1", threshold=0.4)
    return home


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(jobs, "_PART", 8)


def rows_of(output):
    return {row["path"]: row for row in parquet.read_table(output).to_pylist()}


def ask(export, source, output, **options):
    return predict(export, source, output, console=Console(quiet=True), **options)


def test_killed_and_run_again_each_image_is_once_in_the_output(export, tmp_path):
    images = write_images(tmp_path / "images", 600, bad=(3, 333))
    output = tmp_path / "out.parquet"
    kill_after(1, export, images, output)
    assert not output.exists()
    done = run(export, images, output, "--json")
    assert done.returncode == 0, done.stderr
    assert "parts are done" in done.stderr
    assert json.loads(done.stdout) == {
        "output": str(output), "images": 600, "answered": 598, "failed": 2,
        "abstained": sum(row["ok"] and row["abstain"] for row in rows_of(output).values()),
    }  # fmt: skip
    assert paths_in(output) == dict.fromkeys(map(str, images.rglob("*.png")), 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out.parquet"]
    bad = [row for row in rows_of(output).values() if not row["ok"]]
    assert {(os.path.basename(row["path"]), row["error"]) for row in bad} == {
        ("3.png", "cannot be decoded"), ("333.png", "cannot be decoded"),
    }  # fmt: skip
    assert [bad[0][name] for name in ("label", "score", "labels", "scores")] == [None] * 4


class InProcess:
    """In place of processes: the worker's own code, in this one."""

    engine = None
    begun = 0

    def __init__(self, settings, environment=None):
        type(self).begun += 1
        self.settings = settings

    def do(self, images):
        from kresnet.batch.worker import answers

        found = list(answers(self.engine, images, mirror=self.settings.mirror))
        return as_parquet([image.name for image in images], found, self.settings.top)

    def close(self):
        pass


@pytest.fixture
def here(export, monkeypatch):
    monkeypatch.setattr("kresnet.batch.predict.Hand", InProcess)
    InProcess.engine, InProcess.begun = Engine(export / "1"), 0
    return InProcess


def test_rows_are_the_answers_of_the_export(export, here, tmp_path, small_parts):
    images = write_images(tmp_path / "images", 30)
    (images / "notes.txt").write_text("no image")
    (images / ".hidden.png").write_bytes(b"")
    (images / os.fsdecode(b"\xff.png")).write_bytes((images / "0" / "0.png").read_bytes())
    summary = ask(export, images, tmp_path / "all.parquet", top=0, jobs_at_once=3)
    assert (summary.images, summary.answered, summary.failed) == (31, 31, 0)
    rows = rows_of(tmp_path / "all.parquet")
    files = sorted(images.rglob("*.png"))
    assert rows.pop(f"{images}/\\xff.png")["ok"]
    files = [file for file in files if str(file) in rows]
    assert len(files) == len(rows) == 30
    for file, answer in zip(files, Engine(export / "1").answer_files(files), strict=True):
        row = rows[str(file)]
        assert (row["label"], row["abstain"]) == (answer.label, answer.abstain)
        assert row["score"] == pytest.approx(answer.score, abs=1e-6)
        assert row["scores"] == sorted(row["scores"], reverse=True)
        pairs = dict(zip(row["labels"], row["scores"], strict=True))
        assert pairs == pytest.approx(answer.scores, abs=1e-6)
    two = ask(export, images, tmp_path / "two.parquet", top=2)
    assert two.images == 31
    for path, row in rows_of(tmp_path / "two.parquet").items():
        assert len(row["labels"]) == 2
        assert path not in rows or row["labels"] == rows[path]["labels"][:2]


def test_manifests_and_shards_need_no_labels(export, here, tmp_path):
    images = write_images(tmp_path / "images", 5)
    files = sorted(images.rglob("*.png"))
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "note"], *([f, "x"] for f in files), [files[0], "y"]])
    ask(export, tmp_path / "list.csv", tmp_path / "csv.parquet")
    assert paths_in(tmp_path / "csv.parquet") == dict.fromkeys(map(str, files), 1)

    import tensorflow as tf
    from small_export import example

    (tmp_path / "shards").mkdir()
    path = tmp_path / "shards" / "photos.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for file in files:
            writer.write(example(image=file.read_bytes()))
    ask(export, tmp_path / "shards", tmp_path / "shards.parquet")
    rows = rows_of(tmp_path / "shards.parquet")
    assert set(rows) == {f"{path}::{number}" for number in range(5)}
    from_files = rows_of(tmp_path / "csv.parquet")
    assert [rows[f"{path}::{k}"]["scores"] for k in range(5)] == [
        from_files[str(file)]["scores"] for file in files
    ]


def test_what_is_done_is_not_done_again(export, here, tmp_path, small_parts, monkeypatch):
    images = write_images(tmp_path / "images", 40)
    output = tmp_path / "out.parquet"
    asked = []
    do = InProcess.do

    def failing(self, part):
        if len(asked) == 3:
            raise ResourceError("no more")
        asked.append([image.path for image in part])
        return do(self, part)

    monkeypatch.setattr(InProcess, "do", failing)
    with pytest.raises(ResourceError, match="no more"):
        ask(export, images, output)
    parts = jobs.parts_of(output)
    assert len(list(parts.glob("[0-9]*.parquet"))) == 3
    (parts / "00001.parquet").write_bytes(b"half a")  # as a power cut may leave it
    (images / "0" / "new.png").write_bytes(b"listed too late")
    asked.clear()
    monkeypatch.setattr(
        InProcess, "do", lambda self, part: asked.append(len(part)) or do(self, part)
    )
    ask(export, images, output)
    assert asked == [8, 8, 8]
    assert len(paths_in(output)) == 40
    before = output.read_bytes()
    asked.clear()
    assert ask(export, images, output).images == 40  # complete: nothing is done
    assert asked == []
    assert output.read_bytes() == before
    assert not parts.exists()


def test_an_image_that_disappears_or_is_none_is_a_row(export, here, tmp_path):
    file = tmp_path / "list.jsonl"
    good = write_images(tmp_path / "images", 1)
    lines = [{"path": str(good / "0" / "0.png")}, {"path": "absent.png"}, {"path": "images"}]
    file.write_text("\n".join(map(json.dumps, lines)))
    summary = ask(export, file, tmp_path / "out.parquet")
    assert (summary.answered, summary.failed) == (1, 2)
    rows = rows_of(tmp_path / "out.parquet")
    assert rows[f"{tmp_path}/absent.png"]["error"] == "cannot be read: No such file or directory"
    assert rows[f"{tmp_path}/images"]["error"] == "cannot be read: Is a directory"
    file.write_text(json.dumps(lines[1]))
    with pytest.raises(DataError, match="1 images, none of which could be answered for"):
        ask(export, file, tmp_path / "none.parquet")


def test_another_job_is_not_gone_on_with(export, here, tmp_path, small_parts, monkeypatch):
    images = write_images(tmp_path / "images", 10)
    output = tmp_path / "out.parquet"
    ask(export, images, output)
    with pytest.raises(ConfigError, match=r"Received: top=2, and .*out.parquet has top=5"):
        ask(export, images, output, top=2)
    mine = tmp_path / "mine.parquet"
    mine.write_bytes(b"not of kresnet")
    with pytest.raises(ConfigError, match=r"must be a new file.*mine.parquet"):
        ask(export, images, mine)
    assert mine.read_bytes() == b"not of kresnet"
    newer = tmp_path / "newer"
    shutil.copytree(export, newer)
    with (newer / "1" / "assets.extra" / "kresnet.json").open("a") as file:
        file.write("\n")
    other = tmp_path / "other.parquet"
    monkeypatch.setattr(InProcess, "do", lambda self, part: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ask(newer, images, other)
    (newer / "1" / "assets.extra" / "kresnet.json").write_text("{}")
    with pytest.raises(ConfigError, match="digest="):
        ask(newer, images, other)


def test_one_process_at_a_time_writes_an_output(export, here, tmp_path):
    images = write_images(tmp_path / "images", 3)
    output = tmp_path / "out.parquet"
    with jobs.alone(output), pytest.raises(ConfigError, match="which another is writing"):
        ask(export, images, output)
    assert ask(export, images, output).images == 3


def test_an_image_that_ends_its_process_costs_its_own_row_only(export, tmp_path):
    images = write_images(tmp_path / "images", 6)
    files = [Item(str(path), "") for path in sorted(images.rglob("*.png"))]
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, sys\n"
        "from kresnet.batch import worker\n"
        "class Fragile:\n"
        "    def answer(self, images, *, mirror=False):\n"
        "        if any(image == b'fatal' for image in images): os.kill(os.getpid(), 9)\n"
        "        from kresnet.serve.answer import Answer\n"
        "        return [Answer('a', .5, {'a': .5}) for image in images]\n"
        "import kresnet.serve.quick\n"
        "kresnet.serve.quick.open_export = lambda *_: Fragile()\n"
        "sys.exit(worker.main(sys.argv[1:]))\n"
    )
    (images / "3" / "3.png").write_bytes(b"fatal")
    hand = Hand(Settings(str(export)), command=(sys.executable, str(script)))
    (tmp_path / "rows.parquet").write_bytes(hand.do(files))
    rows = rows_of(tmp_path / "rows.parquet")
    assert {os.path.basename(path) for path, row in rows.items() if not row["ok"]} == {"3.png"}
    assert rows[files[3].path]["error"] == "ended the process that was to answer for it"
    hand.close()


def test_a_process_that_never_lives_ends_the_job(export, tmp_path):
    hand = Hand(
        Settings(str(export)),
        command=(sys.executable, "-c", "import sys; sys.exit('the reason')"),
    )
    with pytest.raises(ResourceError, match=r"ended 9 times \(the reason\)"):
        hand.do([Item(str(tmp_path), "")])
    hand.close()
    with pytest.raises(ResourceError, match="must live"):
        hand.do([Item(str(tmp_path), "")])


def test_what_a_worker_tells_is_the_error(tmp_path):
    hand = Hand(Settings(str(tmp_path)))
    with pytest.raises(ExportError, match="A kresnet export holds"):
        hand.do([Item(str(tmp_path), "")])
    hand.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "x"], "`--input` and `--output` go together"),
        (["--input", "x", "--output", "y.csv"], r"must be a .parquet file. Received: 'y.csv'"),
        (["--input", "x", "--output", "y.parquet", "z.png"], "1 images"),
        (["--input", "x", "--output", "y.parquet", "--top", "-1"], "`--top` is 0 or more"),
        (["--input", "x", "--output", "y.parquet", "--jobs", "0"], "`--jobs` must be 1 or more"),
        (["--input", "x", "--output", "y.parquet", "--tta"], "Leave out --tta"),
        (["x.png", "--top", "3"], "go with `--input`. Received: top=3"),
        ([], "There must be an image"),
    ],
)
def test_mistakes_are_one_line(export, tmp_path, monkeypatch, arguments, message):
    from typer.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["predict", str(export), *arguments])
    assert isinstance(done.exception, ConfigError)
    with pytest.raises(ConfigError, match=message):
        raise done.exception
    assert not list(tmp_path.iterdir())


def test_all_threads_end_where_one_fails(export, here, tmp_path, small_parts, monkeypatch):
    images = write_images(tmp_path / "images", 40)

    def fail(self, part):
        raise ResourceError("no room")

    monkeypatch.setattr(InProcess, "do", fail)
    before = threading.active_count()
    with pytest.raises(ResourceError, match="no room"):
        ask(export, images, tmp_path / "out.parquet", jobs_at_once=2)
    assert threading.active_count() <= before + 2


def test_scores_of_other_types_become_float32(tmp_path):
    answer = Answer("b", 0.75, {"a": 0.25, "b": 0.75})
    (tmp_path / "rows.parquet").write_bytes(as_parquet(["x"], [answer], 1))
    (row,) = rows_of(tmp_path / "rows.parquet").values()
    assert (row["labels"], row["scores"]) == (["b"], [0.75])
    assert len(CLASSES) == 5
