"""What the names and kinds of files and folders tell, before any image is read."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath

from kresnet.data.findings import Finding, each, printable
from kresnet.data.items import is_named_image
from kresnet.data.sources.layout import is_hidden


@dataclass(slots=True)
class Tree:
    """A folder and everything below it, by kind; the paths are absolute.

    Attributes:
        files: Regular files and links, also broken ones, but no hidden ones.
        empty: Folders without anything that is not hidden.
        hidden: Hidden files and folders.
        loops: Links that lead back to a folder above them.
        special: Pipes, sockets and devices.
        disguised: Folders that are named like an image.
        closed: Folders that may not be read.
        odd: Names that are not UTF-8 or have control characters.
        colliding: Names in one folder that other systems take for the same.
    """

    files: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    loops: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    disguised: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    colliding: list[tuple[str, ...]] = field(default_factory=list)

    @classmethod
    def of(cls, root: str) -> Tree:
        """Look at a folder; links to folders are followed, but not in circles."""
        tree = cls()
        tree._walk(root, ())
        return tree

    def _walk(self, folder: str, above: tuple[str, ...]) -> None:
        above = (*above, os.path.realpath(folder))
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            self.closed.append(folder)
            return
        seen = [entry for entry in entries if not is_hidden(entry.name)]
        self.hidden += [entry.path for entry in entries if is_hidden(entry.name)]
        if not seen:
            self.empty.append(folder)
        self.colliding += _colliding([entry.path for entry in seen])
        self.odd += [entry.path for entry in seen if printable(entry.name) != entry.name]
        for entry in seen:
            if os.path.isdir(entry.path):  # entry.is_dir() raises for a link to itself
                if is_named_image(PurePath(entry.name)):
                    self.disguised.append(entry.path)
                if os.path.realpath(entry.path) in above:
                    self.loops.append(entry.path)
                else:
                    self._walk(entry.path, above)
            elif os.path.isfile(entry.path) or not os.path.exists(entry.path):  # a broken link
                self.files.append(entry.path)
            else:
                self.special.append(entry.path)

    def findings(self) -> Iterator[Finding]:
        """Say what is worth knowing."""
        if self.closed:
            yield Finding(
                "error",
                "closed-folder",
                f"{_count(self.closed, 'folder')} may not be read",
                "Give yourself the permission to read them.",
                each(self.closed),
            )
        if self.colliding:
            yield Finding(
                "warning",
                "name-collision",
                f"{_count(self.colliding, 'group')} of names differ only in case or in how "
                "letters are composed",
                "Rename them: copied to Windows or macOS, one would replace the other.",
                tuple(self.colliding),
            )
        if self.loops:
            yield Finding(
                "warning",
                "link-loop",
                f"{_count(self.loops, 'link')} lead back to a folder above",
                "They are not followed. Remove them.",
                each(self.loops),
            )
        if self.special:
            yield Finding(
                "warning",
                "special-file",
                f"{_count(self.special, 'pipe, socket or device', 'pipes, sockets or devices')}",
                "They are not read. Remove them.",
                each(self.special),
            )
        if self.empty:
            yield Finding(
                "warning",
                "empty-folder",
                f"{_count(self.empty, 'folder')} without any file",
                "Remove them, or add the images that should be there.",
                each(self.empty),
            )
        if self.disguised:
            yield Finding(
                "note",
                "folder-named-image",
                f"{_count(self.disguised, 'folder')} named like an image",
                "The images inside are used.",
                each(self.disguised),
            )
        if self.odd:
            yield Finding(
                "note",
                "odd-name",
                f"{_count(self.odd, 'name')} with control characters or bytes that are not UTF-8",
                "They are read as they are; other tools may stumble over them.",
                each(self.odd),
            )
        if self.hidden:
            yield Finding(
                "note",
                "hidden",
                f"{_count(self.hidden, 'hidden file or folder', 'hidden files and folders')}",
                "They are passed over.",
                each(self.hidden),
            )


def _colliding(paths: list[str]) -> Iterator[tuple[str, ...]]:
    alike: dict[str, list[str]] = {}
    for path in paths:
        alike.setdefault(folded(os.path.basename(path)), []).append(path)
    return (tuple(group) for group in alike.values() if len(group) > 1)


def folded(name: str) -> str:
    """Return what a system that ignores case and composition makes of a name."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _count(things: list[str] | list[tuple[str, ...]], one: str, many: str | None = None) -> str:
    return f"{len(things)} {one if len(things) == 1 else many or one + 's'}"
