"""From a config to calls: a section is the keyword arguments of one function."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from jaxattn.errors import UserError

T = TypeVar("T")


def bind(
    function: Callable[..., T], section: Mapping[str, Any], name: str, **given: Any
) -> Callable[..., T]:
    """Returns `function` with a config section as its keyword arguments.

    Keys whose value is None are not passed on: they are placeholders that a command
    line may fill.

    Args:
        function: Any callable with a signature.
        section: Keyword arguments by name.
        name: The section's name, for messages.
        **given: Further arguments, which a section may not set.

    Raises:
        UserError: If a key is unknown to `function`, or a required one is missing.
    """
    parameters = list(inspect.signature(function).parameters.values())
    keywords = {
        p.name: p
        for p in parameters
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in given
    }
    section = {key: value for key, value in section.items() if value is not None}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in section.keys() - keywords.keys():
            raise UserError(
                f"{name}.{key}: {function.__name__} takes no such key; "
                f"{suggest(key, keywords)}"
            )
    for key, parameter in keywords.items():
        if parameter.default is parameter.empty and key not in section:
            raise UserError(f"{name}.{key}: required by {function.__name__}")
    return functools.partial(function, **given, **section)


def suggest(key: str, choices: Iterable[str]) -> str:
    """Returns the choices for a mistyped key, the nearest first."""
    choices = list(choices)
    close = difflib.get_close_matches(key, choices, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}choices: {', '.join(choices)}"
