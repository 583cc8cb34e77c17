"""What comes after a job: an export scored on other images, a run's report written again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kresnet.console import Console
from kresnet.data.arrays import channels
from kresnet.data.scan import Row, scan
from kresnet.errors import DataError
from kresnet.evaluate.metrics import Evaluation, evaluation
from kresnet.evaluate.report import Published, write_report
from kresnet.export.versions import latest_version
from kresnet.serve.engine import Answer, Engine
from kresnet.train.run import Run
from kresnet.workflow.exporting import short
from kresnet.workflow.images import ARRAYS

_ANSWERED = 32  # images in memory while an export is scored


def evaluate_export(
    model: str | Path,
    data: str | Path,
    *,
    mirror: bool = False,
    console: Console | None = None,
) -> Evaluation:
    """Score an export on labelled images, every image once.

    Args:
        model: An export, `NAME` or `NAME/VERSION`.
        data: As for `fit`; its splits, if any, are taken together. Classes are matched by name.
        mirror: Average the scores with those of the mirror images.
        console: Where to report; None reports to standard error.

    Raises:
        ConfigError: `mirror`, and the export's training did not mirror.
        DataError: The images cannot be used, or have a class that the export does not know.
        ExportError: There is no readable export.
    """
    console = console or Console()
    engine = Engine(latest_version(Path(model)))
    if mirror:
        engine.check_mirrors()
    classes = engine.contract.classes
    index = scan(
        data, progress=lambda done, total: console.status(f"reading {done} / {total} images")
    )
    if channels(index.rows) is not None:
        raise DataError(f"An export takes photos. Received: source={str(data)!r}, and {ARRAYS}.")
    unknown = [name for name in index.classes if name not in classes]
    if unknown:
        raise DataError(
            f"Every class must be one of the export's {len(classes)}. Received: "
            f"{', '.join(map(repr, unknown[:3]))} in {data}. Rename or remove its folder."
        )
    answers: list[Answer | None] = []
    for start in range(0, len(index.rows), _ANSWERED):
        images = [_contents(row) for row in index.rows[start : start + _ANSWERED]]
        answers += engine.answer(images, mirror=mirror)
        console.status(f"scoring {len(answers)} / {len(index.rows)} images")
    probabilities = np.array(
        [[a.scores[name] for name in classes] for a in answers if a is not None]
    )
    labels = np.array(
        [
            classes.index(index.classes[row.label])
            for row, a in zip(index.rows, answers, strict=True)
            if a is not None
        ]
    )
    return evaluation(probabilities, labels, classes)


def report_run(path: str | Path, *, console: Console | None = None) -> Path:
    """Write the report of a finished run again: one HTML file that shows all there is to know.

    Args:
        path: Directory of the run.
        console: Where to report; None reports to standard error.

    Returns:
        The file, `report.html` in the run.

    Raises:
        ConfigError: There is no finished run at `path`.
        ExportError: Its export cannot be loaded.
    """
    run = Run.open(path)
    (console or Console()).status("drawing the report")
    export = (run.info.get("result") or {}).get("export")
    if export is None:
        return write_report(run, None)
    # The result may tell a path relative to where training ran.
    home = Path(run.info["exports"]) / run.info["name"]
    version = home / Path(export).name
    if not version.is_dir():
        return write_report(run, None)
    engine = Engine(version)
    checks = {name: str(check) for name, check in engine.contract.formats.items()}
    return write_report(run, Published(str(short(version)), checks, engine.heatmaps))


def _contents(row: Row) -> bytes:
    try:
        return row.read()
    except OSError as error:
        raise DataError(
            f"Images must stay where they are. Received: {row.name!r} ({error.strerror}). Put it "
            "back."
        ) from None
