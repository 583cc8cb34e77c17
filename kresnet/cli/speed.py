"""The commands `kresnet bench train`, `infer`, `input`, `probe`, `coldstart` and `growth`.

Nothing heavy is imported in the process that runs them: contenders have their own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kresnet.cli.options import Json, KnownVariant
from kresnet.cli.output import print_json
from kresnet.errors import ConfigError

if TYPE_CHECKING:
    from kresnet.bench.speed.topics import Topic

Against = Annotated[
    str,
    typer.Option(help="Of keras, keras_hub, torchvision, timm, onnxruntime, openvino."),
]
Weights = Annotated[str, typer.Option(help="Checkpoint or tag; random weights without it.")]
ImageSize = Annotated[int, typer.Option(min=32, help="Side of the model input in pixels.")]
Batch = Annotated[int, typer.Option(min=1, help="Images of a batch.")]
Rounds = Annotated[int, typer.Option(min=1, help="Turns of each contender.")]
Steps = Annotated[int, typer.Option(min=1, help="Timed steps in a turn.")]
Photos = Annotated[str, typer.Option("--data", help="Photos, as `kresnet train` takes them.")]
Images = Annotated[int, typer.Option(min=2, help="How many photos, repeated if there are fewer.")]
Export = Annotated[str, typer.Option(help="NAME or NAME/VERSION; one is made without it.")]
Numbers = Annotated[str, typer.Option(help="Whole numbers, rising, with commas between.")]

_ALL = "keras,keras_hub,torchvision,timm,onnxruntime,openvino"


def add_to(app: typer.Typer) -> None:
    """Add the commands to `kresnet bench`."""
    for command in (train, infer, input_, probe, coldstart, growth):
        app.command(command.__name__.rstrip("_"))(command)


def train(
    against: Against = _ALL,
    variant: KnownVariant = "resnet50",
    image_size: ImageSize = 224,
    batch: Batch = 32,
    rounds: Rounds = 7,
    steps: Steps = 2,
    as_json: Json = False,
) -> None:
    """Time a training step beside others, with frozen and with learning norms."""
    _bench(
        "train",
        as_json,
        against=against,
        variant=variant,
        image_size=image_size,
        batch=batch,
        rounds=rounds,
        steps=steps,
    )


def infer(
    against: Against = _ALL,
    variant: KnownVariant = "resnet50",
    weights: Weights = "",
    image_size: ImageSize = 224,
    batch: Batch = 32,
    rounds: Rounds = 7,
    data: Photos = "",
    as_json: Json = False,
) -> None:
    """Time the exports, one image and a batch, beside other ways to run the same weights."""
    _bench(
        "infer",
        as_json,
        against=against,
        variant=variant,
        weights=weights or None,
        image_size=image_size,
        batch=batch,
        rounds=rounds,
        data=data or None,
    )


def input_(
    data: Photos,
    against: Against = _ALL,
    image_size: ImageSize = 224,
    batch: Batch = 32,
    images: Images = 1000,
    rounds: Rounds = 7,
    as_json: Json = False,
) -> None:
    """Time the stream of training images, from JPEG files, beside others."""
    _bench(
        "input",
        as_json,
        against=against,
        image_size=image_size,
        batch=batch,
        images=images,
        rounds=rounds,
        data=data,
    )


def probe(
    data: Photos,
    against: Against = _ALL,
    variant: KnownVariant = "resnet50",
    weights: Weights = "",
    image_size: ImageSize = 224,
    batch: Batch = 32,
    images: Images = 1000,
    rounds: Rounds = 5,
    steps: Steps = 3,
    as_json: Json = False,
) -> None:
    """Time a linear probe of photos beside 30 epochs of a frozen backbone."""
    _bench(
        "probe",
        as_json,
        against=against,
        variant=variant,
        weights=weights or None,
        image_size=image_size,
        batch=batch,
        images=images,
        rounds=rounds,
        steps=steps,
        data=data,
    )


def coldstart(
    export: Export = "",
    against: Against = _ALL,
    variant: KnownVariant = "resnet50",
    image_size: ImageSize = 224,
    rounds: Rounds = 7,
    as_json: Json = False,
) -> None:
    """Time the help and the prediction of one photo as fresh processes."""
    _bench(
        "coldstart",
        as_json,
        against=against,
        variant=variant,
        image_size=image_size,
        rounds=rounds,
        export=export or None,
    )


def growth(
    variant: KnownVariant = "resnet50",
    batch: Batch = 32,
    rows: Numbers = "1000,10000,100000",
    sides: Numbers = "96,160,224,288",
    rounds: Rounds = 3,
    as_json: Json = False,
) -> None:
    """Measure how time and memory grow with the number and the size of images."""
    _bench(
        "growth",
        as_json,
        variant=variant,
        batch=batch,
        rounds=rounds,
        sizes=_rising(rows, "--rows"),
        sides=_rising(sides, "--sides"),
    )


def _bench(topic: Topic, as_json: bool, **options: Any) -> None:
    from kresnet.bench.speed.results import table
    from kresnet.bench.speed.topics import Options, bench
    from kresnet.console import Console

    if "against" in options:
        options["against"] = tuple(name for name in options["against"].split(",") if name)
    with Console() as console, tempfile.TemporaryDirectory(prefix="kresnet-bench-") as folder:
        found = bench(topic, Options(**options), work=Path(folder), tell=console.line)
    if as_json:
        print_json(found)
    else:
        typer.echo(table(found))


def _rising(text: str, option: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(",") if part.strip().isdigit())
    if len(numbers) != text.count(",") + 1 or list(numbers) != sorted({*numbers} - {0}):
        raise ConfigError(
            f"`{option}` must be whole numbers above zero that rise, with commas between. "
            f"Received: {text!r}."
        )
    return numbers
