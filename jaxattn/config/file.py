"""A recipe by its name or file, with overrides, as they stand on a command line."""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxattn.errors import UserError, suggest

_RECIPES = pathlib.Path(__file__).parent.parent / "recipes"


def load_config(recipe: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Returns a recipe, locked.

    Args:
        recipe: Its name, as `list_recipes` has it, or its file; with an argument after
            a colon: `canet:tiny`, `configs/canet.py:tiny`.
        overrides: Flags such as `--config.seed=1`, the last one of a key counts.

    Raises:
        UserError: If there is no such recipe, argument or key, or a value is of another
            type.
    """
    argv = ["", f"--config={_locate(recipe)}", *overrides]
    flag_values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", flag_values=flag_values, lock_config=True, sys_argv=argv
    )
    stray = _parse(flag_values, argv)[1:]
    if stray:
        raise UserError(f"{' '.join(stray)}: not a flag; flags are --name=value")
    config: Any = flag_values["config"].value
    return config


def list_recipes() -> list[str]:
    """Returns the names of the recipes that come with the package, sorted."""
    return sorted(p.stem for p in _RECIPES.glob("*.py") if p.stem != "__init__")


def _locate(recipe: str) -> str:
    """Returns a recipe's file, with its argument."""
    name, *argument = recipe.split(":", 1)
    is_path = name.endswith(".py") or "/" in name or "\\" in name
    own = pathlib.Path(os.path.expanduser(name))
    path = own if is_path else _RECIPES / f"{name}.py"
    if is_path and not path.is_file():
        raise UserError(f"--config={recipe}: no such file")
    if not is_path and name not in list_recipes():
        raise UserError(f"--config={recipe}: {suggest(name, list_recipes())}")
    return ":".join([str(path), *argument])


def _parse(flag_values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Returns the program, and the arguments that are not flags."""
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
    path = argv[1].partition("=")[2]
    config: Any = flag_values["config"].parser.parse(path)
    for argument in argv[2:]:
        if not (match := re.match(r"--?config\.([\w.]+)", argument)):
            continue
        node = config.to_dict()
        for key in match[1].split("."):
            keys = list(node) if isinstance(node, dict) else []
            if key not in keys:
                return f"--config.{match[1]}: no such key; {suggest(key, keys)}"
            node = node[key]
    return None
