"""The images of a job: read and divided, told of, and brought back."""

from __future__ import annotations

from pathlib import Path

from kresnet.console import Console
from kresnet.data.items import WHOLE, exists, is_url
from kresnet.data.prepare import prepare
from kresnet.data.scan import Index
from kresnet.data.sources import listing
from kresnet.train.recipe import Recipe
from kresnet.train.run import Run

ARRAYS = "images that are more than 8-bit RGB cannot be exported"  # ends a message


def prepared(data: str | Path, recipe: Recipe, console: Console) -> Index:
    """Scan and divide the images as a recipe says."""
    return prepare(
        data,
        val=recipe.val,
        test=recipe.test,
        seed=recipe.seed,
        group_by=recipe.group_by,
        keep_split=recipe.keep_split,
        exclude=recipe.exclude,
        max_bad=recipe.max_bad,
        progress=console.progress,
        tell=lambda text: console.line("data", text),
    )


def tell_data(console: Console, index: Index, where: str) -> None:
    """Report how many images there are of what; `where` says how to see what was left out."""
    sizes = [sum(row.label == k for row in index.rows) for k in range(len(index.classes))]
    bad = f"; {len(index.problems)} files or folders left out, {where}" if index.problems else ""
    console.line(
        "data",
        f"{len(index.rows)} images, {len(index.classes)} classes of {min(sizes)} to {max(sizes)}"
        f"{bad}",
    )
    parts = " / ".join(
        f"{name} {len(rows)}" for name in ("train", "val", "test") if (rows := index.select(name))
    )
    console.line("split", parts)


def restore(run: Run) -> None:
    """Unpack the run's images again where they have been removed from the cache."""
    parts = {row.path for row in run.index.rows if row.size != WHOLE and not is_url(row.path)}
    if not all(map(exists, parts)):
        listing(run.recipe.data)
