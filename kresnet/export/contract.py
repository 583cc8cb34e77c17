"""What an export promises: its input, its labels, where it came from. Stored inside it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from kresnet.errors import ExportError
from kresnet.zoo import Preprocessing

CONTRACT_FILE: Final = Path("assets.extra") / "kresnet.json"

TOLERANCE: Final = 1e-4
"""Largest difference of a probability that still counts as agreement.

Folding and other kernels move a float32 probability by about 1e-6; a wrong mean, channel order or
resize moves it by 1e-2 and more.
"""

Precision = Literal["float32", "bfloat16", "int8"]

TOLERANCES: Final[dict[Precision, float]] = {
    "float32": TOLERANCE,
    "bfloat16": 5e-2,
    "int8": 5e-2,
}
"""The same of a SavedModel by what it computes in.

bfloat16 keeps eight bits of every factor, which moves the probabilities of a fine-tuned ResNet by
about 1e-2. That no wrong step hides behind it is shown by its accuracy, which is measured, too.

int8 rounds to 255 steps of the largest value, and a probability that the model is in two minds
about may move by .5. So it is the accuracy alone that is held to the model's, and the tolerance
is for the golden images, whose answers are the SavedModel's own: another processor may round
otherwise.
"""


class FormatCheck(BaseModel):
    """One file of an export, and how well it agreed with the Keras model.

    Attributes:
        bytes: Size of the file, or of the SavedModel's files together.
        input: What is to be fed: "bytes or pixels" (any image), "pixels" (uint8 of any size, the
            rest is inside) or "prepared pixels" (the centred square, already resized).
        max_difference: Largest difference of a probability from the Keras model's, on `images`.
        top1_agreement: Share of the images with the same best class.
        images: How many real images were compared.
        accuracy: Of this file, on the labelled ones among them; None where none is labelled.
        reference_accuracy: Of the Keras model, on the same.
        loaders: What it was loaded and run with, each in a process without kresnet.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    bytes: int
    input: str = ""
    max_difference: float
    top1_agreement: float
    images: int
    accuracy: float | None = None
    reference_accuracy: float | None = None
    loaders: tuple[str, ...] = ()

    @property
    def accuracy_loss(self) -> float | None:
        """Percentage points that it loses to the Keras model; None where none is labelled."""
        if self.accuracy is None or self.reference_accuracy is None:
            return None
        return 100 * (self.reference_accuracy - self.accuracy)

    @property
    def points_lost(self) -> float:
        """The same; of agreement with the Keras model where none is labelled."""
        loss = self.accuracy_loss
        return 100 * (1 - self.top1_agreement) if loss is None else loss

    def loses_more_than(self, points: float) -> bool:
        """Return whether it lost more than some points.

        One image less is not more, unless none may be lost: one alone can be chance, and of fewer
        than 200 images it would be more than .5 points.
        """
        least = 100 / self.images if points > 0 and self.images else points
        return self.points_lost > max(points, least) + 1e-9

    def __str__(self) -> str:
        accuracy = (
            f", accuracy {self.accuracy:.1%} (Keras {self.reference_accuracy:.1%})"
            if self.accuracy is not None and self.reference_accuracy is not None
            else ""
        )
        return (
            f"{self.images} real images: max |dp| {self.max_difference:.1e}, "
            f"top-1 agreement {self.top1_agreement:.1%}{accuracy}; "
            f"in fresh processes, through {', '.join(self.loaders)}"
        )


class Contract(BaseModel):
    """The promise of an export.

    Attributes:
        schema_version: Version of this file's fields.
        name: Name of the export.
        variant: The kresnet variant.
        classes: Labels, in the order of the scores.
        preprocessing: Done inside the export, from encoded bytes or uint8 pixels.
        versions: Of the packages that made it.
        temperature: Scores are `softmax(logits / temperature)`.
        threshold: An answer whose best score is below it abstains; None never does.
        mirrored: Whether training took a mirror image to be of the same class.
        precision: What the SavedModel computes convolutions in, and keeps their weights in.
        weights_sha256: SHA-256 of the run's weights file, hexadecimal; "" where unknown.
        created: When it was made, ISO 8601 in UTC; "" where unknown.
        copy_of: The version that this one publishes again; None for an export of its own.
        formats: The files that were made and checked, by their name in the version's directory;
            "saved_model" stands for the SavedModel itself.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = 1
    name: str
    variant: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    versions: dict[str, str]
    temperature: float = 1.0
    threshold: float | None = None
    mirrored: bool = False
    precision: Precision = "float32"
    weights_sha256: str = ""
    created: str = ""
    copy_of: int | None = None
    formats: dict[str, FormatCheck] = {}

    def save(self, directory: Path) -> None:
        """Write the contract into an export."""
        path = directory / CONTRACT_FILE
        path.parent.mkdir(exist_ok=True)
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Contract:
        """Read the contract of an export.

        Raises:
            ExportError: There is none, or it is damaged.
        """
        path = directory / CONTRACT_FILE
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            raise ExportError(
                f"A kresnet export holds {CONTRACT_FILE}. Received: {directory}, where it cannot "
                f"be read ({reason}). Export again."
            ) from None
