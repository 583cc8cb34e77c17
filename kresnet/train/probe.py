"""The linear probe: frozen features once, then the best linear head on them.

It takes seconds, it is a strong classifier where images are few, and it gives fine-tuning a head
that does not distort the features at the start (Kumar et al. 2022, arXiv:2202.10054).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Literal

import keras
import numpy as np
import tensorflow as tf
from scipy.special import log_softmax, softmax
from threadpoolctl import threadpool_limits

from kresnet.data.items import is_url
from kresnet.data.pipeline import evaluation_batches
from kresnet.data.scan import Row
from kresnet.errors import DataError
from kresnet.machine import cores
from kresnet.train.kept import Kept, contents_of, key_of, network_of
from kresnet.zoo import Preprocessing, fold
from kresnet.zoo.download import kresnet_home
from kresnet.zoo.graph import deep_graph

if TYPE_CHECKING:
    from kresnet.train.recipe import Recipe

Views = Literal["center", "mirror", "crops"]
"""What the probe sees of an image: it as in evaluation, its mirror image too, or three crops."""

KEEPING = "KRESNET_KEEP_FEATURES"
"""Variable of the environment; 0 has features computed each time, as measurements want them."""

STRENGTHS = tuple(10.0**power for power in range(-5, 2))
"""Inverse regularisation strengths to choose from, for features of unit variance."""

_MOST_KEPT = 2**30  # bytes of features on the disk, those of 130,000 images
_SOFT_OPTIONS = {"maxiter": 200, "gtol": 1e-4}  # those of scikit-learn's regression
_COPIES = 2**30  # bytes of features that are copied for regressions at once
_SEVERAL = 5e5  # images x features from which regressions at once are faster than one by one
_FIVE_FOLDS = 2e8  # images x features x classes up to which five folds take seconds


@dataclass(frozen=True, slots=True)
class View:
    """One way to see an image.

    Attributes:
        crop: The crop of the evaluation, or a wider or a narrower one.
        mirror: Whether left and right change places.
    """

    crop: Literal["center", "wide", "narrow"] = "center"
    mirror: bool = False

    def batches(
        self, rows: Sequence[Row], preprocessing: Preprocessing, *, batch_size: int = 32
    ) -> tf.data.Dataset:
        """Return the images `(b, s, s, 3)` as they are seen, and their labels `(b,)`.

        Args:
            rows: The images.
            preprocessing: Of the evaluation.
            batch_size: Images at a time.
        """
        part = preprocessing.crop_pct
        if self.crop == "narrow":
            part *= 0.8
        elif self.crop == "wide":  # between the other two where there is no margin
            part = min(1.0, part * 8 / 7) if part < 0.95 else part * 0.9
        seen = replace(preprocessing, crop_pct=part)
        batches = evaluation_batches(rows, seen, batch_size=batch_size)
        if not self.mirror:
            return batches
        return batches.map(lambda images, labels: (images[:, :, ::-1], labels))


def views_of(views: Views, *, flip: bool) -> tuple[View, ...]:
    """Return the views that the probe learns from; the first is that of the evaluation.

    Args:
        views: Which.
        flip: Whether a mirror image is as good; without it none is a view.
    """
    crops: tuple[Literal["center", "wide", "narrow"], ...] = ("center", "wide", "narrow")
    mirrors = (False, True) if flip and views != "center" else (False,)
    return tuple(
        View(crop, mirror)
        for crop in (crops if views == "crops" else crops[:1])
        for mirror in mirrors
    )


class Frozen:
    """A network up to its pooled features, norms folded.

    Args:
        model: A model with a layer named "pool"; its weights stay as they are while this is used.
        precision: What its training computes in; float16 is too narrow for folded kernels, so
            features are then of float32.
    """

    def __init__(self, model: keras.Model, *, precision: str) -> None:
        self._dtype = "bfloat16" if precision == "bfloat16" else "float32"
        with deep_graph():
            self._backbone = keras.Model(model.inputs, model.get_layer("pool").output)

    def features(
        self, batches: tf.data.Dataset, *, progress: Callable[[int], None] = lambda done: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Run over every image once.

        Args:
            batches: `(images (b, s, s, 3), labels (b,))`.
            progress: Called with the number of images done.

        Returns:
            Features float32 `(n, c)` and labels int32 `(n,)`.
        """
        parts, labels, done = [], [], 0
        for images, y in batches:
            parts.append(self._run(images).numpy())
            labels.append(y.numpy())
            done += len(labels[-1])
            progress(done)
        return np.concatenate(parts), np.concatenate(labels)

    def features_of(
        self,
        rows: Sequence[Row],
        preprocessing: Preprocessing,
        view: View | None = None,
        *,
        progress: Callable[[int], None] = lambda done: None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what `features` does, from an earlier time where nothing has changed since.

        Features are kept below `KRESNET_HOME`, under a name that holds the network and its weights,
        the bytes of the images, in what way and in which type they are seen, the code and the
        machine; see `kept`. Where they cannot be kept, are too many, or images are behind URLs,
        which would be fetched twice, they are computed each time; and always, where
        `KRESNET_KEEP_FEATURES` is 0.

        Args:
            rows: The images.
            preprocessing: Of the evaluation.
            view: In what way they are seen; None is as in evaluation.
            progress: Called with the number of images done.

        Returns:
            Features float32 `(n, c)` and labels int32 `(n,)`.
        """
        view = view or View()
        shape = (len(rows), 4 * self._backbone.output_shape[-1])

        def computed() -> tuple[np.ndarray, np.ndarray]:
            return self.features(view.batches(rows, preprocessing), progress=progress)

        is_far = any(is_url(row.path) for row in rows)
        if is_far or prod(shape) > _MOST_KEPT or os.environ.get(KEEPING) == "0":
            return computed()
        try:
            contents = contents_of(rows)
        except OSError:  # an image is gone, and whoever decodes it says so
            return computed()
        kept = Kept(kresnet_home() / "features", most=_MOST_KEPT)
        name = key_of(
            what="features",
            network=self._network,
            images=contents,
            preprocessing=asdict(preprocessing),
            view=asdict(view),
            dtype=self._dtype,
        )
        if (found := kept.find(name, shape)) is not None:
            progress(len(rows))
            labels = np.array([row.label for row in rows], np.int32)
            return np.array(found).view(np.float32), labels
        x, y = computed()
        with suppress(OSError):
            if contents_of(rows) == contents:  # else the name is of what they were
                with kept.keeping(name) as keep:
                    keep(x)
        return x, y

    @cached_property
    def _run(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Images to features; folded when it is first needed, for all views."""
        backbone = fold(self._backbone, dtype=self._dtype)
        return tf.function(lambda images: backbone(images, training=False), reduce_retracing=True)

    @cached_property
    def _network(self) -> str:
        return network_of(self._backbone)


def fit_head(
    x: np.ndarray,
    y: np.ndarray,
    *,
    seed: int,
    strength: float | None = None,
    smoothing: float = 0.0,
    views: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit a multinomial logistic regression; see `Heads`."""
    return Heads(x, y, views=views).fit(seed=seed, strength=strength, smoothing=smoothing)


def fit_probe(
    model: keras.Model,
    recipe: Recipe,
    rows: Sequence[Row],
    preprocessing: Preprocessing,
    *,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Fit the head that a recipe's training starts from.

    Args:
        model: The recipe's network.
        recipe: Says what the probe sees of each image, and how it is regularised.
        rows: The training images.
        preprocessing: Of the evaluation.
        progress: Called with the number of images that are done and of all, each once a view.

    Returns:
        Kernel and bias, as `Heads.fit`.
    """
    views = views_of(recipe.probe_views, flip=recipe.flip)
    frozen = Frozen(model, precision=recipe.precision)

    def seen(number: int, view: View) -> tuple[np.ndarray, np.ndarray]:
        return frozen.features_of(
            rows,
            preprocessing,
            view,
            progress=lambda done: progress(number * len(rows) + done, len(views) * len(rows)),
        )

    parts = [seen(number, view) for number, view in enumerate(views)]
    x, y = (np.concatenate(same) for same in zip(*parts, strict=True))
    return fit_head(
        x,
        y,
        seed=recipe.seed,
        strength=recipe.probe_strength,
        smoothing=recipe.probe_smoothing,
        views=len(views),
    )


class Heads:
    """Multinomial logistic regressions on the same features.

    Args:
        x: Features float32 `(views * n, c)`: all images as in evaluation, then all in another view.
        y: Labels `(views * n,)`, every class present.
        views: How many there are of each image; together they count as one.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, *, views: int = 1) -> None:
        self._x, self._y, self._views = x, y, views
        self._z, self._rotation, self._mean, self._scale = _centred(x)

    def strength(self, *, seed: int) -> float:
        """Return the strength of the best cross-validated likelihood; the seed is of the folds.

        It is that of the first view alone: with all of them, an image would be in two folds.
        """
        n = len(self._y) // self._views
        z = self._z if self._views == 1 else _centred(self._x[:n])[0]
        return _choose_strength(z, self._y[:n], seed=seed)

    def fit(
        self, *, seed: int, strength: float | None = None, smoothing: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fit one.

        Args:
            seed: Of the folds.
            strength: Inverse strength of the regularisation against the likelihood of an image, for
                features of unit variance; None is chosen by cross-validated likelihood.
            smoothing: Share of each label that is spread over all classes, in 0..1.

        Returns:
            Kernel float32 `(c, classes)` and bias float32 `(classes,)` of a dense layer that gives
            logits for the features as they are.
        """
        if strength is None:
            strength = self.strength(seed=seed)
        strength /= self._views
        if smoothing:
            coef, intercept = _regress_soft(self._z, self._y, strength, smoothing)
        else:
            coef, intercept = _regress(self._z, self._y, strength)
        coef = (coef if self._rotation is None else coef @ self._rotation) / self._scale
        return coef.T.astype(np.float32), (intercept - coef @ self._mean).astype(np.float32)


def held_out_probabilities(
    x: np.ndarray, y: np.ndarray, *, seed: int, folds: int = 10, repeats: int = 3
) -> np.ndarray:
    """Let heads that have not seen an image say what it shows.

    Args:
        x: Features float32 `(n, c)`.
        y: Labels `(n,)`; every class is present at least twice.
        seed: Of the folds.
        folds: How many heads are fitted, each without one part of the images; fewer where a class
            has fewer images.
        repeats: How often, with other folds, to be averaged; once where it would take minutes.

    Returns:
        Probabilities float64 `(n, classes)`, rows sum to 1.

    Raises:
        DataError: A class has fewer than two images.
    """
    from sklearn.model_selection import StratifiedKFold

    least = int(np.bincount(y).min())
    if least < 2:
        raise DataError(
            "Every class needs at least 2 images to hold one out. Received: a class with "
            f"{least}. Add images or remove the class."
        )
    z, *_ = _centred(x)
    strength = _choose_strength(z, y, seed=seed)
    if z.size * (int(y.max()) + 1) > _FIVE_FOLDS:
        folds, repeats = min(folds, 5), 1
    parts = [
        part
        for repeat in range(repeats)
        for part in StratifiedKFold(
            min(folds, least), shuffle=True, random_state=seed + repeat
        ).split(z, y)
    ]
    probabilities = np.zeros((len(y), int(y.max()) + 1))
    heads = _regressions(z, y, [(fit, strength) for fit, _ in parts])
    for (_, held), (coef, intercept) in zip(parts, heads, strict=True):
        probabilities[held] += softmax(z[held] @ coef.T + intercept, axis=1) / repeats
    return probabilities


def _centred(x: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, float]:
    """Return features of mean 0 and mean variance 1, and how to get back."""
    mean, scale = x.mean(axis=0), float(np.sqrt(x.var(axis=0).mean())) or 1.0
    z = (x - mean) / scale
    if len(z) >= z.shape[1]:
        return z, None, mean, scale
    # Fewer images than features: the solution lies in their span, so solve it there.
    left, length, rotation = np.linalg.svd(z, full_matrices=False)
    return left * length, rotation, mean, scale


def _choose_strength(z: np.ndarray, y: np.ndarray, *, seed: int) -> float:
    """Return the strength of the best likelihood on held-out folds."""
    from sklearn.model_selection import StratifiedKFold

    counts = np.bincount(y)
    several = np.flatnonzero(counts[y] >= 2)  # the only image of a class cannot be held out
    folds = min(5, int(counts[counts >= 2].min(initial=5)))
    if len(several) < folds:
        return STRENGTHS[-2]
    by_fold = StratifiedKFold(folds, shuffle=True, random_state=seed).split(several, y[several])
    splits = [(np.setdiff1d(np.arange(len(y)), several[k]), several[k]) for _, k in by_fold]
    if z.size * len(counts) > _FIVE_FOLDS:
        splits = splits[:1]
    tried = [(strength, *split) for strength in STRENGTHS for split in splits]
    heads = _regressions(z, y, [(fit, strength) for strength, fit, _ in tried])
    losses = [
        _loss(head, z[held], y[held]) for head, (_, _, held) in zip(heads, tried, strict=True)
    ]
    means = np.reshape(losses, (len(STRENGTHS), -1)).mean(axis=1)
    return STRENGTHS[int(np.argmin(means))]


def _loss(head: tuple[np.ndarray, np.ndarray], z: np.ndarray, y: np.ndarray) -> float:
    coef, intercept = head
    log_p = log_softmax(z @ coef.T + intercept, axis=1)
    return float(-log_p[np.arange(len(y)), y].mean())


def _regressions(
    z: np.ndarray, y: np.ndarray, tasks: Sequence[tuple[np.ndarray | slice, float]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return what `_regress` does for each task: places of `z` and `y`, and a strength.

    Small products gain nothing by threads, and lose ten times where others use the cores, too. So
    each is computed by one thread, and several regressions are at once; the smallest lose by that.
    """
    from sklearn.exceptions import ConvergenceWarning

    small = z.size * (int(y.max()) + 1) < _FIVE_FOLDS
    several = small and z.size > _SEVERAL
    at_once = min(cores(), max(1, _COPIES // z.nbytes)) if several else 1
    with (
        warnings.catch_warnings(),
        threadpool_limits(1 if small else None),
        ThreadPoolExecutor(at_once) as pool,
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest strengths may not end
        return list(pool.map(lambda task: _fit(z[task[0]], y[task[0]], task[1]), tasks))


def _regress(z: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Return coefficients `(classes, c)` and intercepts `(classes,)`."""
    return _regressions(z, y, [(slice(None), strength)])[0]


def _fit(z: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=200).fit(z, y)
    if len(model.coef_) > 1:
        return model.coef_, model.intercept_
    # Two classes come as one logit; as two they are its halves.
    return (
        np.concatenate([-model.coef_, model.coef_]) / 2,
        np.concatenate([-model.intercept_, model.intercept_]) / 2,
    )


def _regress_soft(
    z: np.ndarray, y: np.ndarray, strength: float, smoothing: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `_regress` does, for labels that are spread over all classes in part.

    It minimises what scikit-learn does, the sum of the cross-entropies by `strength` plus half of
    the squared coefficients, which takes no soft labels.
    """
    from scipy.optimize import minimize

    classes = int(y.max()) + 1
    z = z.astype(np.float64)
    ridge = 2.0 if classes == 2 else 1.0  # two classes are one logit there, and here its halves
    scale = strength * len(z)  # so that the tolerance means the same at every strength
    targets = (1.0 - smoothing) * np.eye(classes)[y] + smoothing / classes

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(classes, -1)
        coef, intercept = weights[:, :-1], weights[:, -1]
        log_p = log_softmax(z @ coef.T + intercept, axis=1)
        error = np.exp(log_p) - targets
        gradient = np.column_stack(
            [strength * error.T @ z + ridge * coef, strength * error.sum(axis=0)]
        )
        value = -strength * float((targets * log_p).sum()) + ridge / 2 * float((coef**2).sum())
        return value / scale, gradient.ravel() / scale

    threads = 1 if z.size * classes < _FIVE_FOLDS else None
    with threadpool_limits(threads):
        start = np.zeros(classes * (z.shape[1] + 1))
        found = minimize(loss, start, jac=True, method="L-BFGS-B", options=_SOFT_OPTIONS)
    weights = found.x.reshape(classes, -1)
    return weights[:, :-1], weights[:, -1]
