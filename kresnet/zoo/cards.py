"""What a set of weights expects of its input, and where published weights live.

The cards themselves are data: `cards.csv`, one line a card, read when the first one is asked for.
"""

from __future__ import annotations

import csv
import difflib
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kresnet.errors import ConfigError

if TYPE_CHECKING:
    CARDS: Mapping[str, WeightsCard]

Interpolation = Literal["bilinear", "bicubic"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How pixels become model input: resize, centre crop, then `(pixels / 255 - mean) / std`.

    Channels are RGB for every model; weights of BGR models are turned when they are loaded.

    Attributes:
        image_size: Side of the square model input, in pixels.
        crop_pct: Side of the centre crop divided by the shorter side of the image, in (0, 1];
            timm's name and meaning. 0.875 is "resize to 256, crop 224".
        interpolation: Resampling kernel, always with antialiasing, as Pillow resizes.
        mean: Per-channel mean in RGB order, for pixels scaled to 0..1.
        std: Per-channel standard deviation in RGB order, for pixels scaled to 0..1.
    """

    image_size: int = 224
    crop_pct: float = 0.875
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


IMAGENET = Preprocessing()
# The Caffe weights behind keras.applications see 0..255 with the mean taken off.
CAFFE = Preprocessing(
    mean=(123.68 / 255, 116.779 / 255, 103.939 / 255), std=(1 / 255, 1 / 255, 1 / 255)
)
# akamaster's CIFAR nets were trained with ImageNet's mean and std (their trainer.py, line 88).
CIFAR10 = Preprocessing(image_size=32, crop_pct=1.0)

_NORMALIZATION = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "half": ((0.5,) * 3, (0.5,) * 3),  # -1..1
    "caffe": (CAFFE.mean, CAFFE.std),
    "raw": ((0.0,) * 3, (1 / 255,) * 3),  # 0..255
}


class RemoteFile(NamedTuple):
    """A file that holds a card's weights.

    Attributes:
        name: What it is called in the cache and on mirrors.
        url: Where it is published.
        checksum: "sha256:" or "md5:" and hexadecimal digits, the whole digest or the first eight
            or more; empty where only the host knows it, which then announces it.
    """

    name: str
    url: str
    checksum: str


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsCard:
    """One published set of weights.

    Attributes:
        variant: The key of `VARIANTS` that the weights fit.
        tag: Who trained them, how and on what; timm's names. `build` knows the weights as
            `variant.tag`.
        url: Where the file is.
        mirrors: Other addresses of it. One that ends differently is the same weights in another
            format, whose checksum its host announces.
        checksum: Of the file at `url`, as in `RemoteFile`.
        license: SPDX identifier, or "unknown".
        num_classes: Outputs of the published head.
        train_size: Side in pixels of the images they were trained on; None where not published.
        preprocessing: What the weights expect of their input.
        top1: Published top-1 accuracy in percent of a single centre crop prepared like that, or
            None.
        top5: Published top-5 accuracy in percent, or None.
        test_preprocessing: The same for larger images, where the publisher measured those too;
            they cost more and score better.
        test_top1: Published top-1 accuracy in percent on those, or None.
        test_top5: Published top-5 accuracy in percent on those, or None.
        source: Where the accuracy was published.
    """

    variant: str
    tag: str
    url: str
    mirrors: tuple[str, ...] = ()
    checksum: str
    license: str
    num_classes: int
    train_size: int | None
    preprocessing: Preprocessing
    top1: float | None
    top5: float | None
    test_preprocessing: Preprocessing
    test_top1: float | None
    test_top5: float | None
    source: str

    def __post_init__(self) -> None:
        # These make a file name, so nothing in them may lead out of the cache.
        for part in (self.variant, self.tag):
            if not re.fullmatch(r"[a-z0-9_]+", part):
                raise ConfigError(
                    "`variant` and `tag` of a card are made of a-z, 0-9 and _. "
                    f"Received: variant={self.variant!r}, tag={self.tag!r}."
                )
        for url in (self.url, *self.mirrors):
            if _suffix(url) not in _SUFFIXES:
                raise ConfigError(
                    f"A card's file must end in one of {', '.join(_SUFFIXES)}. "
                    f"Received: url={url!r}."
                )

    @property
    def name(self) -> str:
        """`variant.tag`, what `build` calls the weights."""
        return f"{self.variant}.{self.tag}"

    @property
    def file_name(self) -> str:
        """Name of the file, as it is cached; no two cards share one."""
        return f"{self.name}{_suffix(self.url)}"

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        """The file and its mirrors."""
        return tuple(self._file(url) for url in (self.url, *self.mirrors))

    def _file(self, url: str) -> RemoteFile:
        same = _suffix(url) == _suffix(self.url)
        return RemoteFile(f"{self.name}{_suffix(url)}", url, self.checksum if same else "")

    @property
    def noncommercial(self) -> bool:
        """Whether the licence forbids commercial use."""
        return "NC" in self.license.upper().split("-")


_SUFFIXES = (".pth", ".pt", ".th", ".safetensors", ".h5", ".npz")


def _suffix(url: str) -> str:
    return PurePosixPath(url.partition("?")[0]).suffix


def __getattr__(name: str) -> Any:
    if name == "CARDS":
        return _cards()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _cards() -> Mapping[str, WeightsCard]:
    table = resources.files(__package__).joinpath("cards.csv").read_text(encoding="utf-8")
    cards = (_card(row) for row in csv.DictReader(table.splitlines()))
    return MappingProxyType({card.name: card for card in cards})


def _card(row: Mapping[str, str]) -> WeightsCard:
    """Read a line of the table; an empty field is None, or the same as without `test_`."""
    hub = (
        f"https://huggingface.co/{row['hub']}/{row['variant']}.{row['tag']}"
        "/resolve/main/model.safetensors"
        if row["hub"]
        else ""
    )
    urls = [url for url in (row["url"], hub) if url]
    mean, std = _NORMALIZATION[row["normalization"]]

    def preprocessing(size: str, crop_pct: str) -> Preprocessing:
        return Preprocessing(
            image_size=int(size),
            crop_pct=float(crop_pct),
            interpolation="bicubic" if row["interpolation"] == "bicubic" else "bilinear",
            mean=mean,
            std=std,
        )

    def percent(field: str) -> float | None:
        return float(row[field]) if row[field] else None

    prefix = "test_" if row["test_size"] else ""
    usual = preprocessing(row["image_size"], row["crop_pct"])
    return WeightsCard(
        variant=row["variant"],
        tag=row["tag"],
        url=urls[0],
        mirrors=tuple(urls[1:]),
        checksum=row["checksum"],
        license=row["license"],
        num_classes=int(row["num_classes"]),
        train_size=int(row["train_size"]) if row["train_size"] else None,
        preprocessing=usual,
        top1=percent("top1"),
        top5=percent("top5"),
        test_preprocessing=(
            preprocessing(row["test_size"], row["test_crop_pct"]) if prefix else usual
        ),
        test_top1=percent(f"{prefix}top1"),
        test_top5=percent(f"{prefix}top5"),
        source=row["source"],
    )


# Tags that leave the choice to us, with the number of classes that tells the data set.
ALIASES: Mapping[str, int] = MappingProxyType({"imagenet": 1000, "cifar10": 10})
EMBEDDED = "embedded"
"""The tag of what is in the package, see `kresnet.zoo.embedded`; it is in no table."""
# Trained with cross-entropy, flips and crops alone; see `card_for`.
_PLAIN = ("tv_in1k", "keras_in1k")


def split_name(name: str) -> tuple[str, str | None]:
    """Split "resnet50.a1_in1k" into variant and tag; the tag of a bare variant is None."""
    variant, _, tag = name.partition(".")
    return variant, tag or None


def cards_of(variant: str) -> tuple[WeightsCard, ...]:
    """Return all cards of a variant, the one that we would choose first.

    The order: a licence that allows commercial use before an unknown one before one that does
    not; then weights of the plain recipe, torchvision's V1 and keras.applications', because label
    smoothing, mixup and the like make better scores but worse features for a linear probe
    (Kornblith et al. 2019, arXiv:1805.08974); then the best top-1.
    """
    cards = [card for card in _cards().values() if card.variant == variant]
    return tuple(
        sorted(
            cards,
            key=lambda card: (
                card.noncommercial,
                card.license == "unknown",
                card.tag not in _PLAIN,
                -(card.top1 or 0.0),
                card.tag,
            ),
        )
    )


def card_for(variant: str, tag: str) -> WeightsCard:
    """Look up the weights that were published for a variant.

    Args:
        variant: A key of `VARIANTS`, as "resnet50".
        tag: A tag, as "a1_in1k"; or "imagenet" or "cifar10", which is the first of `cards_of`
            with the classes of that data set; or "embedded".

    Raises:
        ConfigError: There are none; the message names those that there are.
        ResourceError: This installation does not carry the embedded ones.
    """
    if tag == EMBEDDED:
        from kresnet.zoo.embedded import embedded_card

        return embedded_card(variant)
    for card in _matching(variant, tag):
        return card
    cards = cards_of(variant)
    if cards:
        tags = [card.tag for card in cards]
        aliases = [alias for alias in ALIASES if any(_matching(variant, alias))]
        near = difflib.get_close_matches(tag, [*aliases, *tags], n=1, cutoff=0.5)
        some = ", ".join(map(repr, tags[:5])) + (", ..." if len(tags) > 5 else "")
        fix = f"Did you mean weights={near[0]!r}?" if near else f"{variant} has {some}."
    else:
        variants = list(dict.fromkeys(card.variant for card in _cards().values()))
        near = difflib.get_close_matches(variant, variants, n=1, cutoff=0.6)
        fix = f"Did you mean {near[0]!r}? " if near else ""
        fix += "`kresnet zoo list` shows them all."
    raise ConfigError(
        f"No such weights are published. Received: variant={variant!r}, weights={tag!r}. {fix}"
    )


def _matching(variant: str, tag: str) -> Iterator[WeightsCard]:
    if tag in ALIASES:
        return (card for card in cards_of(variant) if card.num_classes == ALIASES[tag])
    return (card for card in cards_of(variant) if card.tag == tag)
