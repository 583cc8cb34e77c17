"""Published weights: downloaded once, verified, kept."""

from __future__ import annotations

import hashlib
import http.client
import os
import secrets
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kresnet.errors import ResourceError, WeightsError
from kresnet.zoo.cards import CARDS, WeightsCard, card_for

Progress = Callable[[int, int | None], None]

TAGS = frozenset(card.tag for card in CARDS.values())
MAX_BYTES = 2 * 1024**3
TIMEOUT_S = 30.0
_CHUNK_BYTES = 1024**2


def kresnet_home() -> Path:
    """Return the folder of everything kresnet caches: KRESNET_HOME, or ~/.cache/kresnet."""
    return Path(os.environ.get("KRESNET_HOME") or "~/.cache/kresnet").expanduser()


def find_weights(variant: str, weights: str | Path, progress: Progress | None = None) -> Path:
    """Return the file of a tag, as "imagenet", after downloading it if need be, or of a path.

    Args:
        variant: The variant that the weights are for.
        weights: A tag that the variant has a card for, or the path of a checkpoint.
        progress: As in `fetch_weights`.

    Raises:
        ConfigError: The variant has no card of that tag.
        ResourceError: The file cannot be downloaded.
        WeightsError: There is no file at that path.
    """
    if str(weights) in TAGS:
        return fetch_weights(card_for(variant, str(weights)), progress)
    if not Path(weights).is_file():
        raise WeightsError(
            f"Weights must be one of {', '.join(map(repr, sorted(TAGS)))}, or the path of a "
            f"checkpoint file. Received: weights={str(weights)!r}. Check the path."
        )
    return Path(weights)


def fetch_weights(card: WeightsCard, progress: Progress | None = None) -> Path:
    """Return the path of a card's file, downloading it if it is not in the cache.

    The file is verified against the card's checksum, whether it was downloaded now or found.
    A found file that is wrong stays where it is until a right one replaces it.

    Args:
        card: Which weights.
        progress: Called with the bytes received so far and the total, None where unknown.

    Raises:
        ResourceError: It cannot be downloaded, or is not the published file.
    """
    path = kresnet_home() / "weights" / card.file_name
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        if path.is_file():
            if _matches(path, card.checksum):
                return path
            warnings.warn(
                f"The cached weights at {str(path)!r} do not have the published checksum "
                f"{card.checksum}; downloading them again.",
                stacklevel=2,
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(card.url, temporary, progress)
        if not _matches(temporary, card.checksum):
            raise OSError(f"the file received does not have the checksum {card.checksum}")
        os.replace(temporary, path)  # at once and whole, whoever else is downloading it
        _sync_folder(path.parent)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = " ".join(f"{error or type(error).__name__}".split())
        raise ResourceError(
            f"The weights must be downloadable. Received: url={card.url!r}, error={reason!r}. "
            f"Fetch the URL on another machine and put the file at {str(path)!r}, or pass it as "
            '`--weights PATH` (in Python `weights="PATH"`).'
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return path


def _download(url: str, path: Path, progress: Progress | None) -> None:
    """Stream `url` into a new file and onto the disk."""
    if not url.startswith(("http://", "https://")):
        raise OSError("only http and https are fetched")
    with path.open("xb") as file, _open(url) as response:
        length = response.headers.get("Content-Length")
        total = int(length) if length and length.isdecimal() else None
        received = 0
        while chunk := response.read(_CHUNK_BYTES):
            received += len(chunk)
            if max(received, total or 0) > MAX_BYTES:
                raise OSError(f"the file is larger than {MAX_BYTES} bytes")
            file.write(chunk)
            if progress is not None:
                progress(received, total)
        if total is not None and received != total:
            raise OSError(f"the connection ended after {received} of {total} bytes")
        file.flush()
        os.fsync(file.fileno())


def _open(url: str) -> http.client.HTTPResponse:
    """Speak http and https and nothing else, also after a redirect; proxies as usual."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    request = urllib.request.Request(url, headers={"User-Agent": "kresnet"})
    try:
        response: http.client.HTTPResponse = opener.open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()  # it is the response, with its socket
        raise
    return response


def _matches(path: Path, checksum: str) -> bool:
    """Return whether the file's digest begins with the one given as "algorithm:hex"."""
    algorithm, _, digest = checksum.partition(":")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return found.hexdigest().startswith(digest.lower())


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder survive a power cut, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
