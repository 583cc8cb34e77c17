"""What happens in the processes of `kresnet.bench.cuda`: JAX in one, PyTorch in the other."""

from __future__ import annotations

import os
from functools import partial
from typing import Any, Final

from kresnet.bench.speed.work import Work, timed

_CLASSES: Final = 1000
_RATE: Final = 1e-5  # so low that weights stay what they are, and no loss overflows
_DECAY: Final = 0.05


def kresnet(
    *, variant: str, image_size: int, batch: int, frozen: bool, policy: str, steps: int
) -> Work:
    """Train kresnet's network with JAX: one compiled function a step, its buffers used again."""
    os.environ["KERAS_BACKEND"] = "jax"
    # What PyTorch needs beside it must not be taken at the start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax
    import keras

    from kresnet.zoo import build, freeze_norms

    model = build(variant, num_classes=_CLASSES, input_shape=(image_size, image_size), dtype=policy)
    if frozen:
        freeze_norms(model)
    optimizer = keras.optimizers.AdamW(_RATE, weight_decay=_DECAY)
    optimizer.build(model.trainable_variables)
    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def loss_of(learned: Any, others: Any, images: Any, labels: Any) -> Any:
        logits, others = model.stateless_call(learned, others, images, training=True)
        return entropy(labels, logits), others

    @partial(jax.jit, donate_argnums=0)
    def step(state: Any, images: Any, labels: Any) -> Any:
        learned, others, moments = state
        (loss, others), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            learned, others, images, labels
        )
        learned, moments = optimizer.stateless_apply(moments, gradients, learned)
        return (learned, others, moments), loss

    keys = jax.random.split(jax.random.key(0))
    images = jax.random.normal(keys[0], (batch, image_size, image_size, 3))
    labels = jax.random.randint(keys[1], (batch,), 0, _CLASSES)
    # Copies: what is donated must be nobody else's.
    state = jax.tree.map(
        jax.numpy.copy,
        (
            [v.value for v in model.trainable_variables],
            [v.value for v in model.non_trainable_variables],
            [v.value for v in optimizer.variables],
        ),
    )

    def call() -> float:
        nonlocal state
        state, loss = step(state, images, labels)
        return float(loss)  # waits for all of the step

    device = jax.devices()[0]
    said = {"device": device.device_kind, "jax": jax.__version__, "keras": keras.__version__}
    return Work(timed(call, steps), said | {"first loss": call()})


def timm(
    *,
    variant: str,
    image_size: int,
    batch: int,
    frozen: bool,
    dtype: str,
    compiled: bool,
    steps: int,
) -> Work:
    """Train timm's network, channels last, on the GPU if there is one."""
    import torch

    from kresnet.bench.accuracy.torch_parts import import_torchvision

    import_torchvision()
    import timm as library

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")  # TF32 where the type is float32
    torch.backends.cudnn.benchmark = True
    model = library.create_model(variant, num_classes=_CLASSES)
    model = model.to(device, memory_format=torch.channels_last).train()
    if frozen:
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
    optimizer = torch.optim.AdamW(model.parameters(), _RATE, weight_decay=_DECAY, fused=True)
    forward = torch.compile(model) if compiled else model
    images = torch.randn(batch, 3, image_size, image_size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, _CLASSES, (batch,), device=device)
    kind = getattr(torch, dtype)

    def call() -> float:
        with torch.autocast(device, kind, enabled=kind is not torch.float32):
            logits = forward(images)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    name = torch.cuda.get_device_name() if device == "cuda" else device
    said = {"device": name, "torch": torch.__version__, "timm": library.__version__}
    return Work(timed(call, steps), said | {"first loss": call()})
