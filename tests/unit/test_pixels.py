"""Every format, colour type and orientation against Pillow; resampling against Pillow."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from kresnet.data import headers, pixels
from kresnet.zoo.cards import Preprocessing

RNG = np.random.default_rng(3)
HEIGHT, WIDTH = 21, 34
RGBA = RNG.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
RGBA[:4, :9, 3], RGBA[4:8, :9, 3] = 0, 255
COLOR, GREY = Image.fromarray(RGBA[..., :3]), Image.fromarray(RGBA[..., 0])
CLEAR, GREY_CLEAR = Image.fromarray(RGBA), Image.fromarray(RGBA[..., [0, 3]], "LA")
PALETTE = COLOR.quantize(16)
SMOOTH = COLOR.resize((90, 64), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def decode():
    """`pixels.decode`, traced once, on bytes."""
    traced = tf.function(pixels.decode, [tf.TensorSpec((), tf.string)], autograph=False)
    return lambda contents: traced(tf.constant(contents)).numpy()


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pillow(contents):
    """What Pillow sees: upright, over white."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(contents))).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))


def difference(a, b):
    assert a.shape == b.shape
    return np.abs(a.astype(float) - b.astype(float)).max()


def png16(values):
    """A 16-bit PNG, which Pillow writes for grey only; values `(h, w, 1 to 4)`."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width, channels = values.shape
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return (
        headers.PNG
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def with_local_palette(gif):
    """Move the palette of a GIF from the file to its frame."""
    size = 3 * 2 ** (gif[10] % 8 + 1)
    head, palette, rest = gif[:13], gif[13 : 13 + size], gif[13 + size :]
    frame = rest.index(b"\x2c\0\0\0\0")
    flags = bytes([rest[frame + 9] | 0x80 | gif[10] % 8])
    return (
        head[:10]
        + bytes([head[10] & 0x7F])
        + head[11:]
        + rest[: frame + 9]
        + flags
        + palette
        + rest[frame + 10 :]
    )


def top_down(bmp):
    """Negate the height of a BMP, which turns it upside down."""
    return bmp[:22] + struct.pack("<i", -struct.unpack("<i", bmp[22:26])[0]) + bmp[26:]


FILES = {
    "jpeg": encode(COLOR, "JPEG"),
    "jpeg 4:4:4": encode(COLOR, "JPEG", subsampling=0, quality=98),
    "jpeg progressive": encode(SMOOTH, "JPEG", progressive=True),
    "jpeg grey": encode(GREY, "JPEG"),
    "jpeg cmyk": encode(SMOOTH.convert("CMYK"), "JPEG"),
    "png": encode(COLOR, "PNG"),
    "png grey": encode(GREY, "PNG"),
    "png grey alpha": encode(GREY_CLEAR, "PNG"),
    "png rgba": encode(CLEAR, "PNG"),
    "png palette": encode(PALETTE, "PNG"),
    "png palette alpha": encode(PALETTE, "PNG", transparency=bytes(range(0, 256, 16))),
    "png palette one clear": encode(PALETTE, "PNG", transparency=2),
    "png one clear colour": encode(COLOR, "PNG", transparency=COLOR.getpixel((3, 5))),
    "png one clear grey": encode(GREY, "PNG", transparency=GREY.getpixel((3, 5))),
    "png 1 bit": encode(GREY.convert("1"), "PNG"),
    "bmp 24": encode(COLOR, "BMP"),
    "bmp 32": encode(CLEAR, "BMP"),
    "bmp palette": encode(PALETTE, "BMP"),
    "bmp grey": encode(GREY, "BMP"),
    "gif": encode(PALETTE, "GIF"),
    "gif clear": encode(PALETTE, "GIF", transparency=3),
    "gif clear comment": encode(PALETTE, "GIF", transparency=3, comment=b"c" * 700),
    "gif clear animated": encode(
        PALETTE,
        "GIF",
        transparency=5,
        save_all=True,
        append_images=[PALETTE.rotate(180)],
        loop=0,
        disposal=2,
    ),
    "webp": encode(COLOR, "WEBP", lossless=True),
    "webp lossy": encode(SMOOTH, "WEBP"),
    "webp alpha": encode(CLEAR, "WEBP", lossless=True, exact=True),
    "webp lossy alpha": encode(CLEAR, "WEBP"),
    "webp animated": encode(
        COLOR, "WEBP", lossless=True, save_all=True, append_images=[COLOR.rotate(180)]
    ),
    "webp animated alpha": encode(
        CLEAR, "WEBP", lossless=True, exact=True, save_all=True, append_images=[CLEAR.rotate(180)]
    ),
}
FILES["gif local palette"] = with_local_palette(FILES["gif clear"])


@pytest.mark.parametrize("name", FILES)
def test_formats_give_the_pixels_of_pillow(decode, name):
    assert difference(decode(FILES[name]), pillow(FILES[name])) <= 1


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")
def test_colour_type_is_not_lost_on_the_way(decode):
    """The files above differ: a decoder that ignored alpha or the palette would not pass."""
    for name in ("png rgba", "png palette alpha", "gif clear", "webp alpha", "png one clear grey"):
        opaque = np.asarray(Image.open(io.BytesIO(FILES[name])).convert("RGB"))
        assert difference(decode(FILES[name]), opaque) > 50, name


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_keeps_the_high_byte(decode, channels):
    values = RNG.integers(0, 2**16, (5, 7, channels))
    high = (values >> 8).astype(float)
    alpha = high[..., -1:] / 255 if channels in (2, 4) else 1.0
    colour = high[..., :1] if channels < 3 else high[..., :3]
    expected = np.broadcast_to(colour * alpha + 255 * (1 - alpha), (5, 7, 3))
    assert difference(decode(png16(values)), expected) <= 0.5


def test_bmp_with_rows_from_the_top_down(decode):
    flipped = COLOR.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    assert difference(decode(top_down(encode(flipped, "BMP"))), np.asarray(COLOR)) == 0


def test_animated_webp_without_alpha_does_not_corrupt_memory(decode):
    for _ in range(100):
        assert decode(FILES["webp animated"]).shape == (HEIGHT, WIDTH, 3)


def test_content_decides_and_eager_equals_traced(decode):
    for name in ("jpeg", "png rgba", "bmp palette", "gif clear", "webp alpha"):
        assert difference(pixels.decode(FILES[name]).numpy(), decode(FILES[name])) == 0


def tiff(order, value, *, tag=0x0112, kind=3, count=1, directory=8, entries=None):
    """An EXIF block with a maker string ahead of the orientation."""
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    entry = struct.pack(order + "HHI", tag, kind, count) + struct.pack(order + "HH", value, 0)
    maker = struct.pack(order + "HHI4s", 0x010F, 2, 4, b"abc\0")
    entries = 2 if entries is None else entries
    first = struct.pack(order + "H", entries) + maker + entry + bytes(4)
    return mark + struct.pack(order + "I", directory) + first


def app1(block):
    return b"\xff\xe1" + struct.pack(">H", 8 + len(block)) + b"Exif\0\0" + block


def jpeg_with(*segments):
    contents = FILES["jpeg"]
    return contents[:2] + b"".join(segments) + contents[2:]


JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
COMMENT = b"\xff\xfe\0\x40" + b"Exif\0\0II*\0".ljust(62, b"\1")


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_as_pillow(decode, order, turn):
    block = tiff(order, turn)
    files = [
        jpeg_with(app1(block)),
        jpeg_with(JFIF, COMMENT, app1(block)),
        encode(COLOR, "PNG", exif=block),
        encode(CLEAR, "WEBP", lossless=True, exact=True, exif=block),
        encode(CLEAR, "WEBP", lossless=True, exact=True, exif=b"Exif\0\0" + block),
    ]
    for contents in files:
        assert headers.orientation(contents) == turn
        assert difference(decode(contents), pillow(contents)) <= 1
    shape = (WIDTH, HEIGHT, 3) if turn >= 5 else (HEIGHT, WIDTH, 3)
    assert decode(files[0]).shape == shape


DAMAGED = {
    "no exif": jpeg_with(),
    "exif in a comment only": jpeg_with(COMMENT),
    "empty": jpeg_with(app1(b"")),
    "cut": jpeg_with(app1(tiff("<", 6)[:20])),
    "other mark": jpeg_with(app1(b"XX" + tiff("<", 6)[2:])),
    "directory far away": jpeg_with(app1(tiff(">", 6, directory=2**32 - 1))),
    "directory in the wrong place": jpeg_with(app1(tiff(">", 6, directory=3))),
    "no entries": jpeg_with(app1(tiff("<", 6, entries=0))),
    "one entry of two": jpeg_with(app1(tiff("<", 6, entries=1))),
    "value 0": jpeg_with(app1(tiff("<", 0))),
    "value 9": jpeg_with(app1(tiff("<", 9))),
    "another tag": jpeg_with(app1(tiff("<", 6, tag=0x0113))),
    "a long": jpeg_with(app1(tiff("<", 6, kind=4))),
    "two values": jpeg_with(app1(tiff("<", 6, count=2))),
    "after 300 segments": jpeg_with(*[b"\xff\xe5\0\x02"] * 300, app1(tiff("<", 6))),
    "bmp": FILES["bmp 24"],
    "not an image": b"Exif\0\0" + tiff("<", 6),
    "nothing": b"",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_exif_is_upright(decode, name):
    assert headers.orientation(DAMAGED[name]) == 1
    if DAMAGED[name].startswith(headers.JPEG):
        assert difference(decode(DAMAGED[name]), pillow(FILES["jpeg"])) <= 1


@pytest.mark.parametrize("name", ["jpeg", "png", "png rgba", "bmp 24", "gif", "webp", "webp alpha"])
def test_truncated_files_are_refused(decode, name):
    contents = FILES[name]
    for length in (len(contents) // 2, len(contents) - 20, 30, 12, 4):
        with pytest.raises(tf.errors.InvalidArgumentError):
            decode(contents[:length])


def test_other_content_is_refused(decode):
    message = "expected a JPEG, PNG, BMP, GIF or WebP image"
    for contents in (b"", b"x", b"<html>", b"II*\0" + bytes(99), b"\xff\x0aaaaaaaWEBPaaaaaaaaaa"):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            decode(contents)


def patched(name, at, data):
    contents = FILES[name]
    return contents[:at] + data + contents[at + len(data) :]


SOF = FILES["jpeg"].index(b"\xff\xc0") + 5
BOMBS = {
    "jpeg": patched("jpeg", SOF, struct.pack(">HH", 20_000, 5_001)),
    "png": patched("png", 16, struct.pack(">II", 20_000, 5_001)),
    "png overflow": patched("png", 16, struct.pack(">II", 2**32 - 1, 2**32 - 1)),
    "bmp": patched("bmp 24", 18, struct.pack("<ii", 20_000, 5_001)),
    "bmp top down": patched("bmp 24", 18, struct.pack("<ii", 20_000, -5_001)),
    "gif": patched("gif", 6, struct.pack("<HH", 20_000, 5_001)),
    "webp lossless": patched("webp", 21, struct.pack("<I", 16_383 | 6_110 << 14)),
    "webp lossy": patched("webp lossy", 26, struct.pack("<HH", 16_383, 6_110)),
    "webp extended": patched(
        "webp lossy alpha", 24, struct.pack("<I", 19_999)[:3] + struct.pack("<I", 5_000)[:3]
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_are_decoded(decode, name):
    with pytest.raises(tf.errors.InvalidArgumentError, match="more than 100 megapixels"):
        decode(BOMBS[name])


def test_100_megapixels_are_allowed(decode):
    """The damaged data is what stops this one, so its size did not."""
    contents = patched("png", 16, struct.pack(">II", 20_000, 5_000))
    with pytest.raises(tf.errors.InvalidArgumentError, match="PNG"):
        decode(contents)


KERNELS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def crop(image, box, size, interpolation):
    """Pillow's resize of a box; in floating point, because it clips and rounds in between."""
    top, left, height, width = box
    corners = (left, top, left + width, top + height)
    channels = [Image.fromarray(np.float32(channel)) for channel in image.split()]
    made = [c.resize((size, size), KERNELS[interpolation], box=corners) for c in channels]
    return np.clip(np.stack([np.asarray(channel) for channel in made], axis=-1), 0, 255)


BOXES = [(0, 0, 64, 90), (3.3, 10.7, 55.5, 60.1), (1, 2, 20, 30.5)]


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("size", [24, 100])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resample_as_pillow(box, size, interpolation):
    box = np.array(box, np.float32)
    got = pixels.resample(np.asarray(SMOOTH), box, size, interpolation).numpy()
    assert got.dtype == np.float32
    assert got.min() >= 0
    assert got.max() <= 255
    assert difference(got, crop(SMOOTH, box, size, interpolation)) < 0.01


def test_resample_is_resize_then_crop():
    image = np.asarray(SMOOTH)  # 64 high
    whole = tf.image.resize(image, (32, 45), antialias=True).numpy()
    box = np.array([6, 10, 48, 48], np.float32)
    got = pixels.resample(image, box, 24, "bilinear").numpy()
    assert difference(got, whole[3:27, 5:29]) < 1e-3


def test_resample_batches_floats_and_flips():
    images = RNG.integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    box = np.array([1, 2, 15, 20], np.float32)
    together = pixels.resample(images, box, 8, "bicubic").numpy()
    for image, expected in zip(images, together, strict=True):
        alone = pixels.resample(image, box, 8, "bicubic").numpy()
        assert alone.shape == (8, 8, 3)
        assert difference(alone, expected) == 0
        for flip in (True, tf.constant(True)):
            mirrored = pixels.resample(image.astype(np.float32), box, 8, "bicubic", flip)
            assert difference(mirrored.numpy(), expected[:, ::-1]) < 1e-3
        assert (
            difference(
                pixels.resample(image, box, 8, "bicubic", tf.constant(False)).numpy(), expected
            )
            == 0
        )
    assert difference(together, together[:, :, ::-1]) > 10


def test_bicubic_stays_in_range():
    edges = np.zeros((30, 30, 3), np.uint8)
    edges[8:20, 11:] = 255
    got = pixels.resample(edges, np.array([0, 0, 30, 30], np.float32), 50, "bicubic").numpy()
    assert got.min() == 0
    assert got.max() == 255


def test_center_box():
    np.testing.assert_allclose(pixels.center_box(400, 300, 0.875), [68.75, 18.75, 262.5, 262.5])
    np.testing.assert_allclose(pixels.center_box(tf.constant(5), 8, 1.0), [0, 1.5, 5, 5])
    assert pixels.center_box(5, 8, 1.0).dtype == tf.float32


def test_normalize():
    settings = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    for values in (RNG.integers(0, 256, (2, 5, 7, 3), dtype=np.uint8), RNG.random((5, 7, 3)) * 255):
        expected = (values / 255 - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]
        got = pixels.normalize(values, settings)
        assert got.dtype == tf.float32
        np.testing.assert_allclose(got, expected, atol=1e-5)


SMALL = Preprocessing(image_size=40, crop_pct=0.8, interpolation="bicubic")


def test_prepare_is_decode_crop_resample_normalize():
    contents = jpeg_with(app1(tiff("<", 6)))
    upright = pillow(contents)
    assert upright.shape == (WIDTH, HEIGHT, 3)
    side = 0.8 * HEIGHT
    box = ((WIDTH - side) / 2, (HEIGHT - side) / 2, side, side)
    expected = crop(Image.fromarray(upright), box, 40, "bicubic")
    expected = (expected / 255 - SMALL.mean) / SMALL.std
    got = pixels.prepare(tf.constant(contents), SMALL)
    assert got.dtype == tf.float32
    assert difference(got.numpy(), expected) < 1e-3


def test_prepare_pixels_equals_prepare():
    images = RNG.integers(0, 256, (3, 50, 70, 3), dtype=np.uint8)
    batch = pixels.prepare_pixels(images, SMALL).numpy()
    assert batch.shape == (3, 40, 40, 3)
    for image, expected in zip(images, batch, strict=True):
        contents = tf.constant(encode(Image.fromarray(image), "PNG"))
        np.testing.assert_allclose(pixels.prepare(contents, SMALL), expected, atol=1e-6)
        np.testing.assert_allclose(pixels.prepare_pixels(image, SMALL), expected, atol=1e-6)


def test_shapes_are_known_while_tracing():
    strings = tf.data.Dataset.from_tensors(FILES["jpeg"])
    assert strings.map(pixels.decode).element_spec.shape.as_list() == [None, None, 3]
    prepared = strings.map(lambda contents: pixels.prepare(contents, SMALL))
    assert prepared.element_spec.shape.as_list() == [40, 40, 3]
    images = tf.TensorSpec((None, None, None, 3), tf.uint8)
    batch = tf.function(lambda x: pixels.prepare_pixels(x, SMALL)).get_concrete_function(images)
    assert batch.output_shapes.as_list() == [None, 40, 40, 3]


class Server(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def serve(self, contents):
        signature = tf.TensorSpec((40, 40, 3), tf.float32)
        return tf.map_fn(
            lambda one: pixels.prepare(one, SMALL), contents, fn_output_signature=signature
        )


def test_saved_model_serves_bytes_in_either_loader(tmp_path):
    contents = [*FILES.values(), jpeg_with(app1(tiff(">", 5)))]
    expected = np.stack([pixels.prepare(one, SMALL) for one in contents])
    server = Server()
    tf.saved_model.save(server, tmp_path, signatures={"serving_default": server.serve})

    loaded = tf.saved_model.load(tmp_path)
    np.testing.assert_allclose(loaded.serve(tf.constant(contents)), expected, atol=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError, match="megapixels"):
        loaded.serve(tf.constant([contents[0], BOMBS["png"]]))

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path))
        signature = graph.signature_def["serving_default"]
        names = [next(iter(s.values())).name for s in (signature.inputs, signature.outputs)]
        got = session.run(names[1], {names[0]: contents})
    np.testing.assert_allclose(got, expected, atol=1e-5)


def torchvision_view(image):
    """Resize(256), CenterCrop(224) as torchvision does it, and whether it had to round sizes."""
    width, height = image.size
    short = min(width, height)
    exact = [256 * width / short, 256 * height / short]
    resized = image.resize([int(side) for side in exact], Image.Resampling.BILINEAR)
    left, top = (round((side - 224) / 2) for side in resized.size)
    view = resized.crop((left, top, left + 224, top + 224))
    return np.asarray(view), any(side % 2 for side in exact)


def test_photos_as_pillow_and_torchvision(shared):
    raw = Preprocessing(mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255))
    photos = sorted((shared / "flowers").glob("*/*.jpg"))[::6]
    compared = 0
    for photo in photos:
        contents = photo.read_bytes()
        image = Image.open(io.BytesIO(contents)).convert("RGB")
        got = pixels.prepare(tf.constant(contents), raw).numpy()
        top, left, height, width = pixels.center_box(image.height, image.width, 0.875).numpy()
        corners = (left, top, left + width, top + height)
        expected = image.resize((224, 224), Image.Resampling.BILINEAR, box=corners)
        assert difference(got, np.asarray(expected)) <= 1.01, photo
        # Where torchvision rounds, its view lies up to half a pixel beside ours.
        view, rounded = torchvision_view(image)
        if not rounded:
            compared += 1
            assert difference(got, view) <= 1.01, photo
    assert compared >= 20


def test_a_gif_is_cut_behind_its_first_frame_and_shows_the_same():
    contents = FILES["gif clear animated"]
    still, frame = headers.gif_still(tf.constant(contents))
    assert contents.startswith(still.numpy()[:-1])
    assert len(still.numpy()) < len(contents)
    assert contents[int(frame)] == 0x2C
    single, _ = headers.gif_still(tf.constant(FILES["gif"]))
    assert single.numpy() == FILES["gif"]
    for damaged in (contents[:300], contents[:20], b"GIF89a"):
        assert headers.gif_still(tf.constant(damaged))[0].numpy() == damaged


def test_a_frame_larger_than_its_gif_is_measured():
    start = FILES["gif"].index(b",", 13 + 3 * 2 ** (FILES["gif"][10] % 8 + 1))
    large = (
        FILES["gif"][: start + 5] + struct.pack("<HH", 20_000, 5_001) + FILES["gif"][start + 9 :]
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="more than 100 megapixels"):
        pixels.decode(tf.constant(large))
