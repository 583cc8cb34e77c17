"""Same weights, same outputs as timm's Big Transfer models with timm's own npz loader."""

import h5py
import numpy as np
import pytest
from conftest import relative_error

from kresnet.zoo import build, load_weights

# timm adds 1e-8 to the variance of kernels, as we do; Google's code adds 1e-10.
HALF = (0.5, 0.5, 0.5)


def unit(stage, number, widths, rng):
    """The arrays of one residual unit by the names of the npz files."""
    inside, middle, outside = widths
    shapes = {
        "a": (1, 1, inside, middle),
        "b": (3, 3, middle, middle),
        "c": (1, 1, middle, outside),
    }
    if number == 1:
        shapes["a/proj"] = (1, 1, inside, outside)
    for part, shape in shapes.items():
        prefix = f"resnet/block{stage}/unit{number:02d}/{part}"
        scale = np.sqrt(1 / np.prod(shape[:-1]))
        yield f"{prefix}/standardized_conv2d/kernel", rng.normal(0.1, 1, shape) * scale
        if part != "a/proj":
            yield f"{prefix}/group_norm/gamma", rng.uniform(0.5, 1.5, shape[2])
            yield f"{prefix}/group_norm/beta", rng.normal(size=shape[2]) * 0.2


def bit50(classes, seed=0):
    """Random arrays of BiT-R50x1."""
    rng = np.random.default_rng(seed)
    arrays = {"resnet/root_block/standardized_conv2d/kernel": rng.normal(size=(7, 7, 3, 64)) * 0.1}
    inside = 64
    for stage, depth in enumerate((3, 4, 6, 3), start=1):
        middle = 32 * 2**stage
        for number in range(1, depth + 1):
            arrays |= dict(unit(stage, number, (inside, middle, 4 * middle), rng))
            inside = 4 * middle
    arrays["resnet/group_norm/gamma"] = rng.uniform(0.5, 1.5, 2048)
    arrays["resnet/group_norm/beta"] = rng.normal(size=2048) * 0.2
    arrays["resnet/head/conv2d/kernel"] = rng.normal(size=(1, 1, 2048, classes)) * 0.02
    arrays["resnet/head/conv2d/bias"] = rng.normal(size=classes) * 0.2
    return {name: array.astype("float32") for name, array in arrays.items()}


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    path = tmp_path_factory.mktemp("bit") / "BiT.npz"
    np.savez(path, **bit50(1000))
    return path


def test_logits_agree_with_timm(npz, torchvision_models):
    torch = pytest.importorskip("torch")
    timm = pytest.importorskip("timm")
    oracle = timm.create_model("resnetv2_50x1_bit").eval()
    oracle.load_pretrained(str(npz))
    model = build("resnetv2_50x1_bit")
    report = load_weights(model, npz)
    assert (report.scheme, report.head, report.unused) == ("BiT", "loaded", ())
    for size in (97, 128):
        x = np.random.default_rng(size).normal(size=(2, size, size + 3, 3)).astype("float32")
        with torch.no_grad():
            expected = oracle(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
        assert relative_error(model(x, training=False), expected) < 1e-5


def test_the_h5_twin_is_the_same_network(npz, tmp_path):
    """bit_tf2/models.py: one group a block, the names within it lead to the unit, a dense head."""
    with h5py.File(tmp_path / "BiT.h5", "w") as file:
        groups = {}
        for key, array in bit50(1000).items():
            path = key.removeprefix("resnet/").replace("head/conv2d", "head/dense")
            group = "head/dense" if path.startswith("head") else path.split("/")[0]
            groups.setdefault(group, {})[f"{path}:0"] = array[0, 0] if "dense/k" in path else array
        file.attrs["layer_names"] = [name.encode() for name in groups]
        for group, arrays in groups.items():
            inner = file.create_group(group)
            inner.attrs["weight_names"] = [name.encode() for name in arrays]
            for name, array in arrays.items():
                inner[name] = array
    model, same = build("resnetv2_50x1_bit", weights=npz), build("resnetv2_50x1_bit")
    assert load_weights(same, tmp_path / "BiT.h5").unused == ()
    for found, expected in zip(same.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("classes", "size", "crop"), [(1000, 448, 1.0), (21843, 224, 0.875)])
def test_preprocessing_tells_the_two_data_sets_apart(classes, size, crop):
    arrays = bit50(1000)
    arrays["resnet/head/conv2d/kernel"] = np.zeros((1, 1, 2048, classes), "float32")
    arrays["resnet/head/conv2d/bias"] = np.zeros(classes, "float32")
    model = build("resnetv2_50x1_bit", num_classes=3)
    report = load_weights(model, arrays, new_head=True)
    said = report.preprocessing
    assert (report.head, report.unused) == ("new", ())
    assert (said.image_size, said.crop_pct, said.mean, said.std) == (size, crop, HALF, HALF)


def test_classes_of_imagenet21k_can_be_chosen(npz):
    arrays = bit50(1000)
    model = build("resnetv2_50x1_bit", num_classes=2)
    load_weights(model, arrays, keep_classes=[999, 3])
    np.testing.assert_array_equal(
        model.get_layer("head").kernel.numpy(),
        arrays["resnet/head/conv2d/kernel"][0, 0][:, [999, 3]],
    )
