"""Networks by name."""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn

from jaxattn.errors import UserError, choose, require, suggest
from jaxattn.models.canet import CANet
from jaxattn.models.cbam_resnet import EfficientResNet, EnhancedEfficientResNet

_MODELS: dict[str, partial[nn.Module]] = {
    "canet": partial(CANet, width=64),
    "canet_tiny": partial(CANet, width=16),
    "canet_light": partial(CANet, width=32),
    "canet_pro": partial(CANet, width=128),
    "efficient_resnet": partial(EfficientResNet),
    "enhanced_efficient_resnet": partial(EnhancedEfficientResNet),
}


def list_models() -> list[str]:
    """Returns the names that `create_model` knows, sorted."""
    return sorted(_MODELS)


def create_model(name: str, num_classes: int = 10, **kwargs: Any) -> nn.Module:
    """Returns the network `name`, not yet initialised.

    Apply it as `module.apply(variables, x, train=False)` to float images
    `[N, H, W, C]`; it returns float32 logits `[N, num_classes]`.

    Args:
        name: One of `list_models()`.
        num_classes: Number of logits, at least 1.
        **kwargs: Keywords of the network, such as `dtype` and `axis_name`.

    Raises:
        UserError: If the name or a keyword is unknown, or `num_classes` below 1.
    """
    choose("model.name", name, list_models())
    require("num_classes", num_classes, num_classes >= 1, "at least 1")
    make = _MODELS[name]
    allowed = _keywords(make)
    for key in kwargs:
        if key not in allowed:
            choices = suggest(key, sorted(allowed))
            raise UserError(f"model.{key}: {name} takes no such key; {choices}")
    return make(num_classes=num_classes, **kwargs)


def _keywords(make: partial[nn.Module]) -> set[str]:
    """Keywords that a registered network takes beside what its name fixes."""
    fields = {field.name for field in dataclasses.fields(make.func)}  # pyright: ignore
    return fields - make.keywords.keys() - {"num_classes", "name", "parent"}
