"""What a search has found: as a table, a page, JSON, and for TensorBoard.

All of it is of the study file, so it can be made at any time, also while the search goes on.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from kresnet.console import duration
from kresnet.data.templates import template
from kresnet.errors import ResourceError
from kresnet.files import whole_file
from kresnet.train.score import wilson_interval
from kresnet.tune import board
from kresnet.tune.charts import bars, history, parallel, value_text
from kresnet.tune.importance import LEAST, Importance, importance
from kresnet.tune.space import Entry, Space
from kresnet.tune.trials import Ledger, Trial

PAGE: Final = "study.html"
TENSORBOARD: Final = "tensorboard"
_ROWS: Final = 20  # of the ranking on the page, and as text


@dataclass(frozen=True, slots=True)
class Luck:
    """How much of the best score may be luck.

    Attributes:
        compared: Trials that the winner was chosen among.
        images: Validation images that they were compared on.
        points: By how much the best of as many equally good trials would look better than it is,
            as a share of the images, if their mistakes fell independently of each other.
    """

    compared: int
    images: int
    points: float


@dataclass(frozen=True, slots=True)
class Findings:
    """What is known of a study.

    Attributes:
        name: Of the study.
        settings: With what it was started.
        space: What is searched.
        trials: All of them, by number.
        ranking: Those that can be compared, the best first.
        seconds: Time that the search has taken so far.
        importance: What matters; None where there are too few trials to tell.
        luck: Of the best score; None where there is none.
        test: `accuracy`, `n` and `interval` of the winner on the hold-out images; None if it was
            not scored on them.
    """

    name: str
    settings: Mapping[str, Any]
    space: Space
    trials: Sequence[Trial]
    ranking: Sequence[Trial]
    seconds: float
    importance: Importance | None
    luck: Luck | None
    test: Mapping[str, Any] | None

    @property
    def planned(self) -> Trial | None:
        """Trial 0, the planner's recipe, if it came to its end."""
        return board.planned(self.trials)

    @property
    def gain(self) -> float | None:
        """What the best trial has over the planner's recipe, as a share of the images."""
        return board.gain(self.ranking[0] if self.ranking else None, self.planned)

    def counts(self) -> dict[str, int]:
        """Return how many trials there are of each status."""
        return dict(Counter(trial.status for trial in self.trials))

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON types."""
        return {
            "name": self.name,
            "settings": dict(self.settings),
            "counts": self.counts(),
            "seconds": round(self.seconds, 1),
            "best": self.ranking[0].as_dict() if self.ranking else None,
            "gain": self.gain,
            "test": self.test,
            "luck": asdict(self.luck) if self.luck else None,
            "in_words": in_words(self),
            "importance": self.importance.as_dict() if self.importance else None,
            "trials": [trial.as_dict() for trial in self.trials],
        }


def findings(ledger: Ledger, *, test: Mapping[str, Any] | None = None) -> Findings:
    """Return what is known of a study.

    Args:
        ledger: The study file.
        test: The winner's score on the hold-out images, as `kresnet.Result.as_dict` has it; None is
            what the study file says, if it does.
    """
    settings, trials = ledger.settings, ledger.trials()
    space = Space.of(settings["space"])
    ranking = board.ranked(trials)
    images = settings["images"]["val"]
    return Findings(
        name=str(settings.get("name", ledger.folder.name)),
        settings=settings,
        space=space,
        trials=trials,
        ranking=ranking,
        seconds=float(settings.get("spent_s", 0.0)),
        importance=importance(trials, space),
        luck=luck(ranking[0].score or 0.0, len(ranking), images) if ranking else None,
        test=test if test is not None else settings.get("test"),
    )


def luck(best: float, compared: int, images: int) -> Luck:
    """Tell how much better than it is the best of many scores looks.

    It is the expected largest of `compared` normal values (Blom 1958) times the standard deviation
    of the share of `images` that are right.

    Args:
        best: The best score, in 0..1.
        compared: How many scores there are.
        images: How many images each is of.
    """
    from scipy.stats import norm

    largest = float(norm.ppf((compared - 0.375) / (compared + 0.25))) if compared > 1 else 0.0
    return Luck(compared, images, largest * math.sqrt(best * (1 - best) / images))


def in_words(found: Findings) -> list[str]:
    """Return what a reader in a hurry should know, the most important first."""
    if not found.ranking:
        return ["No trial has come to its end yet."]
    best, planned, gain = found.ranking[0], found.planned, found.gain
    score = best.score or 0.0
    lines = []
    if best.number == 0:
        lines.append(
            f"The planner's recipe is the best of {len(found.ranking)} compared: {score:.1%} on "
            "the validation images."
        )
    else:
        over = "" if planned is None or gain is None else (
            f", {100 * gain:+.1f} points over the planner's recipe ({planned.score:.1%})"
        )  # fmt: skip
        lines.append(
            f"Trial {best.number} is the best: {score:.1%} on the validation images{over}."
        )
    if found.luck is not None and found.luck.compared > 1:
        lines.append(_luck_in_words(found.luck, gain if best.number else None))
    if found.test is not None:
        low, high = found.test["interval"]
        lines.append(
            f"On the {found.test['n']} test images, which no trial has seen, the winner is right "
            f"on {found.test['accuracy']:.1%} (95 % {low:.1%} to {high:.1%}). Nothing was chosen "
            "by them, so this is the number to expect and to report."
        )
    elif found.luck is not None:
        low, high = wilson_interval(round(score * found.luck.images), found.luck.images)
        lines.append(
            f"{found.luck.images} validation images alone would leave {low:.1%} to {high:.1%} "
            "(95 %), and the choice comes on top. Score the winner on test images before you "
            "report a number."
        )
    return lines


def _luck_in_words(luck: Luck, gain: float | None) -> str:
    text = (
        f"The best of {luck.compared} scores on the same {luck.images} images flatters: had all "
        f"recipes been equally good and their mistakes independent, the best would look about "
        f"{100 * luck.points:.1f} points better than it is."
    )
    if gain is None:
        return text
    if gain <= luck.points:
        return f"{text} The gain is within that, so it may be nothing but luck."
    return f"{text} The gain is more than that."


# ---------------------------------------------------------------- as text


def leaderboard(found: Findings, *, most: int = _ROWS) -> str:
    """Return the ranking as a table of plain text, and below it what failed.

    Args:
        found: Of a study.
        most: Rows at most.
    """
    names = _telling(found)
    head = ("", "trial", "val", "loss", "epochs", "time", *names)
    rows = [
        (
            str(place),
            str(trial.number) if trial.number else "0 plan",
            f"{trial.score:.3f}",
            "-" if trial.loss is None else f"{trial.loss:.3f}",
            str(trial.epochs_done),
            duration(trial.seconds),
            *(value_text(_value(found, trial, name)) for name in names),
        )
        for place, trial in enumerate(found.ranking[:most], 1)
    ]
    wide = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(n) for cell, n in zip(row, wide, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    if len(found.ranking) > most:
        lines.append(f"and {len(found.ranking) - most} more")
    others = len([t for t in found.trials if t.status == "done"]) - len(found.ranking)
    if others:
        lines.append(f"{others} stopped earlier and are not compared")
    lines += [f"failed  {t.number}: {t.error}" for t in found.trials if t.status == "failed"]
    return "\n".join(lines)


def _telling(found: Findings) -> list[str]:
    """Return the fields in which trials differ."""
    return [
        name
        for name in found.space.entries
        if len({str(_value(found, t, name)) for t in found.trials if t.score is not None}) > 1
    ]


def _value(found: Findings, trial: Trial, name: str) -> Any:
    """Return what a trial was trained with: its own value, or the planner's."""
    entry: Entry = found.space.entries[name]
    value = trial.fields.get(name, found.settings["recipe"].get(name))
    if entry.when and name not in trial.fields and trial.number:
        return None  # it is not in effect
    return value


# ---------------------------------------------------------------- as a page


def write_page(found: Findings, folder: Path) -> Path:
    """Write `study.html` into a study: one file, without a script or a network.

    Args:
        found: Of the study.
        folder: Of the study.

    Returns:
        The file.

    Raises:
        ResourceError: It cannot be written.
    """
    page = template("kresnet.tune", "study.html.j2", value=value_text, duration=duration)
    text = page.render(_content(found))
    try:
        with whole_file(folder / PAGE) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ResourceError(
            f"The study's directory must be writable. Received: {error}. Make room or rights."
        ) from None
    return folder / PAGE


def _content(found: Findings) -> dict[str, Any]:
    names = _telling(found)
    recipe = found.settings["recipe"]
    counts = found.counts()
    return {
        "name": found.name,
        "found": found,
        "recipe": recipe,
        "counts": counts,
        "verdict": in_words(found),
        "fields": names,
        "rows": [(t, [_value(found, t, n) for n in names]) for t in found.ranking[:_ROWS]],
        "more": max(len(found.ranking) - _ROWS, 0),
        "failed": [t for t in found.trials if t.status == "failed"],
        "tried_again": [t for t in found.trials if t.status == "done" and t.tries > 1],
        "all_rows": [(t, [_value(found, t, n) for n in names]) for t in found.trials],
        "histories": _histories(found),
        "lines": parallel(
            f"Values of {len(found.trials)} trials, a row for each field; the best tenth stand out",
            found.trials,
            found.space,
        ),
        "bars": bars("How much each field matters", found.importance.shares)
        if found.importance
        else Markup(),
        "least": LEAST,
        "entries": [(n, _entry_text(e)) for n, e in found.space.entries.items()],
    }


def _histories(found: Findings) -> list[tuple[str, Markup]]:
    """Return charts of the scores in the order in which they came in."""
    ended = sorted(
        (t for t in found.trials if t.score is not None and t.told is not None),
        key=lambda t: t.told or 0,
    )
    first = found.planned.score if found.planned else None
    by_number = [(float(k), t.score or 0.0, _called(t)) for k, t in enumerate(ended, 1)]
    spent, by_hours = 0.0, []
    unit, axis = _unit(sum(t.seconds for t in ended))
    for trial in ended:
        spent += trial.seconds / unit
        by_hours.append((spent, trial.score or 0.0, _called(trial)))
    title = "Validation accuracy of each trial, and the best so far"
    charts = [
        (f"By {what}", history(f"{title}, by {what}", points, axis=what, first=first))
        for what, points in (("trials", by_number), (f"{axis} of training", by_hours))
    ]
    return [(caption, drawn) for caption, drawn in charts if drawn]


def _unit(seconds: float) -> tuple[float, str]:
    if seconds >= 2 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if seconds >= 120 else (1.0, "seconds")


def _called(trial: Trial) -> str:
    part = f" after {trial.epochs} of {trial.horizon} epochs" if trial.fraction < 1 else ""
    return f"trial {trial.number}{part}"


def _entry_text(entry: Entry) -> str:
    if entry.choice is not None:
        text = ", ".join(map(value_text, entry.choice))
    else:
        low, high = entry.range or (0.0, 0.0)
        text = f"{value_text(low)} to {value_text(high)}"
        text += " (logarithmic)" * entry.log
    for parent, values in entry.when.items():
        text += f", where {parent} is {' or '.join(map(value_text, values))}"
    return text


# ---------------------------------------------------------------- for TensorBoard


def write_hparams(found: Findings, folder: Path) -> Path | None:
    """Write the trials for TensorBoard's HParams, in place of what was there.

    Args:
        found: Of a study.
        folder: Of the study; a folder "tensorboard" is made in it.

    Returns:
        That folder; None where tensorboard is not installed.
    """
    if find_spec("tensorboard") is None:
        return None
    import tensorflow as tf
    from tensorboard.plugins.hparams import api

    target = folder / TENSORBOARD
    shutil.rmtree(target, ignore_errors=True)
    params = {name: api.HParam(name, _domain(api, e)) for name, e in found.space.entries.items()}
    metrics = [
        api.Metric("score", display_name="validation accuracy"),
        api.Metric("loss", display_name="validation loss"),
        api.Metric("epochs", display_name="epochs"),
    ]
    with tf.summary.create_file_writer(str(target)).as_default():
        api.hparams_config(hparams=list(params.values()), metrics=metrics)
    for trial in found.trials:
        if trial.score is None:
            continue
        values = {params[n]: _plain(_value(found, trial, n)) for n in params}
        with tf.summary.create_file_writer(str(target / f"{trial.number:04d}")).as_default():
            api.hparams(values, trial_id=f"{trial.number:04d}")
            step = trial.epochs_done
            tf.summary.scalar("score", trial.score, step=step)
            tf.summary.scalar("epochs", trial.epochs_done, step=step)
            if trial.loss is not None:
                tf.summary.scalar("loss", trial.loss, step=step)
    return target


def _domain(api: Any, entry: Entry) -> Any:
    if entry.choice is not None:
        return api.Discrete(sorted({_plain(value) for value in entry.choice}, key=str))
    low, high = entry.range or (0, 0)
    if entry.ints is not None:
        return api.IntInterval(int(low), int(high))
    return api.RealInterval(float(low), float(high))


def _plain(value: Any) -> Any:
    """Return a value of a kind that TensorBoard knows."""
    return value if isinstance(value, bool | int | float | str) else value_text(value)
