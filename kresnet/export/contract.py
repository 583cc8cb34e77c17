"""What an export promises: its input, its labels, where it came from. Stored inside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from kresnet.errors import ExportError
from kresnet.zoo import Preprocessing

CONTRACT_FILE = Path("assets.extra") / "kresnet.json"


class Contract(BaseModel):
    """The promise of an export.

    Attributes:
        schema_version: Version of this file's fields.
        name: Name of the export.
        variant: The kresnet variant.
        classes: Labels, in the order of the scores.
        preprocessing: Done inside the export, from encoded bytes or uint8 pixels.
        versions: Of the packages that made it.
        check: What was compared before it was published, and the largest difference.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = 1
    name: str
    variant: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    versions: dict[str, str]
    check: dict[str, Any] = {}

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
