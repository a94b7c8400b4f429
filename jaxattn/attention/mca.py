"""Multidimensional Collaborative Attention (MCA).

Yu, Zhang, Cheng, Song, Tang, "MCA: Multidimensional collaborative attention in deep
convolutional neural networks for image recognition", Engineering Applications of
Artificial Intelligence 126, 2023. https://doi.org/10.1016/j.engappai.2023.107079
Written from the formulas; the authors' code, ndsclark/MCANet @9766391,
Cifar/mca_module.py, is under the GPL 3 (numbers compared in tests/test_zoo.py).

Notation: N batch, H, W spatial, C channels, K kernel taps.
`no_spatial` keeps the authors' name, though what it leaves out is the channel gate.
Deviations from the code:
  - the gradient of the standard deviation is 0 where all values are equal, the code's
    is not a number (see `jaxattn.ops.deviation`); so is the deviation of one value;
  - of 2 or 3 channels, for which the code's rule gives a kernel of -1, it is 1;
  - the map is multiplied once, by the mean of the gates.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.ops.conv import ConvKernel
from jaxattn.ops.deviation import deviation, mean_and_deviation
from jaxattn.ops.inputs import as_feature_map, at_least_float32


class MCA(nn.Module):
    """Scales every value by the mean of gates of its row, column and channel.

        x * (gate_h(x) + gate_w(x) + gate_c(x)) / 3
        gate(x) = sigmoid(conv((m + s) / 2 + sigmoid(w_0) m + sigmoid(w_1) s))

    m and s are mean and standard deviation over the other two axes, the convolution is
    along the gate's own.

    Attributes:
        no_spatial: Leaves out the channel gate.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as is
            all that is computed of mean and deviation.
    """

    no_spatial: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the gates.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Unused; part of every block's signature.

        Returns:
            Same shape as `x`, in `dtype`.
        """
        del train
        x = as_feature_map(self, x)
        N, H, W, C = x.shape
        # Of rows and columns from those of positions: two passes over the map less.
        wide = at_least_float32(x)
        mean = jnp.mean(wide, -1)
        squares = jnp.sum(jnp.square(wide - mean[..., None]), -1)
        rows = _merge(mean, squares, C, axis=2)
        columns = _merge(mean, squares, C, axis=1)
        gates = {
            "height_gate": StripGate(3, name="h_cw")(*rows).reshape(N, H, 1, 1),
            "width_gate": StripGate(3, name="w_hc")(*columns).reshape(N, 1, W, 1),
        }
        if not self.no_spatial:
            channels = (v.reshape(N, C) for v in mean_and_deviation(x, (1, 2)))
            gate = StripGate(channel_taps(C), name="c_hw")(*channels)
            gates["channel_gate"] = gate.reshape(N, 1, 1, C)
        for name, gate in gates.items():
            self.sow("intermediates", name, gate)
        gate = functools.reduce(jnp.add, gates.values()) / len(gates)
        return x * gate.astype(x.dtype)


class StripGate(nn.Module):
    """A gate along one axis from the statistics over the others.

    Attributes:
        kernel_size: Taps K, odd.
    """

    kernel_size: int

    @nn.compact
    def __call__(self, mean: jax.Array, deviation: jax.Array) -> jax.Array:
        """Returns the gate `[N, L]` of mean and deviation `[N, L]`, float32."""
        K, L = self.kernel_size, mean.shape[1]
        uniform = nn.initializers.uniform(1.0)
        weight = nn.sigmoid(self.param("weight", uniform, (2,), jnp.float32))
        kernel = ConvKernel((1, K, 1, 1), name="conv")().reshape(K)
        z = (0.5 + weight[0]) * mean + (0.5 + weight[1]) * deviation
        # Shift and add: libraries have no fast 1-D convolution of one channel.
        z = jnp.pad(z, ((0, 0), (K // 2, K // 2)))
        return nn.sigmoid(sum(kernel[i] * z[:, i : i + L] for i in range(K)))


def channel_taps(channels: int) -> int:
    """Returns the taps of the channel gate's convolution: 3 of 64, 5 of 256 to 1024."""
    t = round(abs(math.log2(channels) - 1) / 1.5)
    return max(t if t % 2 else t - 1, 1)


def _merge(
    mean: jax.Array, squares: jax.Array, count: int, axis: int
) -> tuple[jax.Array, jax.Array]:
    """Returns mean and deviation of parts together, which lie along one axis.

    Args:
        mean: Of every part `[N, H, W]`.
        squares: Sums of its values' squared distances from it.
        count: Values of a part.
        axis: Of the parts to merge.
    """
    whole = jnp.mean(mean, axis, keepdims=True)
    between = count * jnp.sum(jnp.square(mean - whole), axis)
    squares = jnp.sum(squares, axis) + between
    return whole.squeeze(axis), deviation(squares, count * mean.shape[axis])
