"""Recipes for runs: what a recipe says of its own network stays with that network."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from jaxattn.config.file import load_config
from jaxattn.models.registry import list_models, model_keywords

_OVERRIDE = re.compile(r"--?(?:no)?config\.model\.(\w+)")


def load_recipe(
    recipe: str,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Any:
    """Returns the config of a recipe, for a run.

    Where an override names another network, keys of the section `model` that the recipe
    has for its own and the other one does not take are left out.
    Keys that are overridden too stay, and are refused when the network is made.

    Args:
        recipe: As `load_config` takes it.
        overrides: The same.
        say: Told what was left out.

    Raises:
        UserError: As `load_config`.
    """
    config = load_config(recipe, overrides)
    given = {match[1] for flag in overrides if (match := _OVERRIDE.match(flag))}
    model: Any = config.get("model") or {}
    name = model.get("name")
    if "name" not in given or name not in list_models():
        return config
    taken = {"name", *given, *model_keywords(name, model.get("backbone"))}
    if left := sorted(set(model.keys()) - taken):
        values = {key: model[key] for key in left}
        with config.unlocked():
            for key in left:
                del config.model[key]
        keys = ", ".join(f"model.{k}={v}" for k, v in values.items() if v is not None)
        if keys:
            say(f"{keys}: left out, {name} takes no such key")
    return config
