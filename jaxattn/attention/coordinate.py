"""Coordinate Attention (CA).

Hou, Zhou, Feng, "Coordinate Attention for Efficient Mobile Network Design", CVPR 2021.
https://arxiv.org/abs/2103.02907
Reference code: houqb/CoordAttention @7619bea, coordatt.py; HZAI-ZJNU/SCSA
@8c46866, mmpretrain/models/attentions/CA.py; pytorch-image-models @aa4b585,
timm/layers/coord_attn.py (numbers compared in tests/test_zoo.py)

Notation: N batch, H, W spatial, C channels, R of the bottleneck.
Deviations from coordatt.py: none. SCSA's code has no bias before the normalisation
(`squeeze_bias=False`), timm's none at all and a bottleneck a third narrower than SE's.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.errors import require
from jaxattn.ops.conv import Conv
from jaxattn.ops.inputs import as_feature_map, at_least_float32
from jaxattn.ops.norm import BatchNorm


class CoordinateAttention(nn.Module):
    """Scales every position by a gate from its row's and one from its column's mean.

        [h; w] = hard_swish(BN(W1 [mean_w(x); mean_h(x)]))
        x * sigmoid(Wh h) * sigmoid(Ww w)

    Rows and columns go through one bottleneck, and are normalised together.

    Attributes:
        reduction: Channels of the input per channel of the bottleneck.
        min_channels: Least number of channels of the bottleneck.
        squeeze_bias: Adds a bias before the normalisation, which undoes it in training.
        gate_bias: Adds biases to the gates' layers.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as is
            all that is computed of the means.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    reduction: int = 32
    min_channels: int = 8
    squeeze_bias: bool = True
    gate_bias: bool = True
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies both gates.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Selects batch statistics in BatchNorm.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            UserError: If `reduction` or `min_channels` is less than 1.
        """
        x = as_feature_map(self, x)
        for key in ("reduction", "min_channels"):
            require(key, getattr(self, key), getattr(self, key) >= 1, "at least 1")
        H, C = x.shape[1], x.shape[-1]
        hidden = max(self.min_channels, C // self.reduction)
        wide = at_least_float32(x)
        strips = jnp.concatenate([jnp.mean(wide, 2), jnp.mean(wide, 1)], 1)
        squeeze = Conv(hidden, 1, use_bias=self.squeeze_bias, name="conv1")
        norm = BatchNorm(axis_name=self.axis_name, name="bn1")
        y = nn.hard_swish(norm(squeeze(strips[:, :, None]), train=train))
        a_h = self._gate(y[:, :H], C, "conv_h").astype(x.dtype)
        a_w = self._gate(y[:, H:], C, "conv_w").astype(x.dtype).swapaxes(1, 2)
        self.sow("intermediates", "height_gate", a_h)
        self.sow("intermediates", "width_gate", a_w)
        return x * (a_h * a_w)

    def _gate(self, y: jax.Array, C: int, name: str) -> jax.Array:
        """Returns the gate `[N, L, 1, C]` of a strip `[N, L, 1, R]`."""
        return nn.sigmoid(Conv(C, 1, use_bias=self.gate_bias, name=name)(y))
