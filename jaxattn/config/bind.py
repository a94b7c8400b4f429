"""From a config to calls: a section is the keyword arguments of one function."""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp

from jaxattn.errors import UserError, require, suggest

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
"""Names of computation dtypes."""

T = TypeVar("T")

_MAX_INT = 2**32 - 1  # of a seed
_MAX_FLOAT = 3.4e38  # of float32


def bind(
    function: Callable[..., T], section: Mapping[str, Any], name: str, /, **given: Any
) -> functools.partial[T]:
    """Returns `function` with a config section as its keyword arguments.

    Keys whose value is None, those of nested mappings too, are not passed on: they are
    placeholders that a command line may fill.

    Args:
        function: Any callable with a signature.
        section: Keyword arguments by name.
        name: The section's name, for messages.
        **given: Further arguments, which a section may not set.

    Raises:
        UserError: If a key is unknown to `function`, a required one is missing, or a
            value is of another type than the parameter.
    """
    parameters = list(inspect.signature(function).parameters.values())
    keywords = {
        p.name: p
        for p in parameters
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in given
    }
    section = _without_placeholders(section)
    for key, value in section.items():
        _check_number(f"{name}.{key}", value)
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in section.keys() - keywords.keys():
            raise UserError(
                f"{name}.{key}: {function.__name__} takes no such key; "
                f"{suggest(key, keywords)}"
            )
    for key, parameter in keywords.items():
        if parameter.default is parameter.empty and key not in section:
            raise UserError(f"{name}.{key}: required by {function.__name__}")
        if key in section:
            _check_type(f"{name}.{key}", section[key], parameter.annotation)
    return functools.partial(function, **given, **section)


def _without_placeholders(section: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_placeholders(value) if isinstance(value, Mapping) else value
        for key, value in section.items()
        if value is not None
    }


def _check_number(key: str, value: Any) -> None:
    """Checks that numbers, those in sections and tuples too, are numbers to float32.

    The range of each is checked by whatever it is an argument of.
    """
    if isinstance(value, Mapping):
        for inner, number in value.items():
            _check_number(f"{key}.{inner}", number)
        return
    numbers = value if isinstance(value, tuple | list) else (value,)
    for number in numbers:
        if isinstance(number, float):
            holds = abs(number) <= _MAX_FLOAT  # False of NaN
            require(key, value, holds, "finite, and at most 3.4e38, float32's largest")
        elif isinstance(number, int):
            require(key, value, abs(number) <= _MAX_INT, "below 2**32")


def _check_type(key: str, value: Any, annotation: Any) -> None:
    """Checks a value against numbers, strings and booleans; lets the rest pass."""
    is_union = isinstance(annotation, types.UnionType)
    kinds = {*typing.get_args(annotation)} if is_union else {annotation}
    kinds -= {type(None)}
    values = (value,)
    if len(kinds) == 1 and typing.get_origin(next(iter(kinds))) in (tuple, Sequence):
        is_tuple = isinstance(value, tuple | list)
        require(key, value, is_tuple, "a tuple, such as (1,) or (1, 2)")
        kinds = {*typing.get_args(next(iter(kinds)))} - {...}
        values = value
    if not kinds <= {int, float, str, bool}:
        return
    allowed = kinds | ({int} if float in kinds else set())
    names = " or ".join(sorted(kind.__name__ for kind in kinds))
    holds = all(type(one) in allowed for one in values)
    require(key, value, holds, names if values == (value,) else f"of {names}")
