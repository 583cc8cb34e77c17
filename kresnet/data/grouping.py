"""Images that belong together, as those of one patient, one film or one plant."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from kresnet.data.scan import Index
from kresnet.errors import ConfigError, DataError


def check_pattern(group_by: str) -> None:
    """Refuse what is no regular expression.

    Raises:
        ConfigError: It is not.
    """
    try:
        re.compile(group_by)
    except re.error as error:
        raise ConfigError(
            "What to group by must be a column of a manifest or a regular expression. "
            f"Received: {group_by!r} ({error}). Correct it."
        ) from None


def grouped(index: Index, group_by: str, column: Mapping[str, str] | None = None) -> Index:
    r"""Give every row its group.

    Args:
        index: From `scan`.
        group_by: A regular expression, searched in the path of each image relative to the source;
            its groups in brackets, or else all that it finds, name the group. An image in which it
            finds nothing is a group of its own.
        column: Values of the column of this name, by path, where the source has one.

    Raises:
        DataError: Nothing is found in any path, or all images are one group.
    """
    if column is not None:
        names = [column.get(row.path, "") for row in index.rows]
    else:
        check_pattern(group_by)
        found = [re.search(group_by, index.name_of(row)) for row in index.rows]
        names = ["/".join(map(str, m.groups() or (m[0],))) if m else "" for m in found]
    if len(set(names)) < 2:
        first = index.name_of(index.rows[0]) if index.rows else "none"
        raise DataError(
            "Grouping must find at least two groups. Received: "
            f"{group_by!r}, which finds {'one' if any(names) else 'none'} in paths as {first!r}. "
            "Give a regular expression of the part of the path that names the group, or a column "
            "of the manifest."
        )
    return replace(
        index,
        rows=tuple(replace(r, group=name) for r, name in zip(index.rows, names, strict=True)),
    )
