"""The `jaxattn` command: what to do with a trained network.

Exit codes: 0 done, 1 the machine or a check failed or a loss diverged, 2 a mistake in
the command or the data, 130 and 143 stopped by Ctrl-C and SIGTERM.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from jaxattn.cli import machine, networks, predict, runs
from jaxattn.cli.arguments import Parser
from jaxattn.errors import UserError, explain

# What needs more than the base installation is imported where it is used.
_COMMANDS = (
    *predict.COMMANDS,
    *networks.COMMANDS,
    *runs.COMMANDS,
    *machine.COMMANDS,
)


def main(argv: Sequence[str]) -> int:
    """Runs one subcommand and returns its exit code."""
    try:
        if argv[:1] == ["train"]:
            raise UserError(
                "train: training is `python main.py --config CONFIG --workdir WORKDIR`"
                " in a clone of the project, where the recipes are"
            )
        args, rest = _make_parser().parse_known_args(argv)
        _take_overrides(args, rest)
        return args.run(args) or 0
    except (Exception, KeyboardInterrupt) as error:
        if (explained := explain(error)) is None:
            raise
        print(f"jaxattn: {explained[0]}", file=sys.stderr)
        return explained[1]


def _make_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="jaxattn", description="Predicts with trained networks, and more."
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
    """Gives `--config.key=value` to the subcommand that takes them."""
    takes = hasattr(args, "overrides")
    for flag in rest:
        if not (takes and re.match(r"--config\.[\w.]+=", flag)):
            raise UserError(f"unrecognized arguments: {' '.join(rest)}")
    if takes:
        args.overrides = list(rest)
