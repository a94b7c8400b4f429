"""Triplet attention.

Misra, Nalamada, Arasanipalai, Hou, "Rotate to Attend: Convolutional Triplet Attention
Module", WACV 2021.
https://arxiv.org/abs/2010.03045
Reference code: landskape-ai/triplet-attention @2cf02fb, triplet_attention.py, MIT
licence (numbers compared in tests/test_zoo.py)

Notation: N batch, H, W spatial, C channels.
The copy in the authors' MODELS/ calls the gates ChannelGateH, ChannelGateW and
SpatialGate, and starts the scale of the last one's normalisation at 0.
Deviations from the code:
  - the map is not turned: a kernel of height and width is laid over the two axes that
    a gate keeps, and the map is multiplied once, by the mean of the gates.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.errors import require
from jaxattn.ops.conv import ConvKernel, conv2d
from jaxattn.ops.inputs import as_feature_map, at_least_float32
from jaxattn.ops.norm import BatchNorm
from jaxattn.ops.pool import max_along


class TripletAttention(nn.Module):
    """Scales every value by the mean of three gates, each of which pools one axis.

        x * (gate_hw(x) + gate_cw(x) + gate_hc(x)) / 3
        gate(x) = sigmoid(BN(conv([max(x); mean(x)]))), both along the axis left out

    Attributes:
        no_spatial: Leaves out the gate of height and width.
        kernel_size: Side of the gates' convolutions, odd.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as are
            normalisations and gates.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    no_spatial: bool = False
    kernel_size: int = 7
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the gates.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Selects batch statistics in BatchNorm.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            UserError: If `kernel_size` is even.
        """
        x = as_feature_map(self, x)
        size = self.kernel_size
        require("kernel_size", size, size > 0 and size % 2 == 1, "odd and above 0")
        gates = {
            # The code's map for it is C high and W wide, ours W high and C wide.
            "width_gate": self._gate("cw", transposed=True)(x, 1, train=train),
            "height_gate": self._gate("hc")(x, 2, train=train),
        }
        if not self.no_spatial:
            gates["spatial_gate"] = self._gate("hw")(x, 3, train=train)
        for name, gate in gates.items():
            self.sow("intermediates", name, gate)
        gate = functools.reduce(jnp.add, gates.values()) / len(gates)
        return x * gate.astype(x.dtype)

    def _gate(self, name: str, transposed: bool = False) -> "PooledGate":
        return PooledGate(self.kernel_size, transposed, self.axis_name, name=name)


class PooledGate(nn.Module):
    """A gate of two axes from maximum and mean along the third.

    Attributes:
        kernel_size: Side of the convolution, odd.
        transposed: Lays the kernel's height along the second of the axes kept.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    kernel_size: int
    transposed: bool = False
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, axis: int, *, train: bool) -> jax.Array:
        """Returns the gate of `x` `[N, H, W, C]`, size 1 along `axis`, float32."""
        pooled = [max_along(x, axis), jnp.mean(x, axis, keepdims=True)]
        maps = jnp.stack([v.squeeze(axis) for v in pooled], -1)
        shape = (self.kernel_size, self.kernel_size, 2, 1)
        kernel = ConvKernel(shape, name="conv.conv")().astype(x.dtype)
        kernel = kernel.swapaxes(0, 1) if self.transposed else kernel
        z = at_least_float32(conv2d(maps, kernel, padding=self.kernel_size // 2))
        norm = BatchNorm(0.99, axis_name=self.axis_name, name="conv.bn")
        return jnp.expand_dims(nn.sigmoid(norm(z, train=train)).squeeze(-1), axis)
