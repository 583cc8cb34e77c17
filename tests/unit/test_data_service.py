"""Batches that a tf.data service makes are those that are made here."""

import queue
import socket
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from batch_service import Parts
from conftest import stripes
from typer.testing import CliRunner

from kresnet.cli import app
from kresnet.data import service
from kresnet.data.augment import Augmentation
from kresnet.data.pipeline import TrainingData
from kresnet.data.scan import Row
from kresnet.data.service import Gone, Service, check_served, serve
from kresnet.errors import ConfigError, ResourceError
from kresnet.train.distribute import check_service, service_of
from kresnet.train.plan import plan
from kresnet.zoo import Preprocessing

SMALL = Preprocessing(image_size=32, crop_pct=1.0)


@pytest.fixture
def rows(tmp_path):
    """Images in files of their own, and two that are parts of one."""
    rng = np.random.default_rng(0)
    made = []
    for k in range(9):
        path = tmp_path / f"{k} é,'.png"
        stripes(rng, k % 3, 36 + k).save(path)
        made.append(Row(str(path), k % 3, "train", 36 + k, 43 + k, ""))
    parts = [(tmp_path / f"{k} é,'.png").read_bytes() for k in (3, 7)]
    shard = tmp_path / "shard"
    shard.write_bytes(b"head" + parts[0] + b"between" + parts[1])
    for k, offset, part in zip((3, 7), (4, 11 + len(parts[0])), parts, strict=True):
        place = {"offset": offset, "size": len(part), "member": f"{k}.png"}
        made[k] = Row(str(shard), k % 3, "train", 36 + k, 43 + k, "", **place)
    return made


def training(rows, **options):
    augmentation = Augmentation(policy="none", min_area=0.5, mixup=0.4)
    fixed = {"num_classes": 3, "batch_size": 4, "seed": 0, "augmentation": augmentation}
    return TrainingData(rows, SMALL, **fixed | options)


def check_same(mine, theirs):
    for one, other in zip(mine, theirs, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture
def parts():
    """Parts of a service."""
    parts = Parts()
    yield parts
    parts.end()


def test_batches_are_the_same_whatever_the_number_of_workers(rows, parts):
    here = list(islice(training(rows).batches(2), 12))
    for workers in (1, 3):
        _, address = parts.start(workers)
        served_by = Service(address)
        served_by.reach()
        check_same(islice(training(rows, served_by=served_by).batches(2), 12), here)


@pytest.mark.slow
def test_each_worker_of_a_team_has_its_rows_of_a_batch(rows, parts):
    _, address = parts.start(1)
    half = training(rows, worker=(1, 2), served_by=Service(address))
    here = [tuple(part[2:] for part in batch) for batch in islice(training(rows).batches(), 3)]
    check_same(islice(half.batches(), 3), here)


@pytest.mark.slow
def test_what_a_lost_worker_had_in_hand_is_made_here(rows, parts, monkeypatch):
    monkeypatch.setattr(service, "_GAP_S", 0.0)
    monkeypatch.setattr(service, "_SOON_S", 0.2)
    here = list(islice(training(rows).batches(), 60))
    _, address = parts.start(1)
    lost, _ = parts.start(1, address)
    found = []
    for batch in islice(training(rows, served_by=Service(address)).batches(), 60):
        found.append(batch)
        if len(found) == 5:
            lost.kill()
    check_same(found, here)


@pytest.mark.slow
def test_an_image_that_is_lost_is_left_out_as_without_the_service(rows, parts):
    _, address = parts.start(1)
    lost = []
    Path(rows[4].path).unlink()
    served = training(rows, served_by=Service(address), max_bad=0.2, tell=lost.append)
    here = training(rows, max_bad=0.2)
    check_same(islice(served.batches(), 5), islice(here.batches(), 5))
    assert [problem.path for problem in lost] == [rows[4].path]


class Sent:
    """In place of what a service sends: things in an order, then nothing."""

    def __init__(self, *things):
        self._things = list(things)

    def take(self):
        if not self._things:
            raise queue.Empty
        thing = self._things.pop(0)
        if isinstance(thing, Exception):
            raise thing
        return thing

    def end(self):
        pass


def sent(number, images=1):
    return tf.constant(number, tf.int64), tf.fill((images, 1), float(number))


def one(number):
    """Make a batch that shows that it was made here."""
    return tf.data.Dataset.from_tensors((tf.fill((1, 1), 100.0 + tf.cast(number, tf.float32)),))


def received(monkeypatch, things, count, **times):
    monkeypatch.setattr(service, "_Arrivals", lambda *_: Sent(*things))
    batches = Service("host:1", **times).batches(one, 3, lambda number: [Row("/x", 0, *[None] * 4)])
    return [float(batch[0][0, 0]) for batch in islice(batches, count)]


def test_batches_come_in_order_and_those_that_do_not_come_are_made(monkeypatch):
    monkeypatch.setattr(service, "_SHARE", 0.0)
    others = [sent(k) for k in (4, 3, 6, 8, 7, 9, 10, 11, 12, 13, 5, 14)]
    assert received(monkeypatch, others, 12) == [3, 4, 105, *range(6, 15)]


def test_a_service_that_falls_silent_ends_the_training(monkeypatch):
    with pytest.raises(Gone, match=r"must stay until the end. Received: nothing for 0 s from grpc"):
        received(monkeypatch, [sent(3)], 2, patience_s=0)
    error = tf.errors.NotFoundError(None, None, "no such job\nat all")
    with pytest.raises(Gone, match=r"Received: NotFoundError: no such job at all from grpc"):
        received(monkeypatch, [sent(3), error], 2)
    with pytest.raises(ResourceError, match=r"must answer with a worker.*Received: nothing for 0"):
        received(monkeypatch, [], 1, wait_s=0)


def test_a_worker_that_does_not_see_the_images_is_told_of(monkeypatch):
    with pytest.raises(ResourceError, match=r"at the same paths. Received: '/x' or another"):
        received(monkeypatch, [sent(3, images=0)], 1)
    with pytest.raises(Gone, match=r"at the same paths"):
        received(monkeypatch, [sent(3), sent(4, images=0)], 2)


@pytest.mark.parametrize("address", ["host", "http://host:5050", "grpc://host", "a b:1", "none"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ConfigError, match=r"as grpc://host:5050. Received: data_service="):
        service_of(address)


def test_times_are_those_of_the_environment(monkeypatch):
    monkeypatch.setenv("KRESNET_WAIT_S", "7")
    assert service_of("[::1]:5050") == Service("grpc://[::1]:5050", wait_s=7, patience_s=30)


def test_what_does_not_answer_is_refused_at_the_start():
    done = CliRunner().invoke(app, ["train", "nowhere", "--data-service", "grpc://127.0.0.1:1"])
    assert isinstance(done.exception, ResourceError)
    assert "must listen at its address. Received: data_service='grpc://127.0.0.1:1'" in str(
        done.exception
    )
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes calls, and says nothing
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(ResourceError, match="must answer with a worker of this TensorFlow"):
            Service(address, wait_s=1).reach()


def test_what_a_service_cannot_read_is_refused(rows):
    check_served(rows, "auto")
    url = Row("https://host/1.png", 0, "train", 32, 32, "")
    with pytest.raises(
        ConfigError, match=r"in TensorFlow alone. Received: data_service with 'http"
    ):
        check_served([*rows, url], "auto")
    with pytest.raises(ConfigError, match=r"data_service with cache='disk'. Use --cache none"):
        training(rows, cache="disk", served_by=Service("host:1"))
    common = {"num_images": 100, "classes": ("a", "b"), "variant": "resnet8_cifar"}
    fixed = {"train_from": 3, "cut_cache": "memory", "progressive": 0.0}
    recipe = plan(data="x", weights=None, image_size=32, overrides=fixed, **common)
    with pytest.raises(ConfigError, match=r"cut_cache='memory'. Use --set cut_cache=none"):
        check_service(recipe, rows)


def test_a_service_is_started_joined_and_ended_while_it_is_asked(rows):
    command = [sys.executable, "-m", "kresnet", "data", "serve", "--host", "localhost"]
    started = []

    def start(*options):
        process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process.stdout.readline().split()[-1]

    try:
        address = start("--port", "0")
        assert address.startswith("grpc://localhost:")
        assert start("--dispatcher", address) == address
        service = Service(address)
        service.reach()
        batches = training(rows, served_by=service).batches()
        next(batches)
        for process in reversed(started):
            process.terminate()
            assert process.wait(30) == 0
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_a_service_takes_no_port_of_another():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=rf"a free port.*Received: port={port}"):
            serve(None, host="localhost", port=port)
    with pytest.raises(ResourceError, match=r"a dispatcher. Received.*dispatcher='127.0.0.1:1'"):
        serve("127.0.0.1:1", host="localhost", port=0)
