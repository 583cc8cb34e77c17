"""A small network with random weights, exported without a check: quick to make and to run."""

import io
import struct
import zlib

import numpy as np
import tensorflow as tf
from conftest import randomize
from PIL import Image

import kresnet
from kresnet.data import pixels
from kresnet.export.contract import Contract
from kresnet.export.saved_model import write_saved_model

CLASSES = ("cat", "dög", "<b>", "a b", "no. 5")


def small_model(variant="resnet20_cifar", **options):
    """A network with random weights whose head tells random pictures apart."""
    model = randomize(kresnet.build(variant, num_classes=5, dtype="float32", **options))
    pictures = [pixels.prepare(picture(seed), model.preprocessing) for seed in range(8)]
    logits = model(tf.stack(pictures), training=False).numpy()
    kernel, bias = model.get_layer("head").get_weights()
    scale = 1.5 / logits.std(axis=0).mean()
    model.get_layer("head").set_weights([kernel * scale, (bias - logits.mean(axis=0)) * scale])
    return model


def small_contract(model, **fields):
    return Contract(
        **{
            "name": "small",
            "variant": model.name,
            "classes": CLASSES,
            "preprocessing": model.preprocessing,
            "versions": {},
            "temperature": 1.3,
        }
        | fields
    )


def write_small(directory, **fields):
    model = small_model()
    contract = small_contract(model, **fields)
    directory.mkdir(parents=True)
    write_saved_model(model, contract, directory)
    contract.save(directory)
    return model, contract


def picture(seed, width=57, height=41, kind="PNG", **options):
    """The bytes of a random smooth picture."""
    rng = np.random.default_rng(seed)
    grid = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    stream = io.BytesIO()
    grid.resize((width, height), Image.Resampling.BICUBIC).save(stream, kind, **options)
    return stream.getvalue()


def bomb(side=12_000):
    """A PNG of a few kilobytes that announces, and holds, more pixels than may be decoded."""

    def chunk(name, content):
        checked = name + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)  # one bit a pixel
    rows = zlib.compress(bytes(side * (1 + side // 8)), 9)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def example(**features):
    """A serialised tf.train.Example of bytes features."""
    made = {
        key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        for key, value in features.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()


def strings(*contents):
    array = np.empty(len(contents), object)
    array[:] = contents
    return array
