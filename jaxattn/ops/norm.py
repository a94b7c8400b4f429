"""Batch normalisation as PyTorch computes it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from jaxattn.errors import UserError, choose, require
from jaxattn.ops import cpu_kernels
from jaxattn.ops.inputs import at_least_float32, computation_dtype
from jaxattn.ops.primitive import Arrays, make_operation

ACTIVATIONS = {"relu": nn.relu, "relu6": nn.relu6, "mish": jax.nn.mish}
"""What a network may apply after a normalisation, by name."""
# As norm.cc counts them, which has no others.
_BY_KERNELS = (None, "relu", "relu6")


class BatchNorm(nn.Module):
    """Normalises every channel by the statistics of the global batch.

    Differs from `flax.linen.BatchNorm` where PyTorch does: the running variance takes
    the unbiased batch variance (n / (n - 1)), while the normalisation itself uses the
    biased one. Statistics are float32 at any lower dtype.

    Under `jax.jit` over a mesh the statistics are those of the global batch by
    themselves. Under `jax.pmap` and `jax.shard_map` they are if `axis_name` is given.

    Attributes:
        momentum: Share of the running statistics that a training step keeps;
            PyTorch's `momentum` is one minus this.
        epsilon: Added to the variance.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
        axis_name: Mapped axis over which statistics are averaged.
        scale_init: Initialiser of the scale.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    axis_name: str | None = None
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        residual: jax.Array | None = None,
        activation: str | None = None,
    ) -> jax.Array:
        """Normalises `x`, and does what often follows in the same passes over memory.

        Args:
            x: `[..., C]`, any float dtype.
            train: Uses the batch's statistics and updates the running ones in
                `batch_stats`; otherwise uses the running ones.
            residual: Added to the normalised `x`; of its shape.
            activation: Applied last: one of `ACTIVATIONS`, or None.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            UserError: If `train` and there are fewer than two values per channel, whose
                variance is not defined; if `residual` has another shape; or if
                `activation` is unknown.
        """
        shape = x.shape[-1:]
        if residual is not None:
            fits = residual.shape == x.shape
            require("residual", residual.shape, fits, f"the shape {x.shape} of x")
        if activation is not None:
            choose("activation", activation, ACTIVATIONS)
        scale = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)

        dtype = computation_dtype(x, self.dtype)
        axis_name = None if self.is_initializing() else self.axis_name
        how = _How(self.epsilon, activation, jnp.dtype(dtype), axis_name)
        operands = [x, scale, bias] + ([] if residual is None else [residual])
        if not train:
            mean, var = running_mean.value, running_var.value
            operands[0] = _centred(x, mean)
            return _apply(*operands, mean=jnp.zeros_like(mean), var=var, how=how)
        count = _count(x, axis_name)
        fast = _is_fast(x, residual, how)
        y, shift, mean, var = (_by_kernels if fast else _in_training)(*operands, how)
        if not self.is_initializing():
            unbiased = var * (count / (count - 1))
            running_mean.value = self._update(running_mean.value, shift + mean)
            running_var.value = self._update(running_var.value, unbiased)
        return y

    def _update(self, running: jax.Array, new: jax.Array) -> jax.Array:
        return self.momentum * running + (1 - self.momentum) * new


class _How(NamedTuple):
    """What is computed; see `BatchNorm`."""

    epsilon: float
    activation: str | None
    dtype: jnp.dtype
    axis_name: str | None


def _count(x: jax.Array, axis_name: str | None) -> int:
    """Returns the number of values of a channel."""
    count = math.prod(x.shape[:-1])
    if axis_name is not None:
        count *= jax.lax.axis_size(axis_name)
    if count in (0, 1):
        raise UserError(
            f"BatchNorm: fewer than two values per channel in training, input shape"
            f" {x.shape}; need a larger batch or feature map"
        )
    return count


# Formulas --------------------------------------------------------------------------


def _in_training(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *rest: Any
) -> tuple[jax.Array, ...]:
    """Returns the result, and shift, mean and variance `[C]` of the batch.

    The mean is what the shift leaves of it.
    """
    *residual, how = rest
    shift = _shift(at_least_float32(x), how.axis_name)
    x = _centred(x, shift)
    mean, var = _moments(x, how.axis_name)
    y = _apply(x, scale, bias, *residual, mean=mean, var=var, how=how)
    return y, shift, mean, var


def _centred(x: jax.Array, shift: jax.Array) -> jax.Array:
    x = at_least_float32(x)
    return x - _per_channel(shift, x)


def _apply(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    residual: jax.Array | None = None,
    *,
    mean: jax.Array,
    var: jax.Array,
    how: _How,
) -> jax.Array:
    """Normalises `x`, of this mean and variance, and does what follows."""
    # A factor and an offset for each channel: their gradients take two sums over
    # `x`, those of `(x - mean) * factor` a third.
    factor = scale * jax.lax.rsqrt(var + how.epsilon)
    offset = bias - mean * factor
    y = x * _per_channel(factor, x) + _per_channel(offset, x)
    y = y.astype(how.dtype)
    y = y if residual is None else y + residual
    return y if how.activation is None else ACTIVATIONS[how.activation](y)


def _shift(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Returns a value near the mean `[C]`, which is subtracted from `x` first.

    E[x^2] - E[x]^2 loses all digits where the mean is 1000 deviations, yet takes
    one pass over `x`; after a shift it is as exact as two passes. Of a share p of
    the values the mean is off by at most sqrt((1 - p) / p) deviations, whatever
    the values are. So every 8th row, for an eighth of a pass, costs no more than a
    factor of 8 in rounding. The running mean would cost none, but is far off when
    training starts; one row or pixel may be a border unlike the rest.

    Mean and variance do not depend on the shift but for rounding, nor do
    derivatives of any order: it is a constant to them.
    """
    rows = x[:, ::8] if x.ndim > 2 else x
    shift = jnp.mean(jax.lax.stop_gradient(rows), tuple(range(x.ndim - 1)))
    return shift if axis_name is None else jax.lax.pmean(shift, axis_name)


def _moments(x: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """Returns mean and variance `[C]`."""
    axes = tuple(range(x.ndim - 1))
    mean, mean_square = jnp.mean(x, axes), jnp.mean(jnp.square(x), axes)
    if axis_name is not None:
        mean, mean_square = jax.lax.pmean((mean, mean_square), axis_name)
    # Rounding may leave a constant channel slightly negative.
    var = mean_square - jnp.square(mean)
    return mean, jnp.where(var < 0, 0, var)


def _per_channel(v: jax.Array, x: jax.Array) -> jax.Array:
    """Returns `[C]` for `[..., C]`: written out, rank promotion may be an error."""
    return v.reshape(*(1,) * (x.ndim - 1), -1)


# By `norm.cc` ----------------------------------------------------------------------


def _is_fast(x: jax.Array, residual: jax.Array | None, how: _How) -> bool:
    """Whether `norm.cc` computes it."""
    maps = [x] if residual is None else [x, residual]
    return (
        how.dtype in (jnp.float32, jnp.bfloat16)
        and how.activation in _BY_KERNELS
        and all(v.dtype == how.dtype for v in maps)
        and how.axis_name is None
        and not jax.sharding.get_abstract_mesh().manual_axes
        and cpu_kernels.is_enabled()
    )


def _value(x: jax.Array, scale: jax.Array, bias: jax.Array, *rest: Any) -> Arrays:
    *residual, how = rest
    channel = jax.ShapeDtypeStruct(scale.shape, jnp.float32)
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype), channel, channel, channel]
    return _call("jaxattn_norm", results, [x, scale, bias, *residual], how)


def _gradient(
    operands: Arrays, outputs: Arrays, cotangents: Arrays, how: _How
) -> Arrays:
    x, scale, bias, *residual = operands
    _, *moments = outputs
    dy, _, dmean, dvar = cotangents  # of the shift there is none
    passed = []
    if how.activation is None:  # then the residual's gradient is dy
        residual, passed = [], [dy] * len(residual)
    results = [
        jax.ShapeDtypeStruct(v.shape, v.dtype) for v in (x, scale, bias, *residual)
    ]
    given = [x, scale, bias, *moments, dy, dmean, dvar, *residual]
    # The residual's gradient, or without one that of x, is written where dy is.
    in_place = None if passed else {6: 3 if residual else 0}
    gradients = _call("jaxattn_norm_gradient", results, given, how, in_place)
    return [*gradients, *passed]


def _call(
    name: str,
    results: Sequence[jax.ShapeDtypeStruct],
    operands: Arrays,
    how: _How,
    in_place: Mapping[int, int] | None = None,
) -> Arrays:
    return cpu_kernels.call(
        name,
        results,
        *operands,
        in_place=in_place,
        epsilon=how.epsilon,
        activation=_BY_KERNELS.index(how.activation),
    )


_by_kernels = make_operation(_in_training, _value, _gradient)
