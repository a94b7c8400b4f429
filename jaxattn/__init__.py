"""Convolutional attention in JAX and Flax: blocks, networks and an exact trainer."""

import importlib
from typing import TYPE_CHECKING, Any

from jaxattn.errors import UserError

if TYPE_CHECKING:
    from jaxattn.models import create_model, from_torch, list_models, to_torch

__version__ = "0.1.0"

__all__ = ["UserError", "create_model", "from_torch", "list_models", "to_torch"]


def __getattr__(name: str) -> Any:
    """Imports JAX and the networks at their first use: programs start without them."""
    if name not in __all__:
        raise AttributeError(f"module 'jaxattn' has no attribute {name!r}")
    return getattr(importlib.import_module("jaxattn.models"), name)
