"""What a check has to say: one finding for all files that share a trouble."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about the data that a user should know.

    Attributes:
        severity: "error" if training is refused or its score would be wrong, "warning" if the
            model may suffer, "note" if kresnet deals with it.
        kind: A fixed word for programs, as "unusable" or "leak".
        what: What was found, a sentence.
        fix: What to do about it, a sentence.
        groups: The files and folders concerned; those that belong together, as duplicates do, are
            in one group.
    """

    severity: Severity
    kind: str
    what: str
    fix: str
    groups: tuple[tuple[str, ...], ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """All files and folders concerned, in order."""
        return tuple(path for group in self.groups for path in group)

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as JSON types."""
        found: dict[str, Any] = {
            "severity": self.severity,
            "kind": self.kind,
            "what": printable(self.what),
            "fix": printable(self.fix),
            "paths": [encodable(path) for path in self.paths],
        }
        if any(len(group) > 1 for group in self.groups):
            found["groups"] = [[encodable(path) for path in group] for group in self.groups]
        return found


def each(paths: list[str] | tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Return every path as a group of its own, in order."""
    return tuple((path,) for path in sorted(paths))


def encodable(name: str) -> str:
    r"""Return a name with bytes that are not UTF-8 written as \xff."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def printable(name: str) -> str:
    r"""Return a name on one line and without control characters, which are written as \n."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in encodable(name)
    )
