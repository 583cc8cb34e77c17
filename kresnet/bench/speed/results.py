"""From turns to the rows that the README shows: medians, quartiles, ratios, shares of the limit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median, quantiles
from typing import Any, Final

from kresnet.bench.speed.rotation import Outcome
from kresnet.bench.speed.topics import Group, Unit

_DIGITS: Final = 3  # that are told of a measured number


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return low, middle, high


def summary(
    group: Group, outcomes: Sequence[Outcome], floors: Sequence[float | None]
) -> dict[str, Any]:
    """Return what was found of a group, as JSON types.

    Args:
        group: What was compared.
        outcomes: The reference first.
        floors: Seconds that a turn of each takes at the machine's limit; None where there is none.
    """
    rows = [_row(group, one, floor) for one, floor in zip(outcomes, floors, strict=True)]
    found = {
        "title": group.title,
        "unit": group.unit,
        "notes": list(group.notes),
        "rows": rows,
    }
    return found | ({"growth": growth(group.sizes, rows)} if group.sizes else {})


def _row(group: Group, outcome: Outcome, floor_s: float | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": outcome.name,
        "setting": outcome.setting,
        "failed": outcome.failed,
        "tried": dict(outcome.tried),
    }
    if outcome.failed:
        return row
    middle = median(outcome.seconds)
    ratios = [theirs / ours for theirs, ours in zip(outcome.seconds, outcome.before, strict=False)]
    return row | {
        "seconds": list(outcome.seconds),
        "before": list(outcome.before),
        "value": spread([_in_unit(one, group) for one in outcome.seconds]),
        "ratio": spread(ratios) if ratios else None,
        "share_of_limit": floor_s / middle if floor_s else None,
        "peak_mb": outcome.peak_mb,
        "processor_s": outcome.processor_s,
        "facts": dict(outcome.facts),
    }


def _in_unit(seconds: float, group: Group) -> float:
    by_unit: dict[Unit, float] = {
        "images/s": group.images / seconds,
        "ms": 1e3 * seconds,
        "s": seconds,
    }
    return by_unit[group.unit]


def growth(sizes: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Say how time and memory grow with size.

    Args:
        sizes: Of what each row was measured with, rising.
        rows: In the same order; those that failed do not count.

    Returns:
        `time_exponent` k of time ~ size^k by least squares over the logarithms, and `last_exponent`
        of the last two sizes alone, where fixed costs count least; `processor_exponent`, that of
        the last two by the processor's time, which others' use of the cores does not change;
        `s_each` and `kb_each`, the slopes of time and memory by least squares. All None with fewer
        than two sizes.
    """
    told = [(n, row) for n, row in zip(sizes, rows, strict=True) if not row["failed"]]
    if len(told) < 2:
        names = ("time_exponent", "last_exponent", "processor_exponent", "s_each", "kb_each")
        return dict.fromkeys(names)
    counts = [float(n) for n, _ in told]
    seconds = [median(row["seconds"]) for _, row in told]
    processor = [row["processor_s"] for _, row in told]
    logs = [[math.log(x) for x in values] for values in (counts, seconds, processor)]
    return {
        "time_exponent": _slope(*logs[:2]),
        "last_exponent": _slope(*(values[-2:] for values in logs[:2])),
        "processor_exponent": _slope(*(values[-2:] for values in logs[::2])),
        "s_each": _slope(counts, seconds),
        "kb_each": 1e3 * _slope(counts, [row["peak_mb"] for _, row in told]),
    }


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    across = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / across


def table(found: Mapping[str, Any]) -> str:
    """Return all that a topic found as Markdown."""
    parts = [_machine(found)]
    for group in found["groups"]:
        parts.append("\n".join([f"**{group['title']}**", "", *_lines(group)]))
        parts += [f"- {note}" for note in _notes(group)]
    return "\n\n".join(parts)


def _machine(found: Mapping[str, Any]) -> str:
    machine, limits = found["machine"], found["limits"]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    lines = [
        f"{machine['processor']}, {machine['cores']} cores ({', '.join(machine['flags'])}), "
        f"Python {machine['python']}, {versions}; {found['date']}, load before "
        f"{found['load'][0]:.1f}, after {found['load'][1]:.1f}; {found['rounds']} turns, medians "
        "and quartiles."
    ]
    if limits:
        rates = ", ".join(f"{name} {_short(value)}" for name, value in limits.items())
        lines.append(f"Limits of this machine: {rates}.")
    return "\n".join(lines)


def _lines(group: Mapping[str, Any]) -> list[str]:
    first = group["rows"][0]["name"]
    limited = any(row.get("share_of_limit") for row in group["rows"])
    heads = ["what", "best setting", group["unit"], f"{first} is faster by"]
    grows = "growth" in group
    heads += ["% of limit"] * limited + ["processor, s a turn"] * grows + ["peak memory, MB"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in group["rows"]:
        if row["failed"]:
            cells = [row["name"], row["failed"], *["-"] * (len(heads) - 2)]
        else:
            cells = [row["name"], row["setting"], _with_quartiles(row["value"])]
            cells.append(_with_quartiles(row["ratio"]) if row["ratio"] else "-")
            cells += [f"{100 * (row['share_of_limit'] or 0):.0f}"] * limited
            cells += [_short(row["processor_s"])] * grows
            cells.append(f"{row['peak_mb']:.0f}")
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return lines


def _notes(group: Mapping[str, Any]) -> list[str]:
    notes = list(group["notes"])
    for row in group["rows"]:
        if len(row["tried"]) > 1:
            tried = (
                f"{name} {said if isinstance(said, str) else _short(said) + ' s a turn'}"
                for name, said in row["tried"].items()
            )
            notes.append(f"{row['name']}, settings tried: {', '.join(tried)}.")
        for name, value in row.get("facts", {}).items():
            said = _short(value) if isinstance(value, float) else value
            notes.append(f"{row['name']}: {name.replace('_', ' ')} {said}.")
    grown = group.get("growth")
    if grown and grown["time_exponent"] is not None:
        notes.append(
            f"Time grows as size^{grown['time_exponent']:.2f}, between the last two as "
            f"size^{grown['last_exponent']:.2f} (the processor's time as "
            f"size^{grown['processor_exponent']:.2f}): {1e3 * grown['s_each']:.3g} ms and "
            f"{grown['kb_each']:.3g} KB for one more."
        )
    return notes


def _with_quartiles(values: Sequence[float]) -> str:
    low, middle, high = map(_short, values)
    return f"{middle} ({low}-{high})"


def _short(value: float) -> str:
    """Return a number with three digits that count, without an exponent if it is not tiny."""
    if abs(value) >= 10 ** (_DIGITS - 1):
        return f"{value:.0f}"
    return f"{value:.{_DIGITS}g}"
