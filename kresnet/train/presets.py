"""Named settings that `plan` starts from: an effort, or a recipe as its authors publish it.

Recipes of papers are for ImageNet or CIFAR-10 and tens of thousands of steps. On a few hundred
images of your own, pretrained weights and the plan for them are better.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from kresnet.errors import ConfigError

EFFORTS: Final = ("fast", "default", "best")
"""How much a training may take; `plan` says what each means for the number of images."""


@dataclass(frozen=True, slots=True)
class Preset:
    """A published recipe.

    Attributes:
        source: Paper or file that the values are from.
        result: What the source reports of it, and for which network.
        differs: In what this workbench departs from the source.
        settings: From the number of training images to fields of a recipe; of these, `lr` is for
            `batch_size`.
        scratch: Whether it trains random weights.
        warmup_epochs: Epochs in which the learning rate rises; 0 leaves it to `warmup`.
    """

    source: str
    result: str
    differs: str
    settings: Callable[[int], dict[str, Any]]
    scratch: bool = True
    warmup_epochs: float = 0.0

    def fields(self, *, num_images: int, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Return recipe fields that fit what is overridden.

        Another batch size has another learning rate: in proportion to it for SGD (Goyal et al.
        2017, arXiv:1706.02677), to its square root for the others (Malladi et al. 2022,
        arXiv:2205.10287).

        Args:
            num_images: Number of training images.
            overrides: Fields that the user has set; they are not in the result unless by chance.
        """
        fields = _COMMON | self.settings(max(num_images, 1))
        batch, epochs = (
            overrides.get(name, fields[name]) if _is_count(overrides.get(name, 1)) else fields[name]
            for name in ("batch_size", "epochs")
        )
        share = batch / fields["batch_size"]
        fields["lr"] *= share if fields["optimizer"] == "sgd" else share**0.5
        if self.warmup_epochs:
            fields["warmup"] = min(self.warmup_epochs / epochs, 0.5)
        return fields


_COMMON: Final[dict[str, Any]] = {
    "layer_decay": 1.0,
    "norms": "train",
    "clip_norm": None,
    "augment": "none",
    "min_area": 0.08,
    "warmup": 0.0,
}


def _he_cifar(num_images: int) -> dict[str, Any]:
    return {
        "epochs": 182,  # 64,000 steps of 128 on 45,000 images
        "batch_size": 128,
        "optimizer": "sgd",
        "lr": 0.1,
        "weight_decay": 1e-4,
        "schedule": "steps",
        "drops": (0.5, 0.75),
        "min_area": 0.77,
    }


def _bag_of_tricks(num_images: int) -> dict[str, Any]:
    return {
        "epochs": 200,
        "batch_size": 1024,
        "optimizer": "sgd",
        "lr": 0.4,
        "weight_decay": 1e-4,
        "augment": "light",
        "color": 0.4,
        "label_smoothing": 0.1,
        "mixup": 0.2,
    }


def _torchvision_v2(num_images: int) -> dict[str, Any]:
    return {
        "epochs": 600,
        "batch_size": 1024,
        "optimizer": "sgd",
        "lr": 0.5,
        "weight_decay": 2e-5,
        "augment": "trivial",
        "erase": 0.1,
        "label_smoothing": 0.1,
        "mixup": 0.2,
        "cutmix": 1.0,
        "repeats": 4,
        # A decay of 0.99998 every 32 steps, rescaled by 1024 * 32 / 600: 29,300 of 750,600 steps.
        "ema": 0.039,
    }


def _strikes_back(**settings: Any) -> Callable[[int], dict[str, Any]]:
    common = {
        "batch_size": 2048,
        "optimizer": "lamb",
        "loss": "sigmoid",
        "augment": "rand",
        "cutmix": 1.0,
    }
    return lambda num_images: common | settings


def _bit_hyperrule(num_images: int) -> dict[str, Any]:
    steps, warmup, drops = next(
        rule
        for most, rule in (
            (20_000, (500, 0.2, (0.4, 0.6, 0.8))),
            (500_000, (10_000, 0.05, (0.3, 0.6, 0.9))),
            (float("inf"), (20_000, 0.025, (0.3, 0.6, 0.9))),
        )
        if num_images < most
    )
    return {
        "epochs": max(round(steps * 512 / num_images), 1),
        "batch_size": 512,
        "optimizer": "sgd",
        "lr": 0.003,
        "weight_decay": 0.0,
        "schedule": "steps",
        "warmup": warmup,
        "drops": drops,
        "norms": "frozen",
        "min_area": 0.88,
        "mixup": 0.1 if num_images >= 20_000 else 0.0,
    }


_RSB: Final = "Wightman et al. 2021, arXiv:2110.00476, table 2"
_RSB_DIFFERS: Final = "RandAugment with two operations of strength 9 of 30; bilinear test crops"

PRESETS: Final[Mapping[str, Preset]] = MappingProxyType(
    {
        "he-cifar": Preset(
            "He et al. 2015, arXiv:1512.03385, section 4.2",
            "CIFAR-10 error of ResNet-20 8.75 %, of ResNet-110 6.43 %",
            "crops of 77 to 100 % instead of shifts by 4 px; Nesterov's momentum",
            _he_cifar,
        ),
        "bag-of-tricks": Preset(
            "He et al. 2018, arXiv:1812.01187",
            "ImageNet top-1 of ResNet-50-D 79.15 % (without distillation)",
            "no PCA noise",
            _bag_of_tricks,
            warmup_epochs=5,
        ),
        "torchvision-v2": Preset(
            "github.com/pytorch/vision/issues/3995",
            "ImageNet top-1 of ResNet-50 80.858 %",
            "one image size for training and test, not 176 and 224; Nesterov's momentum",
            _torchvision_v2,
            warmup_epochs=5,
        ),
        "rsb-a1": Preset(
            _RSB,
            "ImageNet top-1 of ResNet-50 80.4 %",
            _RSB_DIFFERS,
            _strikes_back(
                epochs=600, lr=5e-3, weight_decay=0.01, label_smoothing=0.1, drop_path_rate=0.05,
                repeats=3, mixup=0.2,
            ),
            warmup_epochs=5,
        ),
        "rsb-a2": Preset(
            _RSB,
            "ImageNet top-1 of ResNet-50 79.8 %",
            _RSB_DIFFERS,
            _strikes_back(
                epochs=300, lr=5e-3, weight_decay=0.02, drop_path_rate=0.05, repeats=3, mixup=0.1
            ),
            warmup_epochs=5,
        ),
        "rsb-a3": Preset(
            _RSB,
            "ImageNet top-1 of ResNet-50 78.1 %",
            _RSB_DIFFERS + "; trained at the size of the test, not at 160 px",
            _strikes_back(epochs=100, lr=8e-3, weight_decay=0.02, mixup=0.1),
            warmup_epochs=5,
        ),
        "bit-hyperrule": Preset(
            "Kolesnikov et al. 2020, arXiv:1912.11370, section 3.3",
            "CIFAR-10 accuracy of BiT-M R50x1 97.2 to 97.4 %",
            "the head starts as the probe's, not at zero; one image size; Nesterov's momentum",
            _bit_hyperrule,
            scratch=False,
        ),
    }
)  # fmt: skip


def check_preset(name: str) -> None:
    """Refuse a name that is neither an effort nor a recipe.

    Raises:
        ConfigError: It is neither.
    """
    known = (*EFFORTS, *PRESETS)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "Known: " + ", ".join(known)
        raise ConfigError(f"There is no such preset. Received: preset={name!r}. {hint}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value > 0
