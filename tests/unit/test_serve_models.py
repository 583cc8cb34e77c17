"""Which versions are loaded, kept and freed, with versions that cost nothing to load."""

import asyncio
import threading
import types

import pytest

pytest.importorskip("orjson")

from kresnet.errors import ExportError, ResourceError
from kresnet.serve.models import Models
from kresnet.serve.status import RequestError, Status


class Shelf:
    """A folder of versions; a file in it tells how loading ends."""

    def __init__(self, path, keep=1):
        self.home = path / "photos"
        self.home.mkdir()
        self.opened = []
        self.swaps = []
        self.keep = keep
        self.gate = threading.Event()
        self.gate.set()

    def publish(self, version, kind="good"):
        folder = self.home / str(version)
        folder.mkdir(exist_ok=True)
        (folder / "saved_model.pb").write_text(kind)

    def remove(self, version):
        (self.home / str(version)).rename(self.home / f".{version}")

    def open(self, directory, prefer):
        self.opened.append((int(directory.name), prefer))
        assert self.gate.wait(10)
        kind = (directory / "saved_model.pb").read_text()
        if kind.startswith("damaged"):
            raise ExportError("It is damaged.")
        if kind == "strange":
            raise RuntimeError("what is this")
        if kind == "no package":
            raise ResourceError("A package is missing.")
        return types.SimpleNamespace(name=f"runtime {directory.name}"), {}

    def models(self):
        return Models(self.home, keep=self.keep, open_version=self.open, on_swap=self.swaps.append)


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path)


def states(models):
    return {version: state.state for version, state in models.states.items()}


def test_the_newest_version_is_served_and_partial_folders_are_not_seen(shelf):
    for name in ("1", "2", "10", ".partial-11", "012", "latest", "-3", "٣"):
        shelf.publish(name)
    models = shelf.models()

    async def scene():
        await models.poll()
        await models.poll()

    asyncio.run(scene())
    assert shelf.opened == [(10, "")]
    assert models.served == [10]
    assert models.name == "photos"


def test_several_versions_may_be_kept(tmp_path):
    shelf = Shelf(tmp_path, keep=2)
    for version in (1, 2, 3):
        shelf.publish(version)
    models = shelf.models()

    async def scene():
        await models.poll()
        assert models.served == [2, 3]
        shelf.publish(4)
        await models.poll()
        assert models.served == [3, 4]
        with models.use("photos", 3) as loaded:
            assert loaded.version == 3
        with models.use("photos") as loaded:
            assert loaded.version == 4

    asyncio.run(scene())
    assert states(models) == {2: "END", 3: "AVAILABLE", 4: "AVAILABLE"}
    assert shelf.opened[2] == (4, "runtime 3")  # what served before is preferred


def test_an_old_version_is_freed_when_its_last_request_ends(shelf):
    shelf.publish(1)
    models = shelf.models()

    async def scene():
        await models.poll()
        with models.use("photos") as first:
            with models.use("photos"):
                shelf.publish(2)
                await models.poll()
                assert models.newest.version == 2
                assert states(models)[1] == "UNLOADING"
            assert first.runtime.name == "runtime 1"  # it still answers
            with pytest.raises(RequestError, match="version 1"), models.use("photos", 1):
                pass
        assert not hasattr(first, "runtime")

    asyncio.run(scene())
    assert states(models) == {1: "END", 2: "AVAILABLE"}
    assert shelf.swaps == ["loaded", "loaded", "freed"]


def test_requests_are_answered_while_a_version_loads(shelf):
    shelf.publish(1)
    models = shelf.models()

    async def scene():
        await models.poll()
        shelf.publish(2)
        shelf.gate.clear()
        polling = asyncio.ensure_future(models.poll())
        while states(models).get(2) != "LOADING":
            await asyncio.sleep(0.01)
        with models.use("photos") as loaded:
            assert loaded.version == 1
        shelf.gate.set()
        await polling
        assert models.newest.version == 2

    asyncio.run(scene())


@pytest.mark.parametrize("kind", ["damaged", "strange", "no package"])
def test_a_version_that_does_not_load_is_tried_again_only_when_it_changes(shelf, kind):
    shelf.publish(1)
    models = shelf.models()

    async def scene():
        await models.poll()
        shelf.publish(2, kind)
        for _ in range(3):
            await models.poll()
        assert [version for version, _ in shelf.opened] == [1, 2]
        assert models.served == [1]
        assert models.states[2].error
        shelf.publish(2, "good after all")
        await models.poll()
        assert models.served == [2]

    asyncio.run(scene())


def test_an_older_version_is_served_where_the_newest_is_damaged_from_the_start(shelf):
    shelf.publish(1)
    shelf.publish(2, "damaged")
    models = shelf.models()
    asyncio.run(models.poll())
    assert models.served == [1]


def test_deleting_what_is_served_falls_back_or_goes_on_from_memory(shelf):
    shelf.publish(1)
    shelf.publish(2)
    models = shelf.models()

    async def scene():
        await models.poll()
        shelf.remove(2)
        await models.poll()
        assert models.served == [1]
        shelf.remove(1)
        await models.poll()
        assert models.served == [1]
        shelf.home.rename(shelf.home.with_name("gone"))
        await models.poll()
        assert models.served == [1]

    asyncio.run(scene())


def test_nothing_to_serve_is_an_error(shelf):
    with pytest.raises(ExportError, match="An export is a folder NAME or NAME/VERSION"):
        shelf.models()
    shelf.publish(1, "damaged")
    with pytest.raises(ExportError, match="damaged"):
        asyncio.run(shelf.models().poll())
    shelf.publish(1, "no package")
    with pytest.raises(ResourceError, match="missing"):
        asyncio.run(shelf.models().poll())


def test_a_path_of_one_version_serves_only_that(shelf):
    shelf.publish(1)
    shelf.publish(2)
    models = Models(shelf.home / "1", keep=1, open_version=shelf.open)

    async def scene():
        await models.poll()
        await models.watch(0.01)  # returns at once: there is nothing to watch

    asyncio.run(scene())
    assert (models.name, models.served) == ("photos", [1])


def test_other_names_and_a_server_that_still_loads(shelf):
    shelf.publish(1)
    models = shelf.models()
    with pytest.raises(RequestError, match="being loaded") as refused, models.use("photos"):
        pass
    assert refused.value.status is Status.UNAVAILABLE
    asyncio.run(models.poll())
    for name in ("other", "../photos", "photos/1", ""):
        with pytest.raises(RequestError, match="not found") as refused, models.use(name):
            pass
        assert refused.value.status is Status.NOT_FOUND
