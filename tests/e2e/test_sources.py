"""The whole job on images inside of large files: what is trained, exported and scored."""

import shutil

import pytest

from kresnet.console import Console
from kresnet.data.pack import pack
from kresnet.data.scan import scan
from kresnet.train.run import Run
from kresnet.workflow import evaluate_export, export_run, fit


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("KRESNET_HOME", str(tmp_path / "home"))


@pytest.fixture
def sources(striped, tmp_path):
    """The same images as a compressed archive and as shards."""
    pytest.importorskip("tensorflow_datasets")
    archive = shutil.make_archive(str(tmp_path / "striped"), "gztar", striped)
    return archive, pack(scan(striped), tmp_path / "shards", shards=2).path


def upload(shards):
    """Copy shards to where only fsspec reads them."""
    files = pytest.importorskip("fsspec").filesystem("memory")
    for file in shards.iterdir():
        files.pipe_file(f"/bucket/far/{file.name}", file.read_bytes())
    return "memory://bucket/far"


@pytest.mark.slow
def test_the_whole_job_on_shards_and_archives(home, sources, tmp_path):
    archive, shards = sources
    settings = {
        "variant": "resnet8_cifar", "weights": None, "epochs": 1, "precision": "float32",
        "batch_size": 8, "exports": tmp_path / "exports", "console": Console(quiet=True),
    }  # fmt: skip
    result = fit(shards, name="of shards", out=tmp_path / "runs", **settings)
    assert (result.export / "saved_model.pb").is_file()
    assert evaluate_export(result.export, archive).n == 48
    same = fit(archive, out=tmp_path / "runs", **settings)
    assert same.run.name == "striped"
    assert same.validation.accuracy == result.validation.accuracy
    shutil.rmtree(tmp_path / "home")  # what was unpacked comes back
    assert export_run(
        same.run, exports=tmp_path / "again", console=Console(quiet=True)
    ).path.is_dir()


@pytest.mark.slow
def test_the_whole_job_behind_a_url(home, sources, tmp_path):
    url = upload(sources[1])
    result = fit(
        url, variant="resnet8_cifar", weights=None, epochs=1, precision="float32", batch_size=8,
        out=tmp_path / "runs", exports=tmp_path / "exports", console=Console(quiet=True),
    )  # fmt: skip
    assert result.run.name == "far"
    assert {row.path.rpartition("/")[0] for row in Run.open(result.run).index.rows} == {url}
    assert (result.export / "saved_model.pb").is_file()
    assert evaluate_export(result.export, url).n == 48
