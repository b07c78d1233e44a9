"""What can go wrong for a user, and the exit code of each kind.

A user's problem is a child of `Wm2Error`: what was expected, what was found, what to do next. Everything else that
escapes is a bug in wm2 and ends as exit code 1.
"""

from __future__ import annotations

from collections.abc import Sequence


class Wm2Error(Exception):
    """A problem the user can act on.

    Args:
        message: One line that says what was expected and what was found.
        hint: What to do next, as one line or a command.
        problems: All findings when one input has several; each is printed on its own line.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  - {problem}" for problem in self.problems)])


class UsageError(Wm2Error):
    """The command line asks for something that cannot be."""

    exit_code = 2


class DataError(Wm2Error):
    """Input data lacks variables, levels or times, has a wrong grid or wrong units, or is corrupt."""

    exit_code = 3


class RemoteError(Wm2Error):
    """A remote service refused or failed."""

    exit_code = 4


class NotYetError(Wm2Error):
    """The data asked for is not published yet."""

    exit_code = 5


class CheckpointError(Wm2Error):
    """Weights are missing, damaged, of an unknown format, or do not match what is asked of them."""

    exit_code = 6


class ResourceError(Wm2Error):
    """No such device, out of memory, disk full, target not writable or locked by another run."""

    exit_code = 7


class ValuesError(Wm2Error):
    """NaN, infinity or impossible values in a forecast or in training."""

    exit_code = 8


class ConfigError(Wm2Error):
    """A recipe or configuration is unreadable, has an unknown key or an impossible value."""

    exit_code = 9


class ThresholdError(Wm2Error):
    """A threshold of `wm2 evaluate --fail-if` was crossed."""

    exit_code = 10
