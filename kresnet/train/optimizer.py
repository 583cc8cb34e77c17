"""Optimizers in which each variable has its own share of the learning rate and of the decay."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import tensorflow as tf
from keras import ops

from kresnet.errors import ConfigError

if TYPE_CHECKING:
    from kresnet.train.recipe import Recipe

Name = Literal["adamw", "adam", "sgd", "lamb", "rmsprop"]

_STAGE = re.compile(r"stage(\d+)_")


class _Grouped(keras.optimizers.Optimizer):
    """Mixin: scales the learning rate and decays the weights variable by variable.

    One optimizer keeps one schedule, one iteration count and one global clipping for all groups,
    which several optimizers side by side would not.

    Args:
        groups: For the path of each variable, its share of the learning rate and its decay.
        l1: Factor of the absolute values of what decays, in the loss.
        summed: Gradients come summed over the devices of a team. Keras itself clips on each device
            and sums then, which is another gradient.
        options: Of the Keras optimizer.
    """

    decoupled = False

    def __init__(
        self,
        *,
        groups: dict[str, tuple[float, float]],
        l1: float = 0.0,
        summed: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.groups, self.l1, self.summed = groups, l1, summed

    def build(self, variables: Sequence[Any]) -> None:
        """Create the slots, and look up the group of each variable."""
        self._by_index = [self.groups[variable.path] for variable in variables]
        self._is_kernel = [variable.name == "kernel" for variable in variables]
        super().build(variables)

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        return grads_and_vars if self.summed else super()._all_reduce_sum_gradients(grads_and_vars)

    def _clip_gradients(self, gradients: Sequence[Any]) -> Sequence[Any]:
        """Clip as Keras does, whose global norm keeps every square on the way."""
        if not self.global_clipnorm:
            return super()._clip_gradients(gradients)
        return tf.clip_by_global_norm(gradients, self.global_clipnorm)[0]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable with its own rate and decay."""
        # TensorFlow hands over its own variable, which has lost the Keras path.
        index = self._get_variable_index(variable)
        share, decay = self._by_index[index]
        learning_rate = learning_rate * share
        if self.l1 and self._is_kernel[index]:
            gradient = gradient + self.l1 * ops.sign(variable)
        if decay and self.decoupled:
            variable.assign(variable * (1.0 - learning_rate * decay))
        elif decay:
            gradient = gradient + decay * variable
        super().update_step(gradient, variable, learning_rate)


class _Adam(keras.optimizers.Adam):
    """Keras' Adam in TensorFlow's one operation for it, which reads and writes all once."""

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable."""
        index = self._get_variable_index(variable)
        count = tf.cast(self.iterations.value + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=self.beta_1**count,
            beta2_power=self.beta_2**count,
            lr=learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


class GroupedAdamW(_Grouped, _Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2017, arXiv:1711.05101)."""

    decoupled = True


class GroupedAdam(_Grouped, _Adam):
    """Adam with L2 decay in the gradient (Kingma & Ba 2014, arXiv:1412.6980)."""


class GroupedSGD(_Grouped, keras.optimizers.SGD):
    """SGD with Nesterov momentum and L2 decay in the gradient, as the ResNet papers train."""


class GroupedRMSprop(_Grouped, keras.optimizers.RMSprop):
    """RMSprop with momentum and L2 decay in the gradient."""


class GroupedLAMB(_Grouped, keras.optimizers.Lamb):
    """LAMB: Adam whose step of each variable is as long as a share of the variable.

    You et al. 2019, arXiv:1904.00962, algorithm 2, in which the decay is a part of the step whose
    length is set; Keras' Lamb decays apart from it. Variables without decay, norms and biases,
    take Adam's step, as in timm.
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update one variable with its own rate and decay."""
        index = self._get_variable_index(variable)
        share, decay = self._by_index[index]
        if self.l1 and self._is_kernel[index]:
            gradient = gradient + self.l1 * ops.sign(variable)
        mean, square = self._momentums[index], self._velocities[index]
        count = ops.cast(self.iterations + 1, variable.dtype)
        self.assign_add(mean, (gradient - mean) * (1.0 - self.beta_1))
        self.assign_add(square, (ops.square(gradient) - square) * (1.0 - self.beta_2))
        step = (mean / (1.0 - self.beta_1**count)) / (
            ops.sqrt(square / (1.0 - self.beta_2**count)) + self.epsilon
        )
        if decay:
            step = step + decay * variable
            length, wanted = _length(step), _length(variable)
            step = step * ops.where((length > 0) & (wanted > 0), wanted / length, 1.0)
        self.assign_sub(variable, learning_rate * share * step)


def _length(value: Any) -> Any:
    """Return the Euclidean norm of all values; Keras' own takes matrices at most."""
    return ops.sqrt(ops.sum(ops.square(value)))


_CLASSES: dict[Name, tuple[type[_Grouped], dict[str, Any]]] = {
    "adamw": (GroupedAdamW, {}),
    "adam": (GroupedAdam, {}),
    "sgd": (GroupedSGD, {"momentum": 0.9, "nesterov": True}),
    "lamb": (GroupedLAMB, {"epsilon": 1e-6}),
    # As EfficientNet and MobileNet are trained.
    "rmsprop": (GroupedRMSprop, {"rho": 0.9, "momentum": 0.9, "epsilon": 1e-3}),
}


def optimizer_of(
    recipe: Recipe, model: keras.Model, *, summed: bool = False
) -> keras.optimizers.Optimizer:
    """Build the optimizer that a recipe trains a model with; see `optimizer_for`."""
    return optimizer_for(
        model,
        recipe.optimizer,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
        clip_norm=recipe.clip_norm,
        l1=recipe.l1,
        scale_loss=recipe.precision == "float16",
        summed=summed,
    )


def optimizer_for(
    model: keras.Model,
    name: Name,
    *,
    weight_decay: float,
    layer_decay: float,
    clip_norm: float | None,
    l1: float = 0.0,
    scale_loss: bool = False,
    summed: bool = False,
) -> keras.optimizers.Optimizer:
    """Build the optimizer of a model, with layer-wise learning rates.

    Args:
        model: A model of kresnet's layer names.
        name: "adamw", "adam", "sgd" with Nesterov momentum 0.9, "lamb", or "rmsprop" with momentum
            0.9.
        weight_decay: For kernels only; norms and biases are never decayed (He et al. 2018,
            arXiv:1812.01187, section 3.1).
        layer_decay: Factor of the learning rate from one stage to the one before it, in (0, 1].
        clip_norm: Largest global norm of the gradient, or None.
        l1: Factor of the absolute values of the kernels in the loss.
        scale_loss: Scale the loss, for float16, whose range is too narrow for gradients.
        summed: Gradients come summed over the devices of a team.

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
    kind, options = _CLASSES[name]
    optimizer: keras.optimizers.Optimizer = kind(
        groups=groups,
        l1=l1,
        summed=summed,
        learning_rate=0.0,
        global_clipnorm=clip_norm,
        **options,
    )
    if scale_loss:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(variables)
    return optimizer


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
