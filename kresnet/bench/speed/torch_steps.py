"""What happens in the processes of contenders that compute with PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch

from kresnet.bench.accuracy.torch_parts import NETWORKS, import_torchvision
from kresnet.bench.speed.work import Work, timed
from kresnet.machine import cores

_CLASSES: Final = 1000

Norms = Literal["learning", "kept", "fixed"]
"""Of norms: learn statistics, keep them, or keep them and train neither gamma nor beta."""


def network(library: str, variant: str) -> Any:
    """Build a network of torchvision or timm with random weights, channels last, all cores used.

    Raises:
        ValueError: Neither has the variant.
    """
    torch.set_num_threads(cores())
    torch.manual_seed(0)
    if variant not in NETWORKS:
        raise ValueError(f"The variant must be one of {', '.join(NETWORKS)}. Received: {variant}.")
    import_torchvision()  # timm does so, too
    if library == "timm":
        import timm

        model = timm.create_model(variant, num_classes=_CLASSES)
    else:
        import torchvision

        model = torchvision.models.get_model(variant, num_classes=_CLASSES)
    return model.to(memory_format=torch.channels_last)


def train(
    *,
    library: str,
    variant: str,
    image_size: int,
    batch: int,
    norms: Norms,
    bfloat16: bool,
    compiled: bool,
    steps: int,
) -> Work:
    """Train a network on one drawn batch."""
    model = network(library, variant)
    model.train()
    if norms != "learning":
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
                module.requires_grad_(norms == "kept")
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, 1e-5, weight_decay=0.05, fused=True)
    forward = torch.compile(model) if compiled else model
    images = _channels_last(torch.randn(batch, 3, image_size, image_size))
    labels = torch.randint(0, _CLASSES, (batch,))

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = forward(images)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return Work(timed(step, steps))


def infer(
    *,
    folder: str,
    library: str,
    variant: str,
    batch: int,
    bfloat16: bool,
    compiled: bool,
    steps: int,
) -> Work:
    """Answer with the weights that `infer_steps.prepare` left, for the images that it prepared."""
    from kresnet.bench.speed.infer_steps import difference, prepared

    model = network(library, variant)
    with np.load(Path(folder) / "torch.npz") as arrays:
        model.load_state_dict({key: torch.from_numpy(arrays[key]) for key in arrays})
    model.eval()
    if compiled:
        import torch._inductor.config as inductor

        inductor.freezing = True  # weights are constants: folded norms, packed kernels
    forward: Callable[[Any], Any] = torch.compile(model) if compiled else model
    images = torch.from_numpy(prepared(folder, batch).transpose(0, 3, 1, 2).copy())
    images = _channels_last(images)

    def answer() -> np.ndarray:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            scores: np.ndarray = torch.softmax(forward(images).float(), 1).numpy()
        return scores

    return Work(timed(answer, steps), {"differs_by": difference(folder, answer())})


def _channels_last(images: Any) -> Any:
    return images.contiguous(memory_format=torch.channels_last)
