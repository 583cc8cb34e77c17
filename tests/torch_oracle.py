"""The same networks in PyTorch: timm's, with random weights, in double precision."""

import re

import numpy as np
import pytest


def timm_module():
    """timm, also where torchvision's compiled operators are of another torch build."""
    torch = pytest.importorskip("torch")
    try:
        return pytest.importorskip("timm")
    except RuntimeError:
        with torch.library._scoped_library("torchvision", "FRAGMENT") as library:
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
            return pytest.importorskip("timm")


def timm_model(name, **options):
    """timm's model of our variant, without weights of its own."""
    timm = timm_module()
    if name == "cbamresnet50":  # timm has the attention, not the name
        return timm.create_model("resnet50", block_args={"attn_layer": "cbam"}, **options)
    return timm.create_model(name, **options)


def has_timm(name):
    """Whether timm has the variant."""
    return name == "cbamresnet50" or timm_module().is_model(name)


def randomized(model, seed=1, double=True):
    """Give a torch model random weights and statistics.

    Branches are damped: else errors of rounding grow from block to block, in any library, until
    they hide what is compared.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    names = model.state_dict().keys()
    number = "3" if any(".conv3." in name for name in names) else "2"
    ends = re.compile(
        rf"layer.*\.(bn{number}|conv{number}\.bn)\.weight|stages.*\.conv{number}\.weight"
    )
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                continue
            draw = torch.randn(value.shape, generator=generator)
            if value.dim() > 1:
                value.copy_(draw * (1.5 / np.prod(value.shape[1:])) ** 0.5)
            elif name.endswith("running_var") or name.endswith("weight"):
                value.copy_(draw.sigmoid() + 0.5)
            else:
                value.copy_(draw * 0.2)
            if ends.fullmatch(name):
                value.mul_(0.3)
            if re.search(r"\.(se|attn|fc[12])\.", name) and value.dim() > 1:
                value.mul_(0.5)
    return (model.double() if double else model).eval()


def state_of(model):
    """Its state dict as float32 arrays."""
    return {
        name: (value.float() if value.is_floating_point() else value).numpy()
        for name, value in model.state_dict().items()
    }


def run(model, images):
    """Its answer to images (b, h, w, c)."""
    import torch

    with torch.no_grad():
        dtype = next(model.parameters()).dtype
        return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(dtype)).numpy()
