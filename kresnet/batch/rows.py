"""The rows of the answers: what is written of each image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kresnet.errors import ResourceError

if TYPE_CHECKING:
    from kresnet.serve.answer import Answer


def arrow() -> tuple[Any, Any]:
    """Import pyarrow and its Parquet.

    Raises:
        ResourceError: It is not installed; the message says how to.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ResourceError(
            f"Parquet is written by pyarrow. Received: {error.name!r} missing. Install it: "
            "pip install 'kresnet[parquet]'"
        ) from None
    return pyarrow, pyarrow.parquet


def schema() -> Any:
    """Return the columns of the output.

    `label` and `score` are the best class and its probability; `labels` and `scores` the best
    classes, best first. All of them are null where `ok` is false, and `error` says why.
    """
    pa, _ = arrow()
    return pa.schema(
        [
            ("path", pa.string()),
            ("label", pa.string()),
            ("score", pa.float32()),
            ("labels", pa.list_(pa.string())),
            ("scores", pa.list_(pa.float32())),
            ("ok", pa.bool_()),
            ("abstain", pa.bool_()),
            ("error", pa.string()),
        ]
    )


def as_parquet(names: Sequence[str], found: Sequence[Answer | str], top: int) -> bytes:
    """Return rows as the bytes of a Parquet file.

    Args:
        names: Of the images.
        found: For each the answer, or why there is none.
        top: Classes a row, best first; 0 is all.
    """
    pa, parquet = arrow()
    rows = [_row(name, one, top) for name, one in zip(names, found, strict=True)]
    stream = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, schema()), stream)
    return stream.getvalue()


def _row(name: str, found: Answer | str, top: int) -> dict[str, Any]:
    # A file name may be bytes that are not UTF-8, which Parquet's texts are.
    path = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    if isinstance(found, str):
        return {"path": path, "ok": False, "abstain": True, "error": found}
    best = sorted(found.scores.items(), key=lambda item: -item[1])[: top or None]
    return {
        "path": path,
        "label": found.label,
        "score": found.score,
        "labels": [label for label, _ in best],
        "scores": [score for _, score in best],
        "ok": True,
        "abstain": found.abstain,
        "error": None,
    }
