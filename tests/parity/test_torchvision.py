"""Same weights, same outputs as torchvision: features and logits, at even and odd sizes."""

import numpy as np
import pytest
from conftest import relative_error

from kresnet.zoo import build

# Published numbers: parameters of torchvision's models with 1000 classes.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}


def randomized_torch(model, seed):
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
            elif value.dim() == 4:
                scale = (1.5 / np.prod(value.shape[1:])) ** 0.5
                value.copy_(torch.randn(value.shape, generator=generator) * scale)
            elif value.dim() == 1 and "num_batches" not in name:
                middle = 1.0 if ("bn" in name or "downsample.1" in name) and "weight" in name else 0
                value.copy_(torch.randn(value.shape, generator=generator) * 0.2 + middle)
    return model.eval()


SLOW = ("resnet101", "resnet152")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in PARAMETERS]
)
def test_features_and_logits_agree(name, torchvision_models):
    import torch

    oracle = randomized_torch(getattr(torchvision_models, name)(), seed=1)
    state = {key: value.numpy() for key, value in oracle.state_dict().items()}
    model = build(name, weights=state)
    backbone = build(name, num_classes=None, weights=state)
    trunk = torch.nn.Sequential(*list(oracle.children())[:-1])
    for size in (224, 97):
        images = np.random.default_rng(size).normal(size=(2, size, size + 3, 3)).astype("float32")
        with torch.no_grad():
            nchw = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
            logits, features = oracle(nchw).numpy(), trunk(nchw).flatten(1).numpy()
        assert relative_error(model(images, training=False), logits) < 1e-4
        assert relative_error(backbone(images, training=False), features) < 1e-4


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_number(name):
    model = build(name)
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == PARAMETERS[name]
