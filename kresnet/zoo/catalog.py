"""The catalogue: every variant with every set of weights, to search, to list and to look up.

Nothing here loads Keras, so a list is printed at once.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kresnet.errors import ConfigError
from kresnet.zoo import embedded
from kresnet.zoo.cards import CARDS, EMBEDDED, WeightsCard, card_for, cards_of, split_name
from kresnet.zoo.size import measure
from kresnet.zoo.variants import VARIANTS, ResNetConfig, variant_config

SortKey = Literal["name", "params", "macs", "top1"]

_DATA = {1000: "imagenet", 11821: "imagenet-12k", 21843: "imagenet-21k", 10: "cifar10"}
_OWN = "its own"  # what the head of the embedded weights tells apart
_TOLD = ("variant", "licence", "train_size", "image_size")  # of the embedded card, by other names


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A variant with one of its sets of weights, or one that has none.

    Attributes:
        name: What `kresnet.build` takes: `variant.tag`, or the variant alone.
        variant: The key of `VARIANTS`.
        tag: Of the weights, or None.
        params: Trainable parameters, the head included.
        macs: Multiply-accumulate operations for one image of the variant's own size.
        data: What the head tells apart: "imagenet" (1000 classes), "imagenet-12k",
            "imagenet-21k" or "cifar10"; "its own" of the embedded weights.
        image_size: Side in pixels of the images that `top1` was measured on.
        top1: Published top-1 accuracy in percent, or None.
        top5: Published top-5 accuracy in percent, or None.
        license: SPDX identifier of the weights, "unknown", or None without weights.
        noncommercial: Whether the licence forbids commercial use.
    """

    name: str
    variant: str
    tag: str | None
    params: int
    macs: int
    data: str
    image_size: int
    top1: float | None
    top5: float | None
    license: str | None
    noncommercial: bool


def list_models(
    pattern: str = "",
    *,
    params: str | None = None,
    macs: str | None = None,
    top1: str | None = None,
    license: str | None = None,
    sort: SortKey = "name",
) -> list[Entry]:
    """Search variants and weights.

    ```python
    list_models("resnext", params="<30e6", top1=">80", license="apache-2.0")
    ```

    Args:
        pattern: Part of the name, as "resnext" or "a1_in1k"; every name has the empty one.
        params: Comparison with the number of parameters, as "<30e6" or "<=30M".
        macs: Comparison with the multiply-accumulate operations, as "<5G".
        top1: Comparison with the published top-1 accuracy in percent, as ">80".
        license: SPDX identifier, in upper or lower case.
        sort: "name" keeps the families of `VARIANTS` together; "params" and "macs" go from small
            to large, "top1" from good to bad within each data set.

    Returns:
        One entry for each set of weights; a variant without any has one of its own, unless an
        accuracy or a licence is asked for.

    Raises:
        ConfigError: A comparison cannot be read, or there is no such licence or order.
    """
    few, cheap, good = _compare("params", params), _compare("macs", macs), _compare("top1", top1)
    wanted = _license(license)
    _check_sort(sort)
    found = [
        entry
        for variant, card in _pairs()
        if pattern.lower() in (card.name if card else variant)
        and (wanted is None or (card is not None and card.license == wanted))
        and (top1 is None or (card is not None and card.top1 is not None and good(card.top1)))
        and few((entry := _entry(variant, card)).params)
        and cheap(entry.macs)
    ]
    return sorted(found, key=_SORT[sort])


def _pairs() -> Iterator[tuple[str, WeightsCard | None]]:
    for variant in VARIANTS:
        cards = sorted(cards_of(variant), key=lambda card: card.tag)
        yield from ((variant, card) for card in cards or (None,))


def _entry(variant: str, card: WeightsCard | None) -> Entry:
    config = VARIANTS[variant]
    classes = card.num_classes if card else config.num_classes
    size = measure(config, num_classes=classes)
    return Entry(
        name=card.name if card else variant,
        variant=variant,
        tag=card.tag if card else None,
        params=size.params,
        macs=size.macs,
        data=_DATA.get(classes, _OWN),
        image_size=card.preprocessing.image_size if card else config.image_size,
        top1=card.top1 if card else None,
        top5=card.top5 if card else None,
        license=card.license if card else None,
        noncommercial=card is not None and card.noncommercial,
    )


_SORT: dict[SortKey, Callable[[Entry], Any]] = {
    "name": lambda entry: 0,  # sorting is stable
    "params": lambda entry: entry.params,
    "macs": lambda entry: entry.macs,
    "top1": lambda entry: (list(_DATA.values()).index(entry.data), -(entry.top1 or 0.0)),
}


def _check_sort(sort: str) -> None:
    if sort not in _SORT:
        raise ConfigError(
            f"`sort` must be one of {', '.join(map(repr, _SORT))}. Received: sort={sort!r}."
        )


_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "==": operator.eq,
}
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}


_EXAMPLES = {"params": ("<", "30e6"), "macs": ("<", "5e9"), "top1": (">", "80")}


def _compare(field: str, text: str | None) -> Callable[[float], bool]:
    """Read a comparison, as "<30e6" or ">=25.5M"."""
    if text is None:
        return lambda value: True
    found = re.fullmatch(r"(<=|>=|==|<|>|=)(\d+\.?\d*|\.\d+)(e\d+)?([kmg]?)", _squeezed(text))
    if not found:
        sign, usual = _EXAMPLES[field]
        number = re.search(r"(\d+\.?\d*|\.\d+)(e\d+)?[kmg]?", _squeezed(text))
        raise ConfigError(
            f"`{field}` must be <, <=, =, >= or > and a number. Received: {field}={text!r}. "
            f"Write '{sign}{number[0] if number else usual}', in quotes."
        )
    sign, digits, power, unit = found.groups()
    limit = float(digits + (power or "")) * _UNITS[unit]
    return lambda value: _OPERATORS[sign](value, limit)


def _squeezed(text: str) -> str:
    return "".join(text.lower().replace("_", "").split())


def _license(text: str | None) -> str | None:
    """Find a licence of the cards, whatever its case."""
    if text is None:
        return None
    known = {card.license.lower(): card.license for card in CARDS.values()}
    if text.lower() in known:
        return known[text.lower()]
    near = difflib.get_close_matches(text.lower(), known, n=1, cutoff=0.5)
    every = ", ".join(sorted(known.values()))
    hint = f"Did you mean {known[near[0]]!r}?" if near else f"There are {every}."
    raise ConfigError(f"No weights have that licence. Received: license={text!r}. {hint}")


def describe(name: str) -> dict[str, Any]:
    """Collect what there is to know about a variant, or about one set of its weights.

    Args:
        name: "resnet50", or "resnet50.a1_in1k".

    Returns:
        Plain values, ready for JSON: `name`, `variant`, `params`, `macs`, `image_size`, `features`
        (channels of each stage), and `weights`, the card with all its fields, or for a bare
        variant `tags`, the best choice first; of the embedded weights also `made`, what their file
        says of images, teacher, time and measured accuracies.

    Raises:
        ConfigError: There is no such variant, or it has no such weights.
    """
    variant, tag = split_name(name)
    config = variant_config(variant)
    card = card_for(variant, tag) if tag else None
    entry = _entry(variant, card)
    facts = {
        "name": entry.name,
        "variant": variant,
        "params": entry.params,
        "macs": entry.macs,
        "image_size": config.image_size,
        "features": _features(config),
    }
    if card is None:
        return facts | {"tags": [card.tag for card in cards_of(variant)]}
    if tag == EMBEDDED:
        said = embedded.read_card(embedded.path())
        facts["made"] = {topic: said[topic] for topic in said if topic not in _TOLD}
    side = card.preprocessing.image_size
    return facts | {
        "weights": asdict(card)
        | {
            "file_name": card.file_name,
            "noncommercial": card.noncommercial,
            "macs": measure(config, image_size=side, num_classes=card.num_classes).macs,
        }
    }


def published(name: str) -> WeightsCard:
    """Look a card up by its name, as "resnet50.a1_in1k".

    Raises:
        ConfigError: There is no such variant, the tag is missing, or there are no such weights.
    """
    variant, tag = split_name(name)
    variant_config(variant)
    if tag is None:
        tags = [card.tag for card in cards_of(variant)]
        fix = f"Add one, as {variant}.{tags[0]}." if tags else f"{variant} has none published."
        raise ConfigError(f"Weights are named variant.tag. Received: name={name!r}. {fix}")
    return card_for(variant, tag)


def _features(config: ResNetConfig) -> list[int]:
    return [config.num_features >> step for step in reversed(range(len(config.depths)))]


def as_table(entries: Sequence[Entry]) -> str:
    """Format entries as lines of aligned columns; what is not for commercial use says so."""
    rows = [("name", "params", "GMACs", "data", "px", "top-1", "top-5", "licence")]
    rows += [
        (
            entry.name,
            _millions(entry.params),
            _giga(entry.macs),
            entry.data,
            str(entry.image_size),
            _percent(entry.top1),
            _percent(entry.top5),
            (entry.license or "-") + (" (non-commercial)" if entry.noncommercial else ""),
        )
        for entry in entries
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:>{width}}" if index in (1, 2, 4, 5, 6) else f"{cell:<{width}}"
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def as_markdown() -> str:
    """Format the table of the README: a line for each variant, with the best of its weights."""
    lines = [
        "| variant | params | GMACs | px | weights | best top-1 |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for variant, config in VARIANTS.items():
        size = measure(config)
        cards = cards_of(variant)
        lines.append(
            f"| `{variant}` | {_millions(size.params)} | {_giga(size.macs)} | {config.image_size} "
            f"| {len(cards) or '-'} | {_best(cards)} |"
        )
    return "\n".join(lines)


def _best(cards: Iterable[WeightsCard]) -> str:
    """Name the best published accuracy, of weights for any use where there are such."""
    scores = [
        (not card.noncommercial, card.test_top1, card)
        for card in cards
        if card.test_top1 is not None
    ]
    if not scores:
        return "-"
    _, top1, card = max(scores, key=lambda score: score[:2])
    note = ", non-commercial" if card.noncommercial else ""
    return f"{top1:.1f} `{card.tag}` at {card.test_preprocessing.image_size} px{note}"


def as_text(name: str) -> str:
    """Format `describe` for people: what it is, its weights, and how to build it."""
    facts = describe(name)
    lines = [
        ("name", facts["name"]),
        ("parameters", f"{facts['params']:,}"),
        ("MACs", f"{facts['macs']:,} at {facts['image_size']} px"),
        ("features", ", ".join(map(str, facts["features"]))),
    ]
    variant, tag = split_name(facts["name"])
    if tag is None:
        lines += [("weights", _one_line(card)) for card in cards_of(variant)] or [("weights", "-")]
    else:
        lines += _card_lines(card_for(variant, tag), facts["weights"]["macs"])
    lines += [(topic, _as_said(said)) for topic, said in facts.get("made", {}).items()]
    width = max(len(topic) for topic, _ in lines) + 2
    said, text = "", []
    for topic, value in lines:
        text.append(f"{'' if topic == said else topic:<{width}}{value}")
        said = topic
    best = f"{variant}.{facts['tags'][0]}" if facts.get("tags") else facts["name"]
    return "\n".join([*text, "", "import kresnet", f'model = kresnet.build("{best}")'])


def _as_said(value: Any) -> str:
    """Format what the embedded weights say of how they were made."""
    if isinstance(value, dict):
        return "; ".join(f"{name} {_as_said(of)}" for name, of in value.items())
    if isinstance(value, list):
        return ", ".join(map(_as_said, value)) or "none"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _one_line(card: WeightsCard) -> str:
    return (
        f"{card.tag:<24}  {_percent(card.top1):>6} at {card.preprocessing.image_size} px  "
        f"{card.license}{' (non-commercial)' if card.noncommercial else ''}"
    )


def _card_lines(card: WeightsCard, macs: int) -> list[tuple[str, str]]:
    usual, test = card.preprocessing, card.test_preprocessing
    lines = [
        ("licence", card.license + (" (non-commercial)" if card.noncommercial else "")),
        ("classes", f"{card.num_classes} ({_DATA.get(card.num_classes, _OWN)})"),
        ("trained at", f"{card.train_size} px" if card.train_size else "not published"),
        ("evaluation", _scores(usual.image_size, usual.crop_pct, card.top1, card.top5, macs)),
    ]
    if test != usual:
        scores = _scores(test.image_size, test.crop_pct, card.test_top1, card.test_top5)
        lines.append(("", scores))
    lines += [
        ("source", card.source or "-"),
        ("resize", f"{usual.interpolation}, antialiased, then a centre crop"),
        ("input", "RGB, (pixels / 255 - mean) / std"),
        ("mean", ", ".join(f"{value:.4g}" for value in usual.mean)),
        ("std", ", ".join(f"{value:.4g}" for value in usual.std)),
        ("file", card.file_name),
        ("checksum", card.checksum or "announced by the host"),
    ]
    return [*lines, *(("url", file.url) for file in card.files)]


def _scores(
    side: int, crop_pct: float, top1: float | None, top5: float | None, macs: int | None = None
) -> str:
    cost = f", {_giga(macs)} GMACs" if macs else ""
    return f"top-1 {_percent(top1)}, top-5 {_percent(top5)} at {side} px, crop {crop_pct:g}{cost}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f}M"


def _giga(count: int) -> str:
    return f"{count / 1e9:.2f}" if count >= 1e7 else f"{count / 1e9:.4f}"
