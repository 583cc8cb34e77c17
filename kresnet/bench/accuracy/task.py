"""What a contender is told, and what it answers: files, since each is a process of its own."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

Labelled = tuple[str, int]
"""Path of an image, and its class."""


@dataclass(frozen=True, slots=True)
class Task:
    """Train on some images within a time, and score others.

    Attributes:
        method: What the table calls the contender.
        data: What the table calls the images.
        seed: Of the split, and of everything random in the training.
        budget_s: Seconds from the start of the process to the scores.
        started: When the process was started, in seconds of `time.time`.
        folder: To work in.
        variant: A key of `kresnet.VARIANTS`.
        weights: File of the pretrained weights, or their tag.
        start: Folder of what `start` makes of them.
        precision: What matrix products are computed in: "bfloat16" or "float32".
        image_size: Side of the input in pixels.
        classes: Names, in the order of the labels.
        train: Images to learn from; validation images, where one needs them, are among these.
        test: Images to score; their labels are here for the contender's own log only.
    """

    method: str
    data: str
    seed: int
    budget_s: float
    started: float
    folder: str
    variant: str
    weights: str
    start: str
    precision: str
    image_size: int
    classes: tuple[str, ...]
    train: tuple[Labelled, ...]
    test: tuple[Labelled, ...]

    @property
    def left_s(self) -> float:
        """Seconds until the scores are due."""
        return self.started + self.budget_s - time.time()

    def save(self) -> Path:
        """Write the task into its folder and return the file."""
        path = Path(self.folder) / "task.json"
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: Path) -> Task:
        """Read what `save` wrote."""
        fields = json.loads(path.read_text(encoding="utf-8"))
        fields["classes"] = tuple(fields["classes"])
        for name in ("train", "test"):
            fields[name] = tuple((path, label) for path, label in fields[name])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a contender says.

    Attributes:
        scores: Probabilities `(test, classes)`, float.
        facts: What else the table or a reader may want, as `epochs` and `images_per_s`.
    """

    scores: np.ndarray
    facts: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write the answer; the scores, which are looked for, come last."""
        (folder / "facts.json").write_text(json.dumps(self.facts), encoding="utf-8")
        np.save(folder / "scores.npy", self.scores.astype(np.float64))

    @classmethod
    def load(cls, folder: Path) -> Answer:
        """Read what `save` wrote.

        Raises:
            OSError: There is no answer.
        """
        scores = np.load(folder / "scores.npy")
        return cls(scores, json.loads((folder / "facts.json").read_text(encoding="utf-8")))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities for logits, along the last axis."""
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)
