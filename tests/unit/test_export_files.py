"""What lies in an export beside graph and weights: golden images and warm-up requests."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from small_export import picture, write_small

from kresnet.data import pixels
from kresnet.errors import ExportError
from kresnet.export import golden, replay
from kresnet.export.warmup import BATCH_SIZES, WARMUP_FILE, write_warmup


def photo(path, seed, size=(700, 500), **options):
    """A photo as from a phone, with a place in its metadata."""
    exif = Image.Exif()
    exif[0x0112] = 3
    exif.get_ifd(0x8825)[1] = "N"
    path.write_bytes(picture(seed, *size, kind="JPEG", exif=exif, **options))
    return str(path)


@pytest.fixture
def photos(tmp_path):
    return [photo(tmp_path / f"{k}.jpg", k, (500 + k, 900)) for k in range(9)]


def test_golden_images_are_small_copies_without_metadata(photos):
    goldens = golden.from_photos(photos)
    assert [g.name for g in goldens] == ["0.jpg", "1.jpg", "2.png", "3.jpg"]
    assert sum(len(g.contents) for g in goldens) < 200_000
    for place, (stored, path) in enumerate(zip(goldens, photos[::2], strict=False)):
        image = Image.open(io.BytesIO(stored.contents))
        assert image.getexif().get_ifd(0x8825) == {}
        assert image.getexif().get(0x0112, 1) == (6 if place == 1 else 1)
        upright = pixels.decode(stored.contents).numpy()
        assert min(upright.shape[:2]) == (128 if place == 2 else 256)
        whole = Image.fromarray(pixels.decode(tf.io.read_file(path)).numpy())
        same = np.asarray(whole.resize(upright.shape[1::-1], Image.Resampling.LANCZOS), int)
        assert np.abs(same - upright).mean() < 4


def test_small_and_extreme_images_are_kept_usable(tmp_path):
    paths = []
    for k, size in enumerate([(32, 32), (3000, 3), (1, 1)]):
        path = tmp_path / f"{k}.png"
        path.write_bytes(picture(k, *size))
        paths.append(str(path))
    shapes = [pixels.decode(g.contents).shape.as_list() for g in golden.from_photos(paths)]
    assert shapes == [[32, 32, 3], [1, 1024, 3], [1, 1, 3]]


def test_drawn_images_are_the_same_each_time_and_differ():
    first, second = golden.drawn(), golden.drawn()
    assert first == second
    assert len({g.contents for g in first}) == 4


def test_golden_images_are_read_as_stored(tmp_path):
    goldens, scores = golden.drawn(), np.random.default_rng(0).random((4, 7)).astype("float32")
    golden.save(goldens, scores, tmp_path, 1e-4)
    loaded, found, tolerance = golden.load(tmp_path)
    assert (loaded, tolerance) == (goldens, 1e-4)
    np.testing.assert_allclose(found, scores, rtol=1e-6)
    (tmp_path / golden.FOLDER / "0.jpg").unlink()
    with pytest.raises(ExportError, match=r"images with their answers in .*golden. Received"):
        golden.load(tmp_path)


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    directory = tmp_path_factory.mktemp("warm") / "1"
    write_small(directory)
    write_warmup(directory, "small", golden.thumbnail(golden.drawn()[0]))
    return directory, [r.numpy() for r in tf.data.TFRecordDataset(str(directory / WARMUP_FILE))]


def test_warm_up_is_what_tensorflow_servings_own_classes_write(warm):
    prediction_log = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    _, records = warm
    assert len(records) == 4 * len(BATCH_SIZES)
    for record in records:
        log = prediction_log.PredictionLog.FromString(record)
        # Its own writing of what it has read: byte for byte, so no field is unknown to it.
        assert log.SerializeToString(deterministic=True) == record


def test_warm_up_reaches_every_signature_with_every_batch_size(warm):
    prediction_log = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    directory, records = warm
    run = replay.tensorflow_2(str(directory))
    seen = []
    for record in records:
        log = prediction_log.PredictionLog.FromString(record)
        if log.HasField("classify_log"):
            request = log.classify_log.request
            examples = [e.SerializeToString() for e in request.input.example_list.examples]
            inputs = {"inputs": np.array(examples, object)}
        else:
            request = log.predict_log.request
            inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
        name = request.model_spec.signature_name
        answer = run(name, inputs)
        assert request.model_spec.name == "small"
        assert answer.get("ok", np.array(True)).all()
        assert answer["scores"].sum(axis=1) == pytest.approx(1, abs=1e-5)
        seen.append((name, len(answer["scores"])))
    names = ("serving_default", "serving_bytes", "explain", "classify")
    assert sorted(seen) == sorted((name, count) for name in names for count in BATCH_SIZES)
    assert (directory / WARMUP_FILE).stat().st_size < 400_000
