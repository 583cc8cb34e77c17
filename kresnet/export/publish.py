"""From a trained model to a published version: written, verified, and only then visible."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
import tensorflow as tf

from kresnet.data import pixels
from kresnet.errors import ExportError
from kresnet.export import golden
from kresnet.export.contract import TOLERANCE, TOLERANCES, Contract, FormatCheck
from kresnet.export.formats import FORMATS, Format
from kresnet.export.reference import Reference, Sample, prepared_pixels
from kresnet.export.saved_model import check_labels, write_saved_model
from kresnet.export.verify import make_check, verify_file, verify_saved_model
from kresnet.export.versions import new_version
from kresnet.export.warmup import write_warmup
from kresnet.zoo import fold, with_dtype

MAX_ACCURACY_LOSS: Final = 0.5
"""Percentage points of accuracy that fewer bits may cost, unless the user says otherwise."""


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
    formats: Sequence[str] = (),
    int8: bool = False,
    calibration: Sequence[str] = (),
    max_accuracy_loss: float = MAX_ACCURACY_LOSS,
    keep_photos: bool = True,
    progress: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write, verify and publish the next version of an export.

    Args:
        model: Gives logits; from `kresnet.build`.
        contract: Name, labels and preprocessing.
        root: Folder of all exports, as "saved_models".
        samples: Real images, labelled where possible; the export must agree with `model` on them.
        formats: Keys of `FORMATS`; the SavedModel is always written.
        int8: Write the 8-bit files of these formats too, where they lose little accuracy.
        calibration: Paths of training images that set the ranges of the 8-bit files, and of a
            SavedModel in int8.
        max_accuracy_loss: What fewer bits, 8 or those of bfloat16, may cost on the labelled
            samples, in percentage points, or one image where that is more and it is not 0.
        keep_photos: Store small copies of four samples in the export for later checks; else
            drawn images.
        progress: Is told what is going on.

    Raises:
        ExportError: The export does not agree with the model; nothing is published.
        ResourceError: The folder cannot be written.
    """
    check_labels(contract.classes)  # before what takes long
    now = datetime.now(UTC).isoformat(timespec="seconds")
    contract = contract.model_copy(update={"created": now})
    with new_version(root / contract.name) as version:
        directory = version.directory
        photos = [sample.path for sample in samples] if keep_photos else []
        goldens = golden.from_photos(photos) if photos else golden.drawn()
        reference = Reference(with_dtype(model, "float32"), contract, samples, goldens)
        files = Files(model, contract, directory, reference, tuple(calibration), progress)
        own = files.in_integers(max_accuracy_loss) if contract.precision == "int8" else None
        progress("writing the SavedModel")
        write_saved_model(model, contract, directory, network=own and own.model)
        golden.save(
            goldens, (own or reference).golden_scores, directory, TOLERANCES[contract.precision]
        )
        write_warmup(directory, contract.name, golden.thumbnail(goldens[0]))
        progress("checking the SavedModel")
        checks = {"saved_model": verify_saved_model(directory, reference, contract, own)}
        if contract.precision != "float32":
            _check_loss(contract.precision, checks["saved_model"], max_accuracy_loss)
        for name in formats:
            files.add(name)
        for name in formats if int8 else ():
            files.add_int8(name, max_accuracy_loss)
        contract = contract.model_copy(update={"formats": checks | files.checks})
        contract.save(directory)
    return Exported(version.path, contract, tuple(files.remarks))


def _check_loss(precision: str, check: FormatCheck, bound: float) -> None:
    if check.loses_more_than(bound):
        of = "accuracy" if check.accuracy is not None else "agreement"
        raise ExportError(
            f"A SavedModel in {precision} may lose {bound:g} points of {of}. Received: "
            f"{check.points_lost:.1f}, on {check.images} images. It was not published; allow more "
            "with --max-accuracy-loss, or export in float32."
        )


@dataclass
class Files:
    """Writes and checks the files beside a SavedModel."""

    model: keras.Model
    contract: Contract
    directory: Path
    reference: Reference
    calibration: tuple[str, ...]
    progress: Callable[[str], None]
    checks: dict[str, FormatCheck] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Write one format and hold it to the Keras model."""
        kind = FORMATS[name]
        path = self.directory / kind.file
        self.progress(f"writing {kind.file}")
        if name == "onnx":
            self._write_onnx(self._network, path)
        elif name == "openvino":
            self._write_openvino(path)
        elif name == "litert":
            from kresnet.export.litert import write_litert

            write_litert(self._folded, self.contract, path)
        else:
            from kresnet.export.keras_file import write_keras

            write_keras(self.model, self.contract, path)
        self.progress(f"checking {kind.file}")
        self.checks[kind.file] = self._verified(kind, path, TOLERANCE)

    def add_int8(self, name: str, bound: float) -> None:
        """Write one format in 8 bits and keep it if it loses no more than `bound` points."""
        kind = FORMATS[name]
        if not kind.int8_file:
            return
        if not self.calibration:
            self.remarks.append(f"{kind.int8_file} needs training images to set its ranges by")
            return
        path = self.directory / kind.int8_file
        tried = []
        for calibration in self._write_int8(name, path):
            self.progress(f"checking {kind.int8_file}, {calibration}")
            check = self._verified(kind, path, None)
            if check.accuracy_loss is None:
                tried.append("no labelled images to measure its accuracy on")
                break
            if not check.loses_more_than(bound):
                self.checks[kind.int8_file] = check
                return
            tried.append(f"{calibration} loses {check.accuracy_loss:.1f} points")
        path.unlink()
        self.remarks.append(
            f"{kind.int8_file} was not kept: {', '.join(tried)} of accuracy on "
            f"{len(self.reference.samples)} images, and the bound is {bound:g}"
        )

    def _write_int8(self, name: str, path: Path) -> Iterator[str]:
        """Write the 8-bit file in one way after the other; gives the name of each."""
        if name == "onnx":
            from kresnet.export.onnx import network
            from kresnet.export.quantize import CALIBRATIONS, quantized

            whole = network(self._rounded, self.contract)
            for calibration in CALIBRATIONS:
                self.progress(f"writing {path.name}, {calibration}")
                self._write_onnx(quantized(whole, self._prepared, calibration), path)
                yield calibration
        else:
            from kresnet.export.litert import write_litert

            decoded = (pixels.decode(tf.io.read_file(file)).numpy() for file in self.calibration)
            images = [prepared_pixels(image, self.contract) for image in decoded]
            self.progress(f"writing {path.name}")
            write_litert(self._rounded, self.contract, path, calibration=images)
            yield "MinMax"

    def _write_onnx(self, network: Any, path: Path) -> None:
        from kresnet.export.onnx import preparation, write_onnx

        write_onnx(preparation(self.contract), network, self.contract, path)

    def _write_openvino(self, path: Path) -> None:
        from kresnet.export.openvino import write_openvino

        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "model.onnx"
            self._write_onnx(self._network, source)
            write_openvino(source, path)

    def _verified(self, kind: Format, path: Path, tolerance: float | None) -> FormatCheck:
        parts = path.parent.iterdir() if path.parent != self.directory else [path]
        size = sum(part.stat().st_size for part in parts)
        return verify_file(
            kind.runtime, path, kind.input, self.reference, size=size, tolerance=tolerance
        )

    def in_integers(self, bound: float) -> Reference:
        """Return what a SavedModel in int8 computes, and says of the same images.

        It is the first to lose no more than `bound` points, or the last.
        """
        from kresnet.export.integers import SHARES, in_integers

        if not self.calibration:
            raise ExportError(
                "8 bits need training images to set their ranges by. Received: none. Export in "
                "float32."
            )
        for share in SHARES:
            self.progress(f"computing in 8 bits, ranges of {share:.0%} of the training images")
            network = in_integers(self._rounded, self._prepared, share)
            own = Reference(network, self.contract, self.reference.samples, self.reference.goldens)
            said, expected = own.scores("pixels"), self.reference.scores("pixels")
            if not make_check(0, said, expected, self.reference).loses_more_than(bound):
                break
        return own

    @cached_property
    def _folded(self) -> keras.Model:
        return fold(self.model, dtype="float32", portable=False)

    @cached_property
    def _prepared(self) -> list[np.ndarray]:
        """The calibration images as the network sees them."""
        return [
            pixels.prepare(tf.io.read_file(file), self.contract.preprocessing).numpy()
            for file in self.calibration
        ]

    @cached_property
    def _rounded(self) -> keras.Model:
        from kresnet.export.rounding import rounded

        self.progress("rounding the weights to 8 bits")
        return rounded(self._folded, self._prepared)

    @cached_property
    def _network(self) -> Any:
        from kresnet.export.onnx import network

        return network(self._folded, self.contract)
