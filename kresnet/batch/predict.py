"""The whole batch job: begun or gone on with, handed out, joined."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from kresnet.batch import job as jobs
from kresnet.batch.hand import Hand
from kresnet.batch.job import Job
from kresnet.batch.rows import arrow
from kresnet.batch.worker import Settings
from kresnet.console import Console
from kresnet.data.items import Item
from kresnet.data.sources import absolute, unlabelled
from kresnet.errors import ConfigError, DataError, Interrupted
from kresnet.export.contract import Contract
from kresnet.export.versions import latest_version
from kresnet.machine import Place, own_cores
from kresnet.serve.answer import check_mirrors
from kresnet.train.signals import terminable


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of a job.

    Attributes:
        output: The table.
        images: Its rows.
        answered: Those with an answer.
        abstained: Those of them whose best score is below the export's threshold.
        failed: Those without an answer; their column `error` says why.
    """

    output: str
    images: int
    answered: int
    abstained: int
    failed: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.images} images in {self.output}: {self.answered} answered, of them "
            f"{self.abstained} unsure; {self.failed} without an answer"
        )


class Workers(Protocol):
    """Those who answer, here or on a cluster."""

    def answer(self, parts: Sequence[tuple[int, Sequence[Item]]]) -> Iterator[tuple[int, bytes]]:
        """Yield the rows of each part with its number, in any order.

        Raises:
            KresnetError: They cannot go on.
        """


def predict(
    model: Path,
    source: str | Path,
    output: Path,
    *,
    jobs_at_once: int | None = None,
    ray: str | None = None,
    top: int = 5,
    mirror: bool = False,
    runtime: str = "auto",
    console: Console,
) -> Summary:
    """Answer for every image of a source, each exactly once, in a Parquet file.

    What an interrupted job has done is gone on with; a complete one is left as it is.

    Args:
        model: An export, NAME or NAME/VERSION.
        source: See `kresnet.data.sources.unlabelled`.
        output: The file to be made; see `rows.schema` for its columns.
        jobs_at_once: Processes that answer; None is one here, and as many as there is room for on
            a cluster.
        ray: Address of a Ray cluster, "local" for one of this machine, or None for none.
        top: Classes a row, best first; 0 is all.
        mirror: Average the scores with those of the mirror images.
        runtime: As in `kresnet.serve.quick.open_export`.
        console: To tell what goes on.

    Raises:
        ConfigError: The options do not go together, or the output is of another job.
        DataError: There are no images, or not one that could be answered for.
        ExportError: The export cannot be used.
        ResourceError: A package is missing, or there is no room.
        Interrupted: It was stopped; the same call goes on.
    """
    arrow()
    if output.suffix != ".parquet":
        raise ConfigError(f"`--output` must be a .parquet file. Received: {str(output)!r}.")
    if top < 0 or (jobs_at_once is not None and jobs_at_once < 1):
        raise ConfigError(
            f"`--top` is 0 or more, and `--jobs` 1 or more. Received: {top}, {jobs_at_once}."
        )
    output = output.absolute()
    said = jobs.asked_of(output)
    with jobs.alone(output):
        known = Job.open(output)
        export = _export(model, said or (known.asked if known else None))
        if mirror:
            check_mirrors(Contract.load(export))
        settings = Settings(str(export), runtime, mirror, top)
        source = absolute(source)
        asked = settings.as_dict() | {"input": source, "digest": jobs.digest_of(export)}
        if said is not None:
            jobs.check_same(said, asked, output)
            jobs.forget(output)
            console.line("done", f"{output} was complete already")
            return Summary(str(output), **jobs.count_rows(output))
        if known is not None:
            jobs.check_same(known.asked, asked, jobs.parts_of(output))
        else:
            console.status("listing the images")
            known = Job.begin(output, asked, unlabelled(source).items)
        _finish(known, _workers(settings, jobs_at_once, ray), console)
        summary = Summary(str(output), **known.join())
    if not summary.answered:
        raise DataError(
            f"An image at least must be readable. Received: {summary.images} images, none of which "
            f"could be answered for. The column error of {output} says why."
        )
    return summary


def _export(model: Path, asked: Any) -> Path:
    """Return the version to answer with: that of the job, unless another one is named."""
    if asked:
        before = Path(asked["export"])
        if model.absolute() in (before, before.parent) and before.is_dir():
            return before
    return latest_version(model.absolute())


def _finish(job: Job, workers: Callable[[], Any], console: Console) -> None:
    """Do the parts that are missing."""
    missing = job.missing()
    done = job.count - len(missing)
    if done:
        console.line("resume", f"{done} of {job.count} parts are done")
    if not missing:
        return
    total = len(job.images)
    ready = total - sum(len(job.part(number)) for number in missing)
    try:
        with terminable(), workers() as hands:
            for number, rows in hands.answer([(k, job.part(k)) for k in missing]):
                job.keep(number, rows)
                done += 1
                ready += len(job.part(number))
                console.progress("predicting", ready, total)
    except KeyboardInterrupt:
        raise Interrupted(
            f"Stopped after {done} of {job.count} parts, which are kept. The same command goes on."
        ) from None


def _workers(settings: Settings, at_once: int | None, ray: str | None) -> Callable[[], Any]:
    if ray is None:
        return lambda: _here(settings, at_once or 1)
    from kresnet.batch.on_ray import on_ray

    return lambda: on_ray(settings, None if ray == "local" else ray, at_once)


# ---------------------------------------------------------------- on this machine


@contextmanager
def _here(settings: Settings, count: int) -> Iterator[Workers]:
    places = [Place(number, own_cores(), count, 0) for number in range(count)]
    hands = [Hand(settings, place.environment()) for place in places]
    try:
        yield _Here(hands)
    finally:
        for hand in hands:
            hand.close()


class _Here:
    """Processes of this machine, each with a thread that waits for it."""

    def __init__(self, hands: Sequence[Hand]) -> None:
        self._hands = hands

    def answer(self, parts: Sequence[tuple[int, Sequence[Item]]]) -> Iterator[tuple[int, bytes]]:
        """See `Workers`."""
        todo: queue.SimpleQueue[tuple[int, Sequence[Item]]] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, bytes] | BaseException] = queue.SimpleQueue()
        for part in parts:
            todo.put(part)

        def serve(hand: Hand) -> None:
            try:
                while True:
                    number, images = todo.get_nowait()
                    done.put((number, hand.do(images)))
            except queue.Empty:
                return
            except BaseException as error:
                done.put(error)

        for hand in self._hands[: len(parts)]:
            threading.Thread(target=serve, args=(hand,), daemon=True).start()
        for _ in parts:
            found = done.get()
            if isinstance(found, BaseException):
                raise found
            yield found
