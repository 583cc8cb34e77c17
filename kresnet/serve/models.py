"""The versions of one export: found by polling, loaded in the background, swapped at once.

The layout is TensorFlow Serving's, `NAME/VERSION/`, and so is the rule: the newest versions are
served. A new one is loaded and warmed up before it takes over; the old one answers the requests
it has and is then freed. A damaged version is logged and left alone until its files change. If
the folder of the only version disappears, what is loaded goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kresnet.errors import ExportError
from kresnet.serve import log
from kresnet.serve.choose import open_runtime
from kresnet.serve.runtime import Runtime
from kresnet.serve.status import RequestError, Status

Open = Callable[[Path, str], tuple[Runtime, dict[str, Any]]]

_Fingerprint = tuple[tuple[str, int, int], ...]


@dataclass(eq=False, slots=True)
class Loaded:
    """A version that answers.

    Attributes:
        version: Its number.
        runtime: What computes.
        definitions: SignatureDefs of the SavedModel, by name.
        users: Requests that are using it.
        is_retired: Whether it is freed when the last of them ends.
    """

    version: int
    runtime: Runtime
    definitions: dict[str, Any]
    users: int = 0
    is_retired: bool = False


@dataclass(frozen=True, slots=True)
class VersionState:
    """What became of a version, in TensorFlow Serving's words.

    Attributes:
        state: LOADING, AVAILABLE, UNLOADING or END.
        error: Why it could not be loaded; "" if all is well.
    """

    state: str
    error: str = ""


class Models:
    """Serves the newest versions below a folder, or one version for good.

    Args:
        home: `NAME`, or `NAME/VERSION`.
        keep: How many of the newest versions are served.
        open_version: Loads a version; gets the name of the runtime that served before.
        on_swap: Told what a change of versions ended in: "loaded", "failed" or "freed".

    Raises:
        ExportError: There is no version.
    """

    def __init__(
        self,
        home: Path,
        *,
        keep: int,
        open_version: Open,
        on_swap: Callable[[str], None] = lambda result: None,
    ) -> None:
        self.home = home
        self.fixed = (home / "saved_model.pb").is_file()
        self.name = home.resolve().parent.name if self.fixed else home.resolve().name
        self.states: dict[int, VersionState] = {}
        self._keep = keep
        self._open = open_version
        self._on_swap = on_swap
        self._loaded: dict[int, Loaded] = {}
        self._failed: dict[int, _Fingerprint] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="loading")
        if not self._versions():
            raise ExportError(
                "An export is a folder NAME or NAME/VERSION with a SavedModel. "
                f"Received: {str(home)!r}. `kresnet train` writes one under saved_models/."
            )

    @property
    def newest(self) -> Loaded | None:
        """The version that answers where none is named."""
        return self._loaded[max(self._loaded)] if self._loaded else None

    @property
    def served(self) -> list[int]:
        """The versions that answer, oldest first."""
        return sorted(self._loaded)

    @contextlib.contextmanager
    def use(self, name: str, version: int | None = None) -> Iterator[Loaded]:
        """Hold a version, so that it is not freed meanwhile.

        Raises:
            RequestError: It is not served.
        """
        loaded = self.newest if version is None else self._loaded.get(version)
        if name != self.name:
            loaded = None
        elif loaded is None and version is None:
            raise RequestError(Status.UNAVAILABLE, "The export is being loaded.", retry_after_s=1)
        if loaded is None:
            which = "Latest" if version is None else f"Specific, version {version}"
            raise RequestError(
                Status.NOT_FOUND,
                f"Servable not found for request: {which} of {name[:100]!r}; "
                f"served are {sorted(self._loaded)} of {self.name!r}.",
            )
        loaded.users += 1
        try:
            yield loaded
        finally:
            loaded.users -= 1
            if loaded.is_retired and not loaded.users:
                self._free(loaded)

    async def poll(self) -> None:
        """Look at the folder once, and load and retire what the rule says.

        Raises:
            ExportError: Nothing is served, and nothing could be loaded.
        """
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._thread, self._versions)
        failure: ExportError | None = None
        for version in sorted(found, reverse=True):
            served = [v for v in self._loaded if v in found]
            if version in self._loaded:
                continue
            if len([v for v in served if v > version]) >= self._keep:
                break
            files = await loop.run_in_executor(self._thread, _fingerprint, self._path(version))
            if self._failed.get(version) == files:
                continue
            try:
                await self._load(version)
            except ExportError as error:
                self._failed[version] = files
                failure = error
        present = sorted((v for v in self._loaded if v in found), reverse=True)
        if present:
            for version in set(self._loaded) - set(present[: self._keep]):
                self._retire(version)
        elif not self._loaded:
            raise failure or ExportError(
                f"One version at least must load. Received: {self.home}, where none does."
            )

    async def watch(self, every_s: float) -> None:
        """Poll until cancelled."""
        while not self.fixed:
            await asyncio.sleep(every_s)
            try:
                await self.poll()
            except Exception:
                log.error("polling_failed")

    def stop(self) -> None:
        """Load nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _load(self, version: int) -> None:
        self.states[version] = VersionState("LOADING")
        prefer = self.newest.runtime.name if self.newest else ""
        log.event("loading", version=version)
        try:
            runtime, definitions = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._open, self._path(version), prefer
            )
        except Exception as error:
            message = (str(error).splitlines() or [repr(error)])[0]
            self.states[version] = VersionState("END", message)
            self._on_swap("failed")
            if isinstance(error, ExportError):
                log.warning("version_refused", version=version, reason=message)
                raise
            log.error("version_refused", version=version)
            if not self._loaded:
                raise
            raise ExportError(message) from None
        self._loaded[version] = Loaded(version, runtime, definitions)
        self._failed.pop(version, None)
        self.states[version] = VersionState("AVAILABLE")
        self._on_swap("loaded")
        log.event("serving", version=version, runtime=runtime.name)

    def _retire(self, version: int) -> None:
        loaded = self._loaded.pop(version)
        loaded.is_retired = True
        self.states[version] = VersionState("UNLOADING")
        if not loaded.users:
            self._free(loaded)

    def _free(self, loaded: Loaded) -> None:
        """Drop what a version holds. Its graph and variables form cycles, so collect them."""
        del loaded.runtime
        if loaded.version not in self._loaded:
            self.states[loaded.version] = VersionState("END")
        self._on_swap("freed")
        log.event("freed", version=loaded.version)
        with contextlib.suppress(RuntimeError):  # the server is stopping
            self._thread.submit(gc.collect)

    def _path(self, version: int) -> Path:
        return self.home if self.fixed else self.home / str(version)

    def _versions(self) -> set[int]:
        if self.fixed:
            number = self.home.resolve().name
            return {int(number) if _is_version(number) else 1}
        if not self.home.is_dir():
            return set()
        return {int(p.name) for p in self.home.iterdir() if _is_version(p.name) and p.is_dir()}


def open_with(runtime: str, tolerance: float) -> Open:
    """Return how to load a version in the chosen runtime."""

    def open_version(directory: Path, prefer: str) -> tuple[Runtime, dict[str, Any]]:
        return open_runtime(directory, runtime=runtime, tolerance=tolerance, prefer=prefer)

    return open_version


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdigit() and str(int(name)) == name and int(name) < 2**63


def _fingerprint(directory: Path) -> _Fingerprint:
    """Tell whether the files of a version have changed since it could not be loaded."""
    found = []
    for path in sorted(directory.rglob("*")):
        with contextlib.suppress(OSError):  # it may be going at this moment
            status = path.stat()
            found.append((str(path.relative_to(directory)), status.st_size, status.st_mtime_ns))
    return tuple(found)
