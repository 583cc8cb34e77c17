"""From a trained model to a published version: written, verified, and only then visible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import keras

from kresnet.export import golden
from kresnet.export.contract import Contract
from kresnet.export.reference import Reference, Sample
from kresnet.export.saved_model import write_saved_model
from kresnet.export.verify import TOLERANCE, verify_saved_model
from kresnet.export.versions import new_version
from kresnet.export.warmup import write_warmup


@dataclass(frozen=True, slots=True)
class Exported:
    """A published version.

    Attributes:
        path: Its directory, `root/NAME/VERSION`.
        contract: What it promises, with what was compared.
        remarks: One line for each file that was asked for and is not there, with the reason.
    """

    path: Path
    contract: Contract
    remarks: tuple[str, ...] = ()


def export(
    model: keras.Model,
    contract: Contract,
    root: Path,
    *,
    samples: Sequence[Sample],
    keep_photos: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write, verify and publish the next version of an export.

    Args:
        model: Gives logits; from `kresnet.build`.
        contract: Name, labels and preprocessing.
        root: Folder of all exports, as "saved_models".
        samples: Real images, labelled where possible; the export must agree with `model` on them.
        keep_photos: Store small copies of four samples in the export for later checks; else
            drawn images.
        progress: Is told what is going on.

    Raises:
        ExportError: The export does not agree with the model; nothing is published.
        ResourceError: The folder cannot be written.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    contract = contract.model_copy(update={"created": now})
    with new_version(root / contract.name) as version:
        directory = version.directory
        progress("writing the SavedModel")
        write_saved_model(model, contract, directory)
        photos = [sample.path for sample in samples] if keep_photos else []
        goldens = golden.from_photos(photos) if photos else golden.drawn()
        reference = Reference(model, contract, samples, goldens)
        golden.save(goldens, reference.golden_scores, directory, TOLERANCE)
        write_warmup(directory, contract.name, golden.thumbnail(goldens[0]))
        progress("checking the SavedModel")
        check = verify_saved_model(directory, reference, contract)
        contract = contract.model_copy(update={"formats": {"saved_model": check}})
        contract.save(directory)
    return Exported(version.path, contract)
