"""Why a run ends early: each exception is one line and one exit code of `main.py`."""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """A mistake in a config, an argument or the data, which the user can mend.

    The message is one line that names the key or argument, the value, and what would be
    accepted. Exit code 2.
    """


class DivergedError(RuntimeError):
    """The loss became infinite or not a number. Exit code 1."""


class InterruptedRun(RuntimeError):  # noqa: N818 - not an error: the run can go on
    """A signal asked the run to stop, and it saved first.

    Exit code 128 plus the signal's number, which is `exit_code`.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def require(key: str, value: Any, holds: bool, wanted: str) -> None:
    """Raises a `UserError` that names key, value and what is wanted unless it holds."""
    if not holds:
        raise UserError(f"{key}={value!r}: must be {wanted}")


def choose(key: str, value: Any, choices: Iterable[str]) -> None:
    """Raises a `UserError` that names the choices unless the value is one of them."""
    choices = list(choices)
    if value not in choices:
        raise UserError(f"{key}={value!r}: {suggest(value, choices)}")


def suggest(value: Any, choices: Iterable[str]) -> str:
    """Returns the choices for a mistyped name, the nearest first."""
    choices = list(choices)
    close = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}choices: {', '.join(choices)}"
