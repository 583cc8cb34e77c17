"""What an export says of an image, whatever has computed it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from kresnet.errors import ConfigError, DataError
from kresnet.export.contract import Contract


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer for one image.

    Attributes:
        label: The best class.
        score: Its probability.
        scores: Probability of every class, by name.
        abstain: Whether the best score is below the export's threshold.
    """

    label: str
    score: float
    scores: dict[str, float]
    abstain: bool = False


class Answering(Protocol):
    """An export that answers for image files."""

    contract: Contract

    def check_mirrors(self) -> None:
        """Refuse to average over mirror images where these may be of another class.

        Raises:
            ConfigError: The export's training did not mirror.
        """
        check_mirrors(self.contract)

    def answer_files(
        self,
        paths: Sequence[str | Path],
        *,
        mirror: bool = False,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Answer | None]:
        """Answer for image files, in order; None for one that is no image."""

    def answer(self, images: Sequence[bytes], *, mirror: bool = False) -> list[Answer | None]:
        """Answer for encoded images, all of them in memory; None for one that is no image."""


def check_mirrors(contract: Contract) -> None:
    """Refuse to average over mirror images where these may be of another class.

    Raises:
        ConfigError: The export's training did not mirror.
    """
    if not contract.mirrored:
        raise ConfigError(
            "Averaging over mirror images needs an export whose training mirrored. Received: "
            f"{contract.name!r}, which may tell left from right. Leave out --tta."
        )


def named(scores: np.ndarray, contract: Contract) -> Answer:
    """Return the answer that probabilities `(k,)` are."""
    by_name = {name: float(one) for name, one in zip(contract.classes, scores, strict=True)}
    best = contract.classes[int(scores.argmax())]
    unsure = bool(scores.max() < (contract.threshold or 0.0))
    return Answer(best, by_name[best], by_name, unsure)


def read_image(path: str | Path) -> bytes:
    """Return the bytes of an image file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"An image must be a readable file. Received: {str(path)!r} ({error.strerror})."
        ) from None
