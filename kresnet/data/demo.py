"""Real images that come with a package kresnet needs anyway: handwritten digits."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write_digits(directory: Path) -> Path:
    """Write scikit-learn's 1797 handwritten digits as PNG files in a folder for each class.

    They are 8x8 grey images scanned from 43 people (Alpaydin & Kaynak 1998, UCI Machine Learning
    Repository, "Optical Recognition of Handwritten Digits", test part).

    Args:
        directory: Where the folders "0" to "9" will be; nothing is written if it exists.

    Returns:
        `directory`.
    """
    if directory.exists():
        return directory
    from PIL import Image
    from sklearn.datasets import load_digits

    partial = directory.with_name(f".{directory.name}-{os.getpid()}")
    data = load_digits()
    for number, (pixels, digit) in enumerate(zip(data.images, data.target, strict=True)):
        folder = partial / str(digit)
        folder.mkdir(parents=True, exist_ok=True)
        grey = (pixels * 255 / 16).round().astype("uint8")  # ink is 0..16
        Image.fromarray(grey).save(folder / f"{number:04d}.png")
    try:
        partial.rename(directory)
    except OSError:
        shutil.rmtree(partial)
        if not directory.exists():
            raise
    return directory
