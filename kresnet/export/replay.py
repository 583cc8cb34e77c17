"""Run an export on images in a process of its own, without kresnet.

    python replay.py EXPORT REQUEST.json ANSWER.npz

The request is `{"paths": [...], "pixels": [...]}`: image files, and .npy files with the decoded
uint8 pixels of the same images. The answer holds `bytes_scores`, `images_scores` and `labels`.
This file imports nothing but NumPy and TensorFlow: what it can do, a server can.
"""

import json
import sys

import numpy as np
import tensorflow as tf


def main(export: str, request_file: str, answer_file: str) -> None:
    """Answer one request."""
    with open(request_file, encoding="utf-8") as file:
        request = json.load(file)
    signatures = tf.saved_model.load(export).signatures
    contents = [tf.io.read_file(path) for path in request["paths"]]
    by_bytes = signatures["serving_bytes"](image_bytes=tf.stack(contents))
    by_pixels = [
        signatures["serving_default"](images=tf.constant(np.load(path)[np.newaxis]))["scores"][0]
        for path in request["pixels"]
    ]
    np.savez(
        answer_file,
        bytes_scores=by_bytes["scores"].numpy(),
        images_scores=np.stack(by_pixels),
        labels=by_bytes["label"].numpy().astype("S"),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
