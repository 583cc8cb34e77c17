"""MLPerf Tiny's published ResNet-8: our model gives the outputs of the one in its own file."""

import keras
import numpy as np
from conftest import randomize, relative_error
from keras import layers
from PIL import Image

from kresnet.zoo import build, load_weights


def resnet8():
    """After mlcommons/tiny, with the names that Keras gives by itself."""
    counts = {"conv2d": 0, "batch_normalization": 0}

    def name(kind):
        counts[kind] += 1
        return f"{kind}_{counts[kind] - 1}" if counts[kind] > 1 else kind

    def conv(x, filters, size, strides=1):
        return layers.Conv2D(filters, size, strides, "same", name=name("conv2d"))(x)

    def norm(x):
        return layers.BatchNormalization(name=name("batch_normalization"))(x)

    images = keras.Input((32, 32, 3))
    x = layers.ReLU()(norm(conv(images, 16, 3)))
    for filters in (16, 32, 64):
        strides = 1 if filters == 16 else 2
        y = layers.ReLU()(norm(conv(x, filters, 3, strides)))
        y = norm(conv(y, filters, 3))
        if strides > 1:
            x = conv(x, filters, 1, strides)
        x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Flatten()(layers.AveragePooling2D(8)(x))
    return keras.Model(images, layers.Dense(10, name="dense")(x))


def arrays_of(model):
    return {f"{la.name}/{v.name}": v.numpy() for la in model.layers for v in la.weights}


def test_random_weights_give_the_same_logits():
    reference = randomize(resnet8(), seed=2)
    rng = np.random.default_rng(1)
    for layer in reference.layers:
        if isinstance(layer, layers.BatchNormalization):  # epsilon, 1e-3, must matter
            layer.moving_variance.assign(rng.uniform(1e-3, 0.5, layer.moving_variance.shape))
    model = build("resnet8_cifar")
    report = load_weights(model, arrays_of(reference))
    assert (report.scheme, report.head, report.unused) == ("MLPerf Tiny", "loaded", ())
    x = np.random.default_rng(0).normal(size=(5, 32, 32, 3)).astype("float32")
    assert relative_error(model(x, training=False), reference(x, training=False)) < 1e-5


def test_numbers_that_start_later_are_the_same_layers():
    arrays = arrays_of(randomize(resnet8(), seed=2))
    later = {}
    for key, array in arrays.items():
        layer, variable = key.split("/")
        kind, _, number = layer.rpartition("_")
        kind, number = (kind, int(number)) if number.isdecimal() else (layer, 0)
        later[f"{kind}_{number + 9}/{variable}"] = array
    model, same = build("resnet8_cifar"), build("resnet8_cifar")
    load_weights(model, arrays)
    assert load_weights(same, later).unused == ()
    np.testing.assert_equal(same.get_weights(), model.get_weights())


def test_the_published_file(shared):
    (path,) = shared.glob("weights/resnet8_cifar10_keras_h5/*.h5")
    reference = keras.models.load_model(path, compile=False)
    model = build("resnet8_cifar")
    report = load_weights(model, path)
    mean, std = np.array(report.preprocessing.mean), np.array(report.preprocessing.std)
    files = sorted(shared.glob("cifar10_train1000/*/*.png"))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files]).astype("float32")
    names = sorted({file.parent.name for file in files})
    labels = np.array([names.index(file.parent.name) for file in files])
    logits = model.predict(((pixels / 255 - mean) / std).astype("float32"), verbose=0)
    softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax /= softmax.sum(axis=1, keepdims=True)
    assert np.abs(softmax - reference.predict(pixels, verbose=0)).max() < 1e-4
    accuracy = np.mean(logits.argmax(axis=1) == labels)
    print(f"{accuracy:.1%} of {len(files)}")
    assert accuracy > 0.85
