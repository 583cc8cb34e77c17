"""The meaning of folder names: which are classes, which are splits, and what is outside of them.

It knows names only, so it reads a folder and an archive alike.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from kresnet.data.items import SPLITS, Split, is_named_image
from kresnet.errors import DataError

Parts = tuple[str, ...]
"""The names on the way from the root of a source to a file or folder in it."""

LAYOUT: Final = (
    "Put them in <class>/ folders, or in train/<class>/ and val/<class>/ folders, one for each "
    "class."
)
_IGNORED: Final = {"__macosx", "thumbs.db", "desktop.ini"}


class ClassFolder(NamedTuple):
    """A folder of images of one class."""

    split: Split | None
    label: str
    parts: Parts


class Layout(NamedTuple):
    """What the names say.

    Attributes:
        classes: The folders of classes.
        files: The files inside of them, each with the position of its class folder.
        outside: Images and folders that belong to no class, and why, in a few words.
    """

    classes: tuple[ClassFolder, ...]
    files: tuple[tuple[Parts, int], ...]
    outside: tuple[tuple[Parts, str], ...]


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is passed over in silence."""
    return name.startswith(".") or name.lower() in _IGNORED


def split_folders(names: Collection[str]) -> dict[str, Split]:
    """Return the splits that folders stand for, given the names of all folders of the root.

    It has splits if all its folders are named so, or if `train` and another one are among them.
    """
    splits = {name: SPLITS[name.lower()] for name in names if name.lower() in SPLITS}
    named = set(splits.values())
    return splits if len(splits) == len(names) or ("train" in named and len(named) > 1) else {}


def arrange(folders: Iterable[Parts], files: Sequence[Parts], root: str) -> Layout:
    """Tell classes and splits from names.

    Args:
        folders: Every folder of the first two levels.
        files: Every file; those below a folder that is no split may be left out.
        root: The source, for the message.

    Raises:
        DataError: There are images beside no folder at all.
    """
    folders = list(folders)
    splits = split_folders([parts[0] for parts in folders if len(parts) == 1])
    depth = 2 if splits else 1
    classes = [
        # One name may be composed in several ways, by another system: it is one class.
        ClassFolder(splits.get(parts[0]), unicodedata.normalize("NFC", parts[-1]), parts)
        for parts in folders
        if len(parts) == depth and (not splits or parts[0] in splits)
    ]
    places = {folder.parts: place for place, folder in enumerate(classes)}
    inside = [
        (parts, places[parts[:depth]])
        for parts in files
        if len(parts) > depth and parts[:depth] in places
    ]
    loose = [
        parts
        for parts in files
        if len(parts) <= depth
        and (len(parts) == 1 or parts[0] in splits)
        and is_named_image(PurePosixPath(parts[-1]))
    ]
    _check_loose(loose, {parts[:-1] for parts in folders}, root)
    beside = [parts for parts in folders if splits and len(parts) == 1 and parts[0] not in splits]
    outside: list[tuple[Parts, str]] = [
        (parts, "beside the folders of the splits, so not one of them") for parts in beside
    ]
    outside += [(parts, "not in a class folder") for parts in loose]
    return Layout(tuple(classes), tuple(inside), tuple(outside))


def _check_loose(loose: Sequence[Parts], with_folders: Collection[Parts], root: str) -> None:
    for parts in loose:
        above = parts[:-1]
        if above not in with_folders:
            count = sum(other[:-1] == above for other in loose)
            raise DataError(
                f"Images must be in a folder for each class. Received: "
                f"source={'/'.join((root, *above))!r}, which has {count} images and no folder. "
                f"{LAYOUT}"
            )
