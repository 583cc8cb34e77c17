"""Start the real server in a process of its own, and talk to it."""

import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np


class Running:
    """A server that was started; `log` holds what it has said so far, a dict a line."""

    def __init__(self, process):
        self.process = process
        self.log = []
        self.strays = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        line = process.stdout.readline()
        found = re.fullmatch(r"serving (.+) version (\d+) at (\S+)/(?: and gRPC at (\S+))?\n", line)
        assert found, (line, self.strays, self.log[-5:])
        self.name, self.version, self.url, self.grpc = found.groups()

    def _read(self):
        for line in self.process.stderr:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.strays.append(line)

    def events(self, name):
        return [line for line in list(self.log) if line["event"] == name]

    def wait_for(self, name, count=1, seconds=60):
        """Wait until the log has `count` events of that name."""
        until = time.monotonic() + seconds
        while len(self.events(name)) < count:
            assert time.monotonic() < until, f"no {name}; {self.log[-5:]} {self.strays[-5:]}"
            assert self.process.poll() is None, (self.log[-5:], self.strays[-20:])
            time.sleep(0.05)
        return self.events(name)

    def terminate(self, seconds=60):
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(seconds)
        self._reader.join(10)
        return code


@contextlib.contextmanager
def running(home, *options):
    """Serve `home` on free ports until the end of the block."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "kresnet", "serve", str(home)),
            *("--port", "0", "--grpc-port", "0", "--poll-s", "0.2", *map(str, options)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    try:
        yield Running(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def b64(contents):
    return base64.b64encode(contents).decode()


def row_body(images, signature="serving_bytes", **more):
    rows = [{"image_bytes": {"b64": b64(image)}, **more} for image in images]
    return {"signature_name": signature, "instances": rows}


def texts(values):
    """An array of bytes objects, as the signatures take them."""
    array = np.empty(len(values), object)
    array[:] = list(values)
    return array


CLASSES = ("left red", "crème brûlée", "<b>bold</b>", "right & blue")


def write_export(directory, seed=0, threshold=0.63):
    """Write a SavedModel of random weights, which answers every image differently."""
    from conftest import randomize

    import kresnet
    from kresnet.export.contract import Contract
    from kresnet.export.saved_model import write_saved_model
    from kresnet.zoo import Preprocessing

    model = randomize(kresnet.build("resnet8_cifar", num_classes=len(CLASSES)), seed)
    contract = Contract(
        name=directory.parent.name,
        variant="resnet8_cifar",
        classes=CLASSES,
        preprocessing=Preprocessing(image_size=32, crop_pct=0.9, interpolation="bicubic"),
        versions={},
        temperature=2.0,
        threshold=threshold,
    )
    hidden = directory.parent / f".partial-{directory.name}"
    hidden.mkdir(parents=True)
    write_saved_model(model, contract, hidden)
    contract.save(hidden)
    hidden.rename(directory)
    return model, contract


def photos(rng, count=6):
    """Encoded images of several sizes, formats and orientations."""
    import io

    from PIL import Image

    found = []
    for k in range(count):
        height, width = rng.integers(20, 90, 2)
        small = rng.integers(0, 256, (5, 4, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((int(width), int(height)), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[0x0112] = 1 + k % 8
        stream = io.BytesIO()
        image.save(stream, ("JPEG", "PNG", "WEBP")[k % 3], exif=exif)
        found.append(stream.getvalue())
    return found


def write_onnx(model, contract, directory):
    """Write the ONNX and OpenVINO files beside a SavedModel, where the packages are there."""
    import importlib.util

    found = {name: importlib.util.find_spec(name) for name in ("onnx", "tf2onnx", "openvino")}
    if not (found["onnx"] and found["tf2onnx"]):
        return
    from kresnet.export import onnx
    from kresnet.zoo import fold

    folded = fold(model, dtype="float32", portable=False)
    halves = onnx.preparation(contract), onnx.network(folded, contract)
    onnx.write_onnx(*halves, contract, directory / "model.onnx")
    if found["openvino"]:
        from kresnet.export.openvino import write_openvino

        write_openvino(directory / "model.onnx", directory / "openvino" / "model.xml")
