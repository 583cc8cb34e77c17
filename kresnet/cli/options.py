"""What commands share of their options: choices, types with their help, and how texts are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from kresnet.errors import ConfigError


class AugmentChoice(StrEnum):
    """Choices of --augment."""

    none = "none"
    light = "light"
    trivial = "trivial"
    rand = "rand"


class BalanceChoice(StrEnum):
    """Choices of --balance."""

    none = "none"
    sqrt = "sqrt"
    full = "full"


Json = Annotated[
    bool, typer.Option("--json", help="Print exactly one JSON value on standard output.")
]
DATA_HELP = (
    "Folder with a folder of images for each class, a zip or tar file of it, a manifest "
    "(.csv, .jsonl, .parquet), shards, or tfds:NAME."
)
Data = Annotated[str, typer.Argument(help=DATA_HELP)]
Variant = Annotated[
    str | None, typer.Option(help="A name that `kresnet zoo list` prints; else resnet50.")
]
KnownVariant = Annotated[str, typer.Option(help="A name that `kresnet zoo list` prints.")]
Weights = Annotated[
    str | None,
    typer.Option(
        help="imagenet, cifar10, embedded (the small one in the package), a tag as a1_in1k, the "
        "path of a checkpoint, or none."
    ),
]
Augment = Annotated[
    AugmentChoice | None,
    typer.Option(help="Random views: none, light (colours), trivial or rand operations."),
]
Flip = Annotated[bool | None, typer.Option("--flip/--no-flip", help="Mirror half of the images.")]
Mixup = Annotated[float | None, typer.Option(help="Mixup's parameter, as 0.2.")]
Cutmix = Annotated[float | None, typer.Option(help="CutMix's parameter, as 1.")]
Balance = Annotated[BalanceChoice | None, typer.Option(help="How rare classes are raised.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
GroupBy = Annotated[
    str | None,
    typer.Option(
        help="Keep together what shares this column of a manifest, or this regular expression of "
        "the path."
    ),
]
KeepSplit = Annotated[
    Path | None, typer.Option(help="An earlier split or index.csv; its images keep their places.")
]
Exclude = Annotated[
    Path | None, typer.Option(help="A CSV of images to leave out, as `check --labels` writes.")
]
Tta = Annotated[
    bool, typer.Option("--tta", help="Average with the mirror image, if training mirrored.")
]
Out = Annotated[Path, typer.Option(help="Folder of the runs.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Set any field of recipe.yaml, as --set drop_rate=0.2; may be given more than once.",
    ),
]
Exports = Annotated[Path, typer.Option(help="Folder of the exports.")]
DataService = Annotated[
    str | None,
    typer.Option(
        help="Address of a tf.data service that makes the batches, as grpc://host:5050; they are "
        "the same as without it."
    ),
]
RayWorkers = Annotated[
    str | None,
    typer.Option(
        "--ray", help="Address of a Ray cluster for the workers, as auto; local starts one."
    ),
]
WorkerCpus = Annotated[int, typer.Option(min=1, help="With --ray: cores of a worker.")]
WorkerGpus = Annotated[int, typer.Option(min=0, help="With --ray: GPUs of a worker.")]
NoPhotos = Annotated[
    bool,
    typer.Option(
        "--no-photos", help="Store drawn images in the export, not four small validation photos."
    ),
]


def read_seconds(text: str | None, option: str = "--budget") -> float | None:
    """Read a time as 90s, 10m, 2h or plain seconds."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip().lower())
    if not match or float(match[1]) == 0:
        raise ConfigError(
            f"`{option}` must be a time above zero, as 90s, 10m or 2h. Received: {text!r}."
        )
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def read_jobs(text: str) -> int | None:
    """Read --jobs."""
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"`--jobs` must be 1 or more, or auto. Received: {text!r}.")
    return int(text)


# What `fit` takes beside the fields of a recipe.
NO_FIELDS = (
    *("preset", "recipe", "name", "out", "exports", "keep_photos", "explain", "tracker"),
    *("data_service", "console"),
)


def read_fields(texts: Sequence[str]) -> dict[str, Any]:
    """Read FIELD=VALUE, whose values are as in recipe.yaml."""
    import yaml

    fields: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            fields[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            equals = ""
        if not equals or not name.strip().isidentifier() or name.strip() in NO_FIELDS:
            raise ConfigError(
                f"`--set` takes a field of recipe.yaml and its value. Received: {text!r}. "
                "Write it as --set drop_rate=0.2."
            )
    for name in ("keep_split", "exclude"):
        if isinstance(fields.get(name), str):
            fields[name] = str(Path(fields[name]).absolute())
    return fields
