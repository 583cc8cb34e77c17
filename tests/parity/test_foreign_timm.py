"""Our weights, written by timm's names: timm reads the file and gives the same outputs."""

import numpy as np
import pytest
from conftest import randomize, relative_error

from kresnet.zoo import build
from kresnet.zoo.convert import save_torch


@pytest.mark.parametrize("name", ["resnet18", "resnet50d", "seresnet18", "resnetv2_50"])
def test_timm_reads_what_we_write(name, torchvision_models, tmp_path):
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    model = randomize(build(name, num_classes=7), seed=11)
    save_torch(model, tmp_path / "w.safetensors")
    path = str(tmp_path / "w.safetensors")
    oracle = timm.create_model(name, num_classes=7, checkpoint_path=path).eval()
    for size in (97, 128):
        x = np.random.default_rng(size).normal(size=(2, size, size + 3, 3)).astype("float32")
        with torch.no_grad():
            expected = oracle(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
        assert relative_error(model(x, training=False), expected) < 1e-5
