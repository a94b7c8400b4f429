"""The ReLU, in the memory that it needs on CPUs."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxattn.ops import cpu_kernels


def relu(x: jax.Array) -> jax.Array:
    """Returns max(x, 0).

    The gradient of `jax.nn.relu` looks at `x`, which then stays in memory beside the
    result where a C++ operation has made it and XLA cannot compute it again. Here it
    looks at the result, which whatever comes next keeps anyway. For what
    `BatchNorm` has made, its keyword `activation` is better.

    Args:
        x: Array of any shape and float dtype.
    """
    return _relu(x) if cpu_kernels.is_enabled() else nn.relu(x)


@jax.custom_jvp
def _relu(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, 0)


@_relu.defjvp
def _(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # Behind a barrier, or XLA would compute the result again, from `x`.
    y = jax.lax.optimization_barrier(_relu(*primals))
    return y, jnp.where(y > 0, *tangents, 0)
