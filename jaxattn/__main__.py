"""The program `jaxattn`, or `python -m jaxattn`."""

import sys

from jaxattn import host


def main() -> int:
    """Runs the command; what that needs is imported once the process is prepared."""
    host.prepare()
    from jaxattn import cli

    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
