"""The sigmoid of gates that are as large as a map."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxattn.ops.inputs import at_least_float32


def sigmoid(x: jax.Array) -> jax.Array:
    """Returns 1 / (1 + exp(-x)) in the dtype of `x`, rounded once.

    Operation by operation, bfloat16 takes XLA's CPU backend twice as long.

    Args:
        x: Array of any shape and float dtype.
    """
    wide = jnp.finfo(x.dtype).bits >= 32
    return nn.sigmoid(x) if wide else _rounded_sigmoid(x)


@jax.custom_jvp
def _rounded_sigmoid(x: jax.Array) -> jax.Array:
    return nn.sigmoid(at_least_float32(x)).astype(x.dtype)


@_rounded_sigmoid.defjvp
def _(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # Of the rounded result, which is kept anyway: not another map in float32.
    y = _rounded_sigmoid(*primals)
    s, x_dot = at_least_float32(y), at_least_float32(*tangents)
    return y, (x_dot * s * (1 - s)).astype(y.dtype)
