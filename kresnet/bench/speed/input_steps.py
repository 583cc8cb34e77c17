"""What happens in the processes of contenders that read images; each imports its own library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

from kresnet.bench.speed.work import Work, seconds_of
from kresnet.machine import cores
from kresnet.zoo.cards import IMAGENET_MEAN, IMAGENET_STD

_PASSED_OVER: Final = 6  # batches of a turn that were made ahead
_ENDLESS: Final = 10**7  # images
_MIN_AREA, _COLOR = 0.35, 0.2  # of our default augmentation


def kresnet(*, folder: str, image_size: int, batch: int, batches: int, kept: bool) -> Work:
    """Make the batches of `kresnet train`."""
    from kresnet.bench.input import ours
    from kresnet.data.augment import Augmentation
    from kresnet.data.scan import scan

    index = scan(folder)
    start = ours(
        index.rows,
        len(index.classes),
        image_size,
        batch,
        policy=Augmentation("light"),
        cache="memory" if kept else "none",
    )
    return _stream(start(), batches)


def keras(
    *, folder: str, image_size: int, batch: int, batches: int, kept: bool, zoomed: bool
) -> Work:
    """Make batches with layers of Keras, those of its guides or those that come nearest to ours."""
    from kresnet.bench.input import of_keras

    start = of_keras(Path(folder), image_size, batch, is_kept=kept, zoomed=zoomed)
    return _stream(start(), batches)


def torchvision(*, folder: str, image_size: int, batch: int, batches: int, v2: bool) -> Work:
    """Make batches with torchvision's transforms, in as many processes as there are cores."""
    from kresnet.bench.accuracy.torch_parts import import_torchvision

    import_torchvision()
    import torch
    from torchvision import transforms

    jitter = {"brightness": _COLOR, "contrast": _COLOR, "saturation": _COLOR}
    if v2:
        from torchvision.transforms import v2 as tensors

        steps = [
            tensors.PILToTensor(),
            tensors.RandomResizedCrop(image_size, (_MIN_AREA, 1.0), antialias=True),
            tensors.RandomHorizontalFlip(),
            tensors.ColorJitter(**jitter),
            tensors.ToDtype(torch.float32, scale=True),
            tensors.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    else:
        steps = [
            transforms.RandomResizedCrop(image_size, (_MIN_AREA, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(**jitter),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    return _loaded(folder, transforms.Compose(steps), batch, batches)


def timm(*, folder: str, image_size: int, batch: int, batches: int) -> Work:
    """Make batches with timm's transforms, in as many processes as there are cores."""
    from kresnet.bench.accuracy.torch_parts import import_torchvision

    import_torchvision()
    from timm.data import create_transform

    transform = create_transform(
        input_size=image_size,
        is_training=True,
        scale=(_MIN_AREA, 1.0),
        color_jitter=(_COLOR, _COLOR, _COLOR),
        auto_augment=None,
        interpolation="bilinear",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    return _loaded(folder, transform, batch, batches)


def _loaded(folder: str, transform: Callable[[Any], Any], batch: int, batches: int) -> Work:
    import torch

    from kresnet.bench.accuracy.torch_parts import Images

    files = sorted(Path(folder).glob("*/*.jpg"))
    labels = {name: k for k, name in enumerate(sorted({file.parent.name for file in files}))}
    images = Images(tuple((str(file), labels[file.parent.name]) for file in files), transform)
    # One epoch without end: between two, the processes would wait.
    sampler = torch.utils.data.RandomSampler(images, num_samples=_ENDLESS)
    loader = torch.utils.data.DataLoader(images, batch, sampler=sampler, num_workers=cores())
    return _stream(iter(loader), batches)


def _stream(stream: Iterator[Any], batches: int) -> Work:
    """Return work that takes batches from a stream, those that were made before the turn apart."""

    def take(count: int) -> None:
        for _ in islice(stream, count):
            pass

    def turn() -> float:
        take(_PASSED_OVER)
        return seconds_of(lambda: take(batches))

    return Work(turn)
