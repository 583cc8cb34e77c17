"""Charts as SVG that a page holds inside: colours and sizes are the page's, in light and dark.

The page's style sheet has the classes axis, grid, first, second, third, area and ideal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from markupsafe import Markup, escape

WIDTH, HEIGHT = 440, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 420, 12, 222
"""Sides of the plot in a drawing of WIDTH x HEIGHT."""

_STROKES: Final = ("first", "second", "third")


def line_chart(
    title: str,
    series: Sequence[tuple[str, Sequence[float | None]]],
    *,
    bottom: float | None = None,
    form: Callable[[float], str] = lambda value: f"{value:g}",
) -> Markup:
    """Draw values of epochs as lines.

    Args:
        title: What is to be seen, for those who do not see it.
        series: Up to three lines: a name, and a value for each epoch, None where there is none.
        bottom: Lowest value of the axis; None fits it to the values.
        form: How a value is written.
    """
    values = [v for _, line in series for v in line if v is not None and math.isfinite(v)]
    if not values:
        return Markup()
    count = max(len(line) for _, line in series)
    low, high = min([*values, *([] if bottom is None else [bottom])]), max(values)
    marks = ticks(low, high)
    low, high = min(low, marks[0]), max(high, marks[-1])

    def x(k: int) -> float:
        return LEFT + (RIGHT - LEFT) * (k / (count - 1) if count > 1 else 0.5)

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low)

    parts = [across(y(t), form(t)) for t in marks]
    step = max(1, math.ceil(count / 8))
    parts += [below(x(k), str(k + 1)) for k in range(0, count, step)]
    parts.append(below((LEFT + RIGHT) / 2, "epoch", 20))
    for name, line, stroke in zip(*zip(*series, strict=True), _STROKES, strict=False):
        points = [(x(k), y(v)) for k, v in enumerate(line) if v is not None and math.isfinite(v)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(Markup('<polyline class="{}" points="{}"/>').format(stroke, path))
        parts += [
            Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title></circle>')
            .format(stroke, a, b, f"{name}, epoch {k + 1}: {form(float(line[k] or 0))}")
            for k, (a, b) in enumerate(points)
            if count <= 60
        ]  # fmt: skip
    return figure(title, parts)


def reliability_chart(title: str, bins: Sequence[dict[str, Any]]) -> Markup:
    """Draw how often scores are right: dots with 95 % intervals, and the images as bars below.

    Args:
        title: As above.
        bins: `Bin`s as JSON types.
    """
    most = max(b["n"] for b in bins) or 1

    def x(score: float) -> float:
        return LEFT + (RIGHT - LEFT) * score

    def y(share: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * share

    parts = [across(y(t), f"{t:.0%}") for t in (0, 0.25, 0.5, 0.75, 1)]
    parts += [below(x(t), f"{t:.0%}") for t in (0, 0.25, 0.5, 0.75, 1)]
    parts.append(below((LEFT + RIGHT) / 2, "score of the answer", 20))
    for b in bins:
        height = 0.2 * (BOTTOM - TOP) * b["n"] / most
        parts.append(
            Markup('<rect class="area" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>')
            .format(x(b["low"]) + 1, BOTTOM - height, x(b["high"]) - x(b["low"]) - 2, height)
        )  # fmt: skip
    parts.append(
        Markup('<line class="ideal" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(
            LEFT, BOTTOM, RIGHT, TOP
        )
    )
    for b in bins:
        if not b["n"]:
            continue
        place, (low, high) = x(b["confidence"]), b["interval"]
        told = (
            f"{b['n']} answers with a mean score of {b['confidence']:.1%}: "
            f"{b['accuracy']:.1%} are right (95 % {low:.1%} to {high:.1%})"
        )
        parts.append(
            Markup(
                '<line class="first" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}"/>'
                '<circle class="first" cx="{0:.1f}" cy="{3:.1f}" r="4.5"><title>{4}</title>'
                "</circle>"
            ).format(place, y(low), y(high), y(b["accuracy"]), told)
        )
    return figure(title, parts)


def figure(title: str, parts: Sequence[Markup], height: float = HEIGHT) -> Markup:
    """Return a drawing with a title for those who do not see it."""
    return Markup(
        '<svg viewBox="0 0 {} {:g}" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH, height, title, Markup().join(parts))  # fmt: skip


def across(y: float, text: str) -> Markup:
    """Return a line across, with its value at the left."""
    return Markup(
        '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
        '<text x="{}" y="{:.1f}" text-anchor="end">{}</text>'
    ).format(LEFT, RIGHT, y, y, LEFT - 6, y + 4, escape(text))


def below(x: float, text: str, down: int = 0) -> Markup:
    """Return a text below the axis."""
    return Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
        x, BOTTOM + 16 + down, text
    )


def ticks(low: float, high: float) -> list[float]:
    """Return three to six round values that hold `low` and `high` between them."""
    span, size = high - low, max(abs(low), abs(high))
    if span <= max(1e-9 * size, 1e-30):  # all the same but for rounding
        span = size if size > 1e-30 else 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(m for m in (1, 2, 2.5, 5, 10) if span / (step * m) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, max(last, first + 1) + 1)]
