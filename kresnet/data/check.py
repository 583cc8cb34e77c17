"""Find what is wrong with a data set before it is trained on: files, classes, splits, duplicates.

Nothing is refused here: what `scan` would raise an error for is a finding among others.
"""

from __future__ import annotations

import difflib
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, Final

from kresnet.data import duplicates
from kresnet.data.examine import Facts
from kresnet.data.findings import Finding, Severity, each, printable
from kresnet.data.items import Item, Problem, is_named_image
from kresnet.data.scan_cache import examine_all
from kresnet.data.sources import Listing, listing
from kresnet.data.tree import Tree, folded
from kresnet.errors import DataError

EXIT_CODES: Final[dict[Severity | None, int]] = {"error": 3, "warning": 7, "note": 0, None: 0}
"""What `kresnet check` ends with, by the gravest finding."""

_MAX_BAD: Final = 0.05  # as in `scan`
_TINY: Final = 32  # pixels
_SLENDER: Final = 5.0  # longer side divided by the shorter one
_UNEVEN: Final = 10.0  # largest class divided by the smallest
_FEW: Final = 10  # images of a class
_SHOWN: Final = 5  # paths of a finding in the text
_SEVERITIES: Final[tuple[Severity, ...]] = ("error", "warning", "note")
_TRAITS: Final = {
    "exif": ("turned or mirrored by EXIF", "They are turned upright, as your viewer does."),
    "grey": ("grey", "They are read as colour with three equal channels."),
    "cmyk": ("in CMYK", "They are converted to RGB without a colour profile."),
    "palette": ("with a palette", "They are read as RGB."),
    "alpha": ("with transparency", "What is transparent is read as white."),
    "16-bit": ("with 16 bits a channel", "The higher 8 bits are read."),
    "animated": ("animated", "The first frame is read."),
    "renamed": ("with the extension of another format", "The content decides; rename them."),
    "appended": (
        "with other data behind the image",
        "It is not read; see that you know what it is.",
    ),
}


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        source: What was checked, as it was given.
        description: The kind of source, as "folder".
        files: How many files were examined.
        counts: Usable images by split and class.
        traits: How many usable images have each trait, see `Facts`.
        findings: The gravest first.
        items: The examined images by name.
    """

    source: str
    description: str
    files: int
    counts: Mapping[str, Mapping[str, int]]
    traits: Mapping[str, int]
    findings: tuple[Finding, ...]
    items: Mapping[str, Item]

    @property
    def images(self) -> int:
        """Number of usable images."""
        return sum(sum(classes.values()) for classes in self.counts.values())

    @property
    def severity(self) -> Severity | None:
        """That of the gravest finding; None if there is none."""
        return self.findings[0].severity if self.findings else None

    @property
    def exit_code(self) -> int:
        """0 if there are neither errors nor warnings, 7 for warnings, 3 for errors."""
        return EXIT_CODES[self.severity]

    def also(self, *findings: Finding) -> Report:
        """Return the report with more findings."""
        return replace(self, findings=_by_severity((*self.findings, *findings)))

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON types."""
        return {
            "source": printable(self.source),
            "kind": self.description,
            "severity": self.severity,
            "files": self.files,
            "images": self.images,
            "counts": {
                split: {printable(name): count for name, count in classes.items()}
                for split, classes in self.counts.items()
            },
            "traits": dict(self.traits),
            "findings": [finding.as_dict() for finding in self.findings],
        }

    def __str__(self) -> str:
        """The report as text for a terminal."""
        lines = [self.summary()]
        for finding in self.findings:
            what = finding.what.rstrip(".")
            lines += ["", f"{finding.severity:8}{printable(what)}. {printable(finding.fix)}"]
            for group in finding.groups[:_SHOWN]:
                lines.append(" " * 8 + "  =  ".join(self.short(path) for path in group[:_SHOWN]))
            if len(finding.groups) > _SHOWN:
                lines.append(f"{'':8}... and {len(finding.groups) - _SHOWN} more (--json has all)")
        return "\n".join(lines)

    def summary(self) -> str:
        """Return images, classes and the number of findings of each severity, on one line."""
        classes = {name for named in self.counts.values() for name in named}
        by_severity = Counter(finding.severity for finding in self.findings)
        found = ", ".join(
            _counted(by_severity[severity], severity)
            for severity in _SEVERITIES
            if by_severity[severity]
        )
        return (
            f"{_counted(self.images, 'usable image')} of {_counted(self.files, 'file')}, "
            f"{_counted(len(classes), 'class', 'classes')}: {found or 'nothing to remark'}"
        )

    def short(self, path: str) -> str:
        """Return a path relative to the source, fit for a terminal."""
        inside = os.path.join(os.path.abspath(self.source), "")
        return printable(path.removeprefix(inside))


def check(
    source: str | Path,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Decode every image of a source once, compare them all, and say what is wrong.

    Args:
        source: What `kresnet.data.sources.listing` takes, as a folder of class folders.
        progress: Called with what is going on, how much of it is done, and how much there is.

    Returns:
        The report. The source is only ever read.

    Raises:
        DataError: There is no such source.
        ResourceError: A package that the source needs is not installed.
    """

    def told(what: str) -> Callable[[int, int], None] | None:
        return (lambda done, total: progress(what, done, total)) if progress else None

    findings: list[Finding] = []
    is_folder = os.path.isdir(source)
    tree = Tree.of(os.path.abspath(source)) if is_folder else Tree()
    findings += tree.findings()
    try:
        listed = listing(source)
    except (DataError, OSError) as error:
        if not is_folder:
            raise
        listed = _whatever(source, tree)
        findings.append(Finding("error", "layout", *_halves(str(error))))

    results = examine_all(listed.items, told("reading"))
    good = [(i, r) for i, r in zip(listed.items, results, strict=True) if isinstance(r, Facts)]
    bad = [
        Problem(i.name, r) for i, r in zip(listed.items, results, strict=True) if isinstance(r, str)
    ]
    others = sum(result is None for result in results)
    items, facts = [item for item, _ in good], [one for _, one in good]
    counts = _counts(items)

    findings += _unusable(bad, len(good))
    findings += _left_out(listed, items, told_already=tree.empty)
    findings += _classes(counts)
    findings += _shapes(items, facts)
    findings += _traits(items, facts)
    findings += _duplicates(items, facts, told("comparing"))
    if others:
        findings.append(
            Finding(
                "note",
                "other-files",
                f"{_counted(others, 'file')} that are not images",
                "They are passed over.",
            )
        )
    traits = Counter(_word(word) for one in facts for word in one.traits.split())
    return Report(
        str(source),
        listed.description,
        len(results),
        counts,
        dict(sorted(traits.items())),
        _by_severity(findings),
        {item.name: item for item in listed.items},
    )


def _by_severity(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: _SEVERITIES.index(finding.severity)))


def _whatever(source: str | Path, tree: Tree) -> Listing:
    """List the images of a folder whose layout means nothing, by the folder they are in."""
    root = os.path.abspath(source)
    items = [
        Item(path, os.path.basename(os.path.dirname(path)))
        for path in tree.files
        if is_named_image(PurePath(path))
    ]
    return Listing(root, tuple(items), (), "folder")


def _halves(message: str) -> tuple[str, str]:
    """Divide an error message into what is wrong and what to do about it."""
    what, _, rest = message.partition(" Received: ")
    received, _, fix = rest.partition(". ")
    return f"{what.rstrip('.')}, but received {received.rstrip('.')}", fix


def _counts(items: Sequence[Item]) -> dict[str, dict[str, int]]:
    labels = sorted({item.label for item in items}, key=lambda name: (folded(name), name))
    counts: dict[str, dict[str, int]] = {}
    for split in ("train", "val", "test", None):
        inside = Counter(item.label for item in items if item.split == split)
        if inside:
            counts[split or "all"] = {name: inside[name] for name in labels}
    return counts


def _unusable(bad: Sequence[Problem], good: int) -> Iterator[Finding]:
    by_reason: dict[str, list[str]] = {}
    for problem in bad:
        by_reason.setdefault(problem.reason, []).append(problem.path)
    for reason, paths in sorted(by_reason.items(), key=lambda pair: -len(pair[1])):
        yield Finding(
            "error",
            "unusable",
            f"{_counted(len(paths), 'file')}: {reason}",
            "They are left out. Replace, convert or remove them.",
            each(paths),
        )
    if len(bad) > _MAX_BAD * (len(bad) + good):
        yield Finding(
            "error",
            "too-many-unusable",
            f"{len(bad)} of {len(bad) + good} images are unusable, more than {_MAX_BAD:.0%}",
            "Training refuses this: mend or remove them.",
        )


def _left_out(
    listed: Listing, items: Sequence[Item], *, told_already: Sequence[str]
) -> Iterator[Finding]:
    by_reason: dict[str, list[str]] = {}
    for problem in listed.problems:
        by_reason.setdefault(problem.reason, []).append(problem.path)
    used = {(item.split, item.label) for item in items}
    unused = [
        path
        for split, name, path in listed.folders
        if (split, name) not in used and path not in told_already
    ]
    if unused:
        by_reason["a folder without a usable image, so not a class"] = unused
    for reason, paths in by_reason.items():
        yield Finding(
            "warning",
            "left-out",
            f"{_counted(len(paths), 'path')} left out: {reason}",
            "Move or remove them.",
            each(paths),
        )


def _classes(counts: Mapping[str, Mapping[str, int]]) -> Iterator[Finding]:
    """Say what is wrong with the classes and their sizes."""
    trained = {n for s in ("train", "all") for n, count in counts.get(s, {}).items() if count}
    names = {name for classes in counts.values() for name in classes}
    if not names:
        yield Finding(
            "error", "no-images", "There is no usable image", "Give a source that has some."
        )
        return
    if len(names) == 1:
        yield Finding(
            "error",
            "one-class",
            f"There is only one class, {names.pop()!r}",
            "Add images of every other class.",
        )
        return
    if not trained:
        yield Finding(
            "error",
            "no-training-images",
            "All images are in val or test",
            "Add a train folder.",
        )
    for name in sorted(names - trained) if trained else ():
        near = difflib.get_close_matches(folded(name), {folded(n): n for n in trained}, 1, 0.8)
        meant = next((n for n in sorted(trained) if near and folded(n) == near[0]), None)
        where = [split for split, classes in counts.items() if classes[name]]
        yield Finding(
            "error",
            "class-mismatch",
            f"The class {name!r} is in {' and '.join(where)}, but has no training images",
            f"Is it {meant!r}? Rename it." if meant else "Add some, or remove the class.",
        )
    alike: dict[str, list[str]] = {}
    for name in sorted(names):
        alike.setdefault("".join(filter(str.isalnum, folded(name))) or name, []).append(name)
    for group in alike.values():
        if len(group) > 1:
            yield Finding(
                "warning",
                "class-names-alike",
                f"The classes {', '.join(map(repr, group))} differ only in case or signs",
                "If they are one class, put them into one folder.",
            )
    for split, classes in counts.items():
        absent = [name for name, count in classes.items() if not count and name in trained]
        if absent and split in ("val", "test"):
            yield Finding(
                "warning",
                "class-not-in-split",
                f"{_counted(len(absent), 'class', 'classes')} without images in {split}: "
                f"{_some(absent)}",
                "How well they are told is not measured. Add some.",
            )
    sizes = {name: counts.get("train", counts.get("all", {})).get(name, 0) for name in trained}
    yield from _sizes(sizes, needs_split="val" not in counts)


def _sizes(sizes: Mapping[str, int], *, needs_split: bool) -> Iterator[Finding]:
    if not sizes:
        return
    if needs_split and (single := [name for name, size in sizes.items() if size < 2]):
        yield Finding(
            "error",
            "class-too-small",
            f"{_counted(len(single), 'class', 'classes')} with a single image: {_some(single)}",
            "One is needed to train and one to validate on. Add images or remove the class.",
        )
    if few := [name for name, size in sizes.items() if size < _FEW]:
        yield Finding(
            "warning",
            "few-images",
            f"{_counted(len(few), 'class', 'classes')} with fewer than {_FEW} images to train on: "
            f"{_some(few)}",
            "Add images: what is measured on so few is chance.",
        )
    most, least = max(sizes, key=lambda n: sizes[n]), min(sizes, key=lambda n: sizes[n])
    ratio = sizes[most] / max(sizes[least], 1)
    if ratio > _UNEVEN:
        yield Finding(
            "warning",
            "imbalance",
            f"{most!r} has {sizes[most]} images and {least!r} has {sizes[least]}",
            "Add images of rare classes; look at the balanced accuracy, not at the accuracy.",
        )


def _shapes(items: Sequence[Item], facts: Sequence[Facts]) -> Iterator[Finding]:
    if not facts:
        return
    sides = [min(one.height, one.width) for one in facts]
    usual = statistics.median(sides)
    tiny = [i.name for i, side in zip(items, sides, strict=True) if side < min(_TINY, usual / 2)]
    if tiny:
        yield Finding(
            "warning",
            "tiny",
            f"{_counted(len(tiny), 'image')} with a shorter side below {_TINY} pixels; "
            f"half have {usual:g} or more",
            "Replace them by larger ones, or remove them.",
            each(tiny),
        )
    slender = [
        item.name
        for item, one in zip(items, facts, strict=True)
        if max(one.height, one.width) > _SLENDER * min(one.height, one.width)
    ]
    if slender:
        yield Finding(
            "warning",
            "extreme-aspect",
            f"{_counted(len(slender), 'image')} more than {_SLENDER:g} times as long as wide",
            "A model sees a square of them. Crop them to what matters.",
            each(slender),
        )


def _traits(items: Sequence[Item], facts: Sequence[Facts]) -> Iterator[Finding]:
    for trait, (what, fix) in _TRAITS.items():
        paths = [
            item.name
            for item, one in zip(items, facts, strict=True)
            if trait in map(_word, one.traits.split())
        ]
        if paths:
            yield Finding(
                "note", trait, f"{_counted(len(paths), 'image')} {what}", fix, each(paths)
            )


def _word(trait: str) -> str:
    return "exif" if trait.startswith("exif") else trait


def _duplicates(
    items: Sequence[Item],
    facts: Sequence[Facts],
    progress: Callable[[int, int], None] | None,
) -> Iterator[Finding]:
    """Tell duplicates by what they do: contradict each other, leak, or count twice."""
    pairs = duplicates.find(facts, progress)
    for exact, kinds in ((True, ("same file", "same pixels")), (False, ("near",))):
        # Near ones are told in pairs: a chain of them may begin and end with different pictures.
        groups = _together([p for p in pairs if p.kind in kinds], len(facts), chained=exact)
        labels, splits, inside = [], [], []
        for group in groups:
            members = [items[k] for k in group]
            names = tuple(item.name for item in members)
            if len({item.label for item in members}) > 1:
                labels.append(names)
            elif len({item.split for item in members}) > 1:
                splits.append(names)
            else:
                inside.append(names)
            if names in labels and len({item.split for item in members}) > 1:
                splits.append(names)
        what = "identical" if exact else "nearly identical"
        if labels:
            yield Finding(
                "error" if exact else "warning",
                "contradiction" if exact else "near-contradiction",
                f"{_counted(len(labels), 'group')} of {what} images with different labels",
                "Decide which label is right, and remove the others.",
                tuple(labels),
            )
        if splits:
            yield Finding(
                "error" if exact else "warning",
                "leak" if exact else "near-leak",
                f"{_counted(len(splits), 'group')} of {what} images in different splits",
                "Remove all but one of each: the score is too good with them.",
                tuple(splits),
            )
        if inside:
            yield Finding(
                "warning" if exact else "note",
                "duplicate" if exact else "near-duplicate",
                f"{_counted(len(inside), 'group')} of {what} images of one class",
                "Remove all but one of each; a split by kresnet keeps them together.",
                tuple(inside),
            )


def _together(
    pairs: Sequence[duplicates.Pair], count: int, *, chained: bool
) -> list[tuple[int, ...]]:
    if not chained:
        return [(pair.first, pair.second) for pair in pairs]
    members: dict[int, list[int]] = {}
    for number, first in enumerate(duplicates.groups(count, pairs)):
        members.setdefault(first, []).append(number)
    return [tuple(group) for group in members.values() if len(group) > 1]


def _counted(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
