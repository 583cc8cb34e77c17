"""The errors a user can meet, each with the exit code the command line ends with.

A message is one sentence of what was expected, then `Received: name=value.`, then the fix.
"""

from __future__ import annotations

from typing import ClassVar


class KresnetError(ValueError):
    """Any mistake that a user can mend; the command line prints it as one line."""

    exit_code: ClassVar[int] = 2


class ConfigError(KresnetError):
    """An argument, option or recipe field is wrong (exit code 2)."""


class DataError(KresnetError):
    """The images or their labels cannot be used (exit code 3)."""

    exit_code = 3


class ResourceError(KresnetError):
    """Something the job needs is not to be had: a file, the network, memory (exit code 4)."""

    exit_code = 4


class WeightsError(ResourceError):
    """A checkpoint is absent, damaged, or not of the model it is loaded into (exit code 4)."""


class Interrupted(KresnetError):
    """The run was stopped and its state saved, so it can be resumed (exit code 5)."""

    exit_code = 5


class ExportError(KresnetError):
    """An export failed its check and was not published (exit code 6)."""

    exit_code = 6
