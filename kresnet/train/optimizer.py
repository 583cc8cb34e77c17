"""Optimizers in which each variable has its own share of the learning rate and of the decay."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import keras

from kresnet.errors import ConfigError

_STAGE = re.compile(r"stage(\d+)_")


class _Grouped(keras.optimizers.Optimizer):
    """Mixin: scales the learning rate and decays the weights variable by variable.

    One optimizer keeps one schedule, one iteration count and one global clipping for all groups,
    which several optimizers side by side would not.
    """

    decoupled: bool

    def __init__(self, *, groups: dict[str, tuple[float, float]], **options: Any) -> None:
        super().__init__(**options)
        self.groups = groups

    def build(self, variables: Sequence[Any]) -> None:
        """Create the slots, and look up the group of each variable."""
        self._by_index = [self.groups[variable.path] for variable in variables]
        super().build(variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable with its own rate and decay."""
        # TensorFlow hands over its own variable, which has lost the Keras path.
        share, decay = self._by_index[self._get_variable_index(variable)]
        learning_rate = learning_rate * share
        if decay and self.decoupled:
            variable.assign(variable * (1.0 - learning_rate * decay))
        elif decay:
            gradient = gradient + decay * variable
        super().update_step(gradient, variable, learning_rate)


class GroupedAdamW(_Grouped, keras.optimizers.Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2017, arXiv:1711.05101)."""

    decoupled = True


class GroupedSGD(_Grouped, keras.optimizers.SGD):
    """SGD with Nesterov momentum and L2 decay in the gradient, as the ResNet papers train."""

    decoupled = False


def optimizer_for(
    model: keras.Model,
    name: Literal["adamw", "sgd"],
    *,
    weight_decay: float,
    layer_decay: float,
    clip_norm: float | None,
    scale_loss: bool = False,
) -> keras.optimizers.Optimizer:
    """Build the optimizer of a model, with layer-wise learning rates.

    Args:
        model: A model of kresnet's layer names.
        name: "adamw", or "sgd" with Nesterov momentum 0.9.
        weight_decay: For kernels only; norms and biases are never decayed (He et al. 2018,
            arXiv:1812.01187, section 3.1).
        layer_decay: Factor of the learning rate from one stage to the one before it, in (0, 1].
        clip_norm: Largest global norm of the gradient, or None.
        scale_loss: Scale the loss, for float16, whose range is too narrow for gradients.

    Returns:
        A built optimizer for `model.trainable_variables`. Its `learning_rate`, that of the head
        and the last stage, is 0 until the loop sets it.

    Raises:
        ConfigError: Nothing in the model is trainable.
    """
    variables = model.trainable_variables
    if not variables:
        raise ConfigError(
            f"The model needs a trainable variable. Received: model={model.name!r}, all frozen."
        )
    last = last_stage(model)
    groups = {
        variable.path: (
            layer_decay ** (last - _stage(variable.path, last)),
            weight_decay if variable.name == "kernel" else 0.0,
        )
        for variable in variables
    }
    options: dict[str, Any] = {"learning_rate": 0.0, "global_clipnorm": clip_norm}
    optimizer: keras.optimizers.Optimizer = (
        GroupedAdamW(groups=groups, **options)
        if name == "adamw"
        else GroupedSGD(groups=groups, momentum=0.9, nesterov=True, **options)
    )
    if scale_loss:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(variables)
    return optimizer


def warmup_cosine(progress: float, *, warmup: float) -> float:
    """Return the share of the peak learning rate at a point of the training.

    Rises linearly to 1 during the warm-up, then falls along half a cosine to 0.01 (Loshchilov &
    Hutter 2016, arXiv:1608.03983; He et al. 2018, arXiv:1812.01187, section 5.1).

    Args:
        progress: Share of the training that is done, in 0..1.
        warmup: Share of the training in which the rate rises.
    """
    if progress < warmup:
        return progress / warmup
    fallen = min((progress - warmup) / (1.0 - warmup), 1.0)
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * fallen))


def freeze_before(model: keras.Model, stage: int) -> Sequence[str]:
    """Make the stem and the stages before `stage` untrainable; the backward pass ends there.

    Args:
        model: A model of kresnet's layer names.
        stage: First trainable stage; 1 leaves the stem trainable too.

    Returns:
        Names of the frozen layers.
    """
    frozen = []
    for layer in model.layers:
        layer.trainable = stage <= 1 or _stage(layer.name, stage) >= stage
        if not layer.trainable and layer.weights:
            frozen.append(layer.name)
    return frozen


def last_stage(model: keras.Model) -> int:
    """Return the number of the model's last stage, 0 if its layers have other names."""
    found = (_STAGE.match(layer.name) for layer in model.layers)
    return max((int(match[1]) for match in found if match), default=0)


def _stage(name: str, of_head: int) -> int:
    """Return a layer's stage: 0 for the stem, `of_head` for what follows the last stage."""
    if match := _STAGE.match(name):
        return int(match[1])
    return 0 if name.startswith("stem_") else of_head
