"""Load the server from another process, beside a naive one; swap and stop it in the middle.

    python -m kresnet.bench.serving saved_models/digits [--images FOLDER] [--requests 10000]

Prints a table of throughput, latency and memory, then what a hot swap and a SIGTERM under load
did. Rounds alternate between the servers, because other work on the machine moves all numbers.
Needs Linux, for the memory of a process.

MLServer joins where `--mlserver PYTHON` names the interpreter of an environment that has mlserver,
tensorflow and nothing of kresnet; NVIDIA Triton with `--triton PYTHON` and one that has
nvidia-pytriton and tensorflow.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kresnet.errors import DataError
from kresnet.serve.settings import find_export

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}

_MLSERVER_MODEL = """
import base64
import tensorflow as tf
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Photos(MLModel):
    async def load(self):
        module = tf.saved_model.load(self.settings.parameters.uri)
        self.module, self.serve = module, module.signatures["serving_bytes"]
        return True

    async def predict(self, payload):
        images = [base64.b64decode(text) for text in payload.inputs[0].data.root]
        scores = self.serve(image_bytes=tf.constant(images))["scores"].numpy()
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("scores", scores)]
        )
"""

_TRITON_MODEL = """
import base64
import sys
import numpy as np
import tensorflow as tf
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

uri, http, grpc, metrics = sys.argv[1], *map(int, sys.argv[2:])
module = tf.saved_model.load(uri)
serve = module.signatures["serving_bytes"]


@batch
def photos(image_bytes):
    images = [base64.b64decode(text) for text in image_bytes[:, 0]]
    return {"scores": serve(image_bytes=tf.constant(images))["scores"].numpy()}


config = TritonConfig(
    http_port=http, grpc_port=grpc, metrics_port=metrics, http_address="127.0.0.1", log_verbose=0
)
with Triton(config=config) as triton:
    triton.bind(
        model_name="photos",
        infer_func=photos,
        inputs=[Tensor(name="image_bytes", dtype=bytes, shape=(1,))],
        outputs=[Tensor(name="scores", dtype=np.float32, shape=(-1,))],
        config=ModelConfig(
            max_batch_size=32, batcher=DynamicBatcher(max_queue_delay_microseconds=2000)
        ),
    )
    triton.serve()
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A server that runs.

    Attributes:
        process: Its process.
        url: Of the endpoint to load.
    """

    process: subprocess.Popen[str]
    url: str

    def memory_mb(self, which: str = "VmRSS") -> float:
        """Read the memory of the process and those that it started, in MB; "VmHWM" is the peak."""
        total = 0
        for pid in [self.process.pid, *_children(self.process.pid)]:
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
                total += int(re.search(rf"{which}:\s+(\d+)", status)[1])  # type: ignore[index]
        return total / 1e3


@dataclass(slots=True)
class Row:
    """What was measured of one server, over all rounds."""

    rates: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    errors: int = 0
    memory_mb: float = 0
    growth_mb: float = 0

    def __str__(self) -> str:
        cuts = statistics.quantiles(self.latencies_ms, n=100)
        rate = statistics.median(self.rates)
        return (
            f"{rate:.0f} | {cuts[49]:.1f} / {cuts[94]:.1f} / {cuts[98]:.1f} | "
            f"{self.errors} of {len(self.latencies_ms) + self.errors} | "
            f"{self.memory_mb:.0f} ({self.growth_mb:+.0f})"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("export")
    parser.add_argument("--images", type=Path, help="Folder of images to send.")
    parser.add_argument("--requests", type=int, default=10_000, help="For each server.")
    parser.add_argument(
        "--peer-requests", type=int, help="For all but the first server; else as many."
    )
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--tolerance", default="0.001")
    parser.add_argument("--mlserver", help="Python of an environment with mlserver.")
    parser.add_argument("--triton", help="Python of an environment with nvidia-pytriton.")
    options = parser.parse_args(arguments)
    home = find_export(options.export, Path("saved_models"))
    version = _newest(home)
    images = _images(version, options.images)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        work = Path(folder)
        rest, infer, batched = _write_bodies(images, work)
        serve = ("--runtime", options.runtime, "--tolerance", options.tolerance)
        plain = ("--runtime", "tensorflow")
        targets = {
            f"kresnet serve, {options.runtime}": (
                stack.enter_context(_kresnet(version, serve)),
                rest,
            ),
            "kresnet serve, tensorflow": (stack.enter_context(_kresnet(version, plain)), rest),
            "one request, one predict": (stack.enter_context(_naive(version)), rest),
        }
        if options.mlserver:
            targets["MLServer"] = (
                stack.enter_context(_mlserver(options.mlserver, version, work)),
                infer,
            )
        if options.triton:
            targets["NVIDIA Triton"] = (
                stack.enter_context(_triton(options.triton, version, work)),
                batched,
            )
        rows = {name: Row() for name in targets}
        for target, bodies in targets.values():
            _load(target.url, bodies, max(options.requests // 20, 50), options.clients)  # warm up
        for _ in range(options.rounds):
            for name, (target, bodies) in targets.items():
                is_peer = name != next(iter(targets))
                count = (options.peer_requests if is_peer else None) or options.requests
                _measure(rows[name], target, bodies, count // options.rounds, options.clients)
        print(f"{options.clients} clients, {len(images)} images, export {version}\n")
        print("| server | requests/s | p50 / p95 / p99 ms | errors | memory MB (growth) |")
        print("|---|---|---|---|---|")
        for name, row in rows.items():
            print(f"| {name} | {row} |")
    with tempfile.TemporaryDirectory() as folder:
        _live_and_die(version, images, Path(folder), serve, options)


def _measure(row: Row, target: Target, bodies: Path, requests: int, clients: int) -> None:
    before = target.memory_mb()
    start = time.perf_counter()
    seen = _load(target.url, bodies, requests, clients)
    seconds = time.perf_counter() - start
    latencies = [latency for _, latency in seen["latencies_ms"]]
    if latencies:
        seconds = max(moment for moment, _ in seen["latencies_ms"])  # without starting Python
    row.rates.append(len(latencies) / seconds)
    row.latencies_ms += latencies
    row.errors += len(seen["wrong"]) + len(seen["broken"]) + seen["refused"]
    row.memory_mb = target.memory_mb("VmHWM")
    row.growth_mb += target.memory_mb() - before


def _live_and_die(
    version: Path,
    images: list[bytes],
    work: Path,
    serve: Sequence[str],
    options: argparse.Namespace,
) -> None:
    """Publish a version after a third of the load, and send SIGTERM after two thirds."""
    home = work / "model"
    shutil.copytree(version, home / "1")
    bodies, *_ = _write_bodies(images, work)
    with _kresnet(home, serve) as target:
        _load(target.url, bodies, 200, options.clients)
        seen: dict[str, Any] = {}
        base = target.url.removesuffix(":predict")

        def load() -> None:
            seen.update(_load(target.url, bodies, 10**9, options.clients))

        loading = threading.Thread(target=load)
        start = time.perf_counter()
        loading.start()
        time.sleep(8)
        shutil.copytree(version, home / ".next")
        (home / ".next").rename(home / "2")
        while b'"version":"2","state":"AVAILABLE"' not in _get(base):
            time.sleep(0.1)
        swapped = time.perf_counter() - start
        time.sleep(8)
        ended = time.perf_counter() - start
        target.process.send_signal(signal.SIGTERM)
        code = target.process.wait(120)
        drained = time.perf_counter() - start - ended
        loading.join()
    latencies = [latency for _, latency in seen["latencies_ms"]]
    print(
        f"\n{len(latencies)} requests through a swap (loaded and warm after {swapped - 8:.1f} s) "
        f"and a SIGTERM (exit code {code} after {drained:.1f} s): "
        f"{len(seen['wrong'])} wrong answers, {len(seen['broken'])} broken connections, "
        f"longest answer {max(latencies):.0f} ms."
    )
    for problem in (*seen["wrong"][:3], *seen["broken"][:3]):
        print(f"  {problem}")


def _load(url: str, bodies: Path, requests: int, clients: int) -> dict[str, Any]:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "kresnet.bench.load",
            url,
            str(bodies),
            "--requests",
            str(requests),
            "--clients",
            str(clients),
        ],
        stdout=subprocess.PIPE,
        check=True,
    )
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@contextlib.contextmanager
def _kresnet(home: Path, options: Sequence[str]) -> Iterator[Target]:
    command = [sys.executable, "-m", "kresnet", "serve", str(home), "--port", "0"]
    command += ["--grpc-port", "-1", "--quiet", *options]
    with _process(command) as process:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        line = process.stdout.readline()
        found = re.fullmatch(r"serving (.+) version (\d+) at (\S+)/\n", line)
        if not found:
            raise DataError(f"The server must start. Received: {line!r}. See its log above.")
        yield Target(process, f"{found[3]}/v1/models/{found[1]}:predict")


@contextlib.contextmanager
def _naive(version: Path) -> Iterator[Target]:
    port = _free_port()
    command = [sys.executable, "-m", "kresnet.bench.naive", str(version), str(port)]
    with _process(command) as process:
        yield _answering(process, f"http://127.0.0.1:{port}/predict")


@contextlib.contextmanager
def _mlserver(python: str, version: Path, work: Path) -> Iterator[Target]:
    folder = work / "mlserver"
    folder.mkdir()
    (folder / "photos.py").write_text(_MLSERVER_MODEL, encoding="utf-8")
    port = _free_port()
    model = {
        "name": "photos",
        "implementation": "photos.Photos",
        "parameters": {"uri": str(version.resolve())},
        # Its own adaptive batching, with the same bounds.
        "max_batch_size": 32,
        "max_batch_time": 0.002,
    }
    settings = {
        **{"http_port": port, "grpc_port": _free_port(), "metrics_port": _free_port()},
        **{"host": "127.0.0.1", "debug": False, "parallel_workers": 0},
    }
    (folder / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [python, "-c", "from mlserver.cli import main; main()", "start", str(folder)]
    with _process(command) as process:
        yield _answering(process, f"http://127.0.0.1:{port}/v2/models/photos/infer")


@contextlib.contextmanager
def _triton(python: str, version: Path, work: Path) -> Iterator[Target]:
    program = work / "triton.py"
    program.write_text(_TRITON_MODEL, encoding="utf-8")
    port = _free_port()
    ports = [str(port), str(_free_port()), str(_free_port())]
    with _process([python, str(program), str(version.resolve()), *ports]) as process:
        url = f"http://127.0.0.1:{port}/v2/models/photos"
        until = time.monotonic() + 180
        while not _is_ready(f"{url}/ready"):
            if time.monotonic() > until or process.poll() is not None:
                raise DataError(f"Triton must get ready at {url}. Received: nothing. See above.")
            time.sleep(0.2)
        yield Target(process, f"{url}/infer")


def _is_ready(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
        return bool(response.status == 200)
    return False


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _answering(process: subprocess.Popen[str], url: str) -> Target:
    """Wait until something answers, be it only that the method is wrong."""
    until = time.monotonic() + 180
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError):
            _get(url)
            return Target(process, url)
        time.sleep(0.2)
    raise DataError(f"The server must answer at {url}. Received: nothing. See its output above.")


def _get(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            content: bytes = response.read()
    except urllib.request.HTTPError as error:
        content = error.read()
    return content


def _newest(home: Path) -> Path:
    if (home / "saved_model.pb").is_file():
        return home
    return max((p for p in home.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))


def _images(version: Path, folder: Path | None) -> list[bytes]:
    folder = folder or version / "assets.extra" / "golden"
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise DataError(f"A folder must hold images. Received: {folder}. Name one with --images.")
    step = max(len(files) // 64, 1)
    return [path.read_bytes() for path in files[::step][:64]]


def _write_bodies(images: list[bytes], folder: Path) -> tuple[Path, Path, Path]:
    """Write the same images as TensorFlow Serving's, MLServer's and Triton's requests."""
    texts = [base64.b64encode(image).decode() for image in images]
    rest = [
        {"signature_name": "serving_bytes", "instances": [{"image_bytes": {"b64": text}}]}
        for text in texts
    ]
    infer = [
        {"inputs": [{"name": "image_bytes", "datatype": "BYTES", "shape": shape, "data": [text]}]}
        for shape in ([1], [1, 1])  # Triton counts the batch apart
        for text in texts
    ]
    infer, batched = infer[: len(texts)], infer[len(texts) :]
    paths = folder / "rest.json", folder / "infer.json", folder / "batched.json"
    for path, bodies in zip(paths, (rest, infer, batched), strict=True):
        path.write_text(json.dumps(bodies), encoding="utf-8")
    return paths


def _children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in path.read_text(encoding="utf-8").split()]
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


if __name__ == "__main__":
    main()
