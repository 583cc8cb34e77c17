"""Class folders on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePath

from kresnet.data.items import Item, Problem, is_named_image
from kresnet.data.sources import Listing
from kresnet.data.sources.layout import LAYOUT, Parts, arrange, is_hidden, split_folders


def listing(root: Path) -> Listing:
    """List a folder.

    The layout is `root/<class>/...`, or `root/<split>/<class>/...` with splits `train`, `val` (or
    `valid`, `validation`) and `test`. It has splits if all its folders are named so, or if
    `train` and another one are among them. Folders inside a class belong to the class. Links are
    followed, but not in circles. Hidden files are passed over in silence.

    Args:
        root: Absolute path of the folder.

    Raises:
        DataError: There are images beside no folder at all.
    """
    top = str(root)
    folders, files = _entries(top, ())
    splits = split_folders([parts[0] for parts in folders])
    above = (os.path.realpath(top),)
    for parts in tuple(folders):
        if not splits:
            files += _files(top, parts, above)
        elif parts[0] in splits:
            inner, loose = _entries(top, parts)
            folders += inner
            files += loose
            for folder in inner:
                files += _files(top, folder, (*above, os.path.realpath(_path(top, parts))))
    layout = arrange(folders, files, top)
    return Listing(
        top,
        tuple(
            Item(_path(top, parts), layout.classes[place].label, layout.classes[place].split)
            for parts, place in layout.files
        ),
        tuple(Problem(_path(top, parts), reason) for parts, reason in layout.outside),
        "folder",
        tuple((c.split, c.label, _path(top, c.parts)) for c in layout.classes),
        LAYOUT,
    )


def images(root: Path) -> Listing:
    """List every image in a folder and the folders in it, in order, whatever their names mean.

    Args:
        root: Absolute path of the folder.
    """
    top = str(root)
    found = (parts for parts in _files(top, (), ()) if is_named_image(PurePath(parts[-1])))
    return Listing(top, tuple(Item(_path(top, parts), "") for parts in found), (), "folder")


def _files(top: str, parts: Parts, above: tuple[str, ...]) -> Iterator[Parts]:
    """Yield the files below a folder, in order."""
    real = os.path.realpath(_path(top, parts))
    if real in above:
        return
    folders, files = _entries(top, parts)
    yield from files
    for folder in folders:
        yield from _files(top, folder, (*above, real))


def _entries(top: str, parts: Parts) -> tuple[list[Parts], list[Parts]]:
    """Return the folders and the files of a folder, each in order."""
    folders, files = [], []
    with os.scandir(_path(top, parts)) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if os.path.isdir(entry.path):  # entry.is_dir() raises for a link to itself
                folders.append((*parts, entry.name))
            elif os.path.isfile(entry.path) or entry.is_symlink():  # not a pipe without an end
                files.append((*parts, entry.name))
    return sorted(folders), sorted(files)


def _path(top: str, parts: Parts) -> str:
    return os.path.join(top, *parts)
