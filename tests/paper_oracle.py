"""Residual networks in PyTorch as the papers have them, for what timm has not.

Parameters have the names of akamaster's CIFAR nets and of timm's resnetv2.
"""

import torch
from torch import nn
from torch.nn import functional as F


def bottleneck_or_basic(width, kind, stride, stride_in):
    """(filters, kernel, stride) of each convolution of a branch."""
    if kind == "basic":
        return [(width, 3, stride), (width, 3, 1)]
    first, second = (stride, 1) if stride_in == 1 else (1, stride)
    return [(width, 1, first), (width, 3, second), (4 * width, 1, 1)]


class PostBlock(nn.Module):
    """He et al. 2015: relu(F(x) + x), where x is projected, padded with zeros, or left out."""

    def __init__(self, before, convs, shortcut):
        super().__init__()
        self.before, self.after = before, convs[-1][0]
        self.stride = max(stride for _, _, stride in convs)
        self.shortcut, self.count = shortcut, len(convs)
        for k, (filters, kernel, stride) in enumerate(convs, start=1):
            setattr(
                self,
                f"conv{k}",
                nn.Conv2d(before, filters, kernel, stride, kernel // 2, bias=False),
            )
            setattr(self, f"bn{k}", nn.BatchNorm2d(filters))
            before = filters
        if shortcut == "conv" and (self.before != self.after or self.stride > 1):
            conv = nn.Conv2d(self.before, self.after, 1, self.stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(self.after))
        else:
            self.downsample = None

    def forward(self, x):
        y = x
        for k in range(1, self.count + 1):
            y = getattr(self, f"bn{k}")(getattr(self, f"conv{k}")(y))
            y = F.relu(y) if k < self.count else y
        if self.shortcut == "none":
            return F.relu(y)
        if self.downsample:
            x = self.downsample(x)
        elif self.before != self.after:
            half = (self.after - self.before) // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(y + x)


class PreBlock(nn.Module):
    """He et al. 2016: F(relu(norm(x))) + x, where x may be a projection of relu(norm(x))."""

    def __init__(self, before, convs, always_project):
        super().__init__()
        after, stride = convs[-1][0], max(stride for _, _, stride in convs)
        self.count = len(convs)
        self.downsample = None
        if always_project or before != after or stride > 1:
            self.downsample = nn.ModuleDict(
                {"conv": nn.Conv2d(before, after, 1, stride, bias=False)}
            )
        for k, (filters, kernel, stride) in enumerate(convs, start=1):
            setattr(self, f"norm{k}", nn.BatchNorm2d(before))
            setattr(
                self,
                f"conv{k}",
                nn.Conv2d(before, filters, kernel, stride, kernel // 2, bias=False),
            )
            before = filters

    def forward(self, x):
        y = F.relu(self.norm1(x))
        shortcut = self.downsample["conv"](y) if self.downsample else x
        y = self.conv1(y)
        for k in range(2, self.count + 1):
            y = getattr(self, f"conv{k}")(F.relu(getattr(self, f"norm{k}")(y)))
        return y + shortcut


class PostNet(nn.Module):
    """Section 4.2 of the paper of 2015."""

    def __init__(self, depths, shortcut="pad"):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        before = 16
        for s, depth in enumerate(depths):
            blocks = []
            for b in range(depth):
                convs = bottleneck_or_basic(16 * 2**s, "basic", 2 if s and not b else 1, 1)
                blocks.append(PostBlock(before, convs, shortcut))
                before = 16 * 2**s
            setattr(self, f"layer{s + 1}", nn.Sequential(*blocks))
        self.stages = len(depths)
        self.linear = nn.Linear(before, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for s in range(self.stages):
            x = getattr(self, f"layer{s + 1}")(x)
        return self.linear(x.mean((2, 3)))


class PreNet(nn.Module):
    """Pre-activation: for CIFAR with bottlenecks or wide, and MXNet's for ImageNet."""

    def __init__(self, depths, kind, width=16, stem=16, imagenet=False):
        super().__init__()
        expansion = 4 if kind == "bottleneck" else 1
        self.imagenet = imagenet
        kernel, stride = (7, 2) if imagenet else (3, 1)
        self.stem = nn.ModuleDict(
            {"conv": nn.Conv2d(3, stem, kernel, stride, kernel // 2, bias=False)}
        )
        if imagenet:
            self.stem["norm"] = nn.BatchNorm2d(stem)
        before, stages = stem, []
        for s, depth in enumerate(depths):
            blocks = []
            for b in range(depth):
                step = 2 if s and not b else 1
                convs = bottleneck_or_basic(width * 2**s, kind, step, 2 if imagenet else 1)
                blocks.append(PreBlock(before, convs, imagenet and not b))
                before = width * 2**s * expansion
            stages.append(nn.ModuleDict({"blocks": nn.Sequential(*blocks)}))
        self.stages = nn.ModuleList(stages)
        self.norm = nn.BatchNorm2d(before)
        self.head = nn.ModuleDict({"fc": nn.Conv2d(before, 1000 if imagenet else 10, 1)})

    def forward(self, x):
        x = self.stem["conv"](x)
        if self.imagenet:
            x = F.max_pool2d(F.relu(self.stem["norm"](x)), 3, 2, 1)
        for stage in self.stages:
            x = stage["blocks"](x)
        return self.head["fc"](F.relu(self.norm(x)).mean((2, 3), keepdim=True)).flatten(1)


def paper_model(name):
    """The network of one of our names, or None."""
    with torch.device("cpu"):
        for n in (3, 5, 7, 9, 18, 200):
            if name == f"resnet{6 * n + 2}_cifar":
                return PostNet([n] * 3)
        for n in (3, 9):
            if name == f"plain{6 * n + 2}_cifar":
                return PostNet([n] * 3, shortcut="none")
        for n in (18, 111):
            if name == f"preresnet{9 * n + 2}_cifar":
                return PreNet([n] * 3, "bottleneck")
        for n, factor in ((2, 8), (4, 10), (6, 10)):
            if name == f"wrn{6 * n + 4}_{factor}_cifar":
                return PreNet([n] * 3, "basic", width=16 * factor)
        depths = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3), "50": (3, 4, 6, 3), "101": (3, 4, 23, 3)}
        depths["152"] = (3, 8, 36, 3)
        depth = name.removeprefix("preresnet")
        if depth != name and depth in depths:
            kind = "basic" if int(depth) < 50 else "bottleneck"
            return PreNet(depths[depth], kind, width=64, stem=64, imagenet=True)
    return None
