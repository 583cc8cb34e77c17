"""Look for changed copies of photos among them, and time the scan that all checks begin with.

    python -m kresnet.bench.check FOLDER [FOLDER ...]

Of every photo of the folders, a copy is made for each change, and looked for among all photos. The
first table has the share that is found, and the pairs of photos that are reported without a copy:
look at them, they may be near duplicates. The second has a scan of the same files, of which nothing
is known and of which everything is: processor time of all threads, which other work on the machine
changes little, and the memory that an image of the index holds. Nothing is written beside the
photos.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
from PIL import Image, ImageEnhance

from kresnet.bench.facts import machine
from kresnet.data.duplicates import find
from kresnet.data.examine import Facts
from kresnet.data.items import is_named_image
from kresnet.data.look import look
from kresnet.data.scan import scan


def again(image: Image.Image, quality: int = 75) -> Image.Image:
    """Return the image after it was written as a JPEG and read."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=quality)
    return Image.open(file)


def cropped(
    image: Image.Image, left: float, top: float, right: float, bottom: float
) -> Image.Image:
    """Cut off shares of the sides."""
    width, height = image.size
    sides = (width * left, height * top, width * (1 - right), height * (1 - bottom))
    return image.crop((round(sides[0]), round(sides[1]), round(sides[2]), round(sides[3])))


def brighter(image: Image.Image, factor: float) -> Image.Image:
    """Multiply the levels."""
    return ImageEnhance.Brightness(image).enhance(factor)


CHANGES: Final[dict[str, Callable[[Image.Image], Image.Image]]] = {
    "recompressed": lambda image: again(image, 30),
    "half": lambda image: again(image.resize((image.width // 2, image.height // 2))),
    "larger": lambda image: image.resize((image.width * 5 // 3, image.height * 5 // 3)),
    "squeezed": lambda image: image.resize((160, 160)),
    "flipped": lambda image: again(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "cropped 5 % at each side": lambda image: again(cropped(image, 0.05, 0.05, 0.05, 0.05)),
    "cropped 5 % in all": lambda image: again(cropped(image, 0.025, 0.025, 0.025, 0.025)),
    "cropped 5 % at two sides": lambda image: again(cropped(image, 0.05, 0.05, 0, 0)),
    "brighter": lambda image: again(brighter(image, 1.3)),
    "grey": lambda image: again(image.convert("L")),
    "cropped, smaller, brighter": lambda image: again(
        brighter(cropped(image, 0.05, 0.02, 0.03, 0.05).resize((200, 170)), 1.2), 60
    ),
}
"""What is done to copies, by its name."""


def main() -> None:
    """Print two Markdown tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="a folder of photos for each class")
    parser.add_argument("--turns", type=int, default=5, help="scans of each folder")
    options = parser.parse_args()
    print(f"{machine()['processor']}, {machine()['cores']} cores\n")
    paths = sorted(
        path for folder in options.folders for path in folder.rglob("*") if is_named_image(path)
    )
    print(f"| copies of {len(paths)} photos | found |\n|---|---|", flush=True)
    photos = [facts(Image.open(path), str(path)) for path in paths]
    for change, make in CHANGES.items():
        copies = [facts(make(Image.open(p).convert("RGB")), f"copy {p}") for p in paths]
        print(f"| {change} | {found(photos, copies):.1%} |", flush=True)
    alike = [pair for pair in find(photos) if pair.kind == "near"]
    print(f"\n{len(alike)} pairs of the photos themselves are reported:")
    for pair in alike:
        print(f"- {paths[pair.first]}\n  {paths[pair.second]}")
    print("\n| scan of | images | unknown, images/s of one core | known | KB each |")
    print("|---|---|---|---|---|")
    for folder in options.folders:
        print(line(folder, options.turns), flush=True)


def facts(image: Image.Image, digest: str) -> Facts:
    """Return what an examination tells of an image, with a name for its digest."""
    pixels = np.asarray(image.convert("RGB"))
    height, width = pixels.shape[:2]
    return Facts(height, width, digest, look=look(pixels))


def found(photos: Sequence[Facts], copies: Sequence[Facts]) -> float:
    """Return the share of copies, in the order of the photos, that are paired with theirs."""
    count = len(photos)
    pairs = {(pair.first, pair.second) for pair in find([*photos, *copies])}
    return sum((k, count + k) in pairs for k in range(count)) / count


def line(folder: Path, turns: int) -> str:
    """Scan a folder anew and again, in turns, and return a row of the table."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(turns + 1):  # the first warms up
        with tempfile.TemporaryDirectory() as home:
            os.environ["KRESNET_HOME"] = home
            for spent in times:
                started = time.process_time()
                index = scan(folder)
                spent.append(time.process_time() - started)
            tracemalloc.start()
            index = scan(folder)
            held = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
    count = len(index.rows)
    unknown, known = (count / median(spent) for spent in times)
    return (
        f"| {folder.name} | {count} | {unknown:,.0f} | {known:,.0f} | {held / count / 1000:.1f} |"
    )


if __name__ == "__main__":
    main()
