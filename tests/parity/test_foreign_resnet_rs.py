"""Same weights, same outputs as tf_keras' ResNet-RS, rebuilt here from plain Keras layers.

After tf_keras/src/applications/resnet_rs.py at 2.21, names included; weights of it have the layout
that the library's own `save_weights` was seen to write.
"""

import h5py
import keras
import numpy as np
from conftest import randomize, relative_error
from keras import layers
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group

from kresnet.zoo import build, load_weights


def conv(x, filters, size, strides=1, *, name):
    if strides > 1:
        x = layers.ZeroPadding2D(size // 2)(x)
    padding = "valid" if strides > 1 else "same"
    return layers.Conv2D(filters, size, strides, padding, use_bias=False, name=name)(x)


def norm(x, name):
    return layers.BatchNormalization(epsilon=1e-5, name=name)(x)


def block(x, filters, strides, *, projects, name):
    shortcut = x
    if projects:
        if strides == 2:
            shortcut = layers.AveragePooling2D(2, 2, "same")(x)
        shortcut = conv(shortcut, 4 * filters, 1, name=f"{name}_projection_conv")
        shortcut = norm(shortcut, f"{name}_projection_batch_norm")
    x = layers.ReLU()(norm(conv(x, filters, 1, name=f"{name}_conv_1"), f"{name}batch_norm_1"))
    x = conv(x, filters, 3, strides, name=f"{name}_conv_2")
    x = layers.ReLU()(norm(x, f"{name}_batch_norm_2"))
    x = norm(conv(x, 4 * filters, 1, name=f"{name}_conv_3"), f"{name}_batch_norm_3")
    se = layers.GlobalAveragePooling2D(keepdims=True)(x)
    se = layers.Conv2D(filters, 1, activation="relu", name=f"{name}_se_se_reduce")(se)
    se = layers.Conv2D(4 * filters, 1, activation="sigmoid", name=f"{name}_se_se_expand")(se)
    return layers.ReLU()(layers.Add()([layers.Multiply()([x, se]), shortcut]))


def resnet_rs50(stem="stem_1", classes=1000):
    x = images = keras.Input((None, None, 3))
    for number, (filters, strides) in enumerate([(32, 2), (32, 1), (64, 1), (64, 2)], start=1):
        x = conv(x, filters, 3, strides, name=f"{stem}_stem_conv_{number}")
        x = layers.ReLU()(norm(x, f"{stem}_stem_batch_norm_{number}"))
    for group, depth in enumerate((3, 4, 6, 3)):
        for number in range(depth):
            strides = 2 if group and not number else 1
            name = f"BlockGroup{group + 2}__block_{number}_"
            x = block(x, 64 * 2**group, strides, projects=not number, name=name)
    x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    return keras.Model(images, layers.Dense(classes, name="predictions")(x))


def test_logits_agree(tmp_path):
    reference = randomize(resnet_rs50(), seed=6)
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        save_weights_to_hdf5_group(file, reference)
    model = build("resnetrs50")
    report = load_weights(model, tmp_path / "weights.h5")
    assert (report.scheme, report.head, report.unused) == ("ResNet-RS", "loaded", ())
    assert report.preprocessing.interpolation == "bicubic"
    for size in (97, 128):
        x = np.random.default_rng(size).normal(size=(2, size, size + 3, 3)).astype("float32")
        expected = reference(x, training=False)
        assert relative_error(model(x, training=False), expected) < 1e-5


def test_the_number_of_the_stem_does_not_matter():
    reference = randomize(resnet_rs50("stem_12", classes=3), seed=6)
    arrays = {f"{la.name}/{v.name}": v.numpy() for la in reference.layers for v in la.weights}
    assert load_weights(build("resnetrs50", num_classes=3), arrays).missing == ()
