"""Images that could be read when they were listed, and cannot be any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from kresnet.data import arrays, items
from kresnet.data.scan import Problem, Row
from kresnet.errors import DataError


class Lost:
    """The rows that were found unreadable, and which rows stand in for them.

    Args:
        rows: The training rows.
        max_bad: Largest share of them that may be lost, 0..1.
        tell: Called with each one, once.

    Attributes:
        instead: int64 `(rows,)`: for each row itself, or the next readable one after it.
    """

    def __init__(
        self, rows: Sequence[Row], max_bad: float, tell: Callable[[Problem], None]
    ) -> None:
        self._rows, self._max_bad, self._tell = rows, max_bad, tell
        self._problems: dict[int, Problem] = {}
        self.instead = np.arange(len(rows))

    def search(self, which: Sequence[int]) -> bool:
        """Try to read some rows, and replace those that cannot be read.

        Returns:
            Whether there were any.

        Raises:
            DataError: More than `max_bad` are lost by now.
        """
        found = {k: problem for k in dict.fromkeys(which) if (problem := failure(self._rows[k]))}
        self._problems |= found
        for problem in found.values():
            self._tell(problem)
        if len(self._problems) > self._max_bad * len(self._rows):
            raise unreadable(list(self._problems.values()), len(self._rows), self._max_bad)
        good = np.array([k for k in range(len(self._rows)) if k not in self._problems])
        next_good = np.searchsorted(good, np.arange(len(self._rows)))
        self.instead = good[next_good % len(good)]
        return bool(found)


def failure(row: Row) -> Problem | None:
    """Read and decode an image again, and return what is wrong with it now, if anything."""
    name = items.full_name(row)
    try:
        shape = tf.shape(arrays.decoder([row])(items.read_bytes(row)))[:2].numpy()
    except OSError as error:
        return Problem(name, f"cannot be read any more: {error.strerror or error}")
    except tf.errors.OpError:
        return Problem(name, "cannot be decoded any more")
    if (int(shape[0]), int(shape[1])) != (row.height, row.width):
        return Problem(
            name, f"has another size: {shape[0]} x {shape[1]}, not {row.height} x {row.width}"
        )
    return None


def lost_images(rows: Sequence[Row], error: Exception) -> Exception:
    """Return the error that names the rows which cannot be read any more; `error` if all can."""
    problems = [problem for row in rows if (problem := failure(row))]
    return unreadable(problems, len(rows), 0.0) if problems else error


def unreadable(problems: Sequence[Problem], count: int, max_bad: float) -> DataError:
    """Return the error that names images which were lost since the index was made."""
    first = "; ".join(f"{problem.path!r} {problem.reason}" for problem in problems[:3])
    return DataError(
        f"At most {max_bad:.0%} of the images may be lost after they were listed. Received: "
        f"{len(problems)} of {count}: {first}{'; ...' if len(problems) > 3 else ''}. Put them back "
        "as they were and resume, or train anew."
    )
