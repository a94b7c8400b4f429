"""Convolutional attention in JAX and Flax: blocks, networks and an exact trainer."""

from typing import TYPE_CHECKING

from jaxattn import lazy

if TYPE_CHECKING:
    from jaxattn.errors import UserError as UserError
    from jaxattn.models.registry import create_model as create_model
    from jaxattn.models.registry import list_models as list_models
    from jaxattn.models.torch_weights import from_torch as from_torch
    from jaxattn.models.torch_weights import to_torch as to_torch

__version__ = "0.2.0.dev0"

# Programs start without JAX and the networks, which come at their first use.
__getattr__, __dir__, __all__ = lazy.face(
    __name__,
    {
        "UserError": "jaxattn.errors",
        "create_model": "jaxattn.models.registry",
        "from_torch": "jaxattn.models.torch_weights",
        "list_models": "jaxattn.models.registry",
        "to_torch": "jaxattn.models.torch_weights",
    },
)
