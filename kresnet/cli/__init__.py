"""The command line: one short function for each command, with heavy imports inside it.

Results go to standard output, all else to standard error. Exit codes: 0 done, 2 usage, 3 data,
4 resources, 5 interrupted and resumable, 6 an export that failed its check, 7 a check that found
warnings only.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

import kresnet
from kresnet.cli import bench, data, exports, launch, runs, train, tune, zoo
from kresnet.errors import KresnetError

app = typer.Typer(
    name="kresnet",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="The ResNet workbench for Keras 3 and TensorFlow: a folder of images in, a verified "
    "classifier out.",
    epilog="Exit codes: 0 done, 2 usage, 3 data, 4 resources, 5 interrupted and resumable, "
    "6 an export that failed its check, 7 a check that found warnings only.",
)

# In the order of --help, which tells the groups after the commands.
COMMANDS: dict[str, Callable[..., None]] = {
    "check": data.check,
    "train": train.train,
    "launch": launch.launch,
    "lr-find": train.lr_find,
    "tune": tune.tune,
    "resume": train.resume,
    "export": exports.export,
    "exports": exports.list_exports,
    "runs": runs.runs,
    "compare": runs.compare,
    "report": runs.report,
    "demo": train.demo,
    "predict": exports.predict,
    "evaluate": runs.evaluate,
    "serve": exports.serve,
}
for name, command in COMMANDS.items():
    app.command(name=name)(command)
app.command(name="variants", hidden=True, help="The same as `kresnet zoo list`.")(zoo.list_zoo)
app.add_typer(zoo.group, name="zoo")
app.add_typer(data.group, name="data")
app.add_typer(tune.group, name="study")
app.add_typer(bench.group, name="bench")


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"kresnet {kresnet.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a user's mistake ends in one line, not in a traceback."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    try:
        app()
    except KresnetError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("Stopped before there was anything to resume.", 130)
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except MemoryError:
        _fail("There is not enough memory. Lower --batch-size or --image-size.", 4)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _fail(f"The disk is full. Received: {error}. Make room and run again.", 4)


def _fail(message: str, code: int) -> None:
    print(f"kresnet: {message}", file=sys.stderr)
    sys.exit(code)
