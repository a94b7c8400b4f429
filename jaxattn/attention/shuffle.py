"""Shuffle Attention (SA).

Zhang, Yang, "SA-Net: Shuffle Attention for Deep Convolutional Neural Networks",
ICASSP 2021. https://arxiv.org/abs/2102.00240
Reference code run, not read: wofmanaf/SA-Net @00a6760, which has no licence;
HZAI-ZJNU/SCSA @8c46866, mmpretrain/models/attentions/SA.py computes the same (numbers
compared in tests/test_zoo.py)

Notation: N batch, H, W spatial, C channels, G groups, n = C / 2G channels of half a
group.
Deviations from the code:
  - channels that are no multiple of 2G are refused; the code makes parameters without
    values, or fails.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from jaxattn.errors import UserError, require
from jaxattn.ops.group_norm import ChannelAffine, moments
from jaxattn.ops.inputs import as_feature_map, at_least_float32

_EPSILON = 1e-5


class ShuffleAttention(nn.Module):
    """Scales half of every group by channel, half by position, and shuffles channels.

        x0 * sigmoid(cweight * mean_hw(x0) + cbias)
        x1 * sigmoid(sweight * IN(x1) + sbias)

    of the halves x0 and x1 of every group; all groups have one set of parameters. IN
    normalises every channel over its positions, and has a scale and a bias for each.
    Then channels of the first and the second half of the map take turns, so that the
    output is not `x` times a gate.

    Attributes:
        groups: Groups of consecutive channels, G; 2G divides their number.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as are
            statistics and gates before they are rounded.
    """

    groups: int = 64
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the gates, and shuffles.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype; C a multiple of
                2 * `groups`.
            train: Unused; part of every block's signature.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            UserError: If C is no such multiple.
        """
        del train
        x = as_feature_map(self, x)
        (N, H, W, C), G = x.shape, self.groups
        require("groups", G, G >= 1, "at least 1")
        if C % (2 * G):
            raise UserError(
                f"ShuffleAttention: the {C} channels must be a multiple of {2 * G}, two"
                f" for each of groups={G}"
            )
        halves = x.reshape(N, H, W, G, 2, C // (2 * G))
        wide = at_least_float32(halves)
        gates = [
            self._channel_gate(wide[..., 0, :]),
            self._spatial_gate(wide[..., 1, :]),
        ]
        shape = (N, H, W, G, C // (2 * G))
        gate = jnp.stack([jnp.broadcast_to(g.astype(x.dtype), shape) for g in gates], 4)
        gate = gate.reshape(x.shape)
        self.sow("intermediates", "unit_gate", gate)
        return (x * gate).reshape(N, H, W, 2, C // 2).swapaxes(3, 4).reshape(x.shape)

    def _channel_gate(self, x: jax.Array) -> jax.Array:
        """Returns the gate `[N, 1, 1, G, n]` of `[N, H, W, G, n]`."""
        pooled = jnp.mean(x, (1, 2), keepdims=True)
        n = x.shape[-1]
        return nn.sigmoid(self._factor("cweight", n) * pooled + self._bias("cbias", n))

    def _spatial_gate(self, x: jax.Array) -> jax.Array:
        """Returns the gate `[N, H, W, G, n]` of `[N, H, W, G, n]`."""
        n = x.shape[-1]
        scale, bias = (v.reshape(1, 1, 1, 1, n) for v in ChannelAffine(n, name="gn")())
        mean, var = moments(x, (1, 2))
        normalised = (x - mean) * (jax.lax.rsqrt(var + _EPSILON) * scale) + bias
        return nn.sigmoid(
            self._factor("sweight", n) * normalised + self._bias("sbias", n)
        )

    def _factor(self, name: str, n: int) -> jax.Array:
        return self._parameter(name, nn.initializers.zeros, n)

    def _bias(self, name: str, n: int) -> jax.Array:
        return self._parameter(name, nn.initializers.ones, n)

    def _parameter(self, name: str, init: Initializer, n: int) -> jax.Array:
        # In PyTorch's shape.
        return self.param(name, init, (1, n, 1, 1), jnp.float32).reshape(1, 1, 1, 1, n)
