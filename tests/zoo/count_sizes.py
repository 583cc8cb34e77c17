"""Writes sizes.csv: `python tests/zoo/count_sizes.py`.

It takes only the names from kresnet. Torch counts timm's models, on the meta device, and the
papers' networks in `paper_oracle`; the layers of keras.applications are summed.
"""

import csv
import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")
sys.path.insert(0, str(Path(__file__).parents[1]))

import keras
import torch
from paper_oracle import PostNet, paper_model
from torch.utils.flop_counter import FlopCounterMode
from torch_oracle import timm_model


def counted(model, size):
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, 3, size, size))
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2


def counted_application(name, *, biases):
    """Count the layers of keras.applications; where norms follow, kresnet has no biases."""
    model = getattr(keras.applications, name)(weights=None)
    params = sum(v.value.numel() for v in model.trainable_variables)
    macs = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            macs += layer.kernel.value.numel() * layer.output.shape[1] * layer.output.shape[2]
            params -= 0 if biases or layer.bias is None else layer.bias.value.numel()
        elif isinstance(layer, keras.layers.Dense):
            macs += layer.kernel.value.numel()
    return params, macs


def paddle(depths):
    """ResNet-D of timm; with basic blocks, PaddleClas projects in the first stage as well."""
    from timm.models.resnet import BasicBlock, Bottleneck, ResNet

    block = Bottleneck if sum(depths) > 16 else BasicBlock
    with torch.device("meta"):
        model = ResNet(block, depths, stem_width=32, stem_type="deep", avg_down=True)
        params, macs = counted(model, 224)
    extra = 64 * 64 if block is BasicBlock else 0
    return params + extra + (128 if extra else 0), macs + extra * 56 * 56


def main(names):
    rows = []
    for name in names:
        if name.endswith("_vd"):
            depths = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "200": (3, 12, 48, 3)}[name[6:-3]]
            size = paddle(depths)
        elif name == "resnet8_cifar":
            size = counted(PostNet([1] * 3, shortcut="conv"), 32)
        elif (model := paper_model(name)) is not None:
            size = counted(model, 32 if name.endswith("_cifar") else 224)
        elif name.endswith(("_v1", "_v2")):
            application = name[:-3].replace("resnet", "ResNet")
            application += "V2" if name.endswith("2") else ""
            size = counted_application(application, biases=name.endswith("_v2"))
        else:
            with torch.device("meta"):
                size = counted(timm_model(name), 224)
        rows.append((name, *size))
    with (Path(__file__).parent / "sizes.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("variant", "params", "macs"), *rows])


if __name__ == "__main__":
    from kresnet.zoo.variants import VARIANTS

    main(list(VARIANTS))
