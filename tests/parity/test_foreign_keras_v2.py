"""Same weights, same outputs as keras.applications' V2, through the layout of its .h5 files."""

import h5py
import keras
import numpy as np
import pytest
from conftest import randomize, relative_error
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

from kresnet.errors import WeightsError
from kresnet.zoo import build, load_weights

SLOW = pytest.mark.slow  # the same blocks, more of them


def application(depth, size, include_top=True):
    build_it = getattr(keras.applications, f"ResNet{depth}V2")
    return build_it(
        weights=None,
        include_top=include_top,
        input_shape=(size, size + 3, 3),
        classifier_activation=None,
        pooling="avg",
    )


def with_small_variances(model):
    """Make variances so small that epsilon matters, and gamma as much smaller."""
    rng = np.random.default_rng(2)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            variance = rng.uniform(1e-6, 1e-4, layer.moving_variance.shape)
            layer.gamma.assign(layer.gamma.numpy() * np.sqrt(variance + 1e-5))
            layer.moving_variance.assign(variance)
    return model


def write_h5(model, path):
    with h5py.File(path, "w") as file:
        save_weights_to_hdf5_group(file, model)
    return path


def images(size):
    return np.random.default_rng(size).normal(size=(2, size, size + 3, 3)).astype("float32")


@pytest.mark.parametrize(
    "depth", [50, pytest.param(101, marks=SLOW), pytest.param(152, marks=SLOW)]
)
def test_features_and_logits_agree(depth, tmp_path):
    reference = with_small_variances(randomize(application(depth, 97), seed=3))
    path = write_h5(reference, tmp_path / "weights.h5")
    model = build(f"resnet{depth}_v2", weights=path)
    trunk = build(f"resnet{depth}_v2", num_classes=None, weights=path)
    for size in (97, 128) if depth == 50 else (97,):
        same = application(depth, size)
        same.set_weights(reference.get_weights())
        features = keras.Model(same.input, same.get_layer("avg_pool").output)
        x = images(size)
        assert relative_error(model(x, training=False), same(x, training=False)) < 1e-5
        assert relative_error(trunk(x, training=False), features(x, training=False)) < 1e-5


def test_a_file_without_top_gets_a_new_head(tmp_path):
    reference = randomize(application(50, 64, include_top=False), seed=5)
    path = write_h5(reference, tmp_path / "notop.h5")
    report = load_weights(build("resnet50_v2", num_classes=None), path)
    assert (report.scheme, report.head) == ("keras.applications V2", "none")
    assert report.missing == report.unused == ()
    model = build("resnet50_v2", num_classes=4)
    assert load_weights(model, path, new_head=True).head == "new"
    with pytest.raises(WeightsError, match="Pass new_head=True"):
        load_weights(model, path)


def test_preprocessing_is_that_of_keras_applications(tmp_path):
    path = write_h5(application(50, 64), tmp_path / "weights.h5")
    preprocessing = build("resnet50_v2", weights=path).preprocessing
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 5, 4, 3)).astype("float32")
    ours = (pixels / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    theirs = keras.applications.resnet_v2.preprocess_input(pixels.copy())
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert preprocessing.image_size == 299


def test_a_stride_in_the_first_block_is_refused(tmp_path):
    path = write_h5(application(50, 64), tmp_path / "weights.h5")
    with pytest.raises(
        WeightsError, match=r"stride in the last block of a stage\. .*'resnet50_v2'"
    ):
        load_weights(build("resnetv2_50"), path)
