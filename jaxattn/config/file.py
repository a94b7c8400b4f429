"""A recipe from a config file and overrides, as they stand on a command line."""

import os
import re
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxattn.errors import UserError, suggest


def load_config(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Returns the recipe of a config file, locked.

    Args:
        path: The file, with its argument after a colon: `configs/canet.py:tiny`.
        overrides: Flags such as `--config.seed=1`, the last one of a key counts.

    Raises:
        UserError: If there is no such file, argument or key, or a value is of another
            type.
    """
    argv = ["", f"--config={path}", *overrides]
    flag_values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", flag_values=flag_values, lock_config=True, sys_argv=argv
    )
    parse_flags(flag_values, argv)
    config: Any = flag_values["config"].value
    return config


def parse_flags(flag_values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parses a command line that has the flag `--config`.

    Args:
        flag_values: All flags.
        argv: The program and its arguments.

    Returns:
        The program, and the arguments that are not flags.

    Raises:
        UserError: If there is a mistake in it, or in the config file.
    """
    path = _config_argument(argv)
    if path and not os.path.isfile(path.split(":")[0]):
        raise UserError(f"--config={path}: no such file")
    try:
        return flag_values(argv)
    except (AttributeError, KeyError) as error:  # an override of an unknown key
        message = _unknown_key(flag_values, argv) or str(error)
        raise UserError(message) from error
    except (flags.Error, ValueError, TypeError, OSError) as error:
        # An error inside a config file comes with its traceback.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raised = [line for line in lines if re.match(r"(Type|Value)Error: ", line)]
        message = raised[-1].split(": ", 1)[1] if raised else " ".join(lines)
        raise UserError(message) from error


def _unknown_key(flag_values: flags.FlagValues, argv: Sequence[str]) -> str | None:
    """Names the first override whose key the config does not have."""
    config: Any = flag_values["config"].parser.parse(_config_argument(argv) or "")
    for argument in argv:
        if not (match := re.match(r"--?config\.([\w.]+)", argument)):
            continue
        node = config.to_dict()
        for key in match[1].split("."):
            keys = list(node) if isinstance(node, dict) else []
            if key not in keys:
                return f"--config.{match[1]}: no such key; {suggest(key, keys)}"
            node = node[key]
    return None


def _config_argument(argv: Sequence[str]) -> str | None:
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if match := re.fullmatch(r"--?config(?:=(.*))?", argument):
            return match[1] or following
    return None
