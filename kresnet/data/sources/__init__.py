"""Where images come from: each kind of source as a list of items, none of them read yet."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kresnet.data.items import Item, Problem, Split, is_url
from kresnet.errors import DataError

if TYPE_CHECKING:
    from kresnet.data.examine import Facts


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source holds.

    Attributes:
        root: Absolute path of the folder that the paths of the items are mostly below.
        items: What may be an image, in no particular order.
        problems: What is left out.
        description: The kind of source in a word or two, as "folder", for messages.
        folders: Split, class and path of each folder that stands for a class, empty ones too.
        advice: How the images should be given, a sentence, for messages.
        facts: What is known of each item, all of them usable images, so that none is examined; or
            none.
    """

    root: str
    items: tuple[Item, ...]
    problems: tuple[Problem, ...]
    description: str
    folders: tuple[tuple[Split | None, str, str], ...] = ()
    advice: str = ""
    facts: tuple[Facts, ...] = ()


def listing(source: str | Path) -> Listing:
    """List the images of a source without decoding them.

    Args:
        source: One of these:

            - A folder of class folders, or of such folders under train, val and test.
            - A folder with a `metadata.csv`, `.jsonl` or `.parquet`, or with one in each split.
            - A zip or tar file of the first.
            - A manifest: a `.csv`, `.jsonl` or `.parquet` file with the columns path and label.
            - `tfds:NAME[:CONFIG][@SPLITS]`, or the folder of a prepared data set.
            - A folder of TFRecord or ArrayRecord shards, as `kresnet data pack` writes, or a file.
            - The URL of a folder that `kresnet data pack` wrote, as gs://BUCKET/FOLDER.

    Raises:
        DataError: There is no such source, its images have no classes, or it is damaged.
        ResourceError: A package that it needs is not installed.
    """
    from kresnet.data.sources import archive, manifest, packed, shards, tfds

    if is_tfds(source):
        return tfds.listing(str(source))
    if is_url(str(source)):
        return packed.listing(str(source))
    root = Path(os.path.abspath(source))  # not resolved: a linked folder keeps its name
    if root.is_dir():
        return _folder(root)
    if root.is_file() and root.suffix.lower() in manifest.SUFFIXES:
        return manifest.listing(root)
    if root.is_file() and archive.is_archive(root):
        return archive.listing(root)
    if root.is_file() and shards.is_shard(root.name):
        return shards.listing([root], root.parent)
    raise DataError(
        f"The images must be in a folder. Received: source={str(source)!r}, which is "
        f"{'not a folder' if root.exists() else 'not there'}. Give the path of a folder that "
        "has a folder for each class, of a manifest (.csv, .jsonl, .parquet), of a zip or tar "
        "file, of TFRecord shards, or tfds:NAME."
    )


def _folder(root: Path) -> Listing:
    from kresnet.data.sources import folder, manifest, packed, shards, tfds

    if (root / packed.MANIFEST).is_file():
        return packed.listing(str(root))
    if (root / "dataset_info.json").is_file() and (root / "features.json").is_file():
        return tfds.folder_listing(root)
    if found := shards.find_shards(root):
        return shards.listing(found, root)
    if tables := manifest.metadata_files(root):
        return manifest.folder_listing(root, tables)
    return folder.listing(root)


def unlabelled(source: str | Path) -> Listing:
    """List the images of a source for an answer to each, whatever their labels are.

    Args:
        source: As in `listing`, where manifests and records may be without labels, and a folder is
            every image in it, hidden ones left out, in order.

    Returns:
        Items whose labels and splits mean nothing.

    Raises:
        DataError: There is no such source, or no image in it.
        ResourceError: A package that it needs is not installed.
    """
    from kresnet.data.sources import folder, manifest, packed, shards

    root = Path(os.path.abspath(source))
    if is_tfds(source) or is_url(str(source)) or (root / packed.MANIFEST).is_file():
        listed = listing(source)
    elif root.is_dir():
        found = shards.find_shards(root)
        listed = shards.listing(found, root, labelled=False) if found else folder.images(root)
    elif root.is_file() and root.suffix.lower() in manifest.SUFFIXES:
        listed = manifest.listing(root, labelled=False)
    elif root.is_file() and shards.is_shard(root.name):
        listed = shards.listing([root], root.parent, labelled=False)
    else:
        listed = listing(source)
    if not listed.items:
        raise DataError(
            f"There must be an image to answer for. Received: {str(source)!r}, a "
            f"{listed.description} with none."
        )
    return listed


def is_tfds(source: str | Path) -> bool:
    """Return whether a source is a data set of TFDS by name, and so not a path."""
    return str(source).startswith("tfds:")


def absolute(source: str | Path) -> str:
    """Return the source as it can be found from any folder."""
    if is_tfds(source) or is_url(str(source)):
        return str(source)
    return str(Path(source).resolve())


def name_of(source: str | Path) -> str:
    """Return a name for what is made of a source: that of the folder, file or data set."""
    if is_tfds(source):
        from kresnet.data.sources import tfds

        return tfds.name_of(str(source))
    if is_url(str(source)):
        return str(source).rstrip("/").rpartition("/")[2]
    path = Path(source).resolve()
    return path.name if path.is_dir() else path.name.split(".")[0] or path.name
