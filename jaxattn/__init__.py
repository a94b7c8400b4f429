"""Convolutional attention in JAX and Flax: blocks, networks and an exact trainer."""

from jaxattn.errors import UserError
from jaxattn.models import create_model, from_torch, list_models, to_torch

__version__ = "0.1.0"

__all__ = ["UserError", "create_model", "from_torch", "list_models", "to_torch"]
