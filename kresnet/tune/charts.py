"""Charts of a search as SVG, beside those of a run's report and for the same style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from markupsafe import Markup

from kresnet.evaluate.drawing import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, across, below, figure, ticks
from kresnet.tune.importance import place
from kresnet.tune.space import Space
from kresnet.tune.trials import Trial

_ROW: Final = 50  # height of a field in the parallel coordinates
_BAR: Final = 44  # and of its importance
_BEST: Final = 0.1  # share of the trials that is drawn as the best


def history(
    title: str, points: Sequence[tuple[float, float, str]], *, axis: str, first: float | None
) -> Markup:
    """Draw scores as dots and the best so far as a line.

    Args:
        title: What is to be seen, for those who do not see it.
        points: For each trial, in the order of their ends, where it stands on the axis (from 0,
            never falling), its score in 0..1, and what it is called.
        axis: What the axis counts.
        first: Score of the planner's recipe, a dashed line; None is none.
    """
    if not points:
        return Markup()
    scores = [score for _, score, _ in points] + ([] if first is None else [first])
    marks = ticks(min(scores), max(scores))
    low, high = marks[0], marks[-1]
    places = ticks(0.0, max(at for at, _, _ in points) or 1.0)
    end = places[-1]

    def x(at: float) -> float:
        return LEFT + (RIGHT - LEFT) * at / end

    def y(score: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (score - low) / (high - low)

    parts = [across(y(mark), f"{mark:.1%}") for mark in marks]
    parts += [below(x(at), f"{at:g}") for at in places if at >= 0]
    parts.append(below((LEFT + RIGHT) / 2, axis, 20))
    if first is not None:
        parts.append(
            Markup('<line class="ideal" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>').format(
                LEFT, RIGHT, y(first)
            )
        )
    best, corners = -math.inf, []
    for at, score, _ in points:
        if score > best:
            corners += [(x(at), y(best))] * math.isfinite(best) + [(x(at), y(score))]
            best = score
    corners.append((x(points[-1][0]), y(best)))
    parts.append(_polyline("first", corners))
    for at, score, name in points:
        parts.append(
            Markup('<circle class="second" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title>')
            .format(x(at), y(score), f"{name}: {score:.1%}") + Markup("</circle>")
        )  # fmt: skip
    return figure(title, parts, HEIGHT + 6)


def parallel(title: str, trials: Sequence[Trial], space: Space) -> Markup:
    """Draw each trial as a line through its values, a row for each field, its score at the bottom.

    The best tenth of the trials stand out.

    Args:
        title: As above.
        trials: Done, with their values.
        space: What was searched, so the ends of each row are those of the field.
    """
    ranked = sorted(
        (trial for trial in trials if trial.score is not None and trial.fields),
        key=lambda trial: trial.score or 0.0,
    )
    if not ranked:
        return Markup()
    scores = [trial.score or 0.0 for trial in ranked]
    low, high = scores[0], scores[-1]
    names = list(space.entries)
    rows = [(name, _ends(space, name)) for name in names]
    rows.append(("validation accuracy", (f"{low:.1%}", f"{high:.1%}")))
    parts = [_axis(k) for k in range(len(rows))]
    best = max(1, round(_BEST * len(ranked)))
    for number, trial in enumerate(ranked):  # the best last, so on top
        points = [
            (_across(at), _down(k))
            for k, name in enumerate(names)
            if name in trial.fields
            and not math.isnan(at := place(space.entries[name], trial.fields[name]))
        ]
        share = (scores[number] - low) / (high - low) if high > low else 1.0
        points.append((_across(share), _down(len(names))))
        stroke = "first" if number >= len(ranked) - best else "faintly"
        told = f"trial {trial.number}: {scores[number]:.1%}; {said(trial.fields)}"
        parts.append(_polyline(stroke, points, told))
    for k, (name, ends) in enumerate(rows):  # over the lines, or they could not be read
        parts += _texts(k, name, ends)
    return figure(title, parts, _ROW * (len(names) + 1) + 12)


def bars(title: str, shares: Mapping[str, tuple[float, float, float]]) -> Markup:
    """Draw shares as bars, each with its name above and the range of the forests as a stroke.

    Args:
        title: As above.
        shares: For each name a share in 0..1, the lowest and the highest.
    """
    if not shares:
        return Markup()
    most = max(high for _, _, high in shares.values()) or 1.0
    width = RIGHT - 12 - 60

    def x(share: float) -> float:
        return 12 + width * share / most

    parts = []
    for k, (name, (share, low, high)) in enumerate(shares.items()):
        top = _BAR * k + 6
        parts.append(
            Markup(
                '<text x="12" y="{0:g}">{1}</text>'
                '<text x="{2}" y="{3:g}" text-anchor="end">{4:.0%}</text>'
                '<rect class="area" x="12" y="{5:g}" width="{6:.1f}" height="12"/>'
                '<line class="first" x1="{7:.1f}" x2="{8:.1f}" y1="{9:g}" y2="{9:g}"/>'
            ).format(
                top + 12, name, RIGHT, top + 29, share, top + 19, max(x(share) - 12, 1.0),
                x(low), max(x(high), x(low) + 1), top + 25,
            )
        )  # fmt: skip
    return figure(title, parts, _BAR * len(shares) + 8)


def said(fields: Mapping[str, Any]) -> str:
    """Return the fields of a trial in one line."""
    return ", ".join(f"{name} {value_text(value)}" for name, value in fields.items())


def value_text(value: Any) -> str:
    """Return a value of a field as short as can be."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}".replace("e-0", "e-")
    return "-" if value is None else str(value)


def _ends(space: Space, name: str) -> tuple[str, ...]:
    entry = space.entries[name]
    return tuple(value_text(value) for value in entry.choice or entry.range or ())


def _across(at: float) -> float:
    return 16 + (RIGHT - 16) * at


def _down(k: int) -> float:
    return _ROW * k + 28


def _axis(k: int) -> Markup:
    """Return the line of a field."""
    return Markup('<line class="grid" x1="{0:g}" x2="{1:g}" y1="{2:g}" y2="{2:g}"/>').format(
        _across(0), _across(1), _down(k)
    )


def _texts(k: int, name: str, values: Sequence[str]) -> list[Markup]:
    """Return the name of a field, above its line, and its values below, evenly spread."""
    y, last = _down(k), max(len(values) - 1, 1)
    parts = [Markup('<text class="name" x="16" y="{:g}">{}</text>').format(y - 8, name)]
    for number, text in enumerate(values):
        anchor = "start" if number == 0 else "end" if number == last else "middle"
        parts.append(
            Markup('<text x="{:.1f}" y="{:g}" text-anchor="{}">{}</text>').format(
                _across(number / last), y + 13, anchor, text
            )
        )
    return parts


def _polyline(kind: str, points: Sequence[tuple[float, float]], told: str = "") -> Markup:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    title = Markup("<title>{}</title>").format(told) if told else Markup()
    return Markup('<polyline class="{}" points="{}">{}</polyline>').format(kind, path, title)
