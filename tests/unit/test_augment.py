"""Every operation does what Pillow or the paper says, and every view follows from its seed."""

import functools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from kresnet.data.augment import STREAMS, Augmentation, color, erasing, geometry, policies
from kresnet.data.augment.mixing import mix

RNG = np.random.default_rng(3)
SIDE = 48


def picture(seed=0, height=SIDE, width=SIDE):
    """A smooth, asymmetric picture that uses neither the darkest nor the brightest levels."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(20, 230, (7, 9, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def as_float(image):
    return tf.constant(image, tf.float32)


ENHANCE = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
    "sharpness": ImageEnhance.Sharpness,
}


@pytest.mark.parametrize("name", ENHANCE)
@pytest.mark.parametrize("factor", [0.0, 0.1, 0.7, 1.0, 1.9])
def test_enhancements_as_pillow(name, factor):
    for seed in range(4):
        image = picture(seed)
        expected = np.asarray(ENHANCE[name](Image.fromarray(image)).enhance(factor), np.float32)
        got = getattr(color, name)(as_float(image), tf.constant(factor)).numpy()
        assert np.abs(got - expected).max() <= 1.01 + abs(1 - factor)  # Pillow rounds in between


@pytest.mark.parametrize("bits", [1, 2, 4, 7, 8])
def test_posterize_as_pillow(bits):
    image = picture()
    expected = np.asarray(ImageOps.posterize(Image.fromarray(image), bits))
    np.testing.assert_array_equal(color.posterize(as_float(image), tf.constant(bits)), expected)


@pytest.mark.parametrize("threshold", [0, 77, 128, 255])
def test_solarize_as_pillow(threshold):
    image = picture()
    expected = np.asarray(ImageOps.solarize(Image.fromarray(image), threshold))
    got = color.solarize(as_float(image), tf.constant(float(threshold)))
    np.testing.assert_array_equal(got, expected)


def odd_pictures():
    flat = picture(1).copy()
    flat[..., 1] = 93
    two = np.where(RNG.random((SIDE, SIDE, 3)) < 0.3, 10, 200).astype(np.uint8)
    return [picture(0), picture(1, 30, 50), flat, two, np.full((5, 6, 3), 7, np.uint8)]


def test_autocontrast_as_pillow():
    for image in odd_pictures():
        expected = np.asarray(ImageOps.autocontrast(Image.fromarray(image)), np.float32)
        assert np.abs(color.autocontrast(as_float(image)).numpy() - expected).max() <= 1.0


def test_equalize_as_pillow():
    for image in odd_pictures():
        expected = np.asarray(ImageOps.equalize(Image.fromarray(image)))
        np.testing.assert_array_equal(color.equalize(as_float(image)), expected)


def pillow_affine(image, matrix):
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(128,) * 3
    )


GEOMETRY = {
    "shear_x": (0.2, lambda i, v: pillow_affine(i, (1, v, 0, 0, 1, 0))),
    "shear_y": (-0.3, lambda i, v: pillow_affine(i, (1, 0, 0, v, 1, 0))),
    "translate_x": (9.7, lambda i, v: pillow_affine(i, (1, 0, -int(v), 0, 1, 0))),
    "translate_y": (-5.5, lambda i, v: pillow_affine(i, (1, 0, 0, 0, 1, -int(v)))),
    "rotate": (
        35.0,
        lambda i, v: i.rotate(v, Image.Resampling.BILINEAR, fillcolor=(128,) * 3),
    ),
}


@pytest.mark.parametrize("name", GEOMETRY)
@pytest.mark.parametrize("sign", [1, -1])
def test_geometry_as_pillow(name, sign):
    value, pillow = GEOMETRY[name]
    image = picture(2, 40, 57)
    expected = np.asarray(pillow(Image.fromarray(image), sign * value), np.float32)
    got = getattr(geometry, name)(as_float(image), tf.constant(sign * value)).numpy()
    difference = np.abs(got - expected).max(axis=2)
    assert np.mean(difference > 1.5) < 0.05  # only along the border, where fill comes in
    assert np.abs(got - image).mean() > 5


SEEDS = st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1))


@functools.cache
def compiled(augmentation, size):
    def view(image, seed):
        return augmentation.view(image, seed, size=size, interpolation="bilinear")

    signature = [tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((2,), tf.int64)]
    return tf.function(view, signature, autograph=False)


KINDS = {
    "none": Augmentation("none"),
    "light": Augmentation("light", vertical_flip=True),
    "trivial": Augmentation("trivial"),
    "rand, erased": Augmentation("rand", erase=1.0, min_area=0.08),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 90), width=st.integers(1, 90), seed=SEEDS, level=st.integers(0, 255))
def test_a_view_has_shape_type_and_range_and_follows_from_image_and_seed(
    kind, height, width, seed, level
):
    rng = np.random.default_rng(height * 100 + width)
    image = rng.integers(min(level, 254), 255, (height, width, 3), dtype=np.uint8)
    make = compiled(KINDS[kind], 33)
    one, again = (make(image, tf.constant(seed, tf.int64)).numpy() for _ in range(2))
    assert one.shape == (33, 33, 3)
    assert one.dtype == np.float32
    assert one.min() >= 0
    assert one.max() <= 255.001
    np.testing.assert_array_equal(one, again)


@pytest.mark.parametrize("kind", KINDS)
def test_other_seeds_give_other_views(kind):
    make, image = compiled(KINDS[kind], 33), picture()
    seeds = [tf.constant([5, STREAMS * k], tf.int64) for k in range(6)]
    assert len({make(image, seed).numpy().tobytes() for seed in seeds}) == 6


def test_no_augmentation_of_a_whole_square_is_the_image():
    image = picture()
    make = compiled(Augmentation("light", color=0.0, flip=False, min_area=1.0), SIDE)
    views = [make(image, tf.constant([0, k], tf.int64)).numpy() for k in range(50)]
    nearest = min(np.abs(view - image).mean() for view in views)
    assert nearest < 3  # the crop's aspect ratio is still random


def test_jitter_is_brightness_then_contrast_then_saturation():
    image = as_float(np.clip(picture(), 90, 150))  # nothing is clipped on the way
    for k in range(20):
        seed = tf.constant([1, k])
        light, contrast, saturation = tf.random.stateless_uniform((3,), seed, 0.7, 1.3)
        step = color.brightness(image, light)
        expected = color.saturation(color.contrast(step, contrast), saturation).numpy()
        got = color.random_jitter(image, seed, strength=0.3).numpy()
        assert np.abs(got - expected).max() < 0.6  # Pillow's contrast rounds the mean


def test_the_fourteen_operations_and_ranges_of_torchvision(torchvision_models):
    """An independent copy of the papers' tables; its ranges are tensors of 31 magnitudes."""
    from torchvision.transforms import autoaugment as transforms

    theirs = transforms.RandAugment()._augmentation_space(31, (224, 224))
    wide = transforms.TrivialAugmentWide()._augmentation_space(31)
    ours = policies.operations(224)
    assert list(ours) == list(theirs) == list(wide)
    for name, operation in ours.items():
        for (low, high), (magnitudes, signed) in (
            (operation.rand, theirs[name]),
            (operation.wide, wide[name]),
        ):
            assert operation.signed == signed
            if magnitudes.ndim:
                expected = low + (high - low) * np.arange(31) / 30
                expected = np.round(expected) if name == "Posterize" else expected
                np.testing.assert_allclose(magnitudes.numpy(), expected, atol=1e-3)
            else:
                assert (low, high) == (0.0, 0.0)


def drawn(monkeypatch, policy, count):
    """Which operations a policy applies, with which magnitudes, over many seeds."""
    calls = []

    def spy(number, operation):
        def apply(image, magnitude):
            tf.numpy_function(lambda m: calls.append((number, float(m))), [magnitude], [])
            return tf.identity(image)

        return operation._replace(apply=apply)

    real = policies.operations(224)
    spies = {name: spy(k, operation) for k, (name, operation) in enumerate(real.items())}
    monkeypatch.setattr(policies, "operations", lambda side: spies)
    run = tf.function(lambda seed: policy(tf.zeros((8, 8, 3)), seed), autograph=False)
    for k in range(count):
        run(tf.constant([2, k], tf.int64))
    return list(real.items()), calls


def test_rand_augment_draws_two_operations_of_strength_nine(monkeypatch):
    ours, calls = drawn(monkeypatch, policies.rand_augment, 600)
    assert len(calls) == 1200
    counts = np.bincount([number for number, _ in calls], minlength=14)
    assert counts.min() > 50  # 86 expected
    for number, magnitude in calls:
        low, high = ours[number][1].rand
        expected = low + (high - low) * 9 / 30
        got = abs(magnitude) if ours[number][1].signed else magnitude
        assert got == pytest.approx(expected, abs=1e-3)
    signs = [np.sign(m) for number, m in calls if ours[number][1].signed]
    assert 0.4 < np.mean(np.array(signs) > 0) < 0.6


def test_trivial_augment_draws_one_operation_of_any_strength(monkeypatch):
    ours, calls = drawn(monkeypatch, policies.trivial_augment, 900)
    assert len(calls) == 900
    rotations = [m for number, m in calls if ours[number][0] == "Rotate"]
    levels = np.array(rotations) / 135 * 30
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
    assert len(set(np.round(np.abs(levels)))) > 15
    assert np.abs(levels).max() > 24


def test_erasing_covers_what_the_paper_says():
    shape = tf.constant([60, 80, 3])
    seeds = tf.stack([tf.range(2000), tf.ones(2000, tf.int32)], axis=1)
    boxes = tf.map_fn(lambda seed: erasing.random_rectangle(shape, seed), seeds).numpy()
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 60).all()
    assert (left + width <= 80).all()
    share = height * width / 4800
    drawn_ones = height > 0
    assert drawn_ones.mean() > 0.99
    assert share[drawn_ones].min() > 0.013  # whole pixels are cut off
    assert share.max() <= 0.4
    assert (top == 0).any()
    assert (top + height == 60).any()
    ratio = height[drawn_ones] / width[drawn_ones]
    assert 0.25 < ratio.min() < 0.5
    assert 2.0 < ratio.max() < 3.8


def test_half_of_the_images_lose_a_rectangle_to_noise():
    image = as_float(picture())
    run = tf.function(erasing.random_erasing)
    views = [run(image, tf.constant([0, k])).numpy() for k in range(200)]
    changed = [np.any(view != image, axis=2) for view in views]
    assert 0.4 < np.mean([c.any() for c in changed]) < 0.6
    for mask, view in zip(changed, views, strict=True):
        if mask.any():
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            noise = view[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert mask.mean() == noise.shape[0] * noise.shape[1] / mask.size  # a full rectangle
            assert noise.std() > 30


def batch(count=8, classes=5, size=24, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, size, size, 3)).astype("float32")
    labels = rng.integers(classes, size=count)
    per_class = rng.uniform(0.2, 4.0, classes).astype("float32")
    targets = np.eye(classes, dtype="float32")[labels]
    return images, targets, per_class[labels], per_class


def seeds_for(count, seed=0):
    return tf.stack([tf.fill((count,), np.int64(seed)), tf.range(count, dtype=tf.int64)], axis=1)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 9),
    kinds=st.sampled_from([(0.2, 0.0), (0.0, 1.0), (0.4, 1.0), (0.05, 0.05)]),
    seed=st.integers(0, 2**31 - 1),
)
def test_mixed_targets_sum_to_one_and_weigh_what_they_show(count, kinds, seed):
    images, targets, weights, per_class = batch(count, seed=seed % 1000)
    mixed, new_targets, new_weights = mix(
        images, targets, weights, seeds_for(count, seed), mixup=kinds[0], cutmix=kinds[1]
    )
    assert mixed.shape == images.shape
    assert new_targets.dtype == new_weights.dtype == mixed.dtype == tf.float32
    np.testing.assert_allclose(new_targets.numpy().sum(axis=1), 1, atol=1e-6)
    assert new_targets.numpy().min() >= 0
    # The expected weight of the labels, which a class_weight argument would get wrong.
    expected = (new_targets.numpy() * per_class).sum(axis=1)
    np.testing.assert_allclose(new_weights, expected, rtol=1e-5)
    np.testing.assert_allclose(new_weights.numpy().sum(), weights.sum(), rtol=1e-5)
    if count % 2:
        np.testing.assert_array_equal(mixed[-1], images[-1])


def test_mixup_is_the_same_share_of_images_and_labels():
    images, targets, weights, _ = batch(4000, classes=4000, size=2)
    targets = np.eye(4000, dtype="float32")
    mixed, new_targets, _ = mix(images, targets, weights, seeds_for(4000), mixup=0.4, cutmix=0.0)
    share = np.diag(new_targets.numpy())
    neighbour = np.arange(4000) ^ 1
    expected = (
        share[:, None, None, None] * images + (1 - share[:, None, None, None]) * images[neighbour]
    )
    np.testing.assert_allclose(mixed, expected, atol=1e-5)
    np.testing.assert_allclose(share[::2], share[1::2], atol=1e-6)
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)).
    assert abs(share.mean() - 0.5) < 0.02
    assert abs(share.var() - 1 / (4 * 1.8)) < 0.01


def test_cutmix_pastes_a_rectangle_and_counts_its_pixels():
    images, _, weights, _ = batch(400, size=32)
    targets = np.eye(400, dtype="float32")
    mixed, shown, _ = mix(images, targets, weights, seeds_for(400), mixup=0.0, cutmix=1.0)
    new_targets = shown.numpy()
    shares = []
    for k, image in enumerate(mixed.numpy()):
        own = (image == images[k]).all(axis=2)
        other = (image == images[k ^ 1]).all(axis=2)
        assert (own ^ other).all()
        if other.any():
            rows, columns = np.flatnonzero(other.any(axis=1)), np.flatnonzero(other.any(axis=0))
            assert other.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        shares.append(own.mean())
        assert new_targets[k, k] == pytest.approx(own.mean(), abs=1e-5)
        assert new_targets[k, k ^ 1] == pytest.approx(other.mean(), abs=1e-5)
    assert np.std(shares) > 0.15


def test_pairs_draw_one_of_both_kinds():
    images, targets, weights, _ = batch(200)
    mixed, _, _ = mix(images, targets, weights, seeds_for(200), mixup=1.0, cutmix=1.0)
    pasted = np.mean(
        [
            ((image == images[k]) | (image == images[k ^ 1])).all()
            for k, image in enumerate(mixed.numpy())
        ]
    )
    assert 0.35 < pasted < 0.65


def test_nothing_to_mix_changes_nothing():
    images, targets, weights, _ = batch()
    assert mix(images, targets, weights, seeds_for(8), mixup=0.0, cutmix=0.0)[0] is images
