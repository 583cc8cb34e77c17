"""An export, loaded and ready to answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from kresnet.errors import DataError, ExportError
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


class Engine:
    """Answers with an export; neither Keras nor the training code takes part.

    Args:
        directory: One version of an export, as "saved_models/flowers/1".

    Raises:
        ExportError: There is no readable export.
    """

    def __init__(self, directory: Path) -> None:
        self.contract = Contract.load(directory)
        try:
            self._module = tf.saved_model.load(str(directory))
            self._serve = self._module.signatures["serving_bytes"]
            if "ok" not in self._serve.structured_outputs:
                raise ValueError("it is of an older kresnet")
        except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
            reason = str(error).splitlines()[0]
            raise ExportError(
                f"The export must load. Received: {directory} ({reason}). Export again."
            ) from None

    def answer_files(
        self,
        paths: Sequence[str | Path],
        *,
        batch_size: int = 32,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Answer | None]:
        """Answer for image files, in order, with at most `batch_size` of them in memory.

        None stands for a file that is no image the graph can decode.

        Raises:
            DataError: A file cannot be read.
        """
        answers: list[Answer | None] = []
        for start in range(0, len(paths), batch_size):
            answers += self.answer([_read(path) for path in paths[start : start + batch_size]])
            progress(len(answers))
        return answers

    def answer(self, images: Sequence[bytes]) -> list[Answer | None]:
        """Answer for one batch of encoded images; None for one that cannot be decoded."""
        rows = self._serve(image_bytes=tf.constant(list(images)))
        scores, ok, abstain = (rows[name].numpy() for name in ("scores", "ok", "abstain"))
        return [
            self._named(row, bool(unsure)) if good else None
            for row, good, unsure in zip(scores, ok, abstain, strict=True)
        ]

    def _named(self, row: np.ndarray, abstain: bool) -> Answer:
        scores = {
            name: float(score) for name, score in zip(self.contract.classes, row, strict=True)
        }
        best = self.contract.classes[int(row.argmax())]
        return Answer(best, scores[best], scores, abstain)


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"An image must be a readable file. Received: {str(path)!r} ({error.strerror})."
        ) from None
