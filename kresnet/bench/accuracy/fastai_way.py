"""fastai's `fine_tune`, with fastai itself.

What `vision_learner(dls, resnet50).fine_tune(n)` is, on the same weights: its body and head, its
three groups of layers, its defaults for rates and schedule, `aug_transforms` and batches of 64; one
epoch of the head alone, then n of everything, as many of 20 as the time allows. fastai's own mixed
precision is for GPUs; here a callback computes in bfloat16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback, CancelValidException
from fastai.callback.schedule import Learner
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import Normalize
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import apply_init, params
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.data import ImageBlock
from fastai.vision.learner import create_body, create_head
from torchvision.models import get_model

from kresnet.bench.accuracy.checking import normalization
from kresnet.bench.accuracy.task import Answer, Task, softmax
from kresnet.bench.accuracy.torch_parts import computing, network, score, seeded, step_seconds

_BATCH, _EPOCHS = 64, 20
_STORED = 8 / 7  # sides of the images of a batch before they are turned and cropped, of the input's


class _InPrecision(Callback):
    """Goes forward in the task's precision."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def before_batch(self) -> None:
        self._context = computing(self._task)
        self._context.__enter__()

    def after_pred(self) -> None:
        self._context.__exit__(None, None, None)
        self.learn.pred = self.pred.float()


class _NoValidation(Callback):
    """Passes over validation: nothing is chosen by it."""

    def before_validate(self) -> None:
        raise CancelValidException


def contend(task: Task) -> Answer:
    """Fine-tune as fastai's documentation does."""
    seeded(task)
    trunk, difference = network(task, get_model)
    features = trunk(torch.zeros(1, 3, task.image_size, task.image_size)).shape[1]
    model = torch.nn.Sequential(
        create_body(trunk, pretrained=False, cut=-2), create_head(features, len(task.classes))
    )
    apply_init(model[1], torch.nn.init.kaiming_normal_)
    model = model.to(memory_format=torch.channels_last)

    names = {path: task.classes[label] for path, label in task.train}
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock(vocab=list(task.classes), sort=False)),
        get_y=lambda path: names[path],
        splitter=lambda items: (list(range(len(items))), [0]),  # it wants one to validate
        item_tfms=Resize(round(_STORED * task.image_size)),
        batch_tfms=[
            *aug_transforms(size=task.image_size),
            Normalize.from_stats(*map(list, normalization(task.start)), cuda=False),
        ],
    )
    data = block.dataloaders(list(names), bs=min(_BATCH, len(names)), device=torch.device("cpu"))
    learner = Learner(
        data,
        model,
        loss_func=CrossEntropyLossFlat(),
        splitter=lambda m: [params(m[0][:6]), params(m[0][6:]), params(m[1:])],
        cbs=[_InPrecision(task), _NoValidation()],
    )
    images, labels = (one.as_subclass(torch.Tensor) for one in data.train.one_batch())

    def step() -> None:
        with computing(task):
            pred = model(images)
        learner.loss_func(pred.float(), labels).backward()
        model.zero_grad()

    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    step_s = step_seconds(step)
    model.load_state_dict(before)
    epoch_s = step_s * max(len(data.train), 1)
    left = task.left_s - 1.5 * step_s / 3 * len(task.test) / len(labels) - 2.0
    epochs = min(max(int(left / epoch_s) - 1, 1), _EPOCHS)
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(epochs)
    test = data.test_dl([path for path, _ in task.test])
    return Answer(
        softmax(score(model, task, _plain(test)).astype(np.float64)),
        {
            "epochs": f"1 + {epochs}",
            "images_per_s": len(labels) / step_s,
            "weights_differ_by": difference,
        },
    )


def _plain(batches: Any) -> Any:
    """Yield batches without fastai's types, which would follow the numbers everywhere."""
    for images, *_ in batches:
        yield (images.as_subclass(torch.Tensor),)
