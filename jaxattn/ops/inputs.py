"""What every block and network makes of its input first: the one place to look."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from jaxattn.errors import UserError


def as_feature_map(module: nn.Module, x: ArrayLike) -> jax.Array:
    """Returns the feature map, or the images, that a module computes with.

    Every block and every network calls it before anything else. Shapes and dtypes are
    known when a program is traced: a compiled one does nothing here.

    Args:
        module: The block or network, whose `dtype` the map is to have.
        x: `[N, H, W, C]`, of any dtype (see `computation_dtype`); N may be 0.

    Raises:
        UserError: If `x` has not four axes, or no position or no channel.
    """
    shape = np.shape(x)  # pyright: ignore[reportArgumentType]
    if len(shape) != 4 or 0 in shape[1:]:
        hint = "; of one image: x[None]" if len(shape) == 3 else ""
        raise UserError(
            f"{type(module).__name__}: x of shape {shape}: must be [N, H, W, C]{hint}"
        )
    x = jnp.asarray(x)
    return x.astype(computation_dtype(x, module.dtype))  # pyright: ignore


def computation_dtype(x: jax.Array, dtype: DTypeLike | None) -> DTypeLike:
    """Returns the dtype that a module computes with.

    Args:
        x: Its input.
        dtype: Its attribute; None is the input's, and float32 for integers.
    """
    if dtype is not None:
        return dtype
    return x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32


def at_least_float32(x: jax.Array) -> jax.Array:
    """Returns `x` in float32, float64 if it is: what must not be rounded to 16 bits."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
