"""Whatever the bytes are, decoding ends with pixels or with InvalidArgumentError."""

import io

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kresnet.data import headers, pixels

IMAGE = Image.fromarray(np.random.default_rng(5).integers(0, 256, (9, 14, 3), dtype=np.uint8))


def encode(kind, **options):
    file = io.BytesIO()
    IMAGE.save(file, kind, **options)
    return file.getvalue()


FILES = [
    encode("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"),
    encode("PNG"),
    encode("BMP"),
    encode("GIF"),
    encode("WEBP"),
    encode("WEBP", save_all=True, append_images=[IMAGE.rotate(180)], exif=b"MM\0*\0\0\0\x08"),
]
STARTS = [headers.JPEG, headers.PNG, b"BM", b"GIF89a", b"RIFF\x40\0\0\0WEBPVP8X", b""]
JPEG = encode("JPEG")

decode = tf.function(pixels.decode, [tf.TensorSpec((), tf.string)], autograph=False)


def decodes_or_is_refused(contents):
    try:
        image = decode(tf.constant(contents)).numpy()
    except tf.errors.InvalidArgumentError:
        return
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert image.size > 0


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(STARTS), st.binary(max_size=200))
def test_random_bytes(start, rest):
    decodes_or_is_refused(start + rest)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FILES), st.data())
def test_damaged_files(contents, data):
    made = bytearray(contents)
    for _ in range(data.draw(st.integers(1, 4))):
        made[data.draw(st.integers(2, len(made) - 1))] = data.draw(st.integers(0, 255))
    decodes_or_is_refused(bytes(made[: data.draw(st.integers(0, len(made)))]))


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([b"", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"]), st.binary(max_size=60))
def test_random_exif_never_breaks_a_jpeg(mark, rest):
    block = b"Exif\0\0" + mark + rest
    segment = b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block
    image = decode(tf.constant(JPEG[:2] + segment + JPEG[2:])).numpy()
    assert sorted(image.shape) == [3, 9, 14]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 8))
def test_orientation_is_read_back(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    assert headers.orientation(encode("JPEG", exif=exif)) == turn


def test_the_refusal_is_of_the_named_type():
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(tf.constant(b"\x89PNG"))
