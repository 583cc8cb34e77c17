"""What tests of batch inference share: images, a tiny export, the command, and what it wrote."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pyarrow.parquet as parquet
from small_export import picture

from kresnet.batch.job import parts_of


def write_images(folder, count, *, bad=()):
    """Tiny images in several folders; those of `bad` are none."""
    for number in range(count):
        path = folder / f"{number % 7}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image" if number in bad else _PICTURES[number % len(_PICTURES)])
    return folder


_PICTURES = [picture(seed, 20 + seed % 7, 20) for seed in range(20)]


def command(export, source, output, *options):
    return [
        sys.executable, "-m", "kresnet", "predict", str(export), "--input", str(source),
        "--output", str(output), *map(str, options),
    ]  # fmt: skip


def run(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False)


def kill_after(parts, *arguments):
    """Start the command, kill it with all that it started once it has done some more parts."""
    folder = parts_of(arguments[2])
    before = len(list(folder.glob("[0-9]*.parquet")))
    process = subprocess.Popen(command(*arguments), start_new_session=True)
    while len(list(folder.glob("[0-9]*.parquet"))) < before + parts:
        assert process.poll() is None, "it came to its end before it was killed"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def paths_in(output):
    return Counter(parquet.read_table(output, columns=["path"])["path"].to_pylist())
