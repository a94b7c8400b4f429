"""What the subcommands' arguments have in common."""

import argparse
import ast
import contextlib
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

from jaxattn.config.bind import DTYPES
from jaxattn.errors import UserError, require
from jaxattn.paths import local_path
from jaxattn.training.checkpoints.trained import WEIGHTS, Trained, load_trained
from jaxattn.weights import list_weights


class Command(NamedTuple):
    """A subcommand of `jaxattn`.

    Attributes:
        name: As it is typed.
        text: What it does, in one line.
        run: Does it; returns the exit code, or None for 0.
        add_arguments: Adds its arguments to its parser.
    """

    name: str
    text: str
    run: Callable[[argparse.Namespace], int | None]
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda _: None


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Raises it as a mistake of the user."""
        raise UserError(
            f"{self.prog.removeprefix('jaxattn').strip()} {message}".strip()
        )


def given(**arguments: Any) -> dict[str, Any]:
    """Returns the arguments that are not None."""
    return {key: value for key, value in arguments.items() if value is not None}


def add_network(parser: argparse.ArgumentParser) -> None:
    """Adds `--workdir` and `--weights`, which `load_network` loads."""
    parser.add_argument(
        "--workdir", type=location, help="folder of the trained network"
    )
    parser.add_argument(
        "--weights",
        default="best",
        choices=(*WEIGHTS, *list_weights()),
        help="of which checkpoint, raw or averaged (default %(default)s); or, without "
        "--workdir, those that come with jaxattn",
    )


def add_computation(parser: argparse.ArgumentParser) -> None:
    """Adds `--dtype` and `--no-fold-batch-norm`: how a trained network computes."""
    parser.add_argument(
        "--dtype",
        choices=tuple(DTYPES),
        help="of the computation (default the run's)",
    )
    parser.add_argument(
        "--no-fold-batch-norm",
        dest="fold_batch_norm",
        action="store_false",
        help="normalises after the convolutions, as in training (default: folded into"
        " them; answers differ by rounding)",
    )


def load_network(args: argparse.Namespace) -> Trained:
    """Loads the network of `add_network`'s arguments."""
    is_named = args.workdir is not None or args.weights in list_weights()
    wanted = f"given, or --weights one of {', '.join(list_weights())}"
    require("--workdir", args.workdir, is_named, wanted)
    return load_trained(args.workdir, weights=args.weights)


def add_model_arg(parser: argparse.ArgumentParser) -> None:
    """Adds `--model-arg`, a keyword of the network."""
    parser.add_argument(
        "--model-arg",
        type=key_and_value,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the network, such as base_width=8",
    )


def number(text: str) -> float:
    """Parses a finite number."""
    (value,) = _parsed([text], _finite, "a number")
    return value


def seed(text: str) -> int:
    """Parses a seed."""
    (value,) = _parsed([text], int, "an integer in [0, 2**32)")
    if not 0 <= value < 2**32:
        raise argparse.ArgumentTypeError(f"{value} must be in [0, 2**32)")
    return value


def numbers(text: str) -> tuple[float, ...]:
    """Parses finite numbers separated by commas."""
    return _parsed(text.split(","), _finite, "numbers separated by commas")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def integers(text: str) -> tuple[int, ...]:
    """Parses integers separated by commas; none of an empty text."""
    if not text:
        return ()
    return _parsed(text.split(","), int, "integers separated by commas")


def _parsed(
    parts: Sequence[str], kind: Callable[[str], Any], wanted: str
) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in parts)
    except ValueError:
        given = ",".join(parts)
        raise argparse.ArgumentTypeError(f"{given!r} must be {wanted}") from None


def count(text: str) -> int:
    """Parses a number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be at least 1")
    return int(text)


@contextlib.contextmanager
def naming_data_options(args: argparse.Namespace) -> Iterator[None]:
    """Makes errors about data name the options of a command that takes no config.

    Args:
        args: With `data_path`, and `data_name` if the command has it.

    Raises:
        UserError: In place of one about `data.name` or `data.path`.
    """
    try:
        yield
    except UserError as error:
        is_typed = "data.path=" not in str(error) or args.data_path is not None
        advice = "" if is_typed else "; --data-path names another place"
        raise UserError(name_data_options(f"{error}{advice}", args)) from error


def name_data_options(text: str, args: argparse.Namespace) -> str:
    """Returns a message with options in place of the keys that they stand for."""
    for key in ("name", "path"):
        if hasattr(args, f"data_{key}"):
            text = re.sub(rf"\bdata\.{key}\b", f"--data-{key}", text)
    return text


def path(text: str) -> pathlib.Path:
    """Parses a path of this machine, `~` in it being the user's home."""
    try:
        return local_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def location(text: str) -> str:
    """Parses the same as a text, which stays as it was given else."""
    path(text)
    return os.path.expanduser(text)


def names(text: str) -> tuple[str, ...]:
    """Parses names separated by commas."""
    return tuple(text.split(","))


def key_and_value(text: str) -> tuple[str, Any]:
    """Parses `KEY=VALUE`, its value as a Python literal, or else as a text."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be KEY=VALUE")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value
