"""Why a program ends early: one line and one exit code for each reason.

`explain` knows the line of every exception. What is neither the user's mistake nor the
machine's fault is a bug, and keeps its traceback.
"""

import difflib
import errno
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from jaxattn.packages import how_to_install


class UserError(ValueError):
    """A mistake in a config, an argument or the data, which the user can mend.

    The message is one line that names the key or argument, the value, and what would be
    accepted. Exit code 2.
    """


class DivergedError(RuntimeError):
    """The loss became infinite or not a number. Exit code 1."""


class MachineError(RuntimeError):
    """The machine failed: a full disk, no memory, a lost device, a killed process.

    The message is one line: what happened, what was saved, what to do. Exit code 1.
    """


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


def require_type(key: str, value: Any, kinds: type | tuple[type, ...]) -> None:
    """Raises a `UserError` that names key and types unless a value is of one of them.

    The value is not shown: it may be a million numbers.
    """
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{key}: {type(value).__name__}; must be {wanted}")


def require_seed(key: str, seed: int) -> None:
    """Raises a `UserError` unless a seed is one that JAX and NumPy tell from others."""
    require(key, seed, 0 <= seed < 2**32, "in [0, 2**32)")


def choose(key: str, value: Any, choices: Iterable[str]) -> None:
    """Raises a `UserError` that names the choices unless the value is one of them."""
    choices = list(choices)
    if value not in choices:
        raise UserError(f"{key}={value!r}: {suggest(value, choices)}")


def first_repeated(values: Sequence[Any]) -> Any | None:
    """Returns the first value that is there before, None if all are different."""
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def reason(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def suggest(value: Any, choices: Iterable[str]) -> str:
    """Returns the choices for a mistyped name, the nearest first."""
    choices = list(choices)
    close = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}choices: {', '.join(choices)}"


# Explaining -----------------------------------------------------------------------

_SPACE = "free some space there"
_RIGHTS = "make it accessible, or use another place"
_OS_ADVICE = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _RIGHTS,
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}
_MEMORY = (
    "out of memory{}: end other programs, or use a smaller batch_size or"
    " data.image_size"
)
# What XLA says of a device or a process that is gone. Its other errors are bugs.
_LOST = re.compile(
    r"Gloo|NCCL|CUDA_ERROR|heartbeat|coordination|^(UNAVAILABLE|ABORTED|DATA_LOSS)"
)


def explain(error: BaseException) -> tuple[str, int] | None:
    """Returns what a program says about an exception, and its exit code.

    Args:
        error: What ended it.

    Returns:
        One line and 1 for a fault of the machine or a loss that diverged, 2 for the
        user's mistake, 128 plus its number for a signal; None for a bug.
    """
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, ModuleNotFoundError) and (advice := how_to_install(error)):
        return f"{error}: {advice}", 2
    if isinstance(error, InterruptedRun):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "stopped", 130
    if isinstance(error, DivergedError):
        return str(error), 1
    fault = describe_fault(error)
    return None if fault is None else (fault, 1)


def describe_fault(error: BaseException) -> str | None:
    """Returns what failed in the machine, and what to do, in one line; else None."""
    if isinstance(error, MachineError):
        return str(error)
    if isinstance(error, MemoryError):
        return _MEMORY.format(f" ({_first_line(error)})" if str(error) else "")
    if isinstance(error, OSError):
        what = error.strerror or _first_line(error)
        where = "" if error.filename is None else f"{error.filename}: "
        advice = _OS_ADVICE.get(error.errno or 0)
        return f"{where}{what}" + (f"; {advice}" if advice else "")
    import jax  # late, for programs that set up the process before

    # Without a device JAX raises now the one and now the other, wherever it is used.
    is_vague = isinstance(error, RuntimeError | AssertionError)
    if is_vague and (fault := find_device_fault()) is not None:
        return fault
    line = _first_line(error)
    if isinstance(error, jax.errors.JaxRuntimeError):
        if line.startswith("RESOURCE_EXHAUSTED"):
            return _MEMORY.format(f" ({line})")
        if _LOST.search(line):
            return f"a device or another process of the run was lost ({line})"
    if "Worker process was terminated" in line:  # as Grain says it
        code = re.search(r"exit code (-?\d+)", line)
        return (
            f"a reading process was killed (exit code {code and code[1]}): the machine"
            " may be out of memory; use a smaller pipeline.num_workers"
        )
    return None


def find_device_fault() -> str | None:
    """Returns why JAX has no device to compute on, in one line; None if it has one."""
    import jax

    try:
        jax.devices()
    except Exception as error:  # RuntimeError and AssertionError so far
        # JAX's own advice at the end is for those who know what a backend is.
        said = r"Unable to initialize backend \S+: |\.? \(set JAX_PLATFORMS.*"
        why = re.sub(said, "", str(error))
        why = f" ({why.splitlines()[0]})" if why else ""  # of a missing plugin
        wanted = os.environ.get("JAX_PLATFORMS")
        key = f"JAX_PLATFORMS={wanted}" if wanted else "JAX"
        return f"{key}: no such device here{why}; JAX_PLATFORMS=cpu does without"
    return None


# A file that is read meets them, and is not the worse for it.
_NOT_OF_FILES = frozenset(
    (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT)
)


def reraise_machine_fault(error: Exception) -> None:
    """Raises a `MachineError` if an exception is no fault of the file in hand.

    For whoever is about to tell a user that a file is damaged.

    Args:
        error: What reading, or making something of it, has raised.

    Raises:
        MachineError: If the machine is out of memory, files, disk, or devices.
    """
    is_of_file = isinstance(error, OSError) and error.errno not in _NOT_OF_FILES
    if not is_of_file and (fault := describe_fault(error)) is not None:
        raise MachineError(fault) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
