"""The same answers everywhere, on real photos; and a run exported by command."""

import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps
from small_export import strings

import kresnet
from kresnet.console import Console
from kresnet.data import pixels
from kresnet.errors import ConfigError, DataError
from kresnet.export import golden, publish, replay
from kresnet.export.contract import Contract
from kresnet.export.reference import Sample, prepared_pixels
from kresnet.export.verify import tensor_names
from kresnet.export.versions import list_versions
from kresnet.train.run import Run
from kresnet.workflow import export_run

# How a photo lies in the file, for each EXIF orientation.
LYING = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def as_from_a_phone(content, orientation):
    """A photo turned in its file, with the tag that says how to hold it."""
    image, stream = Image.open(io.BytesIO(content)).convert("RGB"), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.transpose(LYING[orientation]).save(stream, "JPEG", quality=95, exif=exif)
    return stream.getvalue()


@pytest.mark.slow
def test_200_photos_get_the_same_answer_everywhere(shared, tmp_path):
    for module in ("tf2onnx", "onnxruntime", "ai_edge_litert", "openvino"):
        pytest.importorskip(module)
    found = sorted((shared / "imagenet_samples").glob("*/*"))
    found += sorted((shared / "flowers").glob("*/*.jpg"))[::8][: 200 - len(found)]
    assert len(found) == 200
    samples = []
    for k, path in enumerate(found):
        content = path.read_bytes()
        if k % 2:
            content = as_from_a_phone(content, 2 + k // 2 % 7)
        copy = tmp_path / f"{k}.jpg"
        copy.write_bytes(content)
        samples.append(Sample(str(copy)))

    (weights,) = (shared / "weights" / "resnet50_imagenet").glob("*.npz")
    model = kresnet.build("resnet50_v1", weights=weights, dtype="float32")
    contract = Contract(
        name="imagenet",
        variant="resnet50_v1",
        classes=tuple(f"class {k}" for k in range(1000)),
        preprocessing=model.preprocessing,
        versions={},
    )
    exported = publish.export(
        model,
        contract,
        tmp_path / "saved_models",
        samples=samples,
        formats=("onnx", "openvino", "litert", "keras"),
    )
    for name, check in exported.contract.formats.items():
        print(f"{name}: {check}")
        assert check.images == 200
        assert check.top1_agreement == 1, name
        assert check.max_difference < 1e-4, name

    directory = exported.path
    contents = [tf.io.read_file(sample.path).numpy() for sample in samples]
    prepared = [pixels.prepare(c, contract.preprocessing) for c in contents]
    expected = np.concatenate(
        [
            tf.nn.softmax(model(tf.stack(prepared[k : k + 20]), training=False))
            for k in range(0, 200, 20)
        ]
    )
    names = tensor_names(directory)
    loaders = {
        "tf.saved_model.load": replay.tensorflow_2(str(directory)),
        "session": replay.session(str(directory), names),
        "C API": replay.c_api(str(directory), names),
    }
    for name, run in loaders.items():
        scores = np.concatenate(
            [
                run("serving_bytes", {"image_bytes": strings(*contents[k : k + 20])})["scores"]
                for k in range(0, 200, 20)
            ]
        )
        difference = np.abs(scores - expected).max()
        print(f"{name}: max |dp| {difference:.1e}")
        assert np.array_equal(scores.argmax(axis=1), expected.argmax(axis=1)), name
        assert difference < 1e-4, name

    # With somebody else's decoder and turning, as a user of the ONNX file would.
    run = replay.onnxruntime(str(directory / "model.onnx"))
    photos = [ImageOps.exif_transpose(Image.open(io.BytesIO(c))).convert("RGB") for c in contents]
    scores = np.stack([run(np.asarray(photo)) for photo in photos])
    print(f"ONNX, Pillow decodes: max |dp| {np.abs(scores - expected).max():.1e}")
    assert np.array_equal(scores.argmax(axis=1), expected.argmax(axis=1))
    assert np.abs(scores - expected).max() < 1e-4

    # LiteRT takes whole grey levels, which costs a little.
    run = replay.litert(str(directory / "model.tflite"))
    squares = [prepared_pixels(pixels.decode(c).numpy(), contract) for c in contents]
    scores = np.stack([run(square) for square in squares])
    same = (scores.argmax(axis=1) == expected.argmax(axis=1)).mean()
    print(
        f"LiteRT, rounded input: top-1 {same:.1%}, max |dp| {np.abs(scores - expected).max():.1e}"
    )
    assert same >= 0.995
    assert np.abs(scores - expected).max() < 0.02


@pytest.fixture(scope="module")
def run(striped, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    result = kresnet.fit(
        striped, out=folder / "runs", exports=folder / "saved_models", console=Console(quiet=True),
        variant="resnet20_cifar", weights=None, epochs=2, batch_size=6, precision="float32",
        val=0.25, keep_photos=False,
    )  # fmt: skip
    return result, folder


def export(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "kresnet", "export", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_a_run_is_exported_again_by_command(run):
    pytest.importorskip("tf2onnx")
    pytest.importorskip("onnxruntime")
    result, folder = run
    done = export(folder, "runs/striped", "--formats", "onnx", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["name"], answer["version"]) == ("striped", 2)
    assert set(answer["formats"]) == {"saved_model", "model.onnx"}
    assert answer["formats"]["model.onnx"]["images"] == 12
    first, second = list_versions(folder / "saved_models", "striped")
    assert first.path == result.export
    assert len(first.contract.weights_sha256) == 64
    assert first.contract.weights_sha256 == second.contract.weights_sha256
    assert (second.path / "model.onnx").stat().st_size == answer["formats"]["model.onnx"]["bytes"]


def test_no_photo_leaves_the_house_if_asked(run, striped):
    result, _ = run
    stored, _, _ = golden.load(result.export)
    assert stored == golden.drawn()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 2, "A run is a directory that `kresnet train` has written."),
        (["runs/striped", "--formats", "onxn"], 2, "Received: 'onxn'"),
        (["runs/striped", "--max-accuracy-loss", "-1"], 2, "percentage points from 0 on"),
    ],
)
def test_mistakes_end_in_one_line(run, arguments, code, message):
    done = export(run[1], *arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_lost_images_and_unfinished_runs_are_told(run, tmp_path):
    result, _ = run
    copy = tmp_path / "copy"
    shutil.copytree(result.run, copy)
    names = json.loads((copy / "classes.json").read_text())
    (copy / "classes.json").write_text(json.dumps(names | {"root": str(tmp_path / "moved")}))
    with pytest.raises(DataError, match=r"where they were in training. Received: .*moved.*png and"):
        export_run(copy, console=Console(quiet=True))
    Run.open(copy).update(status="created")
    with pytest.raises(ConfigError, match=r"Only a finished run.*kresnet resume"):
        export_run(copy, console=Console(quiet=True))
