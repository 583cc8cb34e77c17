"""Data sets of tensorflow_datasets, read where they were prepared; no image is decoded."""

from __future__ import annotations

import contextlib
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

from kresnet.data.items import SPLITS, Problem
from kresnet.data.sources import Listing
from kresnet.data.sources.shards import Keys, Shard, listing_of
from kresnet.errors import DataError, ResourceError

PREFIX: Final = "tfds:"
_SPEC: Final = re.compile(
    r"tfds:(?P<name>\w+)([:/](?P<config>[^@/:]+))?(:(?P<version>[\d.*]+))?(@(?P<splits>.+))?"
)
_VERSION: Final = re.compile(r"(\d+|\*)(\.(\d+|\*)){2}")
_STORAGE: Final = "https://storage.googleapis.com/tfds-data"
_WAIT_S: Final = 10.0  # for an answer, before a network counts as absent
_ADVICE: Final = "The dataset must have one image and one label in each example."


def name_of(spec: str) -> str:
    """Return the name of the data set in `tfds:NAME...`."""
    return _parsed(spec)["name"]


def listing(spec: str) -> Listing:
    """List a data set, preparing it before if need be.

    Args:
        spec: `tfds:NAME[:CONFIG][:VERSION][@SPLITS]`, where SPLITS is TFDS's expression, as
            `train[:10%]+test`. Without it all of train, validation and test are taken. It is
            looked for in TFDS_DATA_DIR, or else `~/tensorflow_datasets`.

    Raises:
        DataError: There is no such data set or split, or it has no image with one label.
        ResourceError: tensorflow-datasets is not installed, or it cannot be downloaded.
    """
    parsed = _parsed(spec)
    builder = _builder(spec, parsed)
    _prepare(spec, builder)
    return _listed(spec, builder, parsed["splits"])


def folder_listing(folder: Path) -> Listing:
    """List the folder of a prepared data set, which holds `dataset_info.json`.

    Raises:
        DataError: As `listing`.
        ResourceError: tensorflow-datasets is not installed.
    """
    tfds = _imported(str(folder))
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:  # of many kinds: whatever is wrong with the files
        raise DataError(
            f"The folder must be a prepared data set of TFDS. Received: {str(folder)!r} "
            f"({_first_line(error)}). Prepare it again."
        ) from None
    return _listed(str(folder), builder, "")


def _parsed(spec: str) -> dict[str, str]:
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise DataError(
            "A TFDS data set must be given as tfds:NAME[:CONFIG][@SPLITS]. Received: "
            f"source={spec!r}. Write it as tfds:cifar10@train[:10%]+test."
        )
    parsed = {key: text or "" for key, text in match.groupdict().items()}
    if _VERSION.fullmatch(parsed["config"]) and not parsed["version"]:
        parsed |= {"config": "", "version": parsed["config"]}
    return parsed


def _imported(source: str) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise ResourceError(
            "Data sets of TFDS are read by tensorflow-datasets, which is not installed. Received: "
            f"source={source!r}. Install it: pip install 'kresnet[tfds]'"
        ) from None
    return tfds


def _builder(spec: str, parsed: dict[str, str]) -> Any:
    tfds = _imported(spec)
    name = "/".join(filter(None, (parsed["name"], parsed["config"])))
    if parsed["version"]:
        name += f":{parsed['version']}"
    try:
        # TFDS reads the variable only once, when it is imported.
        return tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
    except (ValueError, AssertionError, RuntimeError, OSError, ImportError) as error:
        raise DataError(
            f"The data set must be one that TFDS knows or has prepared. Received: source={spec!r} "
            f"({_first_line(error)}). See https://www.tensorflow.org/datasets/catalog"
        ) from None


def _prepare(spec: str, builder: Any) -> None:
    if builder.is_prepared():
        return
    name = builder.info.full_name
    try:
        _check_network()
        builder.download_and_prepare()
    except Exception as error:  # of many kinds: each data set has code of its own
        raise ResourceError(
            "The data set must be prepared, or it must be possible to download it. Received: "
            f"source={spec!r}, error={_first_line(error)!r}. Prepare it on a machine with a "
            f"network, with `tfds build {name.rsplit('/', 1)[0]}`, and copy the folder to "
            f"{str(builder.data_path)!r}."
        ) from None


def _check_network() -> None:
    """Raise where there is no network: TFDS itself would try again for a quarter of an hour."""
    with (
        contextlib.suppress(urllib.error.HTTPError),  # an answer
        urllib.request.urlopen(_STORAGE, timeout=_WAIT_S),
    ):
        pass


def _listed(source: str, builder: Any, expression: str) -> Listing:
    info = builder.info
    keys = _keys(source, info)
    names = list(info.splits)
    # Where all images are in one split, nothing is held out: it is as good as none.
    several = len(names) > 1
    known = [name for name in names if name.lower() in SPLITS] or names
    asked = [part.strip() for part in expression.split("+")] if expression else known
    shards = []
    for part in asked:
        split = SPLITS.get(re.split(r"\W", part)[0].lower()) if several else None
        try:
            instructions = info.splits[part].file_instructions
        except (ValueError, KeyError, AssertionError, TypeError) as error:
            raise DataError(
                f"The split must be one of {', '.join(names)}, or a part as {names[0]}[:10%]. "
                f"Received: {part!r} in {source!r} ({_first_line(error)})."
            ) from None
        shards += [Shard(str(i.filename), split, i.skip, i.take) for i in instructions]
    listed = listing_of(shards, keys, str(builder.data_path), "TFDS data set")
    unused = [] if expression else [name for name in names if name not in known]
    problems = [
        Problem(str(builder.data_path), f"split {name!r}: ask for it with @{name}")
        for name in unused
    ]
    return Listing(
        listed.root, listed.items, (*listed.problems, *problems), listed.description, (), _ADVICE
    )


def _keys(source: str, info: Any) -> Keys:
    """Find which feature is the image and which the class."""
    tfds = _imported(source)
    features = info.features
    image, label = (info.supervised_keys or (None, None))[:2]
    of_kind = {
        kind: [name for name, feature in features.items() if isinstance(feature, kind)]
        for kind in (tfds.features.Image, tfds.features.ClassLabel)
    }
    if image not in of_kind[tfds.features.Image]:
        image = next(iter(of_kind[tfds.features.Image]), None)
    if label not in features or isinstance(features[label], tfds.features.FeaturesDict):
        label = next(iter(of_kind[tfds.features.ClassLabel]), None)
    if image is None or label is None or features[label].shape:
        raise DataError(
            f"{_ADVICE} Received: source={source!r} with {', '.join(features)}. Take another, or "
            "write its images into class folders."
        )
    return Keys(image, label, tuple(getattr(features[label], "names", None) or ()))


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
