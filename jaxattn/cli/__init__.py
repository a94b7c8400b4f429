"""The `jaxattn` command: trains networks, and does what there is to do with them.

Exit codes: 0 done, 1 the machine or a check failed or a loss diverged, 2 a mistake in
the command or the data, 130 and 143 stopped by Ctrl-C and SIGTERM.
"""

import argparse
import io
import select
import sys
from collections.abc import Sequence
from typing import TextIO

from jaxattn.cli import machine, networks, predict, runs, train
from jaxattn.cli.arguments import Parser
from jaxattn.errors import UserError, explain
from jaxattn.text import printable

# What needs more than the base installation is imported where it is used.
_COMMANDS = (
    *train.COMMANDS,
    *predict.COMMANDS,
    *networks.COMMANDS,
    *runs.COMMANDS,
    *machine.COMMANDS,
)

_WELCOME = """\
jaxattn trains networks with attention, and predicts with them. Begin with one of these:

  jaxattn train --config quickstart --workdir workdir/quickstart
      trains on handwritten digits, a minute or two on a CPU; nothing to download
  jaxattn predict --weights canet_tiny-cifar10 --data YOUR_IMAGE.jpg
      says what is in a photo, if it is one of the ten classes of CIFAR-10
  jaxattn train --config own_images --workdir workdir/photos --config.data.path=PHOTOS
      trains on photos of your own, in PHOTOS/train/<class>/ and PHOTOS/val/<class>/

Commands: {commands}.
`jaxattn --help` says what they do, `jaxattn COMMAND --help` how."""


def main(argv: Sequence[str], program: str = "jaxattn") -> int:
    """Runs one subcommand.

    Args:
        argv: Its name and arguments.
        program: How a message about a failure begins.

    Returns:
        The exit code.

    Raises:
        BrokenPipeError: If no one reads what it prints.
    """
    _print_any_name()
    if not argv:
        print(_WELCOME.format(commands=", ".join(c.name for c in _COMMANDS)))
        return 0
    if list(argv) == ["train"]:  # which a bare `main.py` is, too
        print(train.introduce(program), file=sys.stderr)
        return 2
    try:
        args, rest = _make_parser().parse_known_args(argv)
        _take_overrides(args, rest)
        return args.run(args) or 0
    except (Exception, KeyboardInterrupt) as error:
        if _has_no_reader(error):
            raise BrokenPipeError from error
        if (explained := explain(error)) is None:
            raise
        print(f"{program}: {printable(explained[0])}", file=sys.stderr)
        return explained[1]


def _has_no_reader(error: BaseException) -> bool:
    """Whether a command failed since no one reads what it prints."""
    is_of_pipe = any(isinstance(e, BrokenPipeError) for e in (error, error.__cause__))
    return is_of_pipe and any(map(_is_unread, (sys.stdout, sys.stderr)))


def _is_unread(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose other end is closed; others fail, too."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
    except (AttributeError, OSError):  # Windows has none; and a test's is no file
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _print_any_name() -> None:
    """Lets names be printed that the terminal's encoding does not have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="jaxattn", description="Trains networks, predicts with them, and more."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        added = commands.add_parser(
            command.name, help=command.text, description=command.text
        )
        added.set_defaults(run=command.run)
        command.add_arguments(added)
    return parser


def _take_overrides(args: argparse.Namespace, rest: Sequence[str]) -> None:
    """Gives `--config.key=value` to the subcommand that takes them, as they stand."""
    if hasattr(args, "overrides"):
        args.overrides = list(rest)  # `load_config` complains of what is none
    elif rest:
        raise UserError(f"unrecognized arguments: {' '.join(rest)}")
