"""The program `jaxattn`, or `python -m jaxattn`."""

import io
import os
import sys
from collections.abc import Sequence

from jaxattn import host


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
    # Names of files and classes may hold what the terminal's encoding does not have.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    from jaxattn import cli

    code = cli.main(sys.argv[1:] if argv is None else argv, program)
    if code == 1:
        # At a regular exit JAX waits a minute or more for processes that are gone, and
        # Grain for reads that do not return.
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
