"""What commands print: results on standard output, all else on standard error."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import typer

from kresnet.errors import ConfigError


@contextlib.contextmanager
def reporting(*, tensorflow: bool = True) -> Iterator[Any]:
    """Give the command a console, and keep every stray print off standard output."""
    from kresnet.console import Console

    if os.environ["KERAS_BACKEND"] != "tensorflow":
        raise ConfigError(
            "Training and export need the TensorFlow backend. "
            f"Received: KERAS_BACKEND={os.environ['KERAS_BACKEND']}. Unset it."
        )
    with Console() as console, contextlib.redirect_stdout(sys.stderr):
        if tensorflow:
            console.status("loading TensorFlow")
            import_tensorflow_quietly()
        yield console


def import_tensorflow_quietly() -> None:
    """Import TensorFlow without its start-up notices, which heed no log level."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        import tensorflow as tf

        if "TF_CONFIG" not in os.environ:  # else the workers must meet before
            tf.constant(0)  # the processor's notice comes with the first operation
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def print_json(value: Any) -> None:
    """Print what `--json` asks for."""
    typer.echo(json.dumps(value, ensure_ascii=False))
