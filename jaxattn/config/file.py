"""A recipe by its name or file, with overrides, as they stand on a command line."""

import contextlib
import importlib.util
import pathlib
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder

from jaxattn.config.recipe import of_record
from jaxattn.config.record import read_record
from jaxattn.errors import UserError, reason, suggest
from jaxattn.paths import local_path

_RECIPES = pathlib.Path(__file__).parent.parent / "recipes"


def load_config(recipe: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Returns a recipe, locked.

    Args:
        recipe: Its name, as `list_recipes` has it, or its file; with an argument after
            a colon: `canet:tiny`, `configs/canet.py:tiny`. Or a run's `config.json`.
        overrides: Flags such as `--config.seed=1`, the last one of a key counts. None
            leaves a key to the default of what it is an argument of.

    Raises:
        UserError: If there is no such recipe, argument or key, or a value is of another
            type, or the file fails.
    """
    config = _read(recipe)
    given, left_out = _part(overrides)
    for key in left_out:
        _leave_out(config, key)
    argv, flag_values = ["", *given], flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=flag_values, lock_config=True, sys_argv=argv
        )
        stray = flag_values(argv)[1:]
    except (AttributeError, KeyError) as error:  # an override of an unknown key
        raise UserError(_unknown_key(config, given) or str(error)) from error
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(" ".join(str(error).split())) from error
    if stray:
        raise UserError(f"{' '.join(stray)}: not a flag; flags are --name=value")
    return config


def list_recipes() -> list[str]:
    """Returns the names of the recipes that come with the package, sorted."""
    return sorted(p.stem for p in _RECIPES.glob("*.py") if p.stem != "__init__")


# Reading ---------------------------------------------------------------------------


def _read(recipe: str) -> ConfigDict:
    if "/" in recipe:
        local_path(recipe, "--config")  # of an address the colon starts no argument
    name, *argument = recipe.split(":", 1)
    is_path = name.endswith((".py", ".json")) or "/" in name or "\\" in name
    if not is_path and name not in list_recipes():
        raise UserError(f"--config={recipe}: {suggest(name, list_recipes())}")
    path = local_path(name, "--config") if is_path else _RECIPES / f"{name}.py"
    if not path.is_file():
        raise UserError(f"--config={recipe}: no such file")
    with _telling(recipe, path):
        if path.suffix == ".json":
            return _of_run(path)
        config = _load_module(path).get_config(*argument)
    if not isinstance(config, ConfigDict):
        found = type(config).__name__
        raise UserError(
            f"--config={recipe}: get_config returns {found}, must be a ConfigDict"
        )
    return config


def _of_run(path: pathlib.Path) -> ConfigDict:
    """Returns the config of a run, as a recipe would."""
    from jaxattn.config.changes import config_of  # which needs JAX

    record = read_record(path)
    if not isinstance(record, dict) or "dataset" not in record:
        raise ValueError("not a run's config")
    if own := record.get("own"):
        raise ValueError(
            f"its run was built with objects of its own ({', '.join(own)}), which no"
            " config can make"
        )
    if "imported_from" in record:
        raise ValueError("imported weights, which no run has trained")
    return of_record(config_of(record))


def _load_module(path: pathlib.Path) -> Any:
    """Runs a file, which may import what lies beside it."""
    spec = importlib.util.spec_from_file_location("config_recipe", path)
    if spec is None or spec.loader is None:
        raise ValueError("must be a .py file, or a run's config.json")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    if not hasattr(module, "get_config"):
        raise ValueError("has no function get_config")
    return module


@contextlib.contextmanager
def _telling(recipe: str, path: pathlib.Path) -> Iterator[None]:
    """Makes whatever a user's file raises one line that says where."""
    try:
        yield
    except ValueError as error:  # as recipes raise it, for a person
        raise UserError(f"--config={recipe}: {reason(error)}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        here = path.resolve()
        lines = [f.lineno for f in frames if pathlib.Path(f.filename).resolve() == here]
        line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
        where = "" if line is None else f"line {line}: "
        raise UserError(
            f"--config={recipe}: {where}{type(error).__name__}: {reason(error)}"
        ) from error


# Overrides -------------------------------------------------------------------------


def _part(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the overrides by a value, and the keys whose last one is None."""
    given: list[str] = []
    last: dict[str, bool] = {}  # by key: whether it is None
    for token in _joined(overrides):
        match = re.fullmatch(r"--?config\.([\w.]+)(?:=(.*))?", token, re.DOTALL)
        if match is None or match[2] is None:
            given.append(token)
            continue
        key = match[1]
        last[key] = match[2] == "None"
        given = [other for other in given if not _is_of(other, key)]
        if not last[key]:
            given.append(token)
    return given, [key for key, is_none in last.items() if is_none]


def _joined(overrides: Sequence[str]) -> Iterator[str]:
    """Yields the overrides with `--config.key None` as one."""
    tokens = list(overrides)
    for i, token in enumerate(tokens):
        if tokens[i + 1 : i + 2] == ["None"] and "=" not in token:
            yield f"{token}=None"
        elif token != "None" or i == 0 or "=" in tokens[i - 1]:
            yield token


def _is_of(token: str, key: str) -> bool:
    return re.match(rf"--?config\.{re.escape(key)}=", token) is not None


def _leave_out(config: ConfigDict, key: str) -> None:
    """Makes a key's value None."""
    *sections, name = key.split(".")
    node: Any = config
    for section in sections:
        node = node.get(section) if isinstance(node, ConfigDict) else None
    is_key = isinstance(node, ConfigDict) and name in node
    if not is_key:
        raise UserError(_unknown_key(config, [f"--config.{key}="]) or key)
    if isinstance(node[name], ConfigDict):
        raise UserError(f"--config.{key}=None: a section, must be one of its keys")
    kind = node.get_type(name)
    with config.unlocked():
        node[name] = placeholder(kind)


def _unknown_key(config: ConfigDict, overrides: Sequence[str]) -> str | None:
    """Names the first override whose key the config does not have."""
    for argument in overrides:
        if not (match := re.match(r"--?config\.([\w.]+)", argument)):
            continue
        node = config.to_dict()
        for key in match[1].split("."):
            keys = list(node) if isinstance(node, dict) else []
            if key not in keys:
                return f"--config.{match[1]}: no such key; {suggest(key, keys)}"
            node = node[key]
    return None
