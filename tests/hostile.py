"""A zoo of bad, odd and hostile image files, built byte by byte, each with what must be said of it.

`build(root)` writes class folders `good` and `bad` and returns what `scan` or `check` must say.
"""

import io
import os
import struct
import unicodedata
import zlib

import numpy as np
from PIL import Image

RNG = np.random.default_rng(11)
PIXELS = RNG.integers(0, 256, (46, 61, 3), dtype=np.uint8)


def picture(seed=0, height=46, width=61):
    """A smooth picture of its own for each seed, so that no two are duplicates."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def encode(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name, data):
    """A part of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, bits, colour, rows, *extra):
    """A PNG from its parts; `rows` are compressed here."""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
        + b"".join(extra)
        + chunk(b"IDAT", rows)
        + chunk(b"IEND", b"")
    )


def png_bomb(side):
    """Zeros of `side` x `side` pixels in a thousandth of their size."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * side)
    return png(
        side, side, 8, 2, b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    )


def gif_frame(width, height):
    """The image block of a GIF of one colour."""
    contents = encode(Image.new("P", (width, height), 1), "GIF")
    return contents[contents.index(b"\x2c" + struct.pack("<HHHH", 0, 0, width, height)) : -1]


def gif(width, height, frames):
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF0, 0, 0)
    return head + bytes(range(6)) + b"".join(frames) + b";"


def with_orientation(turn, padding=0):
    """A JPEG with EXIF; `padding` bytes of a maker's note make it as large as they get."""
    exif = Image.Exif()
    exif[0x0112] = turn
    if padding:
        exif[0x927C] = bytes(RNG.integers(0, 256, padding, dtype=np.uint8))
    return encode(picture(20 + turn), "JPEG", exif=exif)


def _formats():
    """Odd but usable files, with their traits."""
    image = picture(1)
    clear = picture(2).convert("RGBA")
    clear.putalpha(Image.fromarray(PIXELS[..., 0]))
    frames = [picture(3), picture(4), picture(5)]
    palette = picture(6).quantize(16)
    sixteen = b"".join(
        b"\0" + row.tobytes() for row in RNG.integers(0, 2**16, (46, 61, 3)).astype(">u2")
    )
    jpeg, webp = encode(picture(7), "JPEG"), encode(picture(8), "WEBP")
    return {
        "grey.jpg": (encode(image.convert("L"), "JPEG"), "grey"),
        "cmyk.jpg": (encode(picture(9).convert("CMYK"), "JPEG"), "cmyk"),
        "progressive.jpg": (encode(picture(10), "JPEG", progressive=True), ""),
        "grey.png": (encode(picture(11).convert("L"), "PNG"), "grey"),
        "grey alpha.png": (encode(clear.convert("LA"), "PNG"), "grey alpha"),
        "alpha.png": (encode(clear, "PNG"), "alpha"),
        "palette.png": (encode(palette, "PNG"), "palette"),
        "palette clear.png": (encode(palette, "PNG", transparency=3), "palette alpha"),
        "16.png": (png(61, 46, 16, 2, zlib.compress(sixteen)), "16-bit"),
        "animated.png": (
            encode(frames[0], "PNG", save_all=True, append_images=frames[1:]),
            "animated",
        ),
        "animated.gif": (
            encode(frames[1], "GIF", save_all=True, append_images=frames[2:]),
            "palette animated",
        ),
        "many large frames.gif": (
            gif(3000, 3000, [gif_frame(3000, 3000)] * 80),
            "palette animated",
        ),
        "small canvas.gif": (gif(1, 1, [gif_frame(999, 900)] * 80), "palette animated"),
        "animated.webp": (
            encode(frames[2], "WEBP", lossless=True, save_all=True, append_images=frames[:2]),
            "animated",
        ),
        "alpha.webp": (encode(clear.transpose(0), "WEBP", lossless=True), "alpha"),
        "palette.bmp": (encode(picture(12).quantize(200), "BMP"), "palette"),
        "1x1.png": (encode(picture(13, 1, 1), "PNG"), ""),
        "1x3000.png": (encode(picture(14, 3000, 1), "PNG"), ""),
        "3000x1.jpg": (encode(picture(15, 1, 3000), "JPEG"), ""),
        "png.jpg": (encode(picture(16), "PNG"), "renamed"),
        "webp.png": (webp, "renamed"),
        "jpeg.txt": (encode(picture(17), "JPEG"), "renamed"),
        "turned.jpg": (with_orientation(6), "exif-6"),
        "mirrored.jpg": (with_orientation(2), "exif-2"),
        "huge exif.jpg": (with_orientation(8, 65_000), "exif-8"),
        "jpeg and zip.jpg": (jpeg + b"PK\3\4" + bytes(range(256)), "appended"),
        "png and script.png": (
            encode(picture(18), "PNG") + b"<script>alert(1)</script>",
            "appended",
        ),
        "gif and html.gif": (
            encode(picture(19).quantize(9), "GIF") + b"<html><body>hello",
            "palette appended",
        ),
    }  # fmt: skip


def _bad():
    """Unusable files, with the reason."""
    jpeg, made = encode(picture(30), "JPEG"), encode(picture(31), "PNG")
    start = jpeg.index(b"\xff\xc0") + 5
    tiny = gif_frame(3, 3)
    unknown = "not an image TensorFlow can decode: "
    unsupported = "is not supported: convert to PNG or JPEG"
    large = "more than 100 megapixels"
    sizes = (9999, 0, 54, 40, 30_000, -30_000, 1, 24, *[0] * 6)
    return {
        "empty.jpg": (b"", "empty file"),
        "zeros.jpg": (bytes(5000), "nothing but zero bytes at the start"),
        "page.jpg": (b"\xef\xbb\xbf\n<!DOCTYPE html><title>404</title>", "HTML page named .jpg"),
        "text.png": (b"404 not found", f"{unknown}it starts with b'404 not '"),
        "paper.jpeg": (b"%PDF-1.7\n" + jpeg, "PDF named .jpeg"),
        "archive.png": (b"PK\3\4" + made, "ZIP archive named .png"),
        "film.gif": (b"\0\0\0\x20ftypisom" + bytes(99), "video named .gif"),
        "._photo.jpg"[2:]: (b"\0\5\x16\7\0\2\0\0Mac OS X", "macOS metadata file named .jpg"),
        "pointer.jpg": (b"version https://git-lfs.github.com/", "Git LFS pointer named .jpg"),
        "script.gif": (b"GIF89a\2\0\2\0\0\0\0" + b"*/=1;alert(1)//" * 9, "truncated GIF"),
        "phone.heic": (b"\0\0\0\x18ftypheic" + bytes(99), f"HEIC {unsupported}"),
        "scan.tif": (encode(picture(32), "TIFF"), f"TIFF {unsupported}"),
        "drawing.svg": (b"<?xml version='1.0'?><svg/>", f"SVG {unsupported}"),
        "bomb.png": (png_bomb(12_000), large),
        "bomb.jpg": (
            jpeg[:start] + struct.pack(">HH", 65_500, 65_500) + jpeg[start + 4 :],
            large,
        ),
        "bomb overflow.png": (
            png(2**31 - 1, 2**31 - 1, 8, 2, zlib.compress(bytes(99))),
            large,
        ),
        "bomb frame.gif": (
            gif(3, 3, [tiny[:5] + struct.pack("<HH", 65_000, 65_000) + tiny[9:]]),
            large,
        ),
        "bomb.bmp": (
            b"BM" + struct.pack("<IIIIiiHHIIiiII", *sizes) + bytes(9945),
            large,
        ),
        "bad sum.png": (
            made[:60] + bytes([made[60] ^ 255]) + made[61:],
            f"{unknown}Invalid PNG data, size {len(made)}",
        ),
        "no data.png": (
            made[:33] + made[-12:],
            f"{unknown}Invalid PNG. Failed to initialize decoder.",
        ),
    }  # fmt: skip


TRUNCATED = {"jpg": "JPEG", "png": "PNG", "gif": "GIF", "webp": "WEBP", "bmp": "BMP"}


def truncated():
    """Files of each format cut at every tenth, with the reason; by name."""
    made = {}
    for number, (suffix, kind) in enumerate(TRUNCATED.items()):
        contents = encode(picture(40 + number), kind)
        name = {"WEBP": "WebP"}.get(kind, kind)
        for tenth in range(10):
            reason = f"truncated {name}" if tenth else "empty file"
            made[f"cut {tenth}.{suffix}"] = (contents[: len(contents) * tenth // 10], reason)
    return made


ODD_NAMES = (
    "new\nline.png",
    "tab\t.png",
    "<img src=x onerror=alert(1)>.png",
    "{{ 7 * 7 }}.png",
    "$(touch hacked).png",
    "-rf.png",
    "日本.png",
    "a" * 240 + ".png",
    os.fsdecode(b"not utf-8 \xff\xfe.png"),
)


def build(root):
    """Write the zoo.

    Returns:
        `(bad, odd)`: the reason or the traits of each file, by its path below `root`.
    """
    good, ill = root / "good", root / "bad"
    good.mkdir(parents=True)
    ill.mkdir()
    bad, odd = {}, {}
    for k in range(12):
        odd[f"good/{k}.jpg"] = ""
        (good / f"{k}.jpg").write_bytes(encode(picture(100 + k), "JPEG"))
        odd[f"bad/{k}.jpg"] = ""
        (ill / f"{k}.jpg").write_bytes(encode(picture(200 + k), "JPEG"))
    for name, (contents, traits) in _formats().items():
        (good / name).write_bytes(contents)
        odd[f"good/{name}"] = traits
    for name, (contents, reason) in {**_bad(), **truncated()}.items():
        (ill / name).write_bytes(contents)
        bad[f"bad/{name}"] = reason
    for k, name in enumerate(ODD_NAMES):
        (good / name).write_bytes(encode(picture(300 + k).convert("L"), "PNG"))
        odd[f"good/{name}"] = "grey"
    with (ill / "sparse.jpg").open("wb") as file:  # 5 GB that take no room on the disk
        file.write(encode(picture(50), "JPEG"))
        file.truncate(5 * 10**9)
    bad["bad/sparse.jpg"] = "larger than 400 MB"
    (ill / "broken link.jpg").symlink_to(root / "nowhere")
    bad["bad/broken link.jpg"] = "cannot be read: No such file or directory"
    (ill / "itself.jpg").symlink_to(ill / "itself.jpg")
    bad["bad/itself.jpg"] = "cannot be read: Too many levels of symbolic links"
    if os.geteuid():
        (ill / "secret.jpg").write_bytes(encode(picture(51), "JPEG"))
        (ill / "secret.jpg").chmod(0)
        bad["bad/secret.jpg"] = "cannot be read: Permission denied"
    return bad, odd


def add_traps(root):
    """Add what is no image file at all: loops, pipes, folders in disguise, colliding names."""
    (root / "good" / "loop").symlink_to(root)
    (root / "bad" / "loop").symlink_to(root / "bad")
    os.mkfifo(root / "bad" / "pipe.jpg")
    (root / "bad" / "folder.jpg").mkdir()
    (root / "bad" / "folder.jpg" / "inside.jpg").write_bytes(encode(picture(60), "JPEG"))
    (root / "empty").mkdir()
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.jpg").write_bytes(encode(picture(61), "JPEG"))
    for form in ("NFC", "NFD"):
        name = unicodedata.normalize(form, "Kätzchen.jpg")
        (root / "good" / name).write_bytes(encode(picture(62 + len(form)), "JPEG"))
    for number, name in enumerate(("Case.jpg", "case.JPG")):
        (root / "good" / name).write_bytes(encode(picture(70 + number), "JPEG"))
