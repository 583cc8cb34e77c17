"""What went wrong in a training, and what is done about it: back to the last state, and gentler.

What is changed follows from the log of troubles in run.json, which is written before the training
goes on. The saved state is never rewritten for it, so a process killed at any moment resumes to
the same training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import tensorflow as tf

from kresnet.data.scan import Row
from kresnet.errors import ConfigError, ResourceError
from kresnet.train.run import Run
from kresnet.train.score import Score

MOST: Final = 2
"""How often a loss that is not finite is met by a lower rate; the next time is an error."""

SLOWER: Final = 3.0
"""What the learning rate is divided by each time."""

_NAMED: Final = 3  # files in a message; all are in run.json


class NotFinite(Exception):
    """The loss, a score or a weight is not finite any more.

    Args:
        what: Says so, as "loss nan in epoch 2, step 5".
        files: Images of the batch, the ones that are not finite themselves first.
    """

    def __init__(self, what: str, files: Sequence[str] = ()) -> None:
        super().__init__(what)
        self.what, self.files = what, tuple(files)


class Troubles:
    """The troubles that a run has had, those of its earlier processes included."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._log: list[dict[str, Any]] = list(run.info.get("troubles", []))

    @property
    def rate_share(self) -> float:
        """What is left of the recipe's learning rate."""
        return SLOWER ** -self._count("not finite")

    @property
    def parts(self) -> int:
        """In how many parts a batch is computed."""
        return int(self._run.recipe.accumulate * 2 ** self._count("out of memory"))

    @property
    def best(self) -> Score | None:
        """The score of the weights that were kept at the last trouble, if any were."""
        best = self._log[-1]["best"] if self._log else None
        return Score(**best) if best else None

    def not_finite(self, error: NotFinite, best: Score | None) -> str:
        """Remember it, and return what to say.

        Raises:
            ConfigError: It has happened too often.
        """
        if self._count("not finite") == MOST:
            raise ConfigError(
                f"The loss must stay finite. Received: {error.what}, also at "
                f"{self.rate_share:.2f} of the learning rate{_named(error.files)}. Lower --lr, "
                f"which was {self._run.recipe.lr:g}, or look at the images."
            ) from None
        self._add("not finite", best, what=error.what, files=list(error.files))
        return (
            f"{error.what}{_named(error.files)}: back to the last saved state, with the learning "
            f"rate divided by {SLOWER:g}"
        )

    def out_of_memory(self, best: Score | None) -> str:
        """Remember it, and return what to say.

        Raises:
            ResourceError: One image at a time is too much.
        """
        recipe = self._run.recipe
        if self.parts >= recipe.batch_size:
            raise ResourceError(
                f"One image must fit into memory. Received: image_size={recipe.image_size}, "
                f"variant={recipe.variant!r}, and it does not. Lower --image-size."
            ) from None
        self._add("out of memory", best)
        size = -(-recipe.batch_size // self.parts)
        return (
            f"out of memory: back to the last saved state; a batch of {recipe.batch_size} is now "
            f"computed {size} images at a time, with the same result"
        )

    def _count(self, kind: str) -> int:
        return sum(one["kind"] == kind for one in self._log)

    def _add(self, kind: str, best: Score | None, **details: Any) -> None:
        self._log.append({"kind": kind, "best": asdict(best) if best else None, **details})
        self._run.update(troubles=self._log)


def suspects(rows: Sequence[Row], images: tf.Tensor) -> list[str]:
    """Return the names of a batch's images, those with values that are not finite first.

    Args:
        rows: What the batch shows.
        images: float32 `(b, s, s, c)`.
    """
    finite = tf.reduce_all(tf.math.is_finite(images), axis=[1, 2, 3]).numpy()
    ordered = sorted(zip(finite, rows, strict=True), key=lambda pair: bool(pair[0]))
    return list(dict.fromkeys(row.name for _, row in ordered))


def _named(files: Sequence[str]) -> str:
    if not files:
        return ""
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return f" (batch of {', '.join(files[:_NAMED])}{more}; all are in run.json)"
