"""What `kresnet data pack` wrote: shards, and beside them a table of the images in them.

The table has all that a scan finds, so that nothing is decoded, or fetched from where the shards
are, before it is needed. On this machine every file is compared with its checksum; behind a URL the
shards with their lengths only, for comparing them would fetch them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kresnet.data import remote
from kresnet.data.items import SPLITS, Item
from kresnet.data.sources import Listing
from kresnet.errors import DataError, KresnetError
from kresnet.machine import cores

if TYPE_CHECKING:
    from kresnet.data.examine import Facts
    from kresnet.data.scan import Row

MANIFEST: Final = "kresnet_shards.json"
"""What is said of the shards: classes, and the SHA-256 of each file."""

IMAGES: Final = "kresnet_images.csv"
"""A line for each image: where it is, and what a scan found."""

LOOKS: Final = "kresnet_looks.bin"
"""The perceptual descriptors of the images, one after the other."""

RECORD_HEAD: Final = 12  # bytes of a TFRecord: the length, 8, and its checksum, 4
RECORD_TAIL: Final = 4

_LOOK: Final = 1028  # bytes, see `kresnet.data.look`
_COLUMNS: Final = (
    *("shard", "offset", "size", "label", "name", "group", "weight"),
    *("height", "width", "digest", "traits"),
)
_TEXT: Final = ("utf-8", "surrogateescape")


def write_images(folder: Path, images: Sequence[tuple[int, int, int, Row, str]]) -> None:
    """Write the table of the images.

    Args:
        folder: Of the shards.
        images: For each the number of its shard, where it starts in it and its length in bytes, its
            row, and its name.
    """
    path = folder / IMAGES
    with path.open("w", encoding=_TEXT[0], errors=_TEXT[1], newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for shard, offset, size, row, name in images:
            place = shard, offset, size, row.label, name, row.group, row.weight
            writer.writerow((*place, row.height, row.width, row.digest, row.traits))
    looks = [row.look for *_, row, _ in images]
    with (folder / LOOKS).open("wb") as stream:
        if all(looks):  # else nothing, which is none for each
            stream.writelines(looks)


def listing(root: str) -> Listing:
    """List packed images, with what is known of each.

    Args:
        root: Absolute path of the folder, or a URL.

    Raises:
        DataError: A file is damaged or missing; the message names it.
        ResourceError: A package that it needs is not installed.
    """
    try:
        said = json.loads(_contents(root, MANIFEST))
        classes, shards = tuple(said["classes"]), said["shards"]
        check_shards(root, shards)
        if "images" not in said:
            return _without_table(root, classes, shards)
        tables = {one["file"]: _table(root, one) for one in said["images"]}
        found = list(_found(root, classes, shards, tables))
    except (ValueError, KeyError, TypeError, IndexError, csv.Error) as error:
        if isinstance(error, KresnetError):
            raise
        raise _unlike(root, error) from None
    items, facts = zip(*found, strict=True) if found else ((), ())
    return Listing(root, items, (), "shards", facts=facts)


def _found(
    root: str, classes: Sequence[str], shards: Sequence[Any], tables: Mapping[str, bytes]
) -> Iterator[tuple[Item, Facts]]:
    """Yield the images of the table."""
    from kresnet.data.examine import Facts

    paths = [_join(root, shard["file"]) for shard in shards]
    numbers = [0] * len(shards)
    text = io.StringIO(tables[IMAGES].decode(*_TEXT), newline="")
    for k, line in enumerate(csv.DictReader(text, strict=True)):
        shard = int(line["shard"])
        item = Item(
            paths[shard],
            classes[int(line["label"])],
            SPLITS.get(shards[shard]["split"]),
            int(line["offset"]),
            int(line["size"]),
            f"{numbers[shard]} {line['name']}".strip(),
            line["group"],
            float(line["weight"]),
        )
        look = tables[LOOKS][_LOOK * k : _LOOK * (k + 1)]
        size = int(line["height"]), int(line["width"])
        yield item, Facts(*size, line["digest"], line["traits"], look)
        numbers[shard] += 1


def _without_table(root: str, classes: Sequence[str], shards: Sequence[Any]) -> Listing:
    """List what was packed before there were tables: all records are read."""
    from kresnet.data.sources.shards import Keys, Shard, listing_of

    if remote.is_url(root):
        raise _unlike(root, f"it names no {IMAGES}")
    parts = [Shard(_join(root, one["file"]), SPLITS.get(one["split"])) for one in shards]
    keys = Keys("image", "label", tuple(classes), "name", "group", "weight")
    return listing_of(parts, keys, root, "shards")


def _table(root: str, stated: Mapping[str, Any]) -> bytes:
    contents = _contents(root, stated["file"])
    if hashlib.sha256(contents).hexdigest() != stated["sha256"]:
        raise _unlike(root, f"{stated['file']} is damaged")
    return contents


def damage(path: Path, expected: str) -> str:
    """Return what is wrong with a file whose SHA-256 is known; "" if nothing is."""
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"unreadable ({error.strerror})"
    return "" if actual == expected else f"damaged (its SHA-256 is {actual[:8]}..., not expected)"


def check_shards(root: str, stated: Sequence[Mapping[str, Any]]) -> None:
    """Compare files with their checksums, or behind a URL with their lengths.

    Raises:
        DataError: One is not as it was packed.
    """

    def wrong(one: Mapping[str, Any]) -> str:
        path = _join(root, one["file"])
        if not remote.is_url(root):
            return damage(Path(path), one["sha256"])
        try:
            length = remote.size_of(path)
        except OSError as error:
            return f"unreadable ({error.strerror})"
        return "" if length == one["bytes"] else f"{length} bytes long, not {one['bytes']}"

    threads = remote.READERS if remote.is_url(root) else min(cores(), 8)
    with ThreadPoolExecutor(threads) as pool:
        for one, reason in zip(stated, pool.map(wrong, stated), strict=True):
            if reason:
                raise DataError(
                    "A shard must be as it was packed. Received: "
                    f"{_join(root, one['file'])!r}, which is {reason}. Copy it again, "
                    "or pack again."
                )


def _contents(root: str, name: str) -> bytes:
    path = _join(root, name)
    try:
        return remote.read(path) if remote.is_url(root) else Path(path).read_bytes()
    except OSError as error:
        if remote.is_url(root) and name == MANIFEST:
            raise DataError(
                "What is behind a URL must be a folder that `kresnet data pack` wrote, copied there"
                f". Received: {root!r}, whose {name} cannot be read ({error.strerror or error}). "
                "Pack the images and copy the folder."
            ) from None
        raise _unlike(root, error) from None


def _join(root: str, name: str) -> str:
    name = Path(name).name  # in the folder, whatever is said
    return f"{root.rstrip('/')}/{name}" if remote.is_url(root) else os.path.join(root, name)


def _unlike(root: str, error: object) -> DataError:
    said = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else error
    return DataError(
        f"{MANIFEST} and what it names must be as it was written. Received: {root} ({said}). Pack "
        "again."
    )
