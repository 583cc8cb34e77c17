"""Training images are made smaller only as far as their smallest crop allows."""

import io

import numpy as np
import pytest
import tensorflow as tf
from conftest import stripes
from PIL import Image

from kresnet.data import pixels, shrinking
from kresnet.data.scan import Row
from kresnet.data.store import Store, store_for
from kresnet.errors import ResourceError


def row(height, width):
    return Row("", 0, "train", height, width, "")


def test_the_smallest_crop_keeps_the_pixels_of_the_input():
    rng = np.random.default_rng(1)
    sizes = [(int(h), int(w)) for h, w in rng.integers(100, 5000, (200, 2))]
    reduce, shapes = shrinking.reduced([row(*size) for size in sizes], 224, 0.35)
    assert set(reduce) == {1, 2, 4, 8}
    for size, factor, shape in zip(sizes, reduce, shapes, strict=True):
        before, after = (
            min(np.sqrt(0.35 * 0.75 * h * w), h, w) for h, w in (size, map(float, shape))
        )
        assert after >= min(before, 224) - 1e-6
        assert after < 224 * 2 + 1 or tuple(shape) == size
        assert (shape <= -(-np.array(size) // factor)).all()
        assert shape[0] / shape[1] == pytest.approx(size[0] / size[1], rel=0.02)


def smooth_jpeg(height, width):
    small = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return image, file.getvalue()


@pytest.mark.parametrize("reduce", [1, 2, 4, 8])
def test_a_reduced_jpeg_is_the_shrunk_image(reduce):
    image, contents = smooth_jpeg(203, 318)
    got = pixels.decode(tf.constant(contents), tf.constant(reduce)).numpy()
    assert got.shape == (-(-203 // reduce), -(-318 // reduce), 3)
    # The last row and column of a reduced JPEG stand for pixels beyond the image.
    box = (0, 0, got.shape[1] * reduce, got.shape[0] * reduce)
    padded = Image.fromarray(np.pad(np.asarray(image), [(0, 8), (0, 8), (0, 0)], mode="edge"))
    expected = padded.resize(got.shape[1::-1], Image.Resampling.BOX, box=box)
    inner = np.abs(got.astype(int) - np.asarray(expected))[:-1, :-1]
    assert inner.mean() < 2.5


def test_an_image_of_another_size_is_refused():
    _, contents = smooth_jpeg(60, 80)
    size, shape = tf.constant([60, 80]), tf.constant([30, 40])
    got = shrinking.decoded(tf.constant(contents), size, tf.constant(2), shape)
    assert got.shape == (30, 40, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match="not of the size it had"):
        shrinking.decoded(tf.constant(contents), tf.constant([80, 60]), tf.constant(2), shape)


def test_shrinking_is_pillows():
    image = stripes(np.random.default_rng(2), 1, 90)
    got = pixels.shrink(np.asarray(image), tf.constant([50, 61])).numpy()
    expected = np.asarray(image.resize((61, 50), Image.Resampling.BILINEAR))
    assert np.abs(got.astype(int) - expected).max() <= 1
    same = pixels.shrink(np.asarray(image), tf.constant([90, 97]))
    np.testing.assert_array_equal(same, np.asarray(image))


@pytest.mark.parametrize("in_file", [False, True])
def test_a_store_gives_each_image_back_and_makes_it_once(tmp_path, in_file):
    rng = np.random.default_rng(5)
    shapes = np.array([(5, 7), (11, 3), (4, 4)])
    images = [rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in shapes]
    made = []

    def make(which):
        made.append(int(which))
        return images[which]

    store = Store(shapes, tmp_path if in_file else None)
    dataset = tf.data.Dataset.from_tensor_slices(np.array([2, 0, 1, 1, 0, 2])).map(
        lambda which: store.load(
            which,
            lambda: tf.ensure_shape(tf.numpy_function(make, [which], tf.uint8), (None, None, 3)),
        )
    )
    for which, got in zip([2, 0, 1, 1, 0, 2], dataset, strict=True):
        np.testing.assert_array_equal(got, images[which])
    assert made == [2, 0, 1]
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_told_or_left_out(monkeypatch, tmp_path):
    shapes = np.array([(100, 100)] * 10)  # 300 kB
    monkeypatch.setattr("kresnet.data.store._memory", lambda: 1_000_000)
    assert store_for(shapes, "auto", None) is None
    assert store_for(shapes, "none", None) is None
    assert store_for(shapes, "memory", None) is not None
    monkeypatch.setattr("kresnet.data.store._memory", lambda: 1_300_000)
    assert store_for(shapes, "auto", None) is not None
    monkeypatch.setattr("kresnet.data.store._memory", lambda: 200_000)
    with pytest.raises(ResourceError, match=r"fit into memory. Received: cache='memory'"):
        store_for(shapes, "memory", None)
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"The cache needs .* GB in .*file. Received"):
        store_for(shapes, "disk", tmp_path / "file")
