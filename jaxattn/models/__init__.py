"""Networks, their weights from and to PyTorch, and what they cost."""

from jaxattn.models.registry import create_model, list_models
from jaxattn.models.torch_weights import from_torch, to_torch

__all__ = ["create_model", "from_torch", "list_models", "to_torch"]
