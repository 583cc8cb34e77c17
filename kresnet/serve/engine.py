"""An export, loaded in TensorFlow and ready to answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from kresnet.data import pixels
from kresnet.errors import ExportError
from kresnet.export.contract import Contract
from kresnet.serve.answer import Answer as Answer
from kresnet.serve.answer import Answering, named, read_image


class Engine(Answering):
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
        mirror: bool = False,
        batch_size: int = 32,
        progress: Callable[[int], None] = lambda done: None,
    ) -> list[Answer | None]:
        """Answer for image files, in order, with at most `batch_size` of them in memory.

        None stands for a file that is no image the graph can decode. `mirror` is as in `answer`.

        Raises:
            DataError: A file cannot be read.
        """
        answers: list[Answer | None] = []
        for start in range(0, len(paths), batch_size):
            images = [read_image(path) for path in paths[start : start + batch_size]]
            answers += self.answer(images, mirror=mirror)
            progress(len(answers))
        return answers

    def answer(self, images: Sequence[bytes], *, mirror: bool = False) -> list[Answer | None]:
        """Answer for one batch of encoded images; None for one that cannot be decoded.

        Args:
            images: Files' contents.
            mirror: Average the scores with those of the mirror images.
        """
        rows = self._serve(image_bytes=tf.constant(list(images)))
        scores, ok = rows["scores"].numpy(), rows["ok"].numpy()
        if mirror and ok.any():
            mirrored = [_mirrored(image) for image, good in zip(images, ok, strict=True) if good]
            scores[ok] = (
                scores[ok] + self._serve(image_bytes=tf.constant(mirrored))["scores"].numpy()
            ) / 2
        return [
            named(row, self.contract) if good else None
            for row, good in zip(scores, ok, strict=True)
        ]

    def heatmaps(self, images: Sequence[bytes], labels: Sequence[str]) -> list[np.ndarray | None]:
        """Show where the evidence for a class is.

        Args:
            images: Files' contents.
            labels: A class for each.

        Returns:
            For each, float32 `(gh, gw)` in 0..1, Grad-CAM on the centred square; None for an image
            that cannot be decoded.
        """
        explain = self._module.signatures["explain"]
        places = [self.contract.classes.index(label) for label in labels]
        answer = explain(
            image_bytes=tf.constant(list(images)), class_index=tf.constant(places, tf.int32)
        )
        maps, ok = answer["heatmap"].numpy(), answer["ok"].numpy()
        return [heat if good else None for heat, good in zip(maps, ok, strict=True)]


def _mirrored(image: bytes) -> bytes:
    """Return an image mirrored left to right, as a PNG: without any loss."""
    mirrored = tf.image.flip_left_right(pixels.decode(tf.constant(image)))
    encoded: bytes = tf.io.encode_png(mirrored).numpy()
    return encoded
