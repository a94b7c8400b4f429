"""Efficient Multi-scale Attention (EMA).

Ouyang, He, Zhang, Luo, Guo, Zhan, Huang, "Efficient Multi-Scale Attention Module with
Cross-Spatial Learning", ICASSP 2023. https://arxiv.org/abs/2305.13563
Reference code run, not read: YOLOonMe/EMA-attention-module @afc37ec, which has no
licence; HZAI-ZJNU/SCSA @8c46866, mmpretrain/models/attentions/EMA.py computes the same
(numbers compared in tests/test_zoo.py)

Notation: N batch, H, W spatial, C channels, G groups of c = C / G channels.
The formula has two maps of the size of `x`, a and b, which enter the output through
sums over the c channels of a group and through means over positions. So they are not
made here:
  - a is normalised over positions: its mean is the normalisation's bias, whatever `x`;
  - b is a convolution, which is linear: its sum over channels with weights is one
    convolution with the weighted sum of the kernels, and its mean is a linear map of
    the sums of `x` without first or last row and column.
Deviations from the code: none but rounding.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.errors import require
from jaxattn.ops.conv import Conv
from jaxattn.ops.group_norm import ChannelAffine, moments
from jaxattn.ops.init import torch_bias, torch_kernel
from jaxattn.ops.inputs import as_feature_map, at_least_float32

_EPSILON = 1e-5


class EfficientMultiscaleAttention(nn.Module):
    """Scales every position of a group of channels by a gate that two branches share.

        [h; w] = conv1x1([mean_w(x); mean_h(x)]),  a = IN(x * sigmoid(h) * sigmoid(w))
        b = conv3x3(x)
        x * sigmoid(softmax_c(mean_hw(a)) . b + softmax_c(mean_hw(b)) . a)

    of every group of c channels; all groups have one set of parameters. IN normalises
    every channel over its positions, and has a scale and a bias for each.

    Attributes:
        groups: Groups of consecutive channels; divides their number. The authors'
            `factor`.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as are
            strips, statistics and the gate's sums.
    """

    groups: int = 32
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the gate.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype; C a multiple of `groups`.
            train: Unused; part of every block's signature.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            UserError: If C is not a multiple of `groups`.
        """
        del train
        x = as_feature_map(self, x)
        (N, H, W, C), G = x.shape, self.groups
        divides = G >= 1 and C % G == 0
        require("groups", G, divides, f"a divisor of the {C} channels")
        grouped = at_least_float32(x).reshape(N, H, W, G, C // G)
        rows, columns = jnp.mean(grouped, 2), jnp.mean(grouped, 1)
        scale, bias = ChannelAffine(C // G, name="gn")()
        conv = SharedConv(C // G, name="conv3x3")
        kernel, conv_bias = conv()
        # a, but for the normalisation: of it, only a sum over channels is made.
        strips = Conv(C // G, 1, use_bias=True, name="conv1x1")(
            jnp.concatenate([rows, columns], 1)
        )
        a_h, a_w = nn.sigmoid(strips[:, :H, None]), nn.sigmoid(strips[:, None, H:])
        gated = grouped * (a_h * a_w)
        mean, var = moments(gated, (1, 2))
        b_mean = _mean_of_conv(grouped, rows, kernel) + conv_bias.reshape(1, 1, -1)
        weights = nn.softmax(b_mean)[:, None, None]
        factor = weights * _last(scale) * jax.lax.rsqrt(var + _EPSILON)
        logits = jnp.sum(factor * (gated - mean), -1) + jnp.sum(
            weights * _last(bias), -1
        )
        a_weights = nn.softmax(bias)  # the mean of a is its bias
        logits += _convolve(x.reshape(grouped.shape), kernel @ a_weights)
        logits += conv_bias @ a_weights
        gate = nn.sigmoid(logits).astype(x.dtype)[..., None]
        every = jnp.broadcast_to(gate, grouped.shape).reshape(x.shape)
        self.sow("intermediates", "group_gate", every)
        return x * every


class SharedConv(nn.Module):
    """The parameters of a 3x3 convolution with a bias, without the convolution.

    Attributes:
        features: Channels in and out.
    """

    features: int

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """Returns kernel `[3, 3, features, features]` and bias `[features]`."""
        c = self.features
        kernel = self.param("kernel", torch_kernel, (3, 3, c, c), jnp.float32)
        return kernel, self.param("bias", torch_bias(9 * c), (c,), jnp.float32)


def _mean_of_conv(x: jax.Array, rows: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns the means over positions `[N, G, O]` of a 3x3 convolution, padding 1.

    A tap sees the whole map but the last row, no row or the first, and as many columns.

    Args:
        x: `[N, H, W, G, c]`, float32.
        rows: Its means over W `[N, H, G, c]`.
        kernel: `[3, 3, c, O]`.
    """
    H, W = x.shape[1:3]
    sums = rows * W
    columns = jnp.stack([sums - x[:, :, -1], sums, sums - x[:, :, 0]], 2)
    total = jnp.sum(columns, 1)
    seen = jnp.stack([total - columns[:, -1], total, total - columns[:, 0]], 1)
    return jnp.einsum("npqgc,pqco->ngo", seen, kernel) / (H * W)


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves every group of `x` `[N, H, W, G, c]` with `kernel` `[3, 3, c]`.

    One matrix product for all taps, then shifts: libraries are slow at many groups of
    one output.

    Returns:
        `[N, H, W, G]`, float32.
    """
    H, W = x.shape[1:3]
    taps = kernel.reshape(9, -1).T.astype(x.dtype)
    y = at_least_float32(x @ taps)
    y = jnp.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))
    return sum(
        (y[:, i : i + H, j : j + W, :, 3 * i + j] for i in range(3) for j in range(3)),
        jnp.zeros(()),
    )


def _last(v: jax.Array) -> jax.Array:
    """Returns `[c]` for `[N, H, W, G, c]`: rank promotion may be an error."""
    return v.reshape(1, 1, 1, 1, -1)
