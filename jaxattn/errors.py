"""Why a run ends early: each exception is one line and one exit code of `main.py`."""


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
