"""What is decoded without TensorFlow is what TensorFlow decodes, bit for bit, or nothing."""

import io
import random
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from test_pixels import (
    CLEAR,
    COLOR,
    DAMAGED,
    FILES,
    GREY,
    PALETTE,
    SMOOTH,
    app1,
    encode,
    jpeg_with,
    png16,
)
from test_pixels import tiff as exif_block

from kresnet.data import headers, light, pixels

USUAL = {
    *("jpeg", "jpeg 4:4:4", "jpeg progressive", "jpeg grey", "png", "png grey", "png grey alpha"),
    *("png rgba", "png palette", "png 1 bit", "bmp 24", "gif", "webp", "webp lossy"),
}
"""What most photos and drawings are: these must not need TensorFlow."""

MORE = {
    "jpeg 4:2:2": encode(SMOOTH, "JPEG", subsampling=1),
    "jpeg 4:2:0 odd": encode(SMOOTH.crop((0, 0, 77, 43)), "JPEG", subsampling=2, quality=60),
    "jpeg restarts": encode(SMOOTH, "JPEG", restart_marker_blocks=2),
    "jpeg rgb": encode(COLOR, "JPEG", keep_rgb=True),
    "jpeg grey progressive": encode(GREY, "JPEG", progressive=True),
    "jpeg optimized": encode(SMOOTH, "JPEG", optimize=True, comment=b"a comment"),
    "png 4 bits": encode(PALETTE, "PNG", bits=4),
    "png 2 colours": encode(COLOR.quantize(2), "PNG", bits=1),
    "png 16 bit": png16(np.arange(3 * 40 * 30).reshape(40, 30, 3) * 17),
    "png dpi": encode(COLOR, "PNG", dpi=(72, 72)),
    "gif grey": encode(GREY, "GIF"),
    "gif not interlaced": encode(PALETTE, "GIF", interlace=0),
    "webp exif": encode(SMOOTH, "WEBP", exif=exif_block("<", 8)),
    "webp low": encode(SMOOTH, "WEBP", quality=5),
    "mpo": encode(SMOOTH, "MPO", save_all=True, append_images=[SMOOTH.rotate(180)]),
}


@pytest.fixture(scope="module")
def decode():
    """`pixels.decode`, traced once, on bytes; None for what it refuses."""
    traced = tf.function(pixels.decode, [tf.TensorSpec((), tf.string)], autograph=False)

    def decoded(contents):
        try:
            return traced(tf.constant(contents)).numpy()
        except tf.errors.InvalidArgumentError:
            return None

    return decoded


def check(decode, contents):
    """Compare both, and tell whether the light one answers."""
    found = light.decode(contents)
    if found is None:
        return False
    expected = decode(contents)
    assert expected is not None, "it answers for what TensorFlow refuses"
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert np.array_equal(found, expected)
    return True


@pytest.mark.parametrize("name", [*FILES, *MORE])
def test_the_pixels_are_those_of_tensorflow(decode, name):
    answers = check(decode, (FILES | MORE)[name])
    assert answers or name not in USUAL


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_it_is_turned_upright(decode, turn, order):
    block = exif_block(order, turn)
    assert check(decode, jpeg_with(app1(block)))
    exif = Image.Exif()
    exif[0x0112] = turn
    assert check(decode, encode(COLOR, "PNG", exif=exif))
    assert check(decode, encode(SMOOTH, "WEBP", exif=exif))
    assert light._orientation(block, 0) == turn


def test_an_orientation_that_only_xmp_has_is_none(decode):
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
    segment = b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp
    assert check(decode, jpeg_with(segment))


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_exif_is_upright(decode, name):
    answers = check(decode, DAMAGED[name])
    assert answers or name not in ("no exif", "value 0", "after 300 segments", "bmp")


@pytest.mark.parametrize("side", [1, 2, 15, 16, 17, 33])
def test_small_sides(decode, side):
    image = SMOOTH.crop((0, 0, side, 18 - side // 2))
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF"):
        assert check(decode, encode(image, kind)), kind


def test_real_photos(decode, shared):
    photos = sorted(shared.glob("hymenoptera/*/*/*.jpg"))[::9]
    photos += sorted(shared.glob("flowers/*/*.jpg"))[::20]
    photos += sorted(shared.glob("imagenet_samples/*/*"))[::10]
    assert len(photos) > 50
    assert sum(check(decode, photo.read_bytes()) for photo in photos) == len(photos)


def mutated(rng, contents):
    made = bytearray(contents)
    # The compressed data of a JPEG may be damaged in ways that no one can see.
    end = max(made.find(b"\xff\xda"), 3) if made.startswith(headers.JPEG) else len(made)
    for _ in range(rng.randint(1, 3)):
        at = min(rng.randrange(2, end), len(made) - 1)
        kind = rng.randrange(4)
        if kind == 0:
            made[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            made[at] = rng.choice((0, 0xFF, 0xD9, 0xDA))
        elif kind == 2:
            del made[at : at + rng.choice((1, 2, 40))]
        else:
            made[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 2, 12))))
    return bytes(made)


def test_what_is_damaged_is_decoded_alike_or_left_to_tensorflow(decode):
    rng = random.Random(8)
    sources = [*FILES.values(), *MORE.values()]
    answered = sum(check(decode, mutated(rng, rng.choice(sources))) for _ in range(1500))
    assert answered > 50  # damage to metadata costs nothing


def test_what_is_cut_is_left_to_tensorflow(decode):
    for name in USUAL:
        for part in (0.3, 0.7, 0.95):
            check(decode, FILES[name][: int(part * len(FILES[name]))])
        check(decode, FILES[name][:-1])
        check(decode, FILES[name] + b"behind it")


@pytest.mark.parametrize("contents", [b"", b"\xff\xd8\xff", b"BM", b"no image", b"RIFF", b"GIF89a"])
def test_other_content_is_left_to_tensorflow(contents):
    assert light.decode(contents) is None


def test_bombs_are_left_to_tensorflow():
    file = io.BytesIO()
    Image.new("1", (12_000, 9_000)).save(file, "PNG")
    assert light.decode(file.getvalue()) is None


def test_random_exif_is_read_as_tensorflow_reads_it():
    rng = np.random.default_rng(2)
    orientation = tf.function(headers.orientation, [tf.TensorSpec((), tf.string)], autograph=False)
    for _ in range(300):
        block = bytearray(exif_block("<" if rng.random() < 0.5 else ">", int(rng.integers(0, 12))))
        for at in rng.integers(6, len(block), 2):
            block[at] = rng.integers(0, 256)
        contents = jpeg_with(app1(bytes(block)))
        expected = int(orientation(contents))
        found = light._orientation(contents, light._exif_in_jpeg(contents))
        assert found == expected


@pytest.mark.slow  # it starts a process
def test_it_needs_no_tensorflow():
    code = (
        "import sys; from kresnet.data import light; light.decode(sys.stdin.buffer.read()).shape; "
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    contents = encode(CLEAR, "PNG")
    subprocess.run([sys.executable, "-c", code], input=contents, check=True)
