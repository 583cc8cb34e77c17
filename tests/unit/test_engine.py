"""What the engine adds to an export: mirror images, and where the evidence is."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps
from small_export import CLASSES, picture, write_small

from kresnet.errors import ConfigError
from kresnet.serve.engine import Engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    directory = tmp_path_factory.mktemp("engine") / "small" / "1"
    write_small(directory, mirrored=True, threshold=0.5)
    return Engine(directory)


def mirrored(contents):
    stream = io.BytesIO()
    ImageOps.mirror(Image.open(io.BytesIO(contents))).save(stream, "PNG")
    return stream.getvalue()


def scores(answer):
    return np.array([answer.scores[name] for name in CLASSES])


def test_mirror_images_are_averaged_and_the_threshold_is_for_the_mean(engine):
    engine.check_mirrors()
    photos = [picture(k, 50 + k, 40) for k in range(6)]
    plain = engine.answer(photos)
    other = engine.answer([mirrored(photo) for photo in photos])
    both = engine.answer([*photos[:3], b"no image", *photos[3:]], mirror=True)
    assert both.pop(3) is None
    for one, two, mean in zip(plain, other, both, strict=True):
        expected = (scores(one) + scores(two)) / 2
        np.testing.assert_allclose(scores(mean), expected, atol=1e-6)
        assert mean.label == CLASSES[int(expected.argmax())]
        assert mean.abstain == (expected.max() < 0.5)
        assert np.abs(scores(one) - scores(mean)).max() > 1e-4  # the mirror image counts
    assert engine.answer([b"nothing"], mirror=True) == [None]


def test_an_export_that_tells_left_from_right_is_not_averaged(tmp_path):
    write_small(tmp_path / "1")
    with pytest.raises(ConfigError, match=r"whose training mirrored. Received: 'small'.*--tta"):
        Engine(tmp_path / "1").check_mirrors()


def test_heatmaps_are_those_of_the_signature_for_each_class(engine):
    photos = [picture(1), b"broken", picture(1)]
    first, broken, other = engine.heatmaps(photos, [CLASSES[0], CLASSES[0], CLASSES[3]])
    assert broken is None
    assert first.shape == other.shape
    assert first.min() >= 0
    assert np.abs(first - other).max() > 0.01
