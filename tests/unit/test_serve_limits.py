"""Settings, tokens, hosts and sizes of images."""

import io

import numpy as np
import pytest
from PIL import Image

from kresnet.errors import ConfigError, ExportError
from kresnet.serve.limits import Gate, check_token, image_area, is_image, is_safe_host
from kresnet.serve.settings import Settings, find_export, read_token
from kresnet.serve.status import RequestError, Status


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_batch": 0}, "`max_batch` must be at least 1"),
        ({"timeout_s": 0}, "`timeout_s` must be above 0"),
        ({"timeout_s": float("nan")}, "`timeout_s` must be above 0"),
        ({"batch_timeout_ms": -1}, "`batch_timeout_ms` must be from 0 to 1000"),
        ({"port": 65536}, "`port` must be from 0 to 65535"),
        ({"grpc_port": -2}, "`grpc_port` must be from -1"),
        ({"runtime": "torch"}, "`runtime` must be one of auto"),
        ({"host": "0.0.0.0"}, "needs a token"),
        ({"host": "192.168.1.2"}, "needs a token"),
        ({"host": "example.org"}, "needs a token"),
        ({"host": "::"}, "needs a token"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ConfigError, match=message):
        Settings(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "127.0.0.1"},
        {"host": "::1"},
        {"host": "localhost"},
        {"host": "0.0.0.0", "token": "t"},
        {"host": "0.0.0.0", "insecure": True},
    ],
)
def test_loopback_a_token_or_consent_will_do(changes):
    assert Settings(**changes).host == changes["host"]


def test_tokens_are_read_and_compared(tmp_path):
    path = tmp_path / "token"
    path.write_text(" s3cret \n")
    token = read_token(path)
    assert token == "s3cret"
    check_token(token, "Bearer s3cret")
    check_token(token, "bearer  s3cret")
    check_token(None, None)
    for wrong in (None, "", "Bearer", "Bearer s3cre", "Bearer s3cret2", "Basic s3cret", "s3cret"):
        with pytest.raises(RequestError, match="Bearer TOKEN") as refused:
            check_token(token, wrong)
        assert refused.value.status is Status.UNAUTHENTICATED
    for text in ("", "two words", "é", "a\nb"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="A token is one line"):
            read_token(path)


@pytest.mark.parametrize(
    "host",
    [
        *(None, "localhost", "localhost:8501", "a.localhost", "LOCALHOST."),
        *("127.0.0.1:1", "[::1]:9", "[::1]", "192.168.1.7:80"),
    ],
)
def test_hosts_that_cannot_be_rebound(host):
    assert is_safe_host(host)


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:80", "127.0.0.1.nip.io"])
def test_hosts_that_can(host):
    assert not is_safe_host(host)


def test_the_gate_counts_and_refuses():
    gate = Gate(Settings(max_concurrency=2, max_body_bytes=100))
    with gate.request(), gate.request():
        with (
            pytest.raises(RequestError, match="2 requests are under way") as refused,
            gate.request(),
        ):
            pass
        assert (refused.value.status, refused.value.retry_after_s) == (Status.UNAVAILABLE, 1)
    with gate.room() as one, gate.room() as two:
        one.hold(300)
        two.hold(60)
        two.hold(100)
        assert gate.bytes == 400
        with pytest.raises(RequestError, match="memory for bodies"):
            two.hold(101)
    assert (gate.requests, gate.bytes) == (0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "lossless", "animation"])
def test_the_size_of_an_image_is_read_without_decoding(kind):
    rng = np.random.default_rng(4)
    for _ in range(5):
        width, height = rng.integers(1, 900, 2)
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        stream = io.BytesIO()
        if kind == "lossless":
            image.save(stream, "WEBP", lossless=True)
        elif kind == "animation":
            image.save(stream, "WEBP", save_all=True, append_images=[image.rotate(180)])
        else:
            exif = Image.Exif()
            exif[0x010E] = "words " * 50
            image.save(stream, kind, **({"exif": exif} if kind == "JPEG" else {}))
        contents = stream.getvalue()
        assert is_image(contents)
        assert image_area(contents) == width * height
        for cut in range(0, len(contents), max(len(contents) // 50, 1)):
            assert image_area(contents[:cut]) in (None, 0, width * height)


def test_what_is_no_image_has_no_size():
    rng = np.random.default_rng(5)
    starts = (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"RIFF1234WEBPVP8 ")
    for start in starts:
        for length in range(0, 60, 7):
            area = image_area(start + rng.bytes(length))
            assert area is None or area >= 0
    assert image_area(b"text") is None
    assert not is_image(b"RIFF1234WAVE")
    assert image_area(b"\xff\xd8" + b"\xff" * 100_000) is None


def test_an_export_is_found_by_path_or_name(tmp_path, monkeypatch):
    version = tmp_path / "exports" / "photos" / "3"
    version.mkdir(parents=True)
    (version / "saved_model.pb").touch()
    (tmp_path / "photos").mkdir()  # a folder of images of the same name is none
    monkeypatch.chdir(tmp_path)
    assert find_export("photos", version.parents[1]) == version.parent
    assert find_export(str(version), version) == version
    with pytest.raises(ExportError, match="An export is a folder NAME or NAME/VERSION"):
        find_export("other", version.parents[1])
