"""Published weights: downloaded once, verified, kept.

A download that breaks off goes on where it stopped, in this call or in the next. Nothing enters the
cache that does not have the checksum of its card. Where the card has none, the host that publishes
the file must announce one, as the Hugging Face hub does; it is kept beside the file.

Environment:
    KRESNET_HOME: Folder of everything kresnet caches; ~/.cache/kresnet if it is not set.
    KRESNET_MIRRORS: Base addresses, separated by commas, that are tried before the published one;
        a mirror has each file at `BASE/NAME`, with the name it has in the cache.
    KRESNET_ALLOW_NONCOMMERCIAL: 1 accepts licences that forbid commercial use.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import hashlib
import http.client
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from kresnet.errors import ConfigError, ResourceError, WeightsError
from kresnet.zoo.cards import ALIASES, EMBEDDED, RemoteFile, WeightsCard, card_for, cards_of

if TYPE_CHECKING:
    TAGS: frozenset[str]

Progress = Callable[[int, int | None], None]

MAX_BYTES = 5 * 1024**3  # the largest, resnetv2_152x4_bit with 21843 classes, has 4.4 GB
TIMEOUT_S = 30.0
RETRY_AFTER_S = (1.0, 2.0, 4.0, 8.0)
_CHUNK_BYTES = 1024**2
_PASSING = frozenset({408, 429, 500, 502, 503, 504})  # answers that may be better in a moment
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def __getattr__(name: str) -> Any:
    if name == "TAGS":
        return _tags()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _tags() -> frozenset[str]:
    """Return every word that `find_weights` takes for a tag and not for a path."""
    from kresnet.zoo.cards import CARDS

    return frozenset({card.tag for card in CARDS.values()} | {*ALIASES, EMBEDDED})


def kresnet_home() -> Path:
    """Return the folder of everything kresnet caches: KRESNET_HOME, or ~/.cache/kresnet.

    Raises:
        ConfigError: KRESNET_HOME climbs with "..".
    """
    home = Path(os.environ.get("KRESNET_HOME") or "~/.cache/kresnet").expanduser()
    if ".." in home.parts:
        raise ConfigError(
            "KRESNET_HOME must be the path of a folder without '..' in it. "
            f"Received: KRESNET_HOME={str(home)!r}. Give the absolute path."
        )
    return home


def find_weights(
    variant: str,
    weights: str | Path,
    progress: Progress | None = None,
    *,
    allow_noncommercial: bool | None = None,
) -> Path:
    """Return the file of a tag, as "a1_in1k", after downloading it if need be, or of a path.

    Args:
        variant: The variant that the weights are for.
        weights: A tag that the variant has a card for, "imagenet", "cifar10" or "embedded" (see
            `card_for`), or the path of a checkpoint or KerasHub preset. A word that is a tag is
            never a path; write `./a1_in1k`.
        progress: As in `fetch_weights`.
        allow_noncommercial: As in `fetch_weights`.

    Raises:
        ConfigError: The variant has no card of that tag, or its licence needs your consent.
        ResourceError: The file cannot be downloaded.
        WeightsError: There is no file at that path.
    """
    if str(weights) in _tags():
        card = card_for(variant, str(weights))
        return fetch_weights(card, progress, allow_noncommercial=allow_noncommercial)
    if not Path(weights).is_file() and not (Path(weights) / "config.json").is_file():
        tags = [*ALIASES, EMBEDDED, *(card.tag for card in cards_of(variant))]
        near = difflib.get_close_matches(str(weights), tags, n=1, cutoff=0.6)
        fix = f"Did you mean {near[0]!r}?" if near else "Check the path."
        raise WeightsError(
            f"Weights must be a tag, as `kresnet zoo show {variant}` lists them, or the path of a "
            f"checkpoint file. Received: weights={str(weights)!r}. {fix}"
        )
    return Path(weights)


def fetch_weights(
    card: WeightsCard,
    progress: Progress | None = None,
    *,
    allow_noncommercial: bool | None = None,
) -> Path:
    """Return the path of a card's file, downloading it if it is not in the cache.

    The file is verified, whether it was downloaded now or found. A found file that is wrong stays
    where it is until a right one replaces it. Processes that want the same file wait for the one
    that is downloading it.

    Args:
        card: Which weights.
        progress: Called with the bytes received so far and the total, None where unknown.
        allow_noncommercial: Accept a licence that forbids commercial use; None asks
            KRESNET_ALLOW_NONCOMMERCIAL.

    Raises:
        ConfigError: The licence forbids commercial use, and that was not accepted.
        ResourceError: It cannot be downloaded, or is not the published file.
    """
    check_license(card, allow_noncommercial)
    if card.tag == EMBEDDED:
        from kresnet.zoo import embedded

        return embedded.path()
    folder = kresnet_home() / "weights"
    try:
        if found := _cached(card, folder):
            return found
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{card.name}.lock"):
            # The process that we waited for may have brought it.
            return _cached(card, folder, warn=False) or _download(card, folder, progress)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = " ".join(f"{error or type(error).__name__}".split())
        if isinstance(error, OSError) and error.errno in _FULL:
            raise ResourceError(
                f"The disk must have room for the weights. Received: error={reason!r}. "
                "Make room and run again; what was received so far is kept."
            ) from error
        raise ResourceError(
            f"The weights must be downloadable. Received: url={card.url!r}, error={reason!r}. "
            f"Fetch the URL on another machine and put the file at "
            f"{str(folder / card.file_name)!r}, or pass it as "
            f'`--weights PATH` (in Python `weights="PATH"`){_or_embedded()}.'
        ) from error


def _or_embedded() -> str:
    """Say what else there is without a network."""
    from kresnet.zoo import embedded

    if not embedded.is_there():
        return ""
    return "; or take the small backbone that is in the package, `--weights embedded`"


def check_license(card: WeightsCard, allowed: bool | None = None) -> None:
    """Refuse weights that are not for commercial use, unless that is accepted.

    Args:
        card: Which weights.
        allowed: It is accepted; None asks KRESNET_ALLOW_NONCOMMERCIAL.

    Raises:
        ConfigError: The licence forbids commercial use, and that was not accepted.
    """
    if allowed is None:
        allowed = os.environ.get("KRESNET_ALLOW_NONCOMMERCIAL") == "1"
    if card.noncommercial and not allowed:
        raise ConfigError(
            f"These weights are not for commercial use. Received: {card.name!r}, "
            f"license={card.license!r}. If you comply, say so: `kresnet zoo fetch {card.name} "
            "--allow-noncommercial`, or set KRESNET_ALLOW_NONCOMMERCIAL=1."
        )


def _cached(card: WeightsCard, folder: Path, *, warn: bool = True) -> Path | None:
    """Return the card's file, in whichever of its formats it is cached and verified."""
    for file in dict.fromkeys(card.files):
        path = folder / file.name
        if not path.is_file():
            continue
        checksum = file.checksum or _announced_before(path)
        if not checksum:  # put there by hand, since a download would have left its digest
            with suppress(OSError):  # a cache that is only read
                _remember(path, f"sha256:{_digest(path, 'sha256')}")
            return path
        if _matches(path, checksum):
            return path
        if warn:
            warnings.warn(
                f"The cached weights at {str(path)!r} do not have the published checksum "
                f"{checksum}; downloading them again.",
                stacklevel=3,
            )
    return None


def _download(card: WeightsCard, folder: Path, progress: Progress | None) -> Path:
    """Try each address in turn; the first file that is right enters the cache."""
    mirrors = [
        base.strip().rstrip("/")
        for base in os.environ.get("KRESNET_MIRRORS", "").split(",")
        if base.strip()
    ]
    addresses = [
        (file, url, url == file.url)
        for file in card.files
        for url in (*(f"{base}/{file.name}" for base in mirrors), file.url)
    ]
    reasons = []
    for file, url, published in addresses:
        try:
            return _download_from(file, url, published, folder, progress)
        except (OSError, ValueError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in _FULL:
                raise
            reasons.append((url, f"{error or type(error).__name__}"))
    if len(reasons) == 1:
        raise OSError(reasons[0][1])
    raise OSError("; ".join(f"{_host(url)}: {reason}" for url, reason in reasons))


def _host(url: str) -> str:
    return re.sub(r"^\w+://([^/]*).*", r"\1", url)


def _download_from(
    file: RemoteFile, url: str, published: bool, folder: Path, progress: Progress | None
) -> Path:
    path = folder / file.name
    checksum = file.checksum or _announced_before(path)
    if not checksum and not published:
        raise OSError(
            f"a mirror cannot vouch for itself; write the SHA-256 into {_digest_path(path)}"
        )
    part = Part(path)
    while True:
        resumed = part.size > 0
        try:
            expected = _receive_patiently(url, part, checksum, progress)
        except TooLarge:
            part.remove()
            raise
        if _matches(part.path, expected):
            break
        part.remove()
        if not resumed:  # else the beginning may have been of another file: once more, afresh
            raise OSError(f"the file received does not have the checksum {expected}")
    if not file.checksum:
        _remember(path, expected)
    os.replace(part.path, path)  # at once and whole
    part.remove()
    _sync_folder(folder)
    return path


class Part:
    """What has been received of a file so far, and which file that was.

    Attributes:
        path: Where it is: beside the file, under a name of its own.
    """

    def __init__(self, whole: Path) -> None:
        self.path = whole.with_name(f"{whole.name}.part")
        self._origin = whole.with_name(f"{whole.name}.part.etag")

    @property
    def size(self) -> int:
        """Bytes received."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def request(self, url: str) -> dict[str, str]:
        """Return the headers that ask for the rest."""
        headers = {"User-Agent": "kresnet", "Accept-Encoding": "identity"}
        if self.size:
            headers["Range"] = f"bytes={self.size}-"
            origin, _, etag = self._read_origin().partition("\n")
            if origin == url and etag.startswith('"'):  # a weak tag does not promise equal bytes
                headers["If-Range"] = etag
        return headers

    def open(self, url: str, response: http.client.HTTPResponse) -> IO[bytes]:
        """Open the file where the response goes on: at the end, or at the beginning again."""
        if response.status == http.client.PARTIAL_CONTENT:
            start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            if start and int(start[1]) == self.size:
                return self.path.open("ab")
            self.remove()
            raise Dropped("the host sent another part of the file than it was asked for")
        self._origin.write_text(f"{url}\n{response.headers.get('ETag', '')}", encoding="utf-8")
        return self.path.open("wb")

    def remove(self) -> None:
        """Forget what was received."""
        for path in (self.path, self._origin):
            path.unlink(missing_ok=True)

    def _read_origin(self) -> str:
        return self._origin.read_text(encoding="utf-8") if self._origin.is_file() else ""


class Dropped(OSError):
    """The connection ended early; asking again is worth it."""


class TooLarge(OSError):
    """There is more of it than any published file has."""


def _receive_patiently(url: str, part: Part, checksum: str, progress: Progress | None) -> str:
    """Stream `url` to its end, asking again where the connection drops; return its checksum."""
    for pause in RETRY_AFTER_S:
        try:
            return _receive(url, part, checksum, progress)
        except urllib.error.HTTPError as error:
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and part.size:
                part.remove()
            elif error.code not in _PASSING:
                raise
        except (Dropped, ConnectionError):
            pass
        time.sleep(pause)
    return _receive(url, part, checksum, progress)


def _receive(url: str, part: Part, checksum: str, progress: Progress | None) -> str:
    """Stream what is missing of `url` onto the disk; return the checksum that it must have."""
    response, announced = _open(url, part.request(url))
    with response:
        checksum = _agreed(checksum, announced)
        length = response.headers.get("Content-Length")
        file = part.open(url, response)
        with file:
            received = file.tell()
            total = received + int(length) if length and length.isdecimal() else None
            if total is not None:
                _check_size(total)
                _check_room(part.path, total - received)
            for chunk in _chunks(response, received, total):
                received += len(chunk)
                _check_size(received)
                file.write(chunk)
                if progress is not None:
                    progress(received, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and received != total:
        raise Dropped(f"the connection ended after {received} of {total} bytes")
    return checksum


def _chunks(
    response: http.client.HTTPResponse, received: int, total: int | None
) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read(_CHUNK_BYTES)
        except (OSError, http.client.IncompleteRead) as error:
            end = "unknown" if total is None else total
            raise Dropped(f"the connection ended after {received} of {end} bytes") from error
        if not chunk:
            return
        received += len(chunk)
        yield chunk


def _agreed(checksum: str, announced: str | None) -> str:
    """Return the checksum to hold the file to: the one we know, else the one its host announces."""
    if not checksum and announced is None:
        raise OSError("neither its card nor its host (in X-Linked-ETag) has a checksum of it")
    algorithm, _, digest = checksum.partition(":")
    if announced and algorithm == "sha256" and not announced.startswith(digest.lower()):
        raise OSError(f"the host announces sha256:{announced}, which is not {checksum}")
    return checksum or f"sha256:{announced}"


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise TooLarge(f"the file is larger than {MAX_BYTES} bytes")


def _check_room(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise OSError(errno.ENOSPC, f"{size} bytes are needed and {free} are free", str(path))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and keeps the digest that the first host announces on the way."""

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc
        self.announced: str | None = None

    def listen(self, url: str, headers: http.client.HTTPMessage) -> None:
        """Take the digest from a response, if its host is the one that was asked."""
        digest = re.fullmatch(r'(?:W/)?"([0-9a-f]{64})"', headers.get("X-Linked-ETag", ""))
        if digest and urlsplit(url).netloc == self._host:
            self.announced = self.announced or digest[1]

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Listen to the response that redirects."""
        self.listen(req.full_url, headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, headers: dict[str, str]) -> tuple[http.client.HTTPResponse, str | None]:
    """Speak http and https and nothing else, also after a redirect; proxies as usual.

    Returns:
        The response, and the SHA-256 that the host of `url` announces, if it does.
    """
    if not url.startswith(("http://", "https://")):
        raise OSError("only http and https are fetched")
    redirects = _Redirects(url)
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        redirects,
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(url, headers=headers)
    try:
        response: http.client.HTTPResponse = opener.open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()  # it is the response, with its socket
        raise
    redirects.listen(response.url, response.headers)
    return response, redirects.announced


def _matches(path: Path, checksum: str) -> bool:
    """Return whether the file's digest begins with the one given as "algorithm:hex"."""
    algorithm, _, digest = checksum.partition(":")
    return _digest(path, algorithm).startswith(digest.lower())


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return found.hexdigest()


def _digest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _announced_before(path: Path) -> str:
    """Return the checksum that is kept beside a file, or nothing."""
    kept = _digest_path(path)
    digest = kept.read_text(encoding="ascii").split() if kept.is_file() else []
    if not digest:
        return ""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digest[0]):
        raise OSError(f"{kept} must hold 64 hexadecimal digits; remove it")
    return f"sha256:{digest[0].lower()}"


def _remember(path: Path, checksum: str) -> None:
    """Keep a checksum beside its file, in the format of `sha256sum`."""
    line = f"{checksum.removeprefix('sha256:')}  {path.name}\n"
    _digest_path(path).write_text(line, encoding="ascii")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that ends with the process, however that ends; wait for whoever has it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        _lock(descriptor)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        os.close(descriptor)  # of a file that whoever had it has removed since
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder survive a power cut, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
