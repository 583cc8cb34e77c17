"""Same weights, same outputs as qubvel's ResNets, rebuilt here from plain Keras layers.

After classification_models/models/resnet.py at a0f006e; the package needs an older Keras. Its
images are 0..255, and `bn_data`, its first layer, becomes our preprocessing.
"""

import h5py
import keras
import numpy as np
import pytest
from conftest import randomize, relative_error
from keras import layers
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

from kresnet.zoo import build, load_weights


def conv(x, filters, size, strides=1, *, name):
    if size > 1:
        x = layers.ZeroPadding2D(size // 2)(x)
    return layers.Conv2D(filters, size, strides, use_bias=False, name=name)(x)


def norm_relu(x, name):
    return layers.ReLU()(layers.BatchNormalization(epsilon=2e-5, name=name)(x))


def qubvel(depths, *, bottleneck, size, classes=1000):
    """18 and 34 have two 3x3 convolutions a block, 50 and deeper ones 1x1, 3x3, 1x1."""
    images = keras.Input((*size, 3), name="data")
    x = layers.BatchNormalization(epsilon=2e-5, scale=False, name="bn_data")(images)
    x = norm_relu(conv(x, 64, 7, 2, name="conv0"), "bn0")
    x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
    for stage, depth in enumerate(depths):
        filters = 64 * 2**stage
        for unit in range(depth):
            name = f"stage{stage + 1}_unit{unit + 1}_"
            strides = 2 if stage and not unit else 1
            before = norm_relu(x, f"{name}bn1")
            if not unit:
                out = 4 * filters if bottleneck else filters
                x = conv(before, out, 1, strides, name=f"{name}sc")
            if bottleneck:
                y = norm_relu(conv(before, filters, 1, name=f"{name}conv1"), f"{name}bn2")
                y = norm_relu(conv(y, filters, 3, strides, name=f"{name}conv2"), f"{name}bn3")
                y = conv(y, 4 * filters, 1, name=f"{name}conv3")
            else:
                y = norm_relu(conv(before, filters, 3, strides, name=f"{name}conv1"), f"{name}bn2")
                y = conv(y, filters, 3, name=f"{name}conv2")
            x = layers.Add()([y, x])
    x = layers.GlobalAveragePooling2D(name="pool1")(norm_relu(x, "bn1"))
    return keras.Model(images, layers.Dense(classes, name="fc1")(x))


def randomized(model):
    """Random weights, variances so small that epsilon matters; bn_data is for images of 0..255."""
    randomize(model, seed=4)
    rng = np.random.default_rng(1)
    for layer in model.layers[2:]:
        if isinstance(layer, layers.BatchNormalization):
            variance = rng.uniform(1e-5, 1e-3, layer.moving_variance.shape)
            layer.gamma.assign(layer.gamma.numpy() * np.sqrt(variance + 2e-5))
            layer.moving_variance.assign(variance)
    first = model.get_layer("bn_data")
    first.beta.assign(rng.normal(size=3) * 0.3)
    first.moving_mean.assign(rng.uniform(90, 140, 3))
    first.moving_variance.assign(rng.uniform(3000, 5000, 3))
    return model


@pytest.mark.parametrize(
    ("depth", "depths"), [(18, (2, 2, 2, 2)), (34, (3, 4, 6, 3)), (50, (3, 4, 6, 3))]
)
def test_pixels_give_the_same_logits(depth, depths, tmp_path):
    pixels = np.random.default_rng(depth).integers(0, 256, (2, 97, 100, 3)).astype("float32")
    reference = randomized(qubvel(depths, bottleneck=depth > 34, size=(None, None)))
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        save_weights_to_hdf5_group(file, reference)
    model = build(f"preresnet{depth}")
    report = load_weights(model, tmp_path / "weights.h5")
    assert (report.scheme, report.head, report.unused) == ("qubvel", "loaded", ())
    for x in (pixels, pixels[:, 1:, :96]):
        expected = reference(x, training=False)
        mean, std = np.array(report.preprocessing.mean), np.array(report.preprocessing.std)
        ours = ((x / 255 - mean) / std).astype("float32")
        assert relative_error(model(ours, training=False), expected) < 1e-5


def test_a_file_without_bn_data_takes_pixels(tmp_path):
    reference = randomized(qubvel((2, 2, 2, 2), bottleneck=False, size=(None, None), classes=3))
    arrays = {f"{la.name}/{v.name}": v.numpy() for la in reference.layers for v in la.weights}
    arrays = {name: array for name, array in arrays.items() if not name.startswith("bn_data")}
    preprocessing = load_weights(build("preresnet18", num_classes=3), arrays).preprocessing
    assert (preprocessing.mean, preprocessing.std) == ((0.0,) * 3, (1 / 255,) * 3)
