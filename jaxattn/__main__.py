"""The program `jaxattn`, or `python -m jaxattn`."""

import os
import sys
from collections.abc import Sequence

from jaxattn import host

_NO_READER = 128 + 13  # as a shell says that SIGPIPE ended a program


def main(argv: Sequence[str] | None = None, program: str = "jaxattn") -> int:
    """Runs the command; what that needs is imported once the process is prepared.

    Args:
        argv: Subcommand and arguments; by default those of the process.
        program: Its name in messages.

    Returns:
        The exit code; but a failure ends the process here.
    """
    try:
        host.prepare()
    except ValueError as error:  # of a variable in the environment, which JAX reads
        print(f"{program}: {error}", file=sys.stderr)  # noqa: T201
        return 2
    code = _run(sys.argv[1:] if argv is None else argv, program)
    if code == 1:
        # At a regular exit JAX waits a minute or more for processes that are gone, and
        # Grain for reads that do not return.
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)
    return code


def _run(argv: Sequence[str], program: str) -> int:
    from jaxattn import cli

    try:
        try:
            return cli.main(argv, program)
        finally:  # of help, too, which ends the process
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read has read enough, as `head` does
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())  # else Python complains at its end
        return _NO_READER


if __name__ == "__main__":
    sys.exit(main())
