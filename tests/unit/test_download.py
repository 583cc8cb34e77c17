"""Downloading weights from a server on this machine that plays the hosts of the world."""

import errno
import hashlib
import multiprocessing
import os
import re
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED

from kresnet.errors import ConfigError, ResourceError, WeightsError
from kresnet.zoo import download
from kresnet.zoo.cards import CARDS, card_for
from kresnet.zoo.download import fetch_weights, find_weights, kresnet_home

CONTENT = np.random.default_rng(3).bytes(2_304_000)  # more than two chunks
DIGEST = hashlib.sha256(CONTENT).hexdigest()
DATA = SHARED / "weights"


class Handler(BaseHTTPRequestHandler):
    """Answers by the first folder of the path; the server's attributes say what it does wrong."""

    def do_GET(self):
        host = self.server
        host.requests.append(self.path)
        host.headers.append(dict(self.headers))
        folder = self.path.split("/")[1]
        if folder in ("moved", "hub"):
            self.send_response(302)
            self.send_header("Location", host.location)
            if folder == "hub" and host.announced:
                self.send_header("X-Linked-ETag", f'"{host.announced}"')
            self.end_headers()
            return
        if folder == "absent":
            self.send_error(404)
            return
        if host.busy:
            host.busy -= 1
            self.send_error(503)
            return
        body, start = host.content, self._start(len(host.content))
        if start is None:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            shown = start + host.shift
            self.send_header("Content-Range", f"bytes {shown}-{len(body) - 1}/{len(body)}")
        if host.etag:
            self.send_header("ETag", host.etag)
        if folder == "announcing":
            self.send_header("X-Linked-ETag", f'"{DIGEST}"')
        body = body[start:]
        if folder != "unsized":
            extra = 10 if folder == "truncated" else 0
            self.send_header("Content-Length", str(len(body) + extra))
        self.end_headers()
        if host.drops:
            host.drops -= 1
            body = body[: len(body) // 2]
        with suppress(ConnectionError):  # a client may have seen enough
            self.wfile.write(body)

    def _start(self, size):
        """Where to begin, by the rules of RFC 9110, section 13.1.5 and 14.2."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not asked or not self.server.ranges:
            return 0
        condition = self.headers.get("If-Range")
        if condition and condition != self.server.etag:
            return 0
        return int(asked[1]) if int(asked[1]) < size else None

    def log_message(self, *args):
        pass


@contextmanager
def serving(content):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.headers = [], []
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.location = f"{server.url}/weights.pth"
    server.content, server.etag, server.announced = content, '"one"', None
    server.drops, server.busy, server.shift, server.ranges = 0, 0, 0, True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server():
    with serving(CONTENT) as server:
        yield server


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("KRESNET_HOME", str(tmp_path / "home"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("KRESNET_MIRRORS", "KRESNET_ALLOW_NONCOMMERCIAL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "RETRY_AFTER_S", (0.0, 0.0, 0.0))
    return tmp_path / "home"


NAME = "resnet18.tv_in1k.pth"


def card(url, checksum=None, *mirrors):
    checksum = f"sha256:{DIGEST}" if checksum is None else checksum
    return replace(CARDS["resnet18.tv_in1k"], url=url, checksum=checksum, mirrors=mirrors)


def names(home):
    return sorted(path.name for path in (home / "weights").iterdir())


def begin(home, content, url=None, etag='"one"'):
    """Leave behind what an earlier, interrupted download leaves."""
    (home / "weights").mkdir(parents=True)
    (home / "weights" / f"{NAME}.part").write_bytes(content)
    if url:
        (home / "weights" / f"{NAME}.part.etag").write_text(f"{url}\n{etag}")


@pytest.mark.parametrize("page", ["", "unsized/", "moved/"])
def test_download(server, home, page):
    seen = []
    path = fetch_weights(card(f"{server.url}/{page}a.pth"), lambda *step: seen.append(step))
    assert path == home / "weights" / NAME
    assert path.read_bytes() == CONTENT
    total = None if page == "unsized/" else len(CONTENT)
    assert seen[-1] == (len(CONTENT), total)
    assert [step for step, _ in seen] == sorted(step for step, _ in seen)
    assert names(home) == [NAME]


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
    (home / "weights" / NAME).write_bytes(b"wrong")
    with pytest.warns(UserWarning, match="do not have the published checksum sha256:"):
        path = fetch_weights(card(f"{server.url}/a.pth"))
    assert path.read_bytes() == CONTENT


def test_a_wrong_cached_file_survives_a_failed_download(server, home):
    (home / "weights").mkdir(parents=True)
    (home / "weights" / NAME).write_bytes(b"wrong")
    with pytest.warns(UserWarning, match="resnet18"), pytest.raises(ResourceError, match="404"):
        fetch_weights(card(f"{server.url}/absent/a.pth"))
    assert (home / "weights" / NAME).read_bytes() == b"wrong"


# --- going on with what was received


def test_a_dropped_connection_goes_on_where_it_stopped(server, home):
    server.drops = 2
    seen = []
    path = fetch_weights(card(f"{server.url}/a.pth"), lambda *step: seen.append(step))
    assert path.read_bytes() == CONTENT
    asked = [headers.get("Range") for headers in server.headers]
    assert asked == [None, "bytes=1152000-", "bytes=1728000-"]
    assert [headers.get("If-Range") for headers in server.headers] == [None, '"one"', '"one"']
    assert {total for _, total in seen} == {len(CONTENT)}
    assert names(home) == [NAME]


def test_dropped_too_often_it_goes_on_in_the_next_call(server, home):
    server.drops = 4
    url = f"{server.url}/a.pth"
    reason = "the connection ended after 2160000 of 2304000 bytes"
    with pytest.raises(ResourceError, match=reason):
        fetch_weights(card(url))
    assert len(server.requests) == 4
    assert names(home) == [f"{NAME}.part", f"{NAME}.part.etag"]
    assert fetch_weights(card(url)).read_bytes() == CONTENT
    assert server.headers[-1]["Range"] == "bytes=2160000-"
    assert names(home) == [NAME]


def test_an_interrupt_keeps_what_was_received(server, home):
    def stop(received, total):
        raise KeyboardInterrupt

    url = f"{server.url}/a.pth"
    with pytest.raises(KeyboardInterrupt):
        fetch_weights(card(url), stop)
    assert names(home) == [f"{NAME}.part", f"{NAME}.part.etag"]
    assert fetch_weights(card(url)).read_bytes() == CONTENT
    assert server.headers[-1]["Range"] == f"bytes={1024**2}-"


def test_a_host_without_ranges_sends_it_all_again(server, home):
    server.ranges = False
    begin(home, CONTENT[:1000])
    assert fetch_weights(card(f"{server.url}/a.pth")).read_bytes() == CONTENT
    assert names(home) == [NAME]


def test_a_file_that_changed_meanwhile_is_sent_again(server, home):
    url = f"{server.url}/a.pth"
    begin(home, b"of another file", url, '"older"')
    assert fetch_weights(card(url)).read_bytes() == CONTENT
    assert server.headers[0]["If-Range"] == '"older"'
    assert len(server.requests) == 1


def test_a_weak_etag_is_no_condition(server, home):
    url = f"{server.url}/a.pth"
    begin(home, CONTENT[:1000], url, 'W/"one"')
    fetch_weights(card(url))
    assert server.headers[0]["Range"] == "bytes=1000-"
    assert "If-Range" not in server.headers[0]


def test_a_wrong_beginning_is_thrown_away(server, home):
    begin(home, b"of another file")
    assert fetch_weights(card(f"{server.url}/a.pth")).read_bytes() == CONTENT
    assert [headers.get("Range") for headers in server.headers] == ["bytes=15-", None]


def test_a_part_as_long_as_the_file_or_longer_is_thrown_away(server, home):
    begin(home, CONTENT + b"more")
    assert fetch_weights(card(f"{server.url}/a.pth")).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_another_part_than_was_asked_for_is_not_appended(server, home):
    server.shift = 1
    begin(home, CONTENT[:1000])
    seen = []
    path = fetch_weights(card(f"{server.url}/a.pth"), lambda done, total: seen.append(done))
    assert path.read_bytes() == CONTENT
    assert seen[0] == 1024**2  # the first that was taken came from the beginning


def test_a_busy_host_is_asked_again(server):
    server.busy = 3
    fetch_weights(card(f"{server.url}/a.pth"))
    assert len(server.requests) == 4


def test_a_full_disk_keeps_what_was_received(server, home, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    begin(home, CONTENT[:1000])
    url = f"{server.url}/a.pth"
    with pytest.raises(ResourceError, match="2303000 bytes are needed and 1000000 are free") as e:
        fetch_weights(card(url, None, f"{server.url}/second/a.pth"))
    assert str(e.value).startswith("The disk must have room for the weights. Received: error=")
    assert str(e.value).endswith("Make room and run again; what was received so far is kept.")
    assert len(server.requests) == 1  # another address would not help
    assert (home / "weights" / f"{NAME}.part").stat().st_size == 1000


def test_a_disk_that_fills_up_keeps_what_was_received(server, home):
    def fill(received, total):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ResourceError, match="The disk must have room"):
        fetch_weights(card(f"{server.url}/a.pth"), fill)
    assert (home / "weights" / f"{NAME}.part").stat().st_size == 1024**2


# --- addresses


def test_a_wrong_checksum_is_refused_and_removed(server, home):
    server.content = CONTENT[::-1]
    with pytest.raises(ResourceError, match="the file received does not have the checksum sha256:"):
        fetch_weights(card(f"{server.url}/a.pth"))
    assert names(home) == []


def test_the_next_address_is_tried(server, home):
    other = f"{server.url}/good/b.pth"
    path = fetch_weights(card(f"{server.url}/absent/a.pth", None, other))
    assert path.read_bytes() == CONTENT
    assert server.requests == ["/absent/a.pth", "/good/b.pth"]


def test_mirrors_of_the_environment_come_first(server, home, monkeypatch):
    bases = f" {server.url}/absent/ ,{server.url}/here/weights,"
    monkeypatch.setenv("KRESNET_MIRRORS", bases)
    fetch_weights(card(f"{server.url}/a.pth"))
    assert server.requests == [f"/absent/{NAME}", f"/here/weights/{NAME}"]


def test_a_lying_mirror_is_passed_over(server, home, monkeypatch):
    with serving(CONTENT[:-1] + b"!") as lies:
        monkeypatch.setenv("KRESNET_MIRRORS", lies.url)
        assert fetch_weights(card(f"{server.url}/a.pth")).read_bytes() == CONTENT
        assert len(lies.requests) == 1


def test_when_all_fail_each_reason_is_given(server):
    port = closed_port()
    urls = f"{server.url}/absent/a.pth", f"http://localhost:{port}/b.pth"
    with pytest.raises(ResourceError) as error:
        fetch_weights(card(urls[0], None, urls[1]))
    reasons = (
        f"127.0.0.1:{server.server_port}: HTTP Error 404: Not Found; "
        f"localhost:{port}: <urlopen error [Errno 111] Connection refused>"
    )
    assert f"url={urls[0]!r}, error={reasons!r}. " in str(error.value)


# --- checksums that only the hub knows


def hub_card(server):
    server.announced = DIGEST if server.announced is None else server.announced
    return card(f"{server.url}/hub/model.safetensors", "")


def test_the_digest_that_the_hub_announces_is_held_to_and_kept(server, home):
    path = fetch_weights(hub_card(server))
    assert path.name == "resnet18.tv_in1k.safetensors"
    kept = path.with_name(f"{path.name}.sha256")
    assert kept.read_text() == f"{DIGEST}  {path.name}\n"  # what `sha256sum -c` reads
    assert names(home) == [path.name, kept.name]
    path.write_bytes(b"damaged since")
    with pytest.warns(UserWarning, match=f"published checksum sha256:{DIGEST}"):
        assert fetch_weights(hub_card(server)).read_bytes() == CONTENT


def test_a_file_that_is_not_what_the_hub_announced_is_refused(server, home):
    server.announced = "0" * 64
    with pytest.raises(ResourceError, match=f"does not have the checksum sha256:{'0' * 64}"):
        fetch_weights(hub_card(server))
    assert names(home) == []


@pytest.mark.parametrize("announced", ["", "abc", "0" * 63, "g" * 64])
def test_without_any_checksum_nothing_is_received(server, home, announced):
    server.announced = announced
    with pytest.raises(ResourceError, match=r"neither its card nor its host \(in X-Linked-ETag\)"):
        fetch_weights(hub_card(server))
    assert names(home) == []


def test_the_digest_may_come_with_the_file_itself(server):
    path = fetch_weights(card(f"{server.url}/announcing/model.safetensors", ""))
    assert path.with_name(f"{path.name}.sha256").read_text().startswith(DIGEST)


def test_a_host_that_it_is_sent_to_cannot_announce_the_digest(server, home):
    other = server.url.replace("127.0.0.1", "localhost")
    server.location = f"{other}/announcing/model.safetensors"
    with pytest.raises(ResourceError, match=r"neither its card nor its host \(in X-Linked-ETag\)"):
        fetch_weights(card(f"{server.url}/moved/model.safetensors", ""))
    assert server.requests[-1] == "/announcing/model.safetensors"
    assert names(home) == []


def test_a_hub_file_that_changed_is_refused(server, home):
    path = fetch_weights(hub_card(server))
    path.unlink()
    server.announced = "1" * 64
    with pytest.raises(ResourceError, match=f"announces sha256:{'1' * 64}, which is not sha256:"):
        fetch_weights(hub_card(server))


def test_an_interrupted_hub_file_goes_on(server, home):
    server.drops = 1
    assert fetch_weights(hub_card(server)).read_bytes() == CONTENT
    assert [headers.get("Range") for headers in server.headers] == [
        None,
        None,
        *["bytes=1152000-"] * 2,
    ]


def test_the_hub_stands_in_with_another_format(server, home):
    server.announced = DIGEST
    mirrored = card(f"{server.url}/absent/a.pth", None, f"{server.url}/hub/model.safetensors")
    path = fetch_weights(mirrored)
    assert path.name == "resnet18.tv_in1k.safetensors"
    count = len(server.requests)
    assert fetch_weights(mirrored) == path  # found in that format
    assert len(server.requests) == count


def test_a_mirror_cannot_vouch_for_itself(server, home, monkeypatch):
    monkeypatch.setenv("KRESNET_MIRRORS", f"{server.url}/mirror")
    wanted = card(f"{server.url}/absent/model.safetensors", "")
    with pytest.raises(ResourceError) as error:
        fetch_weights(wanted)
    kept = home / "weights" / "resnet18.tv_in1k.safetensors.sha256"
    assert f"a mirror cannot vouch for itself; write the SHA-256 into {kept};" in str(error.value)
    kept.write_text(DIGEST.upper() + "\n")
    assert fetch_weights(wanted).read_bytes() == CONTENT
    assert server.requests[-1] == "/mirror/resnet18.tv_in1k.safetensors"


def test_a_file_put_there_by_hand_is_taken_and_watched(server, home):
    (home / "weights").mkdir(parents=True)
    path = home / "weights" / "resnet18.tv_in1k.safetensors"
    path.write_bytes(CONTENT)
    assert fetch_weights(hub_card(server)) == path
    assert server.requests == []
    assert path.with_name(f"{path.name}.sha256").read_text().startswith(DIGEST)


def test_a_kept_digest_must_be_one(server, home):
    (home / "weights").mkdir(parents=True)
    (home / "weights" / "resnet18.tv_in1k.safetensors.sha256").write_text("nonsense")
    with pytest.raises(ResourceError, match="must hold 64 hexadecimal digits; remove it"):
        fetch_weights(hub_card(server))


# --- what is refused


def test_the_offline_message(home, monkeypatch):
    def unreachable(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr("kresnet.zoo.embedded.is_there", lambda: False)
    with pytest.raises(ResourceError) as error:
        fetch_weights(card("https://weights.invalid/a.pth"))
    assert str(error.value) == (
        "The weights must be downloadable. Received: url='https://weights.invalid/a.pth', "
        "error='<urlopen error [Errno -2] Name or service not known>'. "
        "Fetch the URL on another machine and put the file at "
        f"'{home}/weights/resnet18.tv_in1k.pth', or pass it as `--weights PATH` "
        '(in Python `weights="PATH"`).'
    )
    assert error.value.exit_code == 4


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(
    ("url", "checksum", "reason"),
    [
        ("{server}/absent/a.pth", None, "HTTP Error 404"),
        ("{server}/a.pth", "sha256:00000000", "does not have the checksum sha256:00000000"),
        ("http://127.0.0.1:{closed}/a.pth", None, "Connection refused"),
        ("file:///etc/passwd.pth", None, "only http and https"),
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
    assert f"put the file at {str(home / 'weights' / NAME)!r}" in text
    assert '`--weights PATH` (in Python `weights="PATH"`)' in text
    assert "\n" not in text
    assert names(home) == []


def test_a_truncated_file_is_refused(server, home):
    server.ranges = False
    with pytest.raises(ResourceError, match="the connection ended after 2304000 of 2304010 bytes"):
        fetch_weights(card(f"{server.url}/truncated/a.pth"))
    assert NAME not in names(home)


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
    assert names(home) == []


def test_a_home_that_cannot_be_written(server, home):
    home.write_text("a file where the folder should be")
    with pytest.raises(ResourceError, match=r"error=.*home.*Fetch the URL on another machine"):
        fetch_weights(card(f"{server.url}/a.pth"))


NC = "resnet50.fb_swsl_ig1b_ft_in1k"


def test_a_noncommercial_licence_needs_consent(server, home, monkeypatch):
    wanted = replace(CARDS[NC], url=f"{server.url}/a.pth", checksum=f"sha256:{DIGEST}", mirrors=())
    for switch in (None, "0", ""):
        if switch is not None:
            monkeypatch.setenv("KRESNET_ALLOW_NONCOMMERCIAL", switch)
        with pytest.raises(ConfigError) as error:
            fetch_weights(wanted)
    assert str(error.value) == (
        f"These weights are not for commercial use. Received: '{NC}', license='CC-BY-NC-4.0'. "
        f"If you comply, say so: `kresnet zoo fetch {NC} --allow-noncommercial`, or set "
        "KRESNET_ALLOW_NONCOMMERCIAL=1."
    )
    assert server.requests == []
    fetch_weights(wanted, allow_noncommercial=True)
    monkeypatch.setenv("KRESNET_ALLOW_NONCOMMERCIAL", "1")
    fetch_weights(wanted)
    with pytest.raises(ConfigError, match="not for commercial use"):  # also where it is cached
        fetch_weights(wanted, allow_noncommercial=False)


def test_find_weights_passes_consent_on():
    with pytest.raises(ConfigError, match="not for commercial use"):
        find_weights("resnet50", "fb_swsl_ig1b_ft_in1k")


@pytest.mark.parametrize(
    ("weights", "fix"),
    [
        ("a1_in1kk", "Did you mean 'a1_in1k'?"),
        ("imagent", "Did you mean 'imagenet'?"),
        ("/no/such/file.pth", "Check the path."),
    ],
)
def test_neither_tag_nor_path(weights, fix):
    with pytest.raises(WeightsError) as error:
        find_weights("resnet50", weights)
    assert str(error.value) == (
        "Weights must be a tag, as `kresnet zoo show resnet50` lists them, or the path of a "
        f"checkpoint file. Received: weights={weights!r}. {fix}"
    )


def test_a_path_is_found(tmp_path):
    path = tmp_path / "a1_in1k"
    path.write_bytes(b"")
    assert find_weights("resnet50", path) == path


# --- the cache


def test_many_at_once(server, home):
    wanted = card(f"{server.url}/a.pth")
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(fetch_weights, [wanted] * 8))
    assert paths == {home / "weights" / NAME}
    assert names(home) == [NAME]
    assert paths.pop().read_bytes() == CONTENT
    assert server.requests == ["/a.pth"]  # seven waited


def test_the_lock_is_held_by_one_at_a_time(tmp_path):
    inside, most = [], []

    def work(number):
        for _ in range(40):
            with download._locked(tmp_path / "lock"):
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.remove(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(most) == 320
    assert max(most) == 1
    assert list(tmp_path.iterdir()) == []


def hold_lock(path, held, release):
    with download._locked(Path(path)):
        held.set()
        release.wait(60)


def test_another_process_is_waited_for_and_its_death_frees_the_lock(server, home):
    (home / "weights").mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    lock = home / "weights" / "resnet18.tv_in1k.lock"
    process = context.Process(target=hold_lock, args=(str(lock), held, release))
    process.start()
    assert held.wait(60)
    with ThreadPoolExecutor(1) as pool:
        path = pool.submit(fetch_weights, card(f"{server.url}/a.pth"))
        time.sleep(0.3)
        assert server.requests == []
        process.kill()
        assert path.result(60).read_bytes() == CONTENT
    process.join()
    assert names(home) == [NAME]


def test_home(monkeypatch, home):
    assert kresnet_home() == home
    monkeypatch.delenv("KRESNET_HOME")
    monkeypatch.setenv("HOME", "/somewhere")
    assert kresnet_home() == Path("/somewhere/.cache/kresnet")
    monkeypatch.setenv("KRESNET_HOME", "~/k")
    assert kresnet_home() == Path("/somewhere/k")


def test_a_home_does_not_climb(monkeypatch):
    monkeypatch.setenv("KRESNET_HOME", "/var/cache/../../etc")
    with pytest.raises(ConfigError) as error:
        kresnet_home()
    assert str(error.value) == (
        "KRESNET_HOME must be the path of a folder without '..' in it. "
        "Received: KRESNET_HOME='/var/cache/../../etc'. Give the absolute path."
    )


def test_the_file_has_the_users_usual_mode(server):
    before = os.umask(0o022)
    try:
        path = fetch_weights(card(f"{server.url}/a.pth"))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.skipif(not DATA.is_dir(), reason="the real weights are not beside the repo")
@pytest.mark.parametrize("variant", ["resnet20_cifar", "resnet56_cifar", "resnet8_cifar"])
def test_the_real_files_are_those_of_the_cards(variant, home):
    item = card_for(variant, "cifar10")
    (home / "weights").mkdir(parents=True)
    (real,) = DATA.rglob(item.url.rsplit("/", 1)[-1])
    (home / "weights" / item.file_name).symlink_to(real)
    assert fetch_weights(item).name == item.file_name  # verified, without a network
