"""Files behind URLs, as gs://, s3:// or https://: whole, or a part of one in one request.

TensorFlow reads the schemes that it knows; fsspec, with the package of a scheme, reads the others.
"""

from __future__ import annotations

import errno
from typing import Any, Final

from kresnet.errors import ResourceError

READERS: Final = 32  # requests under way: most of their time is waiting


def is_url(path: str) -> bool:
    """Return whether a path is of this module's kind and not for the operating system."""
    return "://" in path


def read(url: str, offset: int = 0, size: int = -1) -> bytes:
    """Return a part of a file.

    Args:
        url: Of the file.
        offset: Where the part starts, in bytes.
        size: Its length; negative is up to the end of the file. A shorter file gives less.

    Raises:
        OSError: It cannot be read.
        ResourceError: A package that it needs is not installed.
    """
    if _is_known_to_tensorflow(url):
        import tensorflow as tf

        try:
            with tf.io.gfile.GFile(url, "rb") as file:
                file.seek(offset)
                contents: bytes = file.read(size)
                return contents
        except tf.errors.OpError as error:
            raise OSError(errno.EIO, error.message, url) from None
    system, path = _filesystem(url)
    with _Told(url):
        return bytes(system.cat_file(path, start=offset, end=None if size < 0 else offset + size))


def size_of(url: str) -> int:
    """Return the length of a file in bytes.

    Raises:
        OSError: It is not there, or cannot be reached.
        ResourceError: A package that it needs is not installed.
    """
    if _is_known_to_tensorflow(url):
        import tensorflow as tf

        try:
            return int(tf.io.gfile.stat(url).length)
        except tf.errors.OpError as error:
            raise OSError(errno.EIO, error.message, url) from None
    system, path = _filesystem(url)
    with _Told(url):
        return int(system.size(path))


def _is_known_to_tensorflow(url: str) -> bool:
    import tensorflow as tf

    return url.partition("://")[0] in tf.io.gfile.get_registered_schemes()


def _filesystem(url: str) -> tuple[Any, str]:
    scheme = url.partition("://")[0]
    try:
        import fsspec.core

        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ResourceError(
            f"TensorFlow does not read {scheme}://, and fsspec reads it with the package for it. "
            f"Received: {url!r} ({error}). Install fsspec with it, as: pip install 'fsspec[s3]'"
        ) from None
    return system, path


class _Told:
    """Turns what the packages of the schemes raise into an OSError."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Raise an OSError for any other error.

        Raises:
            OSError: There was an error.
        """
        if isinstance(error, Exception) and not (isinstance(error, OSError) and error.strerror):
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise OSError(errno.EIO, said, self._url) from None
