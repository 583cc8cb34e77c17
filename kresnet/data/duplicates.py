"""Find images that are there twice: the same file, the same pixels, or the same picture.

A near duplicate is the same picture after recompression, resizing, a change of brightness or
contrast, mirroring, or cropping by up to 5 % at each side. It is found in two steps. Low
frequencies of the thumbnails, compared by matrix products, propose pairs; then one thumbnail is
shifted and scaled onto the other (Lucas & Kanade 1981, with gain and offset), and the pair is kept
if what is left correlates, without the lowest frequencies, which many pictures share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from kresnet.data.look import SIDE, area_weights, thumbnails
from kresnet.machine import cores

Kind = Literal["same file", "same pixels", "near"]

_MIN_SIDE: Final = 32  # of the image, in pixels; smaller ones have too little to tell them apart
_MIN_CONTRAST: Final = 4.0  # standard deviation of the thumbnail, in grey levels
_FREQUENCIES: Final = 8  # of the cosine transform, down and across
_MARGIN: Final = 0.04  # of the second descriptor, which meets the first one of a cropped copy
_ALIKE: Final = 0.78  # similarity of descriptors from which on a pair is looked at
_COARSELY: Final = 0.5  # correlation that a pair must have at half the size
_NEAR: Final = 0.85  # correlation of near duplicates
_ROWS: Final = 256
_COLUMNS: Final = 512  # three such blocks of similarities stay in the processor's cache
_BATCH: Final = 256  # pairs aligned together
_DESCRIBED: Final = 1024  # thumbnails that are float32 at a time
_MOST: Final = 64  # pairs looked at for one image: a film has thousands of frames that are alike


class Seen(Protocol):
    """What is asked of a row: `kresnet.data.scan.Row` and `kresnet.data.examine.Facts` have it."""

    @property
    def height(self) -> int: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    @property
    def look(self) -> bytes: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images that are one.

    Attributes:
        first: Position of the one that comes first.
        second: Position of the other.
        kind: "same file" where the bytes are equal, "same pixels" where only the decoded pixels
            are, "near" where the picture is the same.
    """

    first: int
    second: int
    kind: Kind


def find(
    rows: Sequence[Seen], progress: Callable[[int, int], None] | None = None
) -> tuple[Pair, ...]:
    """Find the images that are there more than once.

    Images with the same bytes, or the same pixels, are each paired with the first of them, which
    alone is compared with others. Images below 32 pixels at the shorter side, of hardly any
    contrast, or without a `look` have no near duplicates.

    Args:
        rows: What `examine` tells of each image.
        progress: Called now and then with the number of images compared and of all.

    Returns:
        The pairs, ordered by position.
    """
    pairs: list[Pair] = []
    firsts: dict[tuple[object, ...], int] = {}
    different: list[int] = []
    for number, row in enumerate(rows):
        first = firsts.setdefault((row.digest,), number)
        if first != number:
            pairs.append(Pair(first, number, "same file"))
            continue
        first = firsts.setdefault((row.look, row.height, row.width), number) if row.look else number
        if first != number:
            pairs.append(Pair(first, number, "same pixels"))
            continue
        different.append(number)
    telling = [
        k for k in different if rows[k].look and min(rows[k].height, rows[k].width) >= _MIN_SIDE
    ]
    small = thumbnails([rows[k].look for k in telling])
    has_contrast = np.array([t.std() >= _MIN_CONTRAST for t in small], bool)
    telling = [k for k, kept in zip(telling, has_contrast, strict=True) if kept]
    small = small[has_contrast]
    pairs += [Pair(telling[i], telling[j], "near") for i, j in _near(small, progress)]
    return tuple(sorted(pairs, key=lambda pair: (pair.first, pair.second)))


def groups(count: int, pairs: Iterable[Pair]) -> list[int]:
    """Join pairs into groups.

    Args:
        count: Number of images.
        pairs: From `find`.

    Returns:
        For each image, the lowest position in its group; its own if it is alone.
    """
    parents = list(range(count))

    def top(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    for pair in pairs:
        low, high = sorted((top(pair.first), top(pair.second)))
        parents[high] = low
    return [top(number) for number in range(count)]


def _near(small: np.ndarray, progress: Callable[[int, int], None] | None) -> list[tuple[int, int]]:
    """Return the pairs of thumbnails `(n, SIDE, SIDE)` that show the same picture."""
    whole, inner = _Descriptors.of(small, 0.0), _Descriptors.of(small, _MARGIN)
    # The whole of a cropped image is the inner part of the full one.
    ways = (
        (whole, whole, 1.0),
        (whole, inner, 1 - 2 * _MARGIN),
        (inner, whole, 1 / (1 - 2 * _MARGIN)),
    )
    found: list[tuple[int, int]] = []
    starts = range(0, len(small), _ROWS)
    # A product of blocks is too small to be shared: its threads would wait for each other at every
    # one, and for long where others use the cores. So each thread has rows and products of its own.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(cores()) as pool:
        for start, pairs in zip(
            starts, pool.map(partial(_of_rows, small, ways), starts), strict=True
        ):
            found += pairs
            if progress:
                progress(min(start + _ROWS, len(small)), len(small))
    return found


def _of_rows(small: np.ndarray, ways: Sequence[Way], start: int) -> list[tuple[int, int]]:
    """Return the pairs of `_ROWS` thumbnails from `start` on with those that come later."""
    found: list[tuple[int, int]] = []
    first, second = _alike(ways, start, min(start + _ROWS, len(small)), len(small))
    for k in range(0, len(first), _BATCH):
        i, j = first[k : k + _BATCH], second[k : k + _BATCH]
        scores = np.stack([a.similarity(b, i, j) for a, b, _ in ways])
        best = np.abs(scores).argmax(0)
        scale = np.array([scale for _, _, scale in ways], np.float32)[best]
        is_mirrored = scores[best, np.arange(len(i))] < 0
        other = np.where(is_mirrored[:, np.newaxis, np.newaxis], small[j][:, :, ::-1], small[j])
        kept = _correlation(small[i], other, scale) >= _NEAR
        found += zip(i[kept].tolist(), j[kept].tolist(), strict=True)
    return found


def _alike(ways: Sequence[Way], start: int, end: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs `(i, j)`, i in start..end and i < j, whose descriptors are alike."""
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for column in range(start, count, _COLUMNS):
        columns = slice(column, min(column + _COLUMNS, count))
        best = None
        for a, b, _ in ways:
            odd = a.odd[start:end] @ b.odd[columns].T
            np.abs(odd, out=odd)  # mirroring turns the sign of this part, and of this part alone
            odd += a.even[start:end] @ b.even[columns].T
            best = odd if best is None else np.maximum(best, odd, out=best)
        if best is None or best.max() < _ALIKE:
            continue
        i, j = np.nonzero(best >= _ALIKE)
        later = i + start < j + column
        i, j = i[later], j[later]
        found.append((i + start, j + column, best[i, j]))
    if not found:
        return np.zeros(0, int), np.zeros(0, int)
    i, j, scores = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((-scores, i))
    i, j = i[order], j[order]
    rank = np.arange(len(i)) - np.searchsorted(i, i)
    return i[rank < _MOST], j[rank < _MOST]


@dataclass(frozen=True, slots=True)
class _Descriptors:
    """Low frequencies of thumbnails, of length one together.

    Attributes:
        even: float32 `(n, ...)`, what mirroring left to right leaves as it is.
        odd: float32 `(n, ...)`, what it turns into its negative.
    """

    even: np.ndarray
    odd: np.ndarray

    @classmethod
    def of(cls, small: np.ndarray, margin: float) -> _Descriptors:
        places = np.arange(_FREQUENCIES)
        cosines = np.cos(np.pi * np.outer(places, np.arange(SIDE) + 0.5) / SIDE)
        cosines[0] /= np.sqrt(2)
        basis = cosines.astype(np.float32) @ area_weights(SIDE, SIDE, margin)
        # In parts, since all thumbnails in float32 take four times their own memory.
        spectrum = np.empty((len(small), _FREQUENCIES, _FREQUENCIES), np.float32)
        for k in range(0, len(small), _DESCRIBED):
            part = slice(k, k + _DESCRIBED)
            spectrum[part] = basis @ small[part].astype(np.float32) @ basis.T
        radius = np.hypot(*np.mgrid[:_FREQUENCIES, :_FREQUENCIES])
        used = (radius > 0) & (radius < _FREQUENCIES)
        # The amplitude of photos falls with frequency: this makes all of them count alike.
        flat = (spectrum * radius.astype(np.float32))[:, used]
        flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
        is_odd = np.broadcast_to(places % 2 == 1, used.shape)[used]
        return cls(np.ascontiguousarray(flat[:, ~is_odd]), np.ascontiguousarray(flat[:, is_odd]))

    def similarity(self, other: _Descriptors, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Return the similarity of pairs, `(n,)`; negative where the mirror image is more alike."""
        even = (self.even[i] * other.even[j]).sum(1)
        odd = (self.odd[i] * other.odd[j]).sum(1)
        return np.where(odd < 0, -np.abs(even - odd), np.abs(even + odd))


Way = tuple[_Descriptors, _Descriptors, float]
"""Descriptors of the one image and of the other, and the scale at which they meet."""


def _correlation(one: np.ndarray, other: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Align thumbnails `(n, SIDE, SIDE)` and return how well they correlate, `(n,)` in -1..1."""
    one, other = one.astype(np.float32), other.astype(np.float32)
    place = np.zeros(
        (len(one), 4), np.float32
    )  # scale down, shift down, scale across, shift across
    place[:, 0] = place[:, 2] = scale
    half_one, half_other = _halved(one), _halved(other)
    place = _aligned(half_one, half_other, place, steps=5)
    correlation = _compared(half_one, half_other, place, wide=3)
    promising = correlation >= _COARSELY
    if promising.any():
        one, other = _blurred(one[promising], 1), _blurred(other[promising], 1)
        finer = place[promising] * np.array([1, 2, 1, 2], np.float32)
        finer = _aligned(one, other, finer, steps=3)
        correlation[promising] = _compared(one, other, finer, wide=4)
    return correlation


def _aligned(one: np.ndarray, other: np.ndarray, place: np.ndarray, *, steps: int) -> np.ndarray:
    """Improve `place`, `(n, 4)`, by Gauss-Newton steps, each solved with a gain and an offset."""
    count, side, _ = one.shape
    reach = (side - 1) / 2
    unit = ((np.arange(side) - reach) / reach).astype(np.float32)
    most = np.array([0.06, side / 20, 0.06, side / 20])
    for _ in range(steps):
        moved, inside = _moved(other, place)
        down, across = np.zeros_like(moved), np.zeros_like(moved)
        down[:, 1:-1] = (moved[:, 2:] - moved[:, :-2]) / 2
        across[:, :, 1:-1] = (moved[:, :, 2:] - moved[:, :, :-2]) / 2
        slopes = np.stack(
            [down * unit[:, np.newaxis], down, across * unit, across, moved, np.ones_like(moved)], 1
        )
        slopes = (slopes * inside[:, np.newaxis]).reshape(count, 6, -1)
        normal = (slopes @ slopes.transpose(0, 2, 1)).astype(float)
        damping = 1e-3 * np.diagonal(normal, axis1=1, axis2=2) + 1e-3
        normal += np.eye(6) * damping[:, np.newaxis] * [1, 1, 1, 1, 0, 0] + 1e-6 * np.eye(6)
        step = np.linalg.solve(normal, slopes @ (one * inside).reshape(count, -1, 1))[..., 0]
        gain = np.where(np.abs(step[:, 4:5]) < 0.2, 0.2, step[:, 4:5])
        change = step[:, :4] / gain / [reach, 1, reach, 1]
        place = (place + np.clip(change, -most, most)).astype(np.float32)
        place = np.clip(place, [0.85, -side / 10] * 2, [1.18, side / 10] * 2).astype(np.float32)
    return place


def _moved(images: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift images, and tell which pixels `(n, side, side)` came from inside of them."""
    side = images.shape[1]
    places = np.arange(side, dtype=np.float32)
    middle = (side - 1) / 2
    weights, inside = [], []
    for scale, shift in ((place[:, :1], place[:, 1:2]), (place[:, 2:3], place[:, 3:])):
        source = (places - middle) * scale + shift + middle
        weights.append(np.maximum(0, 1 - np.abs(source[:, :, np.newaxis] - places)))
        within = (source >= 0) & (source <= side - 1)
        within[:, [0, -1]] = False  # where there is no slope
        inside.append(within)
    moved = weights[0] @ images @ weights[1].transpose(0, 2, 1)
    mask = inside[0][:, :, np.newaxis] & inside[1][:, np.newaxis]
    return moved, mask.astype(np.float32)


def _compared(one: np.ndarray, other: np.ndarray, place: np.ndarray, *, wide: int) -> np.ndarray:
    """Return the correlation of two images without their lowest frequencies, where they overlap."""
    moved, inside = _moved(other - _blurred(other, wide), place)
    return _correlated(one - _blurred(one, wide), moved, inside)


def _correlated(one: np.ndarray, other: np.ndarray, inside: np.ndarray) -> np.ndarray:
    area = np.maximum(inside.sum((1, 2), keepdims=True), 1)
    one = (one - (one * inside).sum((1, 2), keepdims=True) / area) * inside
    other = (other - (other * inside).sum((1, 2), keepdims=True) / area) * inside
    power = (one * one).sum((1, 2)) * (other * other).sum((1, 2))
    product: np.ndarray = (one * other).sum((1, 2)) / np.sqrt(np.maximum(power, 1e-6))
    return product


def _halved(images: np.ndarray) -> np.ndarray:
    quarters = _blurred(images, 2).reshape(-1, SIDE // 2, 2, SIDE // 2, 2)
    halved: np.ndarray = quarters.mean((2, 4))
    return halved


def _blurred(images: np.ndarray, times: int) -> np.ndarray:
    """Blur with the binomial (1, 2, 1) / 4 down and across, so many times."""
    for _ in range(times):
        for axis in (1, 2):
            edged = np.pad(images, [(0, 0), *((int(axis == k),) * 2 for k in (1, 2))], mode="edge")
            size = images.shape[axis]
            before, same, after = (edged.take(range(k, k + size), axis) for k in range(3))
            images = (before + 2 * same + after) / 4
    return images
