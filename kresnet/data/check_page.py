"""A check's report as one HTML file: no script, no other file, no network."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import tensorflow as tf
from PIL import Image

from kresnet.data import pixels
from kresnet.data.check import Report
from kresnet.data.examine import Facts, examine
from kresnet.data.findings import Finding
from kresnet.data.templates import template

_SIDE: Final = 112  # pixels of a thumbnail at most
_GROUPS: Final = 24  # shown with thumbnails, of each finding
_MEMBERS: Final = 6  # of each group
_NAMES: Final = 500  # of the other files, of each finding


def page(report: Report) -> str:
    """Draw a report.

    Args:
        report: From `check`. Its images are read again for their thumbnails.

    Returns:
        HTML. What came from the data, as names, is escaped; thumbnails are data URIs.
    """
    drawn = functools.cache(functools.partial(_thumbnail, report))
    sections = [_Section.of(finding, drawn) for finding in report.findings]
    return template("kresnet.data", "check.html.j2").render(
        report=report, sections=sections, most_members=_MEMBERS, most_names=_NAMES
    )


@dataclass(frozen=True, slots=True)
class _Section:
    """A finding with thumbnails.

    Attributes:
        finding: The finding.
        pictures: Path and thumbnail of the first files, by group; empty if none can be seen.
        names: The other groups.
    """

    finding: Finding
    pictures: list[list[tuple[str, str | None]]]
    names: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, finding: Finding, drawn: Callable[[str], str | None]) -> _Section:
        first = finding.groups[:_GROUPS]
        pictures = [[(path, drawn(path)) for path in group[:_MEMBERS]] for group in first]
        if any(thumbnail for group in pictures for _, thumbnail in group):
            return cls(finding, pictures, finding.groups[_GROUPS:])
        return cls(finding, [], finding.groups)


def _thumbnail(report: Report, path: str) -> str | None:
    """Return a small image as a data URI; None where there is none to see."""
    item = report.items.get(path)
    if item is None or not isinstance(examine(item), Facts):  # which knows what not to decode
        return None
    image = Image.fromarray(pixels.decode(tf.constant(item.read())).numpy())
    image.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
