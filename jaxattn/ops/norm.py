"""Batch normalisation as PyTorch computes it."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class BatchNorm(nn.Module):
    """Normalises every channel by the statistics of the global batch.

    Differs from `flax.linen.BatchNorm` where PyTorch does: the running variance takes
    the unbiased batch variance (n / (n - 1)), while the normalisation itself uses the
    biased one. Statistics are float32 at any computation dtype.

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
            ValueError: If `train` and there is one value per channel, whose variance
                is not defined.
        """
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)

        x32 = x.astype(jnp.float32)
        if train:
            mean, var, count = self._batch_statistics(x32)
            if not self.is_initializing():
                unbiased = var * (count / (count - 1))
                running_mean.value = self._update(running_mean.value, mean)
                running_var.value = self._update(running_var.value, unbiased)
        else:
            mean, var = running_mean.value, running_var.value

        # `[C]` against `[..., C]`: written out, for rank promotion may be an error.
        mean, factor, bias = (
            jnp.reshape(v, (1,) * (x.ndim - 1) + shape)
            for v in (mean, scale * jax.lax.rsqrt(var + self.epsilon), bias)
        )
        y = (x32 - mean) * factor + bias
        return y.astype(x.dtype if self.dtype is None else self.dtype)

    def _batch_statistics(self, x: jax.Array) -> tuple[jax.Array, jax.Array, int]:
        axes = tuple(range(x.ndim - 1))
        count = math.prod(x.shape[:-1])
        mean, mean_square = jnp.mean(x, axes), jnp.mean(jnp.square(x), axes)
        if self.axis_name is not None and not self.is_initializing():
            mean, mean_square = jax.lax.pmean((mean, mean_square), self.axis_name)
            count *= jax.lax.axis_size(self.axis_name)
        if count == 1:
            raise ValueError(
                f"BatchNorm: one value per channel in training, input shape {x.shape};"
                " need a larger batch or feature map"
            )
        # Rounding may leave a constant channel slightly negative.
        var = jnp.maximum(mean_square - jnp.square(mean), 0)
        return mean, var, count

    def _update(self, running: jax.Array, new: jax.Array) -> jax.Array:
        return self.momentum * running + (1 - self.momentum) * new
