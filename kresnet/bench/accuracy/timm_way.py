"""Fine-tuning as timm's `train.py` does it, with timm's own parts.

`--model resnet50 --pretrained -b 64 --epochs 30 --opt adamw --lr 5e-4 --weight-decay .05
--warmup-epochs 3 --aa rand-m9-mstd0.5 --mixup .1 --smoothing .1 --layer-decay .75 --amp
--amp-dtype bfloat16`, the cosine over as many epochs of 30 as the time allows and a tenth of them
to warm up; the best epoch by validation images, 15 % of those to train on. Without `--model-ema`,
whose average of 5,000 steps would still be the start.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import timm
import torch
from sklearn.model_selection import train_test_split
from timm.data import Mixup, create_transform
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

from kresnet.bench.accuracy.checking import normalization
from kresnet.bench.accuracy.task import Answer, Task, softmax
from kresnet.bench.accuracy.torch_parts import (
    Images,
    computing,
    loader,
    network,
    score,
    seeded,
    step_seconds,
)

_BATCH, _EPOCHS = 64, 30


def contend(task: Task) -> Answer:
    """Follow the script."""
    seeded(task)
    classes = len(task.classes)
    model, difference = network(task, timm.create_model)
    model.fc = torch.nn.Linear(model.num_features, classes)
    fit, val = train_test_split(
        list(task.train),
        test_size=0.15,
        stratify=[label for _, label in task.train],
        random_state=task.seed,
    )
    mean, std = normalization(task.start)
    size = {"input_size": task.image_size, "mean": mean, "std": std}
    learning = create_transform(**size, is_training=True, auto_augment="rand-m9-mstd0.5")
    looking = create_transform(**size, crop_pct=0.875)
    batches = loader(Images(tuple(fit), learning), batch=_BATCH, learn=True)
    val_batches = loader(Images(tuple(val), looking), batch=_BATCH, learn=False)
    val_labels = np.array([label for _, label in val])
    mix = Mixup(mixup_alpha=0.1, label_smoothing=0.1, num_classes=classes)
    loss_of = SoftTargetCrossEntropy()
    optimizer = create_optimizer_v2(
        model, opt="adamw", lr=5e-4, weight_decay=0.05, layer_decay=0.75
    )

    def learn(images: Any, labels: Any) -> None:
        even = len(images) // 2 * 2  # mixing wants pairs
        images, targets = mix(images[:even], labels[:even])
        with computing(task):
            loss = loss_of(model(images.to(memory_format=torch.channels_last)).float(), targets)
        optimizer.zero_grad()
        loss.backward()

    before = deepcopy(model.state_dict())
    model.train()
    first = next(iter(batches))
    step_s = step_seconds(lambda: learn(*first))
    model.load_state_dict(before)
    steps = len(batches)
    image_s = step_s / len(first[1]) / 3  # scoring goes forward only
    epoch_s = steps * step_s + len(val) * image_s
    left = task.left_s - 1.5 * image_s * len(task.test) - 2.0
    epochs = min(max(int(left / epoch_s), 1), _EPOCHS)
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=epochs,
        warmup_epochs=max(round(epochs / 10), 1),
        warmup_lr=1e-5,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )

    best, kept, done, curve = -1.0, before, 0, []
    for epoch in range(epochs):
        model.train()
        for images, labels in batches:
            learn(images, labels)
            optimizer.step()
            done += 1
            schedule.step_update(done)
        right = float((score(model, task, val_batches).argmax(axis=1) == val_labels).mean())
        curve.append(right)
        print(f"epoch {epoch + 1}/{epochs}: validation {right:.3f}", flush=True)
        if right > best:
            best, kept = right, deepcopy(model.state_dict())
        if task.left_s < epoch_s / 2 + 1.5 * image_s * len(task.test):
            break  # the processor was busier than when it was timed
    model.load_state_dict(kept)
    test = loader(Images(task.test, looking), batch=_BATCH, learn=False)
    return Answer(
        softmax(score(model, task, test).astype(np.float64)),
        {
            "epochs": len(curve),
            "planned": epochs,
            "images_per_s": len(first[1]) / step_s,
            "weights_differ_by": difference,
            "curve": curve,
        },
    )
