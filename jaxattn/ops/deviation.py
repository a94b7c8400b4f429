"""Mean and unbiased standard deviation, as `torch.std`, with a gradient everywhere."""

import math

import jax
import jax.numpy as jnp

from jaxattn.ops.inputs import at_least_float32


def mean_and_deviation(
    x: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Returns mean and standard deviation over axes, kept with size 1.

    Two passes, so that a mean of 1000 deviations costs no digits.

    Args:
        x: Array of any float dtype.
        axes: To reduce.

    Returns:
        Both in float32, float64 if `x` is.
    """
    x = at_least_float32(x)
    mean = jnp.mean(x, axes, keepdims=True)
    squares = jnp.sum(jnp.square(x - mean), axes, keepdims=True)
    return mean, deviation(squares, math.prod(x.shape[axis] for axis in axes))


def deviation(squares: jax.Array, count: int) -> jax.Array:
    """Returns sqrt(squares / (count - 1)), whose gradient is 0 where it is 0.

    PyTorch's is not a number there: it divides 0 by 0 wherever a channel is constant,
    as one that a ReLU has closed. Elsewhere the deviation's gradient is at most
    1 / sqrt(count - 1). The deviation of one value is 0, PyTorch's not a number.

    Args:
        squares: Sum of the squared distances of `count` values from their mean.
        count: Values, at least 1.
    """
    variance = squares / max(count - 1, 1)
    varies = variance > 0
    return jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1)), 0)
