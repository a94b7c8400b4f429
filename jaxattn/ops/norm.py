"""Batch normalisation as PyTorch computes it."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.ops.inputs import at_least_float32, computation_dtype


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
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Normalises `x`.

        Args:
            x: `[..., C]`, any float dtype.
            train: Uses the batch's statistics and updates the running ones in
                `batch_stats`; otherwise uses the running ones.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            ValueError: If `train` and there are fewer than two values per channel,
                whose variance is not defined.
        """
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)

        # `[C]` against `[..., C]`: written out, for rank promotion may be an error.
        ones = (1,) * (x.ndim - 1)
        dtype = computation_dtype(x, self.dtype)
        x = at_least_float32(x)
        shift = self._shift(x) if train else running_mean.value
        x = x - shift.reshape(*ones, -1)
        if train:
            mean, var, count = self._batch_statistics(x)
            if not self.is_initializing():
                unbiased = var * (count / (count - 1))
                running_mean.value = self._update(running_mean.value, shift + mean)
                running_var.value = self._update(running_var.value, unbiased)
        else:
            mean, var = jnp.zeros_like(shift), running_var.value
        # A factor and an offset for each channel: their gradients take two sums over
        # `x`, those of `(x - mean) * factor` a third.
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        offset = bias - mean * factor
        y = x * factor.reshape(*ones, -1) + offset.reshape(*ones, -1)
        return y.astype(dtype)

    def _shift(self, x: jax.Array) -> jax.Array:
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
        return jax.lax.pmean(shift, self.axis_name) if self._is_mapped() else shift

    def _batch_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array, int]:
        axes = tuple(range(x.ndim - 1))
        count = math.prod(x.shape[:-1])
        mean, mean_square = jnp.mean(x, axes), jnp.mean(jnp.square(x), axes)
        if self._is_mapped():
            mean, mean_square = jax.lax.pmean((mean, mean_square), self.axis_name)
            count *= jax.lax.axis_size(self.axis_name)
        if count in (0, 1):
            raise ValueError(
                f"BatchNorm: fewer than two values per channel in training, input shape"
                f" {x.shape}; need a larger batch or feature map"
            )
        # Rounding may leave a constant channel slightly negative.
        var = mean_square - jnp.square(mean)
        return mean, jnp.where(var < 0, 0, var), count

    def _is_mapped(self) -> bool:
        return self.axis_name is not None and not self.is_initializing()

    def _update(self, running: jax.Array, new: jax.Array) -> jax.Array:
        return self.momentum * running + (1 - self.momentum) * new
