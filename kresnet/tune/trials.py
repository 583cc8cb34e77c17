"""The study file: every trial of a search and what became of it, safe against a kill at any moment.

`studies/NAME/study.sqlite` is an SQLite database in write-ahead mode; each change is one
transaction that is on the disk before the call returns.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from kresnet.errors import ConfigError, ResourceError

FILE: Final = "study.sqlite"
"""Name of the study file in the study's directory."""

Status = Literal["waiting", "running", "done", "failed"]

_SCHEMA: Final = (
    "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE trials (number INTEGER PRIMARY KEY, asked INTEGER NOT NULL UNIQUE, "
    "told INTEGER UNIQUE, status TEXT NOT NULL, fields TEXT NOT NULL)",
)


@dataclass(frozen=True, slots=True)
class Trial:
    """One configuration, trained for some epochs.

    Attributes:
        number: 0 is the planner's recipe; in the order in which they were asked for.
        values: What the oracle asked for, as keras_tuner has it.
        fields: The fields of the recipe that it sets; empty for the planner's recipe.
        status: "waiting" to be run or run again, "running", "done" or "failed".
        horizon: Epochs that its schedule is for.
        epochs: Epochs after which it stops, at most `horizon`.
        parent: Number of the trial whose state it goes on from; None begins anew.
        oracle: What the oracle calls it; None where the oracle does not know of it.
        score: Validation accuracy in 0..1, of the best epoch; None until it is done.
        loss: Validation loss of the same, in nats.
        epochs_done: Epochs trained, those of its parents included.
        tries: How often it was started and not ended by the search itself.
        seconds: How long its last try took.
        error: Why it failed, or the last try did, in one line; None if it did not.
        directory: Of its run, relative to the study's.
        asked: Position in the order of everything asked and told.
        told: The same of its end; None before.
    """

    number: int
    values: Mapping[str, Any]
    fields: Mapping[str, Any]
    horizon: int
    epochs: int
    asked: int
    status: Status = "waiting"
    parent: int | None = None
    oracle: str | None = None
    score: float | None = None
    loss: float | None = None
    epochs_done: int = 0
    tries: int = 0
    seconds: float = 0.0
    error: str | None = None
    directory: str = ""
    told: int | None = None

    @property
    def fraction(self) -> float:
        """Share of its horizon after which it stops, in 0..1."""
        return self.epochs / self.horizon if self.horizon else 1.0

    @property
    def ended(self) -> bool:
        """Whether nothing more will become of it."""
        return self.status in ("done", "failed")

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return asdict(self) | {"fraction": self.fraction}


@dataclass(frozen=True, slots=True)
class Event:
    """Something that an oracle was asked or told.

    Attributes:
        kind: "asked" or "told".
        trial: The trial, as it is now.
    """

    kind: Literal["asked", "told"]
    trial: Trial = field(repr=False)


class Ledger:
    """The study file.

    Args:
        folder: Directory of the study.
        read_only: Only look; a search may go on with it meanwhile.
    """

    def __init__(self, folder: str | Path, *, read_only: bool = False) -> None:
        self.folder = Path(folder)
        file = self.folder / FILE
        if not file.is_file():
            raise ConfigError(
                "A study is a directory that `kresnet tune` has written. "
                f"Received: {str(folder)!r}, which holds no {FILE}."
            )
        self._connection = _connected(file, read_only=read_only)

    @classmethod
    def create(cls, folder: str | Path, settings: Mapping[str, Any]) -> Ledger:
        """Make the file of a new study; the directory must exist.

        Raises:
            ResourceError: It cannot be written.
        """
        file = Path(folder) / FILE
        try:
            file.touch(exist_ok=False)
        except OSError as error:
            raise ResourceError(
                f"The study's directory must be writable and new. Received: {error}."
            ) from None
        connection = sqlite3.connect(file, isolation_level=None)
        connection.execute("BEGIN")  # all in one: a study that is killed here never began
        for statement in _SCHEMA:
            connection.execute(statement)
        _write_settings(connection, settings)
        connection.execute("COMMIT")
        connection.close()
        return cls(folder)

    @property
    def settings(self) -> dict[str, Any]:
        """What the study was started with, and what is known of it since."""
        rows = self._connection.execute("SELECT name, value FROM settings")
        return {name: json.loads(value) for name, value in rows}

    def update(self, **settings: Any) -> None:
        """Add to the settings, or change them."""
        with self._change() as change:
            _write_settings(change, settings)

    def trials(self) -> list[Trial]:
        """Return all trials, by number."""
        rows = self._connection.execute("SELECT * FROM trials ORDER BY number")
        return [_trial(row) for row in rows]

    def trial(self, number: int) -> Trial:
        """Return one trial.

        Raises:
            ConfigError: There is none of this number.
        """
        row = self._connection.execute(
            "SELECT * FROM trials WHERE number = ?", (number,)
        ).fetchone()
        if row is None:
            raise ConfigError(f"A study has trials from 0 on. Received: number={number}.")
        return _trial(row)

    def events(self) -> Iterator[Event]:
        """Yield all that was asked and told, in order."""
        trials = self.trials()
        order: list[tuple[int, Event]] = [(t.asked, Event("asked", t)) for t in trials]
        order += [(t.told, Event("told", t)) for t in trials if t.told is not None]
        yield from (event for _, event in sorted(order, key=lambda pair: pair[0]))

    def add(
        self,
        *,
        values: Mapping[str, Any],
        fields: Mapping[str, Any],
        horizon: int,
        epochs: int,
        parent: int | None = None,
        oracle: str | None = None,
    ) -> Trial:
        """Add a trial that waits to be run."""
        with self._change() as change:
            (number,) = change.execute("SELECT COALESCE(MAX(number) + 1, 0) FROM trials").fetchone()
            trial = Trial(
                number=number,
                values=dict(values),
                fields=dict(fields),
                horizon=horizon,
                epochs=epochs,
                asked=_next(change),
                parent=parent,
                oracle=oracle,
                directory=f"trials/{number:04d}",
            )
            _write(change, trial)
        return trial

    def change(self, number: int, **fields: Any) -> Trial:
        """Change a trial; one that becomes "done" or "failed" is told at this moment."""
        with self._change() as change:
            row = change.execute("SELECT * FROM trials WHERE number = ?", (number,)).fetchone()
            content = asdict(_trial(row)) | fields
            if content["status"] in ("done", "failed") and content["told"] is None:
                content["told"] = _next(change)
            trial = Trial(**content)
            _write(change, trial)
        return trial

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise ResourceError(
                f"The study file must be writable. Received: {error}. Make room or rights in "
                f"{self.folder} and resume; what was written before is intact."
            ) from error


def _connected(file: Path, *, read_only: bool) -> sqlite3.Connection:
    """Open the file.

    Raises:
        ConfigError: It is no database.
    """
    mode = "ro" if read_only else "rw"
    connection = sqlite3.connect(
        f"{file.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=30.0
    )
    try:
        if not read_only:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
        connection.execute("SELECT COUNT(*) FROM trials").fetchone()
    except sqlite3.Error as error:
        connection.close()
        raise ConfigError(
            f"A study file must be readable. Received: {file}: {error}. Start another study."
        ) from None
    return connection


def _write_settings(connection: sqlite3.Connection, settings: Mapping[str, Any]) -> None:
    connection.executemany(
        "INSERT OR REPLACE INTO settings VALUES (?, ?)",
        [(name, json.dumps(value)) for name, value in settings.items()],
    )


def _next(connection: sqlite3.Connection) -> int:
    """Return the next position in the order of everything asked and told."""
    (last,) = connection.execute(
        "SELECT COALESCE(MAX(MAX(asked, COALESCE(told, 0))), 0) FROM trials"
    ).fetchone()
    return int(last) + 1


_COLUMNS: Final = ("number", "asked", "told", "status")


def _write(connection: sqlite3.Connection, trial: Trial) -> None:
    content = asdict(trial)
    columns = [content.pop(name) for name in _COLUMNS]
    connection.execute(
        "INSERT OR REPLACE INTO trials VALUES (?, ?, ?, ?, ?)", [*columns, json.dumps(content)]
    )


def _trial(row: tuple[Any, ...]) -> Trial:
    *columns, fields = row
    return Trial(**dict(zip(_COLUMNS, columns, strict=True)), **json.loads(fields))
