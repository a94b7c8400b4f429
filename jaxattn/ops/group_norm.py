"""Group normalisation as PyTorch computes it."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.errors import require
from jaxattn.ops.inputs import at_least_float32, computation_dtype


class GroupNorm(nn.Module):
    """Normalises groups of channels of every example by their own statistics.

    Statistics and the normalisation are float32 at any lower dtype. A group of
    one value becomes its bias.

    Attributes:
        num_groups: Groups of consecutive channels; divides their number.
        epsilon: Added to the variance.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
    """

    num_groups: int
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `x`.

        Args:
            x: `[N, ..., C]`, any float dtype; statistics are over every axis but the
                first, and over the channels of a group.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            ValueError: If C is not a multiple of `num_groups`.
        """
        N, C, G = x.shape[0], x.shape[-1], self.num_groups
        divides = G >= 1 and C % G == 0
        require("num_groups", G, divides, f"a divisor of the {C} channels")
        scale = self.param("scale", nn.initializers.ones, (C,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (C,), jnp.float32)
        positions = math.prod(x.shape[1:-1])  # not -1: N may be 0
        grouped = at_least_float32(x).reshape(N, positions, G, C // G)
        # Twice: rounding leaves of a mean of 1000 deviations what shows.
        shift = jax.lax.stop_gradient(jnp.mean(grouped, (1, 3), keepdims=True))
        centred = grouped - shift
        centred = centred - jnp.mean(centred, (1, 3), keepdims=True)
        var = jnp.mean(jnp.square(centred), (1, 3), keepdims=True)
        y = centred * jax.lax.rsqrt(var + self.epsilon)
        y = y * scale.reshape(1, 1, G, C // G) + bias.reshape(1, 1, G, C // G)
        return y.reshape(x.shape).astype(computation_dtype(x, self.dtype))


class ChannelAffine(nn.Module):
    """Scale and bias of a normalisation without the normalisation.

    For blocks that normalise in a way of their own and yet keep the published name.

    Attributes:
        features: Channels.
    """

    features: int

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """Returns scale and bias, both `[features]` and float32."""
        shape = (self.features,)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        return scale, self.param("bias", nn.initializers.zeros, shape, jnp.float32)


def moments(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns mean and biased variance over axes, which are kept with size 1.

    Args:
        x: Array of float32 or wider.
        axes: To reduce.
    """
    # The mean is taken twice: of what rounding leaves of it where it is 1000
    # deviations, too.
    shift = jax.lax.stop_gradient(jnp.mean(x, axes, keepdims=True))
    centred = x - shift
    mean = jnp.mean(centred, axes, keepdims=True)
    var = jnp.mean(jnp.square(centred), axes, keepdims=True) - jnp.square(mean)
    return shift + mean, jnp.where(var < 0, 0, var)
