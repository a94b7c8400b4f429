"""What of a network is not that of another one of its kind: its head, its attention.

The head depends on the number of classes, which networks say by their attribute
`num_classes`. What they take attention by are their attributes `attention...`.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxattn.errors import UserError
from jaxattn.models.torch_weights import torch_name

TreePath = tuple[str, ...]  # of a variable: its collection, modules and name


def head_paths(
    model: nn.Module, image_shape: tuple[int, int, int]
) -> frozenset[TreePath]:
    """Returns the paths of the parameters that depend on the number of classes.

    Args:
        model: The network.
        image_shape: `(H, W, C)` of its images.

    Raises:
        UserError: If the network has no attribute `num_classes`.
    """
    if not hasattr(model, "num_classes"):
        raise UserError(
            f"model={type(model).__name__}: has no attribute num_classes, by which its"
            " head would be known"
        )
    few, more = (
        flat(abstract_variables(model.clone(num_classes=n), image_shape))
        for n in (2, 3)
    )
    return frozenset(path for path in few if few[path].shape != more[path].shape)


def without_attention(model: nn.Module) -> nn.Module:
    """Returns the network without what it has only by its attribute `attention`.

    Of a network with an attribute `backbone` it is the backbone that has attention.
    """
    if isinstance(backbone := getattr(model, "backbone", None), nn.Module):
        return model.clone(backbone=without_attention(backbone))
    if getattr(model, "attention", None) is None:
        return model
    fields: Any = dataclasses.fields(model)  # pyright: ignore[reportArgumentType]
    defaults: dict[str, Any] = {
        field.name: field.default
        for field in fields
        if field.name.startswith("attention")
        and field.default is not dataclasses.MISSING
    }
    return model.clone(**defaults)


def abstract_variables(model: nn.Module, image_shape: tuple[int, int, int]) -> Any:
    """Returns shape and dtype of a network's variables; computes nothing."""
    init = functools.partial(model.init, jax.random.key(0), train=False)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(init, image)


def flat(variables: Any) -> dict[TreePath, Any]:
    """Returns a network's variables by their path."""
    return traverse_util.flatten_dict(variables)  # pyright: ignore[reportReturnType]


def with_classes_of(
    model: nn.Module, state: Mapping[str, np.ndarray], head: Collection[TreePath]
) -> nn.Module:
    """Returns the network with as many classes as a PyTorch state dict has.

    Args:
        model: The network.
        state: Arrays by PyTorch's names.
        head: Of the network, as `head_paths`.
    """
    # A vector of the head has as many values as there are classes.
    vectors = [state.get(torch_name(path)) for path in head]
    sizes = [len(v) for v in vectors if v is not None and v.ndim == 1]
    return model.clone(num_classes=sizes[0]) if sizes else model
