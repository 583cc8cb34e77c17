"""How long one waits for a command, from nothing: fresh processes, beside the shortest programs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from kresnet.bench.speed.rotation import Contender
from kresnet.bench.speed.topics import Group, Options
from kresnet.bench.speed.work import Work, seconds_of
from kresnet.errors import DataError

_MODULE: Final = "kresnet.bench.speed.coldstart"

_TENSORFLOW: Final = """
import sys
import tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_bytes"]
with open(sys.argv[2], "rb") as file:
    print(serve(image_bytes=tf.constant([file.read()]))["label"].numpy()[0].decode())
"""

_ONNX: Final = """
import sys
import numpy as np
import onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession(f"{sys.argv[1]}/model.onnx")
images = np.asarray(Image.open(sys.argv[2]).convert("RGB"))[None]
print(session.run(["scores"], {"images": images})[0].argmax())
"""

_OPENVINO: Final = """
import sys
import numpy as np
import openvino
from PIL import Image
compiled = openvino.Core().compile_model(f"{sys.argv[1]}/openvino/model.xml", "CPU")
images = np.asarray(Image.open(sys.argv[2]).convert("RGB"))[None]
print(compiled({"images": images})["scores"].argmax())
"""


def groups(options: Options, work: Path) -> Iterator[Group]:
    """Compare the help with Python itself, then one photo through an export with the libraries."""
    yield Group(
        "kresnet --help",
        "s",
        _ours("kresnet --help", "--help"),
        (_program("python -c pass", "pass"), _program("import tensorflow", "import tensorflow")),
    )
    version, photo = _export(options, work)
    others = {
        "onnxruntime": (
            _program(
                "ONNX Runtime: import, load, predict", _ONNX, version, photo, needs="onnxruntime"
            ),
        ),
        "openvino": (
            _program(
                "OpenVINO: import, load, predict", _OPENVINO, version, photo, needs="openvino"
            ),
        ),
    }
    yield Group(
        "One photo through an export",
        "s",
        _ours("kresnet predict", "predict", version, photo),
        (
            _program("TensorFlow: import, load, predict", _TENSORFLOW, version, photo),
            *options.chosen(others),
        ),
    )


def fresh(*, command: Sequence[str]) -> Work:
    """Run a command again and again, each time as a new process.

    Raises:
        RuntimeError: It fails; the message is its last line.
    """

    def run() -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:]
            raise RuntimeError(f"exit code {done.returncode}: {''.join(last)}")

    return Work(lambda: seconds_of(run))


def _ours(name: str, *arguments: str) -> Contender:
    return _run(name, [sys.executable, "-m", "kresnet", *arguments])


def _program(name: str, text: str, *arguments: str, needs: str = "") -> Contender:
    packages = (needs,) if needs else ()
    return _run(name, [sys.executable, "-c", text, *arguments], packages)


def _run(name: str, command: Sequence[str], packages: tuple[str, ...] = ()) -> Contender:
    settings: Mapping[str, Mapping[str, Any]] = {"fresh processes": {"command": list(command)}}
    return Contender(name, f"{_MODULE}:fresh", settings, packages)


def _export(options: Options, work: Path) -> tuple[str, str]:
    """Return a published version and an image file, made or given."""
    if options.export is None:
        from kresnet.bench.speed.infer import prepare

        made = prepare(options, work)
        return made["version"], made["photo"]
    from kresnet.export.versions import latest_version

    version = latest_version(Path(options.export))
    photos = sorted((version / "assets.extra" / "golden").glob("*.jpg"))
    if not photos:
        raise DataError(
            f"An export holds images to check it by. Received: {os.fspath(version)}, with none. "
            "Export again."
        )
    return str(version), str(photos[0])
