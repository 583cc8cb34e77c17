"""Downloading weights from a server on this machine, and the table of published weights."""

import hashlib
import os
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import SHARED

from kresnet.errors import ConfigError, ResourceError
from kresnet.zoo import download
from kresnet.zoo.cards import CARDS, card_for
from kresnet.zoo.download import fetch_weights, kresnet_home
from kresnet.zoo.variants import VARIANTS

CONTENT = bytes(range(256)) * 9000  # more than two chunks
DATA = SHARED / "weights"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", self.server.location)
            self.end_headers()
            return
        if self.path.startswith("/absent"):
            self.send_error(404)
            return
        self.send_response(200)
        if not self.path.startswith("/unsized"):
            extra = 10 if self.path.startswith("/truncated") else 0
            self.send_header("Content-Length", str(len(CONTENT) + extra))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests = []
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.location = f"{server.url}/weights.pth"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("KRESNET_HOME", str(tmp_path / "home"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def card(url, checksum=None):
    digest = hashlib.sha256(CONTENT).hexdigest()
    return replace(CARDS["resnet18.imagenet"], url=url, checksum=checksum or f"sha256:{digest}")


def only_file(home):
    (path,) = (home / "weights").iterdir()
    return path


@pytest.mark.parametrize("page", ["", "unsized/", "moved/"])
def test_download(server, home, page):
    seen = []
    path = fetch_weights(card(f"{server.url}/{page}a.pth"), lambda *step: seen.append(step))
    assert path == home / "weights" / "a.pth"
    assert path.read_bytes() == CONTENT
    total = None if page == "unsized/" else len(CONTENT)
    assert seen[-1] == (len(CONTENT), total)
    assert [step for step, _ in seen] == sorted(step for step, _ in seen)
    assert only_file(home) == path


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
@pytest.mark.parametrize("digits", [8, None])
def test_checksums(server, algorithm, digits):
    digest = hashlib.new(algorithm, CONTENT).hexdigest()[:digits]
    fetch_weights(card(f"{server.url}/a.pth", f"{algorithm}:{digest}"))


def test_the_cache_needs_no_network(server):
    url = f"{server.url}/a.pth"
    first = fetch_weights(card(url))
    assert fetch_weights(card(url)) == first
    assert server.requests == ["/a.pth"]


def test_proxies_are_honoured(server, monkeypatch):
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    fetch_weights(card("http://weights.invalid/a.pth"))
    assert server.requests == ["http://weights.invalid/a.pth"]


def test_a_wrong_cached_file_is_reported_and_replaced(server, home):
    (home / "weights").mkdir(parents=True)
    (home / "weights" / "a.pth").write_bytes(b"wrong")
    with pytest.warns(UserWarning, match="do not have the published checksum sha256:"):
        path = fetch_weights(card(f"{server.url}/a.pth"))
    assert path.read_bytes() == CONTENT


def test_a_wrong_cached_file_survives_a_failed_download(server, home):
    (home / "weights").mkdir(parents=True)
    (home / "weights" / "a.pth").write_bytes(b"wrong")
    with pytest.warns(UserWarning, match="a.pth"), pytest.raises(ResourceError, match="404"):
        fetch_weights(card(f"{server.url}/absent/a.pth"))
    assert only_file(home).read_bytes() == b"wrong"


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(
    ("url", "checksum", "reason"),
    [
        ("{server}/absent/a.pth", None, "HTTP Error 404"),
        ("{server}/truncated/a.pth", None, "the connection ended after 2304000 of 2304010 bytes"),
        ("{server}/a.pth", "sha256:00000000", "does not have the checksum sha256:00000000"),
        ("http://127.0.0.1:{closed}/a.pth", None, "Connection refused"),
        ("file:///etc/passwd", None, "only http and https"),
        ("ftp://127.0.0.1/a.pth", None, "only http and https"),
        ("http://[/a.pth", None, "Invalid IPv6 URL"),
    ],
)
def test_failures_say_in_one_line_what_to_do(server, home, url, checksum, reason):
    url = url.format(server=server.url, closed=closed_port())
    with pytest.raises(ResourceError, match="The weights must be downloadable") as error:
        fetch_weights(card(url, checksum))
    text = str(error.value)
    assert reason in text
    assert f"url={url!r}" in text
    name = url.rpartition("/")[2]
    assert f"put the file at {str(home / 'weights' / name)!r}" in text
    assert '`--weights PATH` (in Python `weights="PATH"`)' in text
    assert "\n" not in text
    assert list((home / "weights").iterdir()) == []


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/a"])
def test_redirects_stay_on_http(server, location):
    server.location = location
    with pytest.raises(ResourceError, match="must be downloadable"):
        fetch_weights(card(f"{server.url}/moved/a.pth"))


@pytest.mark.parametrize("page", ["a.pth", "unsized/a.pth"])
def test_size_cap(server, home, monkeypatch, page):
    monkeypatch.setattr(download, "MAX_BYTES", 2_000_000)
    with pytest.raises(ResourceError, match="the file is larger than 2000000 bytes"):
        fetch_weights(card(f"{server.url}/{page}"))
    assert list((home / "weights").iterdir()) == []


def test_a_home_that_cannot_be_written(server, home):
    home.write_text("a file where the folder should be")
    with pytest.raises(ResourceError, match=r"error=.*home.*Fetch the URL on another machine"):
        fetch_weights(card(f"{server.url}/a.pth"))


def test_many_at_once(server, home):
    wanted = card(f"{server.url}/a.pth")
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(fetch_weights, [wanted] * 8))
    assert paths == {only_file(home)}
    assert only_file(home).read_bytes() == CONTENT


def test_home(monkeypatch, home):
    assert kresnet_home() == home
    monkeypatch.delenv("KRESNET_HOME")
    monkeypatch.setenv("HOME", "/somewhere")
    assert kresnet_home() == Path("/somewhere/.cache/kresnet")
    monkeypatch.setenv("KRESNET_HOME", "~/k")
    assert kresnet_home() == Path("/somewhere/k")


def test_the_file_has_the_users_usual_mode(server):
    before = os.umask(0o022)
    try:
        path = fetch_weights(card(f"{server.url}/a.pth"))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("name", CARDS)
def test_cards_are_complete(name):
    item = CARDS[name]
    assert name == f"{item.variant}.{item.tag}"
    assert item.num_classes == VARIANTS[item.variant].num_classes
    assert item.preprocessing.image_size == VARIANTS[item.variant].image_size
    assert item.url.startswith("https://")
    assert re.fullmatch(r"(sha256:[0-9a-f]{8,64}|md5:[0-9a-f]{32})", item.checksum)
    assert item.top5 is None or item.top1 < item.top5 < 100
    assert item.license in ("BSD-3-Clause", "BSD-2-Clause", "MIT")
    in_name = re.search(r"-([0-9a-f]{8})\.", item.file_name)
    if in_name:
        assert item.checksum.startswith(f"sha256:{in_name[1]}")


def test_every_variant_has_weights():
    assert {item.variant for item in CARDS.values()} == set(VARIANTS)


@pytest.mark.parametrize(
    ("variant", "tag", "fix"),
    [
        ("resnet20_cifar", "imagenet", "resnet20_cifar has weights='cifar10'."),
        ("resnet50", "imagnet", "Did you mean weights='imagenet'?"),
        ("resnet51", "imagenet", "Did you mean 'resnet"),
        ("vgg", "imagenet", "Published are those of ['resnet18', 'resnet34',"),
    ],
)
def test_card_for_explains(variant, tag, fix):
    with pytest.raises(ConfigError, match=r"No such weights are published\. Received: ") as error:
        card_for(variant, tag)
    assert fix in str(error.value)
    assert f"variant={variant!r}, weights={tag!r}" in str(error.value)


@pytest.mark.skipif(not DATA.is_dir(), reason="the real weights are not beside the repo")
@pytest.mark.parametrize("variant", ["resnet20_cifar", "resnet56_cifar"])
def test_the_real_files_are_those_of_the_cards(variant, home):
    item = card_for(variant, "cifar10")
    (home / "weights").mkdir(parents=True)
    (home / "weights" / item.file_name).symlink_to(DATA / "cifar10" / item.file_name)
    assert fetch_weights(item).name == item.file_name  # verified, without a network
