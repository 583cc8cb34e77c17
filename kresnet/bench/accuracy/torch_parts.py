"""What the contenders in PyTorch share: the network with our weights, and images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kresnet.bench.accuracy import checking
from kresnet.bench.accuracy.task import Labelled, Task
from kresnet.machine import cores

NETWORKS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
"""What both torchvision and timm build; "_v1" after it moves the strides."""


def import_torchvision() -> None:
    """Import torchvision, also where its compiled operators are of another build of torch.

    It then stops at declarations of what was not loaded; nothing of that is used here.
    """
    try:
        import torchvision
    except RuntimeError:
        with torch.library._scoped_library("torchvision", "FRAGMENT") as library:
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
            import torchvision  # noqa: F401


def seeded(task: Task) -> None:
    """Make random choices those of the seed, and use every core."""
    torch.manual_seed(task.seed)
    np.random.seed(task.seed)  # timm's mixup draws from the global state
    torch.set_num_threads(cores())


def network(task: Task, create: Callable[[str], Any]) -> tuple[Any, float]:
    """Build a network and give it the starting weights.

    Args:
        task: For the variant and the weights.
        create: From a name, as "resnet50", to a network whose classifier is called `fc`.

    Returns:
        The network, without a classifier: it gives features `(n, c)`; and the largest difference
        of its features from ours.

    Raises:
        ValueError: Neither library has the variant, or the features differ by more than rounding.
    """
    name = task.variant.removesuffix("_v1")
    if name not in NETWORKS:
        raise ValueError(f"The variant must be one of {NETWORKS}. Received: {task.variant}.")
    model = create(name)
    model.fc = torch.nn.Identity()
    if task.variant.endswith("_v1"):
        _move_strides(model)
    with np.load(Path(task.start) / checking.TORCH) as arrays:
        model.load_state_dict({key: torch.from_numpy(arrays[key]) for key in arrays})
    model.eval()
    images = checking.images_to_check(task.start).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        features = model(torch.from_numpy(np.ascontiguousarray(images))).numpy()
    return model.to(memory_format=torch.channels_last), checking.check(task.start, features)


def _move_strides(model: Any) -> None:
    """Put each stage's stride into the first 1x1 convolution, as in the paper (v1)."""
    for stage in (model.layer2, model.layer3, model.layer4):
        block = stage[0]
        if hasattr(block, "conv3"):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, (1, 1)


def computing(task: Task) -> Any:
    """Return a context in which products are computed in the task's precision."""
    return torch.autocast("cpu", torch.bfloat16, enabled=task.precision == "bfloat16")


class Images(torch.utils.data.Dataset):
    """Labelled files as what a transform makes of the opened image."""

    def __init__(self, images: tuple[Labelled, ...], transform: Callable[[Any], Any]) -> None:
        self._images, self._transform = images, transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, k: int) -> tuple[Any, int]:
        path, label = self._images[k]
        with Image.open(path) as image:
            return self._transform(image.convert("RGB")), label


def loader(images: Images, *, batch: int, learn: bool) -> Any:
    """Return batches, made by as many processes as there are cores; shuffled to learn from."""
    return torch.utils.data.DataLoader(
        images,
        batch,
        shuffle=learn,
        drop_last=learn and len(images) > batch,
        num_workers=cores(),
        persistent_workers=True,
    )


def step_seconds(step: Callable[[], None], times: int = 3) -> float:
    """Return how long a step takes, the first one passed over."""
    step()
    seconds = []
    for _ in range(times):
        began = time.time()
        step()
        seconds.append(time.time() - began)
    return min(seconds)


def score(model: Any, task: Task, batches: Iterator[Any] | Any) -> np.ndarray:
    """Return logits float32 `(n, classes)` of every image of some batches, in order."""
    model.eval()
    with torch.inference_mode(), computing(task):
        return np.concatenate(
            [
                model(images.to(memory_format=torch.channels_last)).float().numpy()
                for images, *_ in batches
            ]
        )
