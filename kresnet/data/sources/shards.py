"""Files of many records, TFRecord or ArrayRecord, each record a tf.train.Example with an image.

The bytes of an image stand in a TFRecord as they are, so they are read at their place. The records
of an ArrayRecord or of a gzipped file are unpacked once into the cache.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from kresnet.data.items import SPLITS, Item, Problem, Split, is_url
from kresnet.data.sources import Listing
from kresnet.data.sources.packed import RECORD_HEAD, RECORD_TAIL
from kresnet.data.sources.unpacked import unpacked
from kresnet.errors import DataError, ResourceError

_SHARD: Final = re.compile(r".*\.(tfrecords?|array_?record)(-\d+-of-\d+)?(\.gz)?", re.IGNORECASE)
_NUMBER: Final = re.compile(r"-(\d+)-of-(\d+)")
_IMAGES: Final = ("image", "image/encoded", "image_bytes", "image_raw", "jpg", "png", "img")
_LABELS: Final = ("label", "image/class/text", "image/class/label", "class", "labels", "cls")
_NAMES: Final = ("labels.txt", "label.labels.txt", "classes.txt")
_ADVICE: Final = (
    f"Records must be tf.train.Examples with an encoded image ({', '.join(_IMAGES[:3])}) and a "
    f"label ({', '.join(_LABELS[:3])})."
)


class Shard(NamedTuple):
    """A part of a file of records.

    Attributes:
        path: The file.
        split: What its images are for.
        skip: How many records are passed over.
        take: How many are read then; -1 is all.
    """

    path: str
    split: Split | None
    skip: int = 0
    take: int = -1


@dataclass(frozen=True, slots=True)
class Keys:
    """What the features of a record are called, and the names of the classes, if it has numbers.

    Without a name for labels, none are read.
    """

    image: str
    label: str
    classes: tuple[str, ...] = ()
    name: str = ""
    group: str = ""
    weight: str = ""


def is_shard(name: str) -> bool:
    """Return whether a file is named like one of records."""
    return _SHARD.fullmatch(name) is not None


def find_shards(folder: Path) -> list[Path]:
    """Return the files of records in a folder."""
    with os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if is_shard(entry.name))


def listing(files: Sequence[Path], root: Path, *, labelled: bool = True) -> Listing:
    """List the images of files of records, whose names say the split: train, validation or test.

    Args:
        files: Absolute paths; of a set `-00000-of-00004` all must be there.
        root: The folder.
        labelled: Whether images without a label are left out; else labels are of no account.

    Raises:
        DataError: A file is damaged or missing, or its records hold no images with labels.
        ResourceError: An ArrayRecord cannot be read without its package.
    """
    _check_complete(files)
    splits = [_split_of(file.name) for file in files]
    shards = [Shard(str(f), split) for f, split in zip(files, splits, strict=True)]
    names = next((root / name for name in _NAMES if (root / name).is_file()), None)
    classes = tuple(names.read_text("utf-8").splitlines()) if names else ()
    return listing_of(shards, _guess_keys(shards[0], classes, labelled), str(root), "shards")


def listing_of(shards: Sequence[Shard], keys: Keys, root: str, description: str) -> Listing:
    """List the images of shards whose features are known.

    Raises:
        DataError: A shard is damaged, or a record lacks a feature.
        ResourceError: As `listing`.
    """
    items: list[Item] = []
    problems: list[Problem] = []
    for shard in shards:
        without = 0
        for number, (path, offset, record) in enumerate(_records(shard)):
            item = _item(shard, number + shard.skip, path, offset, record, keys)
            if item is None:
                without += 1
            else:
                items.append(item)
        if without:
            problems.append(Problem(shard.path, f"{without} images without a label"))
    return Listing(root, tuple(items), tuple(problems), description, (), _ADVICE)


def _item(
    shard: Shard, number: int, path: str, offset: int, record: bytes, keys: Keys
) -> Item | None:
    """Return the image of a record, or None if it has no label."""
    import tensorflow as tf

    try:
        features = tf.train.Example.FromString(record).features.feature
    except Exception as error:  # protobuf's errors are of several kinds
        raise _unlike(shard.path, number, "no tf.train.Example") from error
    image = features[keys.image].bytes_list.value
    if len(image) != 1:
        raise _unlike(shard.path, number, f"{len(image)} encoded images called {keys.image!r}")
    label = _text(features[keys.label], keys.classes) if keys.label in features else ""
    if not label and keys.label:
        return None
    name = _text(features[keys.name]) if keys.name else ""
    weights = features[keys.weight].float_list.value if keys.weight else ()
    return Item(
        path,
        label,
        shard.split,
        offset + record.find(image[0]),  # wherever these bytes are found, they are the image's
        len(image[0]),
        f"{number} {name}".strip(),
        _text(features[keys.group]) if keys.group else "",
        weights[0] if weights else 1.0,
    )


def _text(feature: Any, classes: Sequence[str] = ()) -> str:
    """Return a feature as text; "" for none, and for a number that means none, as TFDS's -1."""
    if feature.bytes_list.value:
        return str(feature.bytes_list.value[0].decode("utf-8", "surrogateescape"))
    if not feature.int64_list.value or feature.int64_list.value[0] < 0:
        return ""
    number = feature.int64_list.value[0]
    return classes[number] if number < len(classes) else str(number)


def _unlike(path: str, number: int, found: str) -> DataError:
    return DataError(
        f"Every record must hold an image and a label. Received: {path!r}, whose record {number} "
        f"has {found}. {_ADVICE}"
    )


def _guess_keys(shard: Shard, classes: tuple[str, ...], labelled: bool) -> Keys:
    import tensorflow as tf

    first = next(_records(shard._replace(take=1)), None)
    if first is None:
        return Keys(_IMAGES[0], _LABELS[0] if labelled else "", classes)
    try:
        features = tf.train.Example.FromString(first[2]).features.feature
    except Exception as error:  # protobuf's errors are of several kinds
        raise _unlike(shard.path, 0, "no tf.train.Example") from error
    image = next((k for k in _IMAGES if features[k].bytes_list.value), None)
    label = next((k for k in _LABELS if _text(features[k])), None) if labelled else ""
    if image is None or label is None:
        found = ", ".join(k for k in sorted(features) if features[k].WhichOneof("kind"))
        raise _unlike(shard.path, 0, f"only {found or 'nothing'}")
    return Keys(image, label, classes)


def _records(shard: Shard) -> Iterator[tuple[str, int, bytes]]:
    """Yield the wanted records, each with the file and the byte where it can be read again."""
    import tensorflow as tf

    stop = shard.skip + shard.take if shard.take >= 0 else None
    try:
        if not is_url(shard.path) and _is_packed(Path(shard.path)):
            path, parts = unpacked(Path(shard.path), lambda: _pieces(Path(shard.path)))
            with path.open("rb") as file:
                for part in parts[shard.skip : stop]:
                    file.seek(part.offset)
                    yield str(path), part.offset, file.read(part.size)
            return
        position = 0
        # TensorFlow compares the checksum of every record.
        for number, record in enumerate(tf.data.TFRecordDataset(shard.path).as_numpy_iterator()):
            if stop is not None and number >= stop:
                return
            if number >= shard.skip:
                yield shard.path, position + RECORD_HEAD, record
            position += RECORD_HEAD + len(record) + RECORD_TAIL
    except (tf.errors.OpError, OSError, EOFError, zlib.error, RuntimeError, ValueError) as error:
        if isinstance(error, DataError | ResourceError):
            raise
        reason = str(getattr(error, "message", error)).splitlines()[0]
        raise DataError(
            f"A shard must be a whole file of records. Received: {shard.path!r} ({reason}). Copy "
            "or make it again."
        ) from None


def _is_packed(file: Path) -> bool:
    with file.open("rb") as stream:
        return "array" in file.name.lower() or stream.read(3) == b"\x1f\x8b\x08"


def _pieces(file: Path) -> Iterator[tuple[str, Iterator[bytes] | str]]:
    """Give every record of a file whose records do not stand in it as they are."""
    import tensorflow as tf

    records: Iterator[bytes]
    if "array" in file.name.lower():
        records = _array_records(file)
    else:
        with gzip.open(file) as stream:  # TensorFlow takes a truncated one for shorter
            while stream.read(2**20):
                pass
        records = tf.data.TFRecordDataset(str(file), "GZIP").as_numpy_iterator()
    for number, record in enumerate(records):
        yield str(number), iter((record,))


def _array_records(file: Path) -> Iterator[bytes]:
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError:
        raise ResourceError(
            "ArrayRecord is read by its own package, which is not installed. "
            f"Received: {str(file)!r}. Install it: pip install 'kresnet[tfds]'"
        ) from None
    reader = ArrayRecordReader(str(file))
    try:
        for start in range(0, reader.num_records(), 64):
            yield from reader.read(start, min(start + 64, reader.num_records()))
    finally:
        reader.close()


def _check_complete(files: Sequence[Path]) -> None:
    there = {file.name for file in files}
    for file in files:
        match = _NUMBER.search(file.name)
        for number in range(int(match[2])) if match else ():
            own = f"-{number:0{len(match[1])}d}-of-{match[2]}" if match else ""
            name = _NUMBER.sub(own, file.name)
            if name not in there:
                raise DataError(
                    f"All shards of a set must be there. Received: {str(file.with_name(name))!r} "
                    "is missing. Copy it, too."
                )


def _split_of(name: str) -> Split | None:
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), None)
