"""Run a topic: its groups of contenders in turns, and what the machine could do."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from kresnet.bench import facts
from kresnet.bench.speed.limits import INTEGERS
from kresnet.bench.speed.rotation import Contender, Tell, once, rotate
from kresnet.errors import ConfigError

Unit = Literal["images/s", "ms", "s"]

Topic = Literal["train", "infer", "input", "probe", "coldstart", "growth"]
"""What can be measured; each is a module of this package."""

PEERS: Final = ("keras", "keras_hub", "torchvision", "timm", "onnxruntime", "openvino")
"""What `against` may name."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured, and how often.

    Attributes:
        against: Of `PEERS`.
        variant: A key of `kresnet.VARIANTS`.
        weights: What `kresnet.build` takes; None is random.
        image_size: Side of the model input in pixels.
        batch: Images of a large batch.
        rounds: Turns of each contender.
        steps: Timed steps in a turn.
        data: Source of images; None where a topic draws some.
        images: How many of them.
        sizes: Numbers of rows that `growth` compares, rising.
        sides: Sides of images in pixels that it compares, rising.
        export: A published version; None makes one.
    """

    against: tuple[str, ...] = PEERS
    variant: str = "resnet50"
    weights: str | None = None
    image_size: int = 224
    batch: int = 32
    rounds: int = 7
    steps: int = 3
    data: str | None = None
    images: int = 1000
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000)
    sides: tuple[int, ...] = (96, 160, 224, 288)
    export: str | None = None

    def chosen(self, contenders: Mapping[str, Sequence[Contender]]) -> tuple[Contender, ...]:
        """Return the contenders of the peers that were asked for."""
        return tuple(one for peer in self.against for one in contenders.get(peer, ()))


@dataclass(frozen=True, slots=True)
class Demand:
    """What a turn needs at least.

    Attributes:
        flop: Operations, a multiplication and an addition being two.
        weights: Values that must come from memory once, in the narrowest type.
    """

    flop: float
    weights: float = 0.0

    def seconds(self, limits: Mapping[str, float], *, integers: bool = False) -> float:
        """Return how long it takes at the limits that `limits.measure` gives, in 8 bits or not."""
        if integers:
            return max(self.flop / limits[INTEGERS], self.weights / limits["copy GB/s"]) / 1e9
        limits = {name: value for name, value in limits.items() if name != INTEGERS}
        rate = max(value for name, value in limits.items() if "GFLOP/s" in name)
        wide = max(value for name, value in limits.items() if "float32" in name)
        width = 4 if rate == wide else 2
        return max(self.flop / rate, self.weights * width / limits["copy GB/s"]) / 1e9


@dataclass(frozen=True, slots=True)
class Group:
    """Contenders that do the same.

    Attributes:
        title: Of the table.
        unit: Of its numbers.
        reference: What the others are compared with.
        others: They.
        images: Of a turn.
        demand: What a turn needs at least; None where no limit is known.
        sizes: What grows from contender to contender, the reference first; empty if nothing does.
        notes: Lines below the table.
        warm_up: Turns that do not count.
    """

    title: str
    unit: Unit
    reference: Contender
    others: tuple[Contender, ...]
    images: int = 1
    demand: Demand | None = None
    sizes: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())
    warm_up: int = 1


def bench(
    topic: Topic, options: Options, *, work: Path, tell: Tell = lambda topic, text: None
) -> dict[str, Any]:
    """Measure a topic.

    Args:
        topic: What is measured.
        options: What and how often.
        work: An empty folder, for what is made and for the logs of all processes.
        tell: Called with a topic of one word and a line about it.

    Returns:
        JSON types: `topic`, `date`, `machine`, `versions`, `load` of a minute before and after,
        `rounds`, `limits` and `groups`; see `results.summary`, and `results.table` to print it.

    Raises:
        ConfigError: An option is out of range.
        ResourceError: Nothing can be compared with, since the reference failed.
    """
    from kresnet.bench.speed.results import summary

    unknown = [name for name in options.against if name not in PEERS]
    if unknown:
        raise ConfigError(
            f"`--against` must be some of {', '.join(PEERS)}, with commas between. "
            f"Received: {unknown[0]!r}."
        )
    logs = work / "logs"
    logs.mkdir(parents=True)
    began = os.getloadavg()[0]
    module = importlib.import_module(f"kresnet.bench.speed.{topic}")
    limits: dict[str, float] = {}
    groups, packages = [], {"numpy": ""}
    for group in _groups(module, options, work):
        if group.demand and not limits:
            tell("bench", "measuring what the machine can do")
            limits = once("kresnet.bench.speed.limits:measure", {}, logs=logs)
        tell("bench", group.title)
        outcomes = rotate(
            group.reference,
            group.others,
            rounds=options.rounds,
            logs=logs,
            warm_up=group.warm_up,
            tell=tell,
        )
        everyone = group.reference, *group.others
        floors = [
            group.demand.seconds(limits, integers=one.integers and INTEGERS in limits)
            if group.demand
            else None
            for one in everyone
        ]
        groups.append(summary(group, outcomes, floors))
        for one in everyone:
            packages |= dict.fromkeys(one.packages, "")
    return {
        "topic": topic,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": facts.machine(),
        "versions": {
            name: facts.version(name) for name in sorted(packages) if not facts.missing([name])
        },
        "load": [began, os.getloadavg()[0]],
        "rounds": options.rounds,
        "limits": limits,
        "groups": groups,
    }


def _groups(module: Any, options: Options, work: Path) -> Iterator[Group]:
    groups: Iterator[Group] = module.groups(options, work)
    return groups
