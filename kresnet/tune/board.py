"""Who leads: the trials of a study in order, and the studies of a folder.

Only the study file is read, so this works beside a search that is under way, without TensorFlow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kresnet.errors import ConfigError
from kresnet.tune.trials import FILE, Ledger, Trial


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that were trained to the end of their horizon, the best first.

    Where there is none, those that were trained the longest. Equal accuracies are decided by the
    loss, then by who was first.
    """
    done = [t for t in trials if t.status == "done" and t.score is not None]
    longest = max((t.fraction for t in done), default=0.0)
    whole = [t for t in done if t.fraction >= longest]
    return sorted(whole, key=lambda t: (-(t.score or 0.0), t.loss or 0.0, t.number))


def winner(trials: Sequence[Trial]) -> Trial | None:
    """Return the best trial; None if none was successful."""
    best = ranked(trials)
    return best[0] if best else None


def planned(trials: Sequence[Trial]) -> Trial | None:
    """Return trial 0, the planner's recipe; None if it did not come to its end."""
    return trials[0] if trials and trials[0].status == "done" else None


def gain(best: Trial | None, first: Trial | None) -> float | None:
    """Return what the best trial has over the planner's recipe, as a share of the images.

    Args:
        best: Of `winner`.
        first: Of `planned`.

    Returns:
        The difference of their accuracies, in -1..1; None where there is only one of them.
    """
    if best is None or best.score is None or first is None or first.score is None:
        return None
    return best.score - first.score


def in_words(trial: Trial) -> str:
    """Return what a trial sets, as "lr 0.0003, augment none"."""
    if trial.number == 0:
        return "the planner's recipe"
    texts = (
        f"{name} {f'{value:.3g}' if isinstance(value, float) else value}"
        for name, value in trial.fields.items()
    )
    parent = "" if trial.parent is None else f"goes on from {trial.parent}: "
    return parent + ", ".join(texts)


def epochs_trained(trials: Sequence[Trial]) -> int:
    """Return the epochs that trials took together; those of a parent count once."""
    done = {trial.number: trial.epochs_done for trial in trials}
    return sum(
        trial.epochs_done - (done[trial.parent] if trial.parent is not None else 0)
        for trial in trials
        if trial.status == "done"
    )


def summary(path: str | Path) -> dict[str, Any]:
    """Return what is known of a study, as JSON types.

    Raises:
        ConfigError: There is no study at `path`.
    """
    ledger = Ledger(path, read_only=True)
    settings, trials = ledger.settings, ledger.trials()
    ledger.close()
    best = winner(trials)
    return {
        "study": str(path),
        "settings": settings,
        "trials": [trial.as_dict() for trial in trials],
        "statuses": dict(Counter(trial.status for trial in trials)),
        "epochs": epochs_trained(trials),
        "best": best.number if best else None,
        "gain": gain(best, planned(trials)),
    }


def list_studies(folder: str | Path) -> list[dict[str, Any]]:
    """Return the studies in a folder, as JSON types, by name.

    Raises:
        ConfigError: There is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(
            f"The folder of the studies must exist. Received: {str(folder)!r}. Name another."
        )
    return [summary(file.parent) for file in sorted(root.glob(f"*/{FILE}"))]


def as_list(studies: Sequence[Mapping[str, Any]]) -> str:
    """Return studies as text, a line each.

    Args:
        studies: What `list_studies` returns.
    """
    width = max(len(one["study"]) for one in studies)
    lines = [f"{'study':<{width}}  algorithm  trials  failed  best    gain"]
    for one in studies:
        trials = {fields["number"]: fields for fields in one["trials"]}
        best = "-" if one["best"] is None else f"{trials[one['best']]['score']:.4f}"
        gain = "-" if one["gain"] is None else f"{100 * one['gain']:+.1f} points"
        statuses = one["statuses"]
        left = statuses.get("waiting", 0) + statuses.get("running", 0)
        lines.append(
            f"{one['study']:<{width}}  {one['settings']['algorithm']:<9}  {len(trials):>6}  "
            f"{statuses.get('failed', 0):>6}  {best:<6}  {gain}"
            + (f"  unfinished: kresnet tune --resume {one['study']}" if left else "")
        )
    return "\n".join(lines)
