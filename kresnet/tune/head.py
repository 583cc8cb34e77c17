"""The search for a head alone: features are computed once, then many heads are fitted in a second.

One process does it for all trials: python -m kresnet.tune.head IMAGES. It reads a job a line
from its standard input and writes an outcome a line; it ends with its input.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from kresnet.errors import ConfigError, KresnetError
from kresnet.tune.executors import Job, Outcome
from kresnet.tune.worker import failure

if TYPE_CHECKING:
    from kresnet.data.scan import Index
    from kresnet.train.probe import Frozen, View
    from kresnet.train.recipe import Recipe
    from kresnet.zoo import Preprocessing

LOG: Final = "head.log"
"""Name of the file, in the study, with everything that the process says."""

_OF_FEATURES: Final = ("data", "variant", "weights", "image_size", "precision")


class HeadWorker:
    """An executor of one process that fits heads.

    Args:
        folder: Of the study.
        command: What starts the process; the arguments are put behind it.
    """

    slots = 1

    def __init__(
        self,
        folder: str | Path,
        *,
        command: Sequence[str] = (sys.executable, "-m", "kresnet.tune.head"),
    ) -> None:
        root = Path(folder).absolute()
        self._log = root / LOG
        self._command = [*command, str(root / "images")]
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.Queue[str] = queue.Queue()

    def start(self, job: Job) -> _Head:
        """Hand a job to the process; one that has ended is started anew."""
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = self._started()
        process = self._process
        try:
            _stream(process.stdin).write(json.dumps(job.as_dict()) + "\n")
            _stream(process.stdin).flush()
        except BrokenPipeError:
            process.wait()  # `poll` tells how it ended
        return _Head(job, process, self._answers, self._log)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            _end(self._process)

    def _started(self) -> subprocess.Popen[str]:
        self._answers = queue.Queue()
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=dict(os.environ) | {"TF_FORCE_GPU_ALLOW_GROWTH": "true"},
                start_new_session=True,
            )
        reader = threading.Thread(
            target=_read, args=(_stream(process.stdout), self._answers), daemon=True
        )
        reader.start()
        return process


class _Head:
    """A head under way."""

    def __init__(
        self, job: Job, process: subprocess.Popen[str], answers: queue.Queue[str], log: Path
    ) -> None:
        self._job, self._process, self._answers, self._log = job, process, answers, log
        self._started = time.monotonic()
        self._outcome: Outcome | None = None

    def poll(self) -> Outcome | None:
        """Return what became of it; None while it is under way."""
        if self._outcome is None:
            ended = self._process.poll() is not None
            try:
                self._outcome = Outcome(**json.loads(self._answers.get_nowait()))
            except queue.Empty:
                if ended:
                    code = self._process.returncode
                    said = f"The process of the heads ended with {code}. See {self._log}."
                    self._outcome = Outcome(ok=False, error=said, kind="crash")
                elif self._is_late():
                    self.kill()
        return self._outcome

    def kill(self) -> None:
        """End it, and the process with it."""
        _end(self._process)
        if self._outcome is None:
            limit = self._job.deadline_s
            late = f"Not done after {limit:.0f} s, which was the deadline." if limit else "Ended."
            self._outcome = Outcome(ok=False, error=late, kind="hang")

    def _is_late(self) -> bool:
        limit = self._job.deadline_s
        return limit is not None and time.monotonic() - self._started > limit


def _read(lines: IO[str], answers: queue.Queue[str]) -> None:
    with lines:
        for line in lines:
            answers.put(line)


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with suppress(BrokenPipeError):
        _stream(process.stdin).close()


def _stream(stream: IO[str] | None) -> IO[str]:
    """Return a stream that a process was started with."""
    if stream is None:
        raise ValueError("The process has no such stream.")
    return stream


# ---------------------------------------------------------------- the process


class Features:
    """The features of a study's images, computed once and kept in its folder.

    Args:
        images: The folder of the study's images.
    """

    def __init__(self, images: str | Path) -> None:
        self._images = Path(images)
        self._known: dict[tuple[Any, ...], Any] = {}

    def score(self, recipe: Mapping[str, Any]) -> tuple[float, float]:
        """Return validation accuracy in 0..1 and loss in nats of a recipe's head.

        Raises:
            ConfigError: The recipe trains more than a head, or has no features to train it on.
        """
        import numpy as np
        from scipy.special import log_softmax

        from kresnet.train.probe import View

        if recipe["epochs"] or recipe["weights"] is None:
            raise ConfigError(
                "A search for a head needs pretrained weights and no epochs. Received: "
                f"weights={recipe['weights']!r}, epochs={recipe['epochs']}. Leave --only out."
            )
        kernel, bias = self._heads(recipe).fit(
            seed=recipe["seed"],
            strength=recipe["probe_strength"],
            smoothing=recipe["probe_smoothing"],
        )
        x, y = self._part(recipe, "val", View())
        logits = (x @ kernel + bias).astype("float64")
        log_p = log_softmax(logits, axis=1)
        right = float((logits.argmax(axis=1) == y).mean())
        return right, float(-log_p[np.arange(len(y)), y].mean())

    def _heads(self, recipe: Mapping[str, Any]) -> Any:
        import numpy as np

        from kresnet.train.probe import Heads, views_of

        views = views_of(recipe["probe_views"], flip=recipe["flip"])
        key = ("heads", views)
        if key not in self._known:
            parts = [self._part(recipe, "train", view) for view in views]
            x, y = (np.concatenate(same) for same in zip(*parts, strict=True))
            self._known[key] = Heads(x, y, views=len(views))
        return self._known[key]

    def _part(self, recipe: Mapping[str, Any], split: Any, view: View) -> Any:
        """Return features float32 `(n, c)` and labels `(n,)` of a split as it is seen."""
        import numpy as np

        from kresnet.files import whole_file

        key = (str(split), view.crop, view.mirror)
        if key not in self._known:
            fields = {name: recipe[name] for name in _OF_FEATURES}
            name = sha256(json.dumps([fields, *key]).encode()).hexdigest()[:16]
            file = self._images / "features" / f"{name}.npz"
            if not file.is_file():
                x, y = _computed(self._images, recipe, split, view)
                file.parent.mkdir(exist_ok=True)
                with whole_file(file) as partial, partial.open("wb") as out:
                    np.savez(out, x=x, y=y)
            with np.load(file) as kept:
                self._known[key] = kept["x"], kept["y"]
        return self._known[key]


def _computed(images: Path, recipe: Mapping[str, Any], split: Any, view: View) -> Any:
    from kresnet.train.recipe import Recipe

    frozen, preprocessing, index = _network(images, Recipe.model_validate(recipe))
    return frozen.features_of(index.select(split), preprocessing, view)


@lru_cache(maxsize=1)  # for all views of a recipe
def _network(images: Path, recipe: Recipe) -> tuple[Frozen, Preprocessing, Index]:
    """Return a recipe's frozen network, what it expects, and the images."""
    from kresnet.data.scan import Index
    from kresnet.train.probe import Frozen
    from kresnet.train.stages import build_for, preprocessing_for

    index = Index.load(images)
    model = build_for(recipe, index, size=recipe.image_size, weights=recipe.weights)
    preprocessing = preprocessing_for(recipe, index, model)
    return Frozen(model, precision=recipe.precision), preprocessing, index


def answer(features: Features, job: Job) -> Outcome:
    """Do a job."""
    started = time.monotonic()
    try:
        score, loss = features.score(job.recipe)
    except Exception as error:
        if not isinstance(error, KresnetError):
            traceback.print_exc()
        return failure(error, Path(job.directory))
    seconds = round(time.monotonic() - started, 4)
    return Outcome(ok=True, score=score, loss=loss, seconds=seconds)


@contextmanager
def _only_answers() -> Iterator[IO[str]]:
    """Give standard output to the answers alone: whatever else is printed goes to the log."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with out:
        yield out


def main(arguments: list[str]) -> int:
    """Answer the jobs on standard input until it ends."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    features = Features(arguments[0])
    with _only_answers() as out:
        for line in sys.stdin:
            outcome = answer(features, Job(**json.loads(line)))
            out.write(json.dumps(outcome.as_dict()) + "\n")
            out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
