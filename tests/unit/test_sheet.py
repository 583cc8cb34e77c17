"""Contact sheets: what a training sees, drawn."""

import numpy as np
import pytest
from conftest import stripes
from PIL import Image

import kresnet.workflow
from kresnet.console import Console
from kresnet.data.sheet import contact_sheet
from kresnet.errors import ConfigError, ResourceError


def test_images_keep_their_shape_and_place():
    rng = np.random.default_rng(0)
    wide = np.full((10, 40, 3), (200, 0, 0), np.uint8)
    tall = np.full((40, 10, 3), (0, 0, 200), np.uint8)
    noise = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
    sheet = np.asarray(contact_sheet([wide, tall, noise], ["a", "b", "c" * 99], columns=2, side=80))
    red, blue = (np.argwhere((sheet == color).all(axis=2)) for color in ((200, 0, 0), (0, 0, 200)))
    assert tuple(np.ptp(red, axis=0) + 1) == (20, 80)
    assert tuple(np.ptp(blue, axis=0) + 1) == (80, 20)
    assert red[:, 1].max() < blue[:, 1].min()  # side by side
    assert sheet.shape[1] < 2 * 80 + 60  # a long caption is cut, not the sheet widened


def test_a_training_is_shown_as_it_would_be(striped, tmp_path):
    path = kresnet.workflow.show_batches(
        striped, tmp_path / "sheet.png", variant="resnet20_cifar", images=12, mixup=0.4,
        batch_size=6, console=Console(quiet=True),
    )  # fmt: skip
    first = np.asarray(Image.open(path))
    kresnet.workflow.show_batches(
        striped, tmp_path / "again.png", variant="resnet20_cifar", images=12, mixup=0.4,
        batch_size=6, console=Console(quiet=True),
    )  # fmt: skip
    assert np.array_equal(first, np.asarray(Image.open(tmp_path / "again.png")))
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 2000


def test_mistakes_are_told(striped, tmp_path):
    with pytest.raises(ResourceError, match=r"picture that can be written.*Received: .*xyz"):
        kresnet.workflow.show_batches(
            striped, tmp_path / "sheet.xyz", variant="resnet20_cifar", console=Console(quiet=True)
        )
    with pytest.raises(ConfigError, match=r"no such field.*'mixip'.*Did you mean 'mixup'"):
        kresnet.workflow.show_batches(
            striped, tmp_path / "x.png", mixip=1, console=Console(quiet=True)
        )


def test_images_lost_before_scoring_are_named(tmp_path):
    from kresnet.data.lost import lost_images
    from kresnet.data.scan import scan

    rng = np.random.default_rng(0)
    for label, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        for k in range(3):
            stripes(rng, label).save(tmp_path / name / f"{k}.png")
    rows = scan(tmp_path).rows
    original = RuntimeError("from the graph")
    assert lost_images(rows, original) is original
    (tmp_path / "b" / "1.png").write_bytes(b"gone")
    assert "b/1.png' cannot be decoded any more" in str(lost_images(rows, original))
