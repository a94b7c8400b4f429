"""The subcommand that trains: `main.py` is its other name."""

import argparse
import functools
import sys

from jaxattn.cli.arguments import Command, location
from jaxattn.errors import UserError

_INTRODUCTION = """\
{program} trains the network of a recipe in a folder, or resumes it. Begin with

  {command} --config quickstart --workdir workdir/quickstart

which takes a minute or two on a CPU, and downloads nothing. Recipes: {recipes}.
--config.key=value changes a value of a recipe. `{command} --help` says more."""


def introduce(program: str) -> str:
    """Returns what to type first.

    Args:
        program: Which was started without arguments: `main.py`, or `jaxattn`.
    """
    from jaxattn.config.file import list_recipes

    is_script = program == "main.py"
    return _INTRODUCTION.format(
        program=program if is_script else f"{program} train",
        command="python main.py" if is_script else f"{program} train",
        recipes=", ".join(list_recipes()),
    )


def _train(args: argparse.Namespace) -> None:
    from absl import logging

    from jaxattn.training.recipes import load_recipe

    logging.use_absl_handler()
    logging.set_verbosity(args.verbosity)
    say = functools.partial(print, file=sys.stderr)
    config = load_recipe(args.config, args.overrides, say)
    if args.distributed:
        _join(args)
    from jaxattn.training.loop import train_and_evaluate

    train_and_evaluate(config, args.workdir)


def _join(args: argparse.Namespace) -> None:
    """Connects the processes of a run, before any of them looks for its devices."""
    import jax

    try:
        jax.distributed.initialize(
            args.coordinator, args.num_processes, args.process_id
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--distributed: {error}") from error


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} must be true or false")
    return text.lower() == "true"


def _add_train(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--config",
        required=True,
        metavar="RECIPE",
        help="name or file of a recipe, such as canet:tiny or configs/canet.py:tiny;"
        " --config.key=value overrides a value of it",
    )
    add("--workdir", type=location, required=True, help="folder of the outputs")
    add(
        "--distributed",
        type=_yes_or_no,
        nargs="?",
        const=True,
        default=False,
        metavar="true",
        help="joins several processes, which a cluster's launcher names",
    )
    launcher = "without a launcher: "
    add("--coordinator", help=f"{launcher}host:port of the first process")
    add("--num_processes", type=int, help=f"{launcher}number of processes")
    add("--process_id", type=int, help=f"{launcher}of this process, from 0")
    add(
        "--verbosity",
        type=int,
        default=-1,  # at 0 Orbax tells a story at every save
        help="of the libraries' log: -1 warnings, 0 everything (default %(default)s)",
    )
    parser.set_defaults(overrides=[])


COMMANDS = (
    Command(
        "train", "Trains the network of a recipe, or resumes it.", _train, _add_train
    ),
)
