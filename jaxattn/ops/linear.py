"""The fully connected layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.ops.init import torch_bias, torch_kernel


class Linear(nn.Module):
    """A fully connected layer with PyTorch's default initialisation.

    Attributes:
        features: Outputs.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
    """

    features: int
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[N, features]` of `x` `[N, C]`."""
        x = x if self.dtype is None else x.astype(self.dtype)
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", torch_kernel, shape, jnp.float32)
        bias_init = torch_bias(x.shape[-1])
        bias = self.param("bias", bias_init, shape[1:], jnp.float32)
        return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)[None]
