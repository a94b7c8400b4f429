"""The fully connected layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from jaxattn.ops.init import torch_bias, torch_kernel
from jaxattn.ops.inputs import computation_dtype


class Linear(nn.Module):
    """A fully connected layer with PyTorch's default initialisation.

    Attributes:
        features: Outputs.
        kernel_init: Initialiser of the kernel.
        bias_init: Initialiser of the bias; None is torch's default.
        use_bias: Adds a bias per output.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
    """

    features: int
    kernel_init: Initializer = torch_kernel
    bias_init: Initializer | None = None
    use_bias: bool = True
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[N, features]` of `x` `[N, C]`."""
        x = x.astype(computation_dtype(x, self.dtype))
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = x @ kernel.astype(x.dtype)
        if not self.use_bias:
            return y
        bias_init = self.bias_init or torch_bias(x.shape[-1])
        bias = self.param("bias", bias_init, shape[1:], jnp.float32)
        return y + bias.astype(x.dtype)[None]
