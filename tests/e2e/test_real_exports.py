"""The same answers everywhere, on real photos."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps
from small_export import strings

import kresnet
from kresnet.data import pixels
from kresnet.export import publish, replay
from kresnet.export.contract import Contract
from kresnet.export.integers import in_integers
from kresnet.export.reference import Sample, prepared_pixels
from kresnet.export.rounding import rounded
from kresnet.export.verify import tensor_names
from kresnet.zoo import fold

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
    assert np.abs(scores - expected).max() < 0.05


@pytest.mark.slow
def test_8_bits_say_of_real_photos_what_float32_says(shared):
    (weights,) = (shared / "weights" / "resnet50_imagenet").glob("*.npz")
    model = kresnet.build("resnet50_v1", weights=weights, dtype="float32", input_shape=(224, 224))
    found = sorted((shared / "imagenet_samples").glob("*/*"))
    photos = [
        pixels.prepare(tf.io.read_file(str(path)), model.preprocessing).numpy() for path in found
    ]
    folded = fold(model, portable=False)
    network = in_integers(rounded(folded, photos[::2]), photos[::2])
    unseen = np.stack(photos[1::2])
    expected, got = (
        tf.nn.softmax(m.predict(unseen, 10, verbose=0)).numpy() for m in (model, network)
    )
    difference = np.abs(got - expected).max(axis=1)
    agreement = np.mean(got.argmax(axis=1) == expected.argmax(axis=1))
    print(len(unseen), agreement, np.median(difference), difference.max())
    assert len(unseen) >= 50
    assert agreement >= 0.9
    assert np.median(difference) < 0.05
