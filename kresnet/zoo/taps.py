"""Features at several scales, for detection and segmentation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import keras

from kresnet.errors import ConfigError
from kresnet.zoo.graph import deep_graph

_ENDS = re.compile(r"stem_conv3?|stem_act|stem_pool_act|stage\d+_block\d+_out|norm_act")


def features(model: keras.Model, strides: Sequence[int] = (4, 8, 16, 32)) -> keras.Model:
    """Return the model that ends in its features at several scales.

    At each stride it is the last features that the network has there: the end of a stage, or of the
    stage before in networks whose stride is in the last block (keras.applications' V2), or of the
    last stage where it is dilated. Of pre-activation networks, the last ones are normalised.

    Args:
        model: A model from `build`, with any head; its layers and weights are shared.
        strides: Image size divided by feature size, in ascending order; 2 is the stem. Networks
            for small images have 1, 2 and 4.

    Returns:
        A model from the same images to a list of `(b, ceil(h / stride), ceil(w / stride), c)`; of
        one stride it is no list, as Keras has it.

    Raises:
        ConfigError: The model has no features at one of the strides.
    """
    found = {stride: tensor for name, stride, tensor in strides_of(model) if _ENDS.fullmatch(name)}
    missing = [stride for stride in strides if stride not in found]
    if missing or not strides:
        raise ConfigError(
            f"`strides` must be some of {sorted(found)}, which {model.name!r} has. "
            f"Received: strides={tuple(strides)}."
        )
    ends = [found[stride] for stride in strides]
    with deep_graph():
        return keras.Model(model.inputs[0], ends, name=f"{model.name}_features")


def strides_of(model: keras.Model) -> list[tuple[str, int, Any]]:
    """Return name, stride and output of each layer, from the input to the output.

    The stride is the product of those of the layers on the way.
    """
    strides: dict[int, int] = {id(tensor): 1 for tensor in model.inputs}
    result = []
    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            before = [strides.get(id(tensor), 1) for tensor in node.input_tensors]
            own = getattr(node.operation, "strides", 1)
            own = own[0] if isinstance(own, tuple | list) else own
            for tensor in node.output_tensors:
                strides[id(tensor)] = max(before, default=1) * own
                result.append((node.operation.name, strides[id(tensor)], tensor))
    return result
