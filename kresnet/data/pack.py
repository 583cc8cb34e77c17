"""A source of images as a few large files: TFRecord shards that TFDS can read, with checksums.

Millions of small files are slow to copy and to open. The bytes of each image are stored as they
are, so nothing is lost.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import tensorflow as tf

from kresnet.data.arrays import channels
from kresnet.data.scan import Index, Row
from kresnet.data.sources.packed import (
    IMAGES,
    LOOKS,
    MANIFEST,
    RECORD_HEAD,
    RECORD_TAIL,
    write_images,
)
from kresnet.errors import ConfigError, DataError, ResourceError

_SHARD_BYTES: Final = 2**27
"""How large shards are where nobody says: TensorFlow advises 100 to 200 MB."""

_VERSION: Final = "1.0.0"


@dataclass(frozen=True, slots=True)
class Packed:
    """What was written: the folder, and how many images and shards each split has."""

    path: Path
    images: dict[str, int]
    shards: dict[str, int]


def pack(
    index: Index,
    out: str | Path,
    *,
    shards: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Write the images of an index as TFRecord shards, all of them or nothing.

    The same images give the same bytes. Their order in the shards is a shuffled one that depends
    on the images alone. Images without a split go into "train" for TFDS; kresnet knows better
    when it reads them.

    Args:
        index: From `scan`.
        out: The folder to be made; its name is that of the data set.
        shards: Files a split, at least 1; None makes them of 128 MiB.
        progress: Called after each image with the number of images written and of all.

    Returns:
        What was written.

    Raises:
        ConfigError: `shards` is not positive, or `out` is there already.
        DataError: An image is not what it was when it was scanned, or is no photo.
        ResourceError: tensorflow-datasets is not installed, or there is no room.
    """
    out = Path(os.path.abspath(out))
    if shards is not None and shards < 1:
        raise ConfigError(f"`shards` must be 1 or more. Received: shards={shards}.")
    if out.exists():
        raise ConfigError(f"OUT must be a new folder. Received: {str(out)!r}, which is there.")
    if channels(index.rows) is not None:
        raise DataError(
            f"TFDS's images are photos. Received: {index.root!r} with arrays. Keep them as files, "
            "or in a tar file."
        )
    tfds = _imported()
    splits = _splits(index)
    done = 0

    def written() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, len(index.rows))

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as partial:
            folder = Path(partial, "data")
            folder.mkdir()
            writer = _Writer(index, folder, _name(out.name), shards, written)
            for split, rows in splits.items():
                writer.write(split, rows)
            _write_metadata(tfds, index, writer)
            writer.write_manifest()
            os.rename(folder, out)
    except (OSError, tf.errors.OpError) as error:
        raise ResourceError(
            f"The folder must be writable and have room. Received: {error}. Choose another."
        ) from None
    return Packed(
        out,
        {split: len(rows) for split, rows in splits.items()},
        {split: len(lengths) for split, lengths in writer.lengths.items()},
    )


def _splits(index: Index) -> dict[str, list[Row]]:
    """Return the rows of each split in TFDS's names, shuffled by their contents."""
    names = {"val": "validation", "test": "test"}
    splits: dict[str, list[Row]] = {}
    for row in sorted(index.rows, key=lambda row: _place(index, row)):
        splits.setdefault(names.get(row.split or "", "train"), []).append(row)
    return dict(sorted(splits.items()))


def _place(index: Index, row: Row) -> bytes:
    return hashlib.sha256(f"{row.digest} {_row_name(index, row)}".encode(*_TEXT)).digest()


_TEXT: Final = ("utf-8", "surrogateescape")


def _row_name(index: Index, row: Row) -> str:
    """Return the name of an image that does not depend on where the source is."""
    return row.member or row.path.removeprefix(os.path.join(index.root, ""))


class _Writer:
    """Writes the shards of one data set and remembers what TFDS and the manifest want to know."""

    def __init__(
        self,
        index: Index,
        folder: Path,
        name: str,
        shards: int | None,
        written: Callable[[], None],
    ) -> None:
        self.index, self.folder, self.name = index, folder, name
        self._shards, self._written = shards, written
        self.lengths: dict[str, list[int]] = {}
        self.bytes: dict[str, int] = {}
        self._manifest: list[dict[str, object]] = []
        self._images: list[tuple[int, int, int, Row, str]] = []
        # Only where no image has a split is there none to keep.
        self._is_split = any(row.split for row in index.rows)

    def write(self, split: str, rows: Sequence[Row]) -> None:
        count = self._count(rows)
        self.lengths[split], self.bytes[split] = [], 0
        for number in range(count):
            part = rows[len(rows) * number // count : len(rows) * (number + 1) // count]
            path = self.folder / f"{self.name}-{split}.tfrecord-{number:05d}-of-{count:05d}"
            position = 0
            with tf.io.TFRecordWriter(str(path)) as file:
                for row in part:
                    contents = self._contents(row)
                    record = self._record(row, contents)
                    file.write(record)
                    start = position + RECORD_HEAD + record.find(contents)
                    name = _row_name(self.index, row)
                    self._images.append((len(self._manifest), start, len(contents), row, name))
                    position += RECORD_HEAD + len(record) + RECORD_TAIL
                    self.bytes[split] += len(record)
                    self._written()
            self.lengths[split].append(len(part))
            self._manifest.append(
                {
                    "file": path.name,
                    "split": split if self._is_split else "",
                    "images": len(part),
                    "bytes": position,
                    "sha256": _sum(path),
                }
            )

    def _count(self, rows: Sequence[Row]) -> int:
        """Return how many shards a split gets."""
        if self._shards is not None:
            return min(self._shards, len(rows))
        sizes = (os.path.getsize(row.path) if row.size < 0 else row.size for row in rows)
        return min(-(-sum(sizes) // _SHARD_BYTES), len(rows)) or 1

    def _contents(self, row: Row) -> bytes:
        contents = row.read()
        if hashlib.sha256(contents).hexdigest() != row.digest:
            raise DataError(
                f"Images must stay as they are while they are packed. Received: {row.name!r}, "
                "which has changed. Pack again."
            )
        return contents

    def _record(self, row: Row, contents: bytes) -> bytes:
        name = _row_name(self.index, row).encode(*_TEXT)
        features = {
            "image": _bytes(contents),
            "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[row.label])),
            "name": _bytes(name),
            "group": _bytes(row.group.encode(*_TEXT)),
            "weight": tf.train.Feature(float_list=tf.train.FloatList(value=[row.weight])),
        }
        example = tf.train.Example(features=tf.train.Features(feature=features))
        return bytes(example.SerializeToString(deterministic=True))

    def write_manifest(self) -> None:
        write_images(self.folder, self._images)
        said = {
            "version": 1,
            "classes": self.index.classes,
            "shards": self._manifest,
            "images": [
                {"file": name, "sha256": _sum(self.folder / name)} for name in (IMAGES, LOOKS)
            ],
        }
        (self.folder / MANIFEST).write_text(json.dumps(said, indent=1) + "\n", "utf-8")


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _write_metadata(tfds: Any, index: Index, writer: _Writer) -> None:
    """Write what TFDS wants to know (https://www.tensorflow.org/datasets/external_tfrecord)."""
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=[" ".join(c.split()) for c in index.classes]),
            "name": tfds.features.Text(),
            "group": tfds.features.Text(),
            "weight": tfds.features.Scalar(dtype=np.float32),
        }
    )
    template = tfds.core.ShardedFileTemplate(
        data_dir=writer.folder, dataset_name=writer.name, filetype_suffix="tfrecord"
    )
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=lengths,
            num_bytes=writer.bytes[split],
            filename_template=template.replace(split=split),
        )
        for split, lengths in writer.lengths.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=writer.folder,
        features=features,
        split_infos=infos,
        version=_VERSION,
        supervised_keys=("image", "label"),
        check_data=False,
    )


def _name(folder: str) -> str:
    """Return a name for a data set that TFDS accepts."""
    name = re.sub(r"[^a-z0-9]+", "_", folder.lower()).strip("_")
    return name if re.match("[a-z]", name) else f"images_{name}".strip("_")


def _imported() -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise ResourceError(
            "Shards for TFDS are described by tensorflow-datasets, which is not installed. "
            "Received: no such package. Install it: pip install 'kresnet[tfds]'"
        ) from None
    return tfds
