"""Every setting of the server, checked."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from kresnet.errors import ConfigError, ExportError

RUNTIMES = ("auto", "tensorflow", "onnxruntime", "openvino")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to serve.

    Attributes:
        host: Address to bind. Other than loopback needs a token, or `insecure`.
        port: Of HTTP; 0 lets the system choose.
        grpc_port: Of gRPC; 0 lets the system choose, -1 serves none.
        runtime: "auto" measures what is there and takes the fastest that agrees.
        tolerance: Largest difference of a probability from the SavedModel's that "auto" accepts.
        max_batch: Most images that are computed together, and most of one request.
        batch_timeout_ms: How long the first image of a batch waits for others.
        max_body_bytes: Longest body of a request, and longest gRPC message.
        max_pixels: An image that announces more is answered with `ok` false.
        max_concurrency: Requests being worked on; more are told to come back (503).
        timeout_s: Longest time from the first byte of a request to its answer.
        drain_s: Longest time that accepted requests get after SIGTERM.
        poll_s: How often new versions are looked for.
        keep: How many of the newest versions are served at a time.
        token: What clients must send as `Authorization: Bearer`; None asks for nothing.
        insecure: Whether to bind more than loopback without a token.
        log_requests: Whether each request is a line of the log.
    """

    host: str = "127.0.0.1"
    port: int = 8501
    grpc_port: int = 8500
    runtime: str = "auto"
    tolerance: float = 1e-3
    max_batch: int = 32
    batch_timeout_ms: float = 2.0
    max_body_bytes: int = 32 * 2**20
    max_pixels: int = 50_000_000
    max_concurrency: int = 256
    timeout_s: float = 30.0
    drain_s: float = 30.0
    poll_s: float = 1.0
    keep: int = 1
    token: str | None = None
    insecure: bool = False
    log_requests: bool = True

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_body_bytes", "max_pixels", "max_concurrency", "keep"):
            if getattr(self, name) < 1:
                raise _wrong(name, "at least 1", getattr(self, name))
        for name in ("timeout_s", "drain_s", "poll_s", "tolerance"):
            if not getattr(self, name) > 0:
                raise _wrong(name, "above 0", getattr(self, name))
        if not 0 <= self.batch_timeout_ms <= 1000:
            raise _wrong("batch_timeout_ms", "from 0 to 1000", self.batch_timeout_ms)
        for name, least in (("port", 0), ("grpc_port", -1)):
            if not least <= getattr(self, name) <= 65535:
                raise _wrong(name, f"from {least} to 65535", getattr(self, name))
        if self.runtime not in RUNTIMES:
            raise _wrong("runtime", f"one of {', '.join(RUNTIMES)}", self.runtime)
        if not (self.is_local or self.token or self.insecure):
            raise ConfigError(
                "A server that other machines can reach needs a token. Received: "
                f"host={self.host!r} without one. Give --token-file FILE, or --insecure where "
                "something in front of it asks for one."
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def find_export(model: str, exports: Path) -> Path:
    """Return the folder of an export.

    Args:
        model: Its path, `NAME` or `NAME/VERSION`, or its name below `exports`.
        exports: Folder of the exports.

    Raises:
        ExportError: There is none.
    """
    for home in (Path(model), exports / model):
        is_version = (home / "saved_model.pb").is_file()
        if is_version or any(path.parent.name.isdigit() for path in home.glob("*/saved_model.pb")):
            return home
    raise ExportError(
        "An export is a folder NAME or NAME/VERSION with a SavedModel, or a name below "
        f"{str(exports)!r}. Received: {model!r}. `kresnet train` writes one."
    )


def read_token(path: Path) -> str:
    """Read the bearer token from a file.

    Raises:
        ConfigError: The file cannot be read, or holds no usable token.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"`--token-file` must be a readable text file. Received: {str(path)!r} ({error})."
        ) from None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            "A token is one line of ASCII letters, digits and signs. "
            f"Received: {str(path)!r}, which holds something else. Try: openssl rand -hex 32"
        )
    return token


def _wrong(name: str, expected: str, value: object) -> ConfigError:
    return ConfigError(f"`{name}` must be {expected}. Received: {name}={value!r}.")
