"""Let contenders train on the same images, one after the other, and keep what they answer."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from kresnet.bench.accuracy.results import GUIDE, Line, append, load, summaries, table
from kresnet.bench.accuracy.task import Answer, Labelled, Task
from kresnet.bench.facts import machine, missing, version
from kresnet.errors import ConfigError, DataError

_TEST_SHARE: Final = 0.3
_PATIENCE: Final = 3.0  # times the budget, after which a contender is stopped


@dataclass(frozen=True, slots=True)
class Contender:
    """A way of fine-tuning.

    Attributes:
        method: What the table calls it.
        module: Of this package, which is its process.
        packages: What it needs and whose versions are told.
        is_ours: Whether it starts from the file of weights itself.
    """

    method: str
    module: str
    packages: tuple[str, ...]
    is_ours: bool = False

    def missing(self) -> str | None:
        """Say which packages are not installed; None if all are."""
        return missing(self.packages)


_KERAS: Final = ("keras", "tensorflow")
OURS: Final = {
    name: Contender(f"kresnet {name}", "ours", _KERAS, is_ours=True)
    for name in ("probe", "fast", "fast-uncut", "default", "best")
}
"""Presets, the probe alone, and fast with every epoch on new views of the images."""

PEERS: Final = {
    "keras": Contender(GUIDE, "keras_guide", _KERAS),
    "fastai": Contender("fastai fine_tune", "fastai_way", ("fastai", "torch", "torchvision")),
    "timm": Contender("timm train.py", "timm_way", ("timm", "torch")),
}


def compare(
    data: Mapping[str, str | Path],
    *,
    weights: str | Path,
    variant: str = "resnet50",
    budget_s: float,
    seeds: int = 3,
    presets: Sequence[str] = ("probe", "fast", "default"),
    against: Sequence[str] = ("keras",),
    out: Path,
    tell: Callable[[str, str], None] = lambda topic, text: None,
) -> list[dict[str, Any]]:
    """Measure what is not measured yet, and write the tables.

    The folder gets `lines.jsonl`, a line for each contender, data set and seed as soon as it is
    known; `table.md` and `table.json`; and the log of every process. Called again with the same
    folder, it goes on where it was stopped.

    Args:
        data: Sources of `kresnet.data.sources.listing` by the name that the table gives them. Their
            own splits are not heeded: 70 % are to train and 30 % to test, by class and seed.
        weights: Of the variant; a tag, as "embedded", or a checkpoint that `kresnet.load_weights`
            reads.
        variant: A key of `kresnet.VARIANTS`.
        budget_s: Seconds for each contender, from the start of its process.
        seeds: How many splits, from seed 0.
        presets: Keys of `OURS`.
        against: Keys of `PEERS`; those whose packages are missing are listed as such.
        out: Folder for the results.
        tell: Called with a topic of one word and a line about it.

    Returns:
        See `results.summaries`.

    Raises:
        ConfigError: A preset or a peer is unknown.
        DataError: The images cannot be used.
        ResourceError: The results cannot be written, or the weights not be downloaded.
        WeightsError: There is no such file of weights.
    """
    from kresnet.train.hardware import resolve_precision
    from kresnet.workflow.choice import usual_side
    from kresnet.zoo.download import find_weights

    contenders = [*_chosen(presets, OURS, "presets"), *_chosen(against, PEERS, "against")]
    work = out.resolve() / "work"
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = find_weights(variant, weights)
    tag = None if checkpoint == Path(weights) else str(weights)
    file, digest = out / "lines.jsonl", hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:12]
    known = {line.key for line in load(file) if not line.failed}
    for name, source in data.items():
        images, classes = _images(source)
        for seed in range(seeds):
            train, test = divided(images, seed)
            for contender in contenders:
                if (name, contender.method, seed, budget_s, digest) in known:
                    continue
                task = Task(
                    method=contender.method,
                    data=name,
                    seed=seed,
                    budget_s=budget_s,
                    started=0.0,
                    folder=str(work / f"{name}-{seed}-{re.sub(r'[^a-z]+', '-', contender.method)}"),
                    variant=variant,
                    weights=tag or str(checkpoint.resolve()),
                    start=str(work / f"{name}-{seed}-start"),
                    precision=resolve_precision("auto"),
                    image_size=usual_side(variant, tag),
                    classes=classes,
                    train=train,
                    test=test,
                )
                line = _measured(contender, task, digest)
                append(file, line)
                tell(name, f"{contender.method}, seed {seed}: {_said(line)}")
    wanted = {
        (name, contender.method, seed, budget_s, digest)
        for name in data
        for contender in contenders
        for seed in range(seeds)
    }
    last = {line.key: line for line in load(file) if line.key in wanted}
    found = summaries(last.values())
    (out / "table.json").write_text(json.dumps({"machine": machine(), "rows": found}, indent=1))
    (out / "table.md").write_text(table(found) + "\n", encoding="utf-8")
    return found


def divided(images: Sequence[Labelled], seed: int) -> tuple[tuple[Labelled, ...], ...]:
    """Divide images into 70 % to train and 30 % to test, the same share of each class.

    Returns:
        Those to train and those to test.

    Raises:
        DataError: A class has fewer than two images.
    """
    from sklearn.model_selection import train_test_split

    labels = [label for _, label in images]
    try:
        train, test = train_test_split(
            list(images), test_size=_TEST_SHARE, stratify=labels, random_state=seed
        )
    except ValueError as error:
        raise DataError(f"Every class needs two images and more. Received: {error}") from None
    return tuple(train), tuple(test)


def _chosen(
    names: Sequence[str], known: Mapping[str, Contender], option: str
) -> Iterator[Contender]:
    for name in names:
        if name not in known:
            raise ConfigError(f"`{option}` must be some of {', '.join(known)}. Received: {name!r}.")
        yield known[name]


def _images(source: str | Path) -> tuple[list[Labelled], tuple[str, ...]]:
    from kresnet.data.items import WHOLE
    from kresnet.data.scan import scan

    index = scan(source)
    if any(row.offset or row.size != WHOLE for row in index.rows):
        raise DataError(f"Every image must be a file of its own. Received: {str(source)!r}.")
    return [(row.path, row.label) for row in index.rows], index.classes


def _measured(contender: Contender, task: Task, digest: str) -> Line:
    """Let a contender do its task, in a process of its own."""
    folder = Path(task.folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    scores, facts, seconds = np.zeros((0, 1)), {}, 0.0
    failed = contender.missing() or (None if contender.is_ours else _started(task))
    if not failed:
        began = time.time()
        most_s = _PATIENCE * task.budget_s + 60
        failed = _run(contender.module, replace(task, started=began), most_s)
        seconds = time.time() - began
    if not failed:
        said = Answer.load(folder)
        scores, facts = said.scores, said.facts
        for name in ("runs", "exports"):  # hundreds of megabytes
            shutil.rmtree(folder / name, ignore_errors=True)
    labels = np.array([label for _, label in task.test[: len(scores)]])
    return Line(
        task.data,
        contender.method,
        task.seed,
        task.budget_s,
        digest,
        right=tuple(map(bool, scores.argmax(axis=1) == labels)) if len(scores) else (),
        best=tuple(round(float(one), 5) for one in scores.max(axis=1)),
        seconds=round(seconds, 1),
        failed=failed,
        facts=facts,
        versions={name: version(name) for name in contender.packages},
    )


def _started(task: Task) -> str | None:
    """Make the starting weights of a split, once for all who need them; return what failed."""
    home = Path(task.start)
    if home.is_dir():
        return None
    unfinished = home.with_name(f"{home.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    making = replace(task, start=str(unfinished), folder=str(unfinished))
    failed = _run("start", making, 1800)
    if not failed:
        unfinished.rename(home)
    return failed


def _run(module: str, task: Task, most_s: float) -> str | None:
    """Run a module of this package on a task; return None, or the last line of its log."""
    log = Path(task.folder) / "log.txt"
    command = [sys.executable, "-m", __package__, module, str(task.save())]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    environment["KRESNET_KEEP_FEATURES"] = "0"  # what one has computed is no help to the next
    with log.open("w", encoding="utf-8") as file:
        try:
            code = subprocess.run(
                command, stdout=file, stderr=file, env=environment, timeout=most_s, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return f"stopped after {most_s:.0f} s"
    if not code:
        return None
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    return f"exit code {code}: {''.join(last)[:200]}"


def _said(line: Line) -> str:
    if line.failed:
        return line.failed
    return f"{line.accuracy:.3f} in {line.seconds:.0f} s, {line.facts.get('epochs')} epochs"
