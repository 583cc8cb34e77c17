"""Same weights, same outputs as keras.applications, through the layout of its .h5 files."""

import h5py
import keras
import numpy as np
import pytest
from conftest import randomize, relative_error
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

from kresnet.zoo import build

# 53,120 / 105,344 / 151,424 more in keras.applications: its moving statistics and its
# convolutions' biases, which the norms make superfluous.
PARAMETERS = {"50": 25_557_032, "101": 44_549_160, "152": 60_192_808}


def application(depth, size):
    """With its top, keras.applications wants a fixed input shape."""
    build_it = getattr(keras.applications, f"ResNet{depth}")
    return build_it(weights=None, input_shape=(size, size + 3, 3), classifier_activation=None)


SLOW = pytest.mark.slow  # the same blocks, more of them


@pytest.fixture(
    scope="module",
    params=["50", pytest.param("101", marks=SLOW), pytest.param("152", marks=SLOW)],
)
def oracle(request, tmp_path_factory):
    """A randomised ResNet of keras.applications, its .h5 file, and ours of the same depth."""
    depth = request.param
    reference = randomize(application(depth, 97), seed=3)
    path = tmp_path_factory.mktemp("h5") / "weights.h5"
    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, reference)
    return depth, reference, path


def test_features_and_logits_agree(oracle):
    depth, reference, path = oracle
    model = build(f"resnet{depth}_v1", weights=path)
    backbone = build(f"resnet{depth}_v1", num_classes=None, weights=path)
    for size in (97, 224):
        same = application(depth, size)
        same.set_weights(reference.get_weights())
        trunk = keras.Model(same.input, same.get_layer("avg_pool").output)
        rgb = np.random.default_rng(size).normal(size=(2, size, size + 3, 3)).astype("float32")
        bgr = rgb[..., ::-1]  # what its preprocess_input gives
        assert relative_error(model(rgb, training=False), same(bgr, training=False)) < 1e-4
        assert relative_error(backbone(rgb, training=False), trunk(bgr, training=False)) < 1e-4


def test_parameters_are_the_published_number(oracle):
    depth, reference, _ = oracle
    model = build(f"resnet{depth}_v1")
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == PARAMETERS[depth]
    biases = sum(
        int(np.prod(layer.bias.shape))
        for layer in reference.layers
        if isinstance(layer, keras.layers.Conv2D)
    )
    theirs = sum(int(np.prod(v.shape)) for v in reference.trainable_variables)
    assert theirs - biases == PARAMETERS[depth]


def test_preprocessing_is_that_of_keras_applications(oracle):
    depth, _, path = oracle
    preprocessing = build(f"resnet{depth}_v1", weights=path).preprocessing
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 5, 4, 3)).astype("float32")
    ours = (pixels / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    theirs = keras.applications.resnet.preprocess_input(pixels.copy())[..., ::-1]
    np.testing.assert_allclose(ours, theirs, atol=1e-3)
