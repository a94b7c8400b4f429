"""Convolutional Block Attention Module (CBAM).

Woo, Park, Lee, Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018.
https://arxiv.org/abs/1807.06521
Reference code read: prathamssaraf/Attention-Enhanced-ResNet-for-CIFAR-10-Classification
@847ab2b, src/models/attention.py (numbers compared in tests/test_attention.py)

Notation: N batch, H, W spatial, C channels.
Deviations from the paper:
  - no batch normalisation after the 7x7 convolution, as in the reference code and in
    equation 5 (the paper's own released code has one); effect not measured.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.ops.conv import ConvKernel, conv2d
from jaxattn.ops.pool import max_along


class SpatialAttention(nn.Module):
    """Scales every position by a gate from the channel mean and maximum (eq. 5).

        x * sigmoid(conv([mean_c(x); max_c(x)]))

    Attributes:
        kernel_size: Side of the gate's convolution, odd.
        conv_name: Name of the convolution in the parameter tree.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
    """

    kernel_size: int = 7
    conv_name: str = "conv"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the gate.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Unused; part of every block's signature.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            ValueError: If `kernel_size` is even.
        """
        del train
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={self.kernel_size}: must be odd")
        x = x if self.dtype is None else x.astype(self.dtype)
        shape = (self.kernel_size, self.kernel_size, 2, 1)
        kernel = ConvKernel(shape, name=self.conv_name)().astype(x.dtype)
        maps = jnp.concatenate([jnp.mean(x, -1, keepdims=True), max_along(x, -1)], -1)
        gate = nn.sigmoid(conv2d(maps, kernel, padding=self.kernel_size // 2))
        return x * gate
