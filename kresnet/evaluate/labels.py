"""Find the labels that are probably wrong, and the images that belong to no class.

Heads that have not seen an image (`probe.held_out_probabilities`) and the images most similar to it
say what it shows; a label to which they give little is suspicious (confident learning: Northcutt et
al. 2021, arXiv:1911.00068, by the authors' library cleanlab). An image whose features lie far from
those of all others is an outlier (Kuan & Mueller 2022, arXiv:2207.03061, by the same library).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageOps

from kresnet.data import pixels
from kresnet.data.findings import Finding, encodable
from kresnet.data.scan import Index, Row, scan
from kresnet.data.sheet import contact_sheet
from kresnet.errors import DataError, ResourceError
from kresnet.train.hardware import resolve_precision
from kresnet.train.probe import Frozen, held_out_probabilities
from kresnet.zoo import build
from kresnet.zoo.variants import variant_config

COLUMNS: Final = ("path", "label", "suggested", "kind", "exclude", "quality", "typicality")
_OUTLIERS: Final = 0.01  # share of the images that are marked as outliers, if they are far enough
_NEIGHBOURS: Final = 30  # that say what an image shows, at most
_REACH: Final = 0.1  # cosine distance at which a vote has fallen to 1/e
_FAR: Final = 0.5  # an outlier is less typical than this share of the median image


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the others of a data set say of one image.

    Attributes:
        row: The image.
        suggested: Position of the class that it most looks like.
        quality: How well its label fits: the probability that the others give it, 0..1.
        typicality: How near the most similar images are, 0..1; 1 is a copy of another.
        is_suspect: Whether the label is probably wrong.
        is_outlier: Whether the image is far from every class.
    """

    row: Row
    suggested: int
    quality: float
    typicality: float
    is_suspect: bool
    is_outlier: bool

    @property
    def kind(self) -> str:
        """`"label"`, `"outlier"` or nothing."""
        return "label" if self.is_suspect else "outlier" if self.is_outlier else ""


@dataclass(frozen=True)
class Labels:
    """What was found about the labels of a data set.

    Attributes:
        index: The data set.
        ranking: A judgement for every image, the most suspicious label first.
    """

    index: Index
    ranking: tuple[Judgement, ...]

    @property
    def suspects(self) -> tuple[Judgement, ...]:
        """Labels that are probably wrong, the worst first."""
        return tuple(one for one in self.ranking if one.is_suspect)

    @property
    def outliers(self) -> tuple[Judgement, ...]:
        """Images far from every class whose label is not suspicious, the farthest first."""
        only = [one for one in self.ranking if one.is_outlier and not one.is_suspect]
        return tuple(sorted(only, key=lambda one: one.typicality))

    def save(self, path: str | Path) -> None:
        """Write a CSV with a line for each suspect and outlier, and `exclude` set to yes.

        `kresnet train --exclude` leaves out what still says yes: put "no" where a label is right.
        """
        with Path(path).open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for one in (*self.suspects, *self.outliers):
                values = self._values(one)
                writer.writerow([values[column] for column in COLUMNS])

    def as_dict(self) -> dict[str, Any]:
        """Return all judgements, the most suspicious label first, as JSON types."""

        def told(one: Judgement) -> dict[str, Any]:
            values = self._values(one)
            return values | {"path": encodable(values["path"]), "exclude": bool(one.kind)}

        return {
            "images": len(self.ranking),
            "suspects": len(self.suspects),
            "outliers": len(self.outliers),
            "ranking": [told(one) for one in self.ranking],
        }

    def findings(self, table: str | Path) -> tuple[Finding, ...]:
        """Return what a check has to say of them; `table` is the CSV that `save` wrote."""
        found = []
        if self.suspects:
            found.append(
                Finding(
                    "warning",
                    "label",
                    f"{len(self.suspects)} of {len(self.ranking)} labels are probably wrong, the "
                    "worst first",
                    f"Look at them; write no under exclude in {table} where a label is right, and "
                    f"train with --exclude {table}, or correct them.",
                    tuple((one.row.name,) for one in self.suspects),
                )
            )
        if self.outliers:
            found.append(
                Finding(
                    "note",
                    "outlier",
                    f"{len(self.outliers)} images are far from every class, the farthest first",
                    f"Look at them, too; they are in {table}.",
                    tuple((one.row.name,) for one in self.outliers),
                )
            )
        return tuple(found)

    def sheet(self, most: int = 64) -> Image.Image:
        """Draw the first suspects and then outliers, each with its label and the suggested one."""
        shown = (*self.suspects, *self.outliers)[:most]
        if not shown:
            raise DataError("A contact sheet needs something to show. Received: no suspects.")
        classes = self.index.classes
        captions = [
            f"{classes[one.row.label]} > {classes[one.suggested]}?"
            if one.is_suspect
            else f"{classes[one.row.label]}, an outlier"
            for one in shown
        ]
        pictures = [_picture(one.row) for one in shown]
        return contact_sheet(pictures, captions, columns=min(8, len(shown)))

    def _values(self, one: Judgement) -> dict[str, Any]:
        row, classes = one.row, self.index.classes
        return {
            "path": self.index.name_of(row),
            "label": classes[row.label],
            "suggested": classes[one.suggested],
            "kind": one.kind,
            "exclude": "yes" if one.kind else "no",
            "quality": round(one.quality, 4),
            "typicality": round(one.typicality, 4),
        }


def judge_source(
    source: str | Path,
    *,
    variant: str = "resnet50",
    weights: str = "imagenet",
    max_bad: float = 0.05,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Labels:
    """Compare every label of a source with what the other images say; all splits count.

    The network looks at whole images, 9/7 times as large as it was trained on, which shows it
    more: of the labels of five flowers that were changed, it ranks 2 to 3 in 100 more among the
    worst tenth than at its own size.

    Args:
        source: As in `kresnet.data.sources.listing`.
        variant: A pretrained network, of which only the features are used.
        weights: A tag, as "imagenet", or the path of a checkpoint.
        max_bad: As in `scan`.
        progress: Called with what is going on, how much of it is done, and how much there is.

    Raises:
        ConfigError: There is no such variant.
        DataError: The images cannot be used, or a class has fewer than two.
        ResourceError: Weights or cleanlab are missing.
    """
    _cleanlab()  # before minutes are spent
    index = scan(
        source, max_bad=max_bad, progress=lambda done, total: progress("reading", done, total)
    )
    size = round(variant_config(variant).image_size * 9 / 7)
    model = build(variant, input_shape=(size, size), weights=weights)
    preprocessing = replace(model.preprocessing, image_size=size, crop_pct=1.0)
    x, _ = Frozen(model, precision=resolve_precision("auto")).features_of(
        index.rows,
        preprocessing,
        progress=lambda done: progress("looking", done, len(index.rows)),
    )
    progress("judging", 0, 1)
    return judge_labels(index, index.rows, x)


def judge_labels(index: Index, rows: Sequence[Row], x: np.ndarray, *, seed: int = 0) -> Labels:
    """Compare every label with what the other images say.

    Args:
        index: The data set.
        rows: Its images, in the order of `x`.
        x: Features float32 `(n, c)` of a pretrained network.
        seed: Of the folds.

    Raises:
        DataError: A class has fewer than two images.
        ResourceError: cleanlab is not installed.
    """
    filters, outlier, rank = _cleanlab()
    y = np.array([row.label for row in rows])
    counts = np.bincount(y, minlength=len(index.classes))
    if counts.min() < 2:
        raise DataError(
            "Every class needs at least 2 images to be judged by the others. Received: "
            f"class={index.classes[int(counts.argmin())]!r} with {counts.min()}. Add images or "
            "remove the class."
        )
    heads = held_out_probabilities(x, y, seed=seed)
    probabilities = (heads + _votes(x, y)) / 2
    quality = rank.get_label_quality_scores(y, probabilities, method="self_confidence")
    is_suspect = filters.find_label_issues(y, probabilities, n_jobs=1)
    judge = outlier.OutOfDistribution({"k": min(10, len(y) - 1)})
    typicality = judge.fit_score(features=x - x.mean(axis=0), verbose=False)
    far = min(float(np.quantile(typicality, _OUTLIERS)), _FAR * float(np.median(typicality)))
    others = probabilities.copy()
    others[np.arange(len(y)), y] = -1  # what it looks like, if not like its label
    ranking = [
        Judgement(
            row=rows[k],
            suggested=int(others[k].argmax() if is_suspect[k] else probabilities[k].argmax()),
            quality=float(quality[k]),
            typicality=float(typicality[k]),
            is_suspect=bool(is_suspect[k]),
            is_outlier=bool(typicality[k] <= far),
        )
        for k in np.argsort(quality, kind="stable")
    ]
    return Labels(index, tuple(ranking))


def _votes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Let the images most similar to each say what it shows, the nearest with most weight."""
    from sklearn.neighbors import NearestNeighbors

    count = min(max(len(y) // 20, 5), _NEIGHBOURS, len(y) - 1)
    near = NearestNeighbors(n_neighbors=count, metric="cosine").fit(x - x.mean(axis=0))
    distances, found = near.kneighbors()
    votes = np.exp(-distances / _REACH)
    shares = np.stack([(votes * (y[found] == k)).sum(axis=1) for k in range(y.max() + 1)], axis=1)
    return shares / shares.sum(axis=1, keepdims=True)


def _cleanlab() -> tuple[Any, Any, Any]:
    """Import the modules of cleanlab that are needed."""
    try:
        from cleanlab import filter as filters
        from cleanlab import outlier, rank
    except ImportError as error:
        raise ResourceError(
            f"Judging labels needs cleanlab. Received: {error}. "
            "Install it: pip install 'kresnet[labels]'."
        ) from None
    return filters, outlier, rank


def _picture(row: Row) -> np.ndarray:

    image: np.ndarray = pixels.decode(row.read()).numpy()
    small = ImageOps.contain(Image.fromarray(image), (320, 320))
    return np.asarray(small)
