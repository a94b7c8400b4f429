"""Dual attention (DANet): positions attend to positions, channels to channels.

Fu, Liu, Tian, Li, Bao, Fang, Lu, "Dual Attention Network for Scene Segmentation", CVPR
2019. https://arxiv.org/abs/1809.02983
Reference code read: junfu1115/DANet @b0a0fa0 (MIT), encoding/nn/da_att.py;
HZAI-ZJNU/SCSA @8c46866 (Apache-2.0), mmpretrain/models/attentions/DA.py (the sum)
(numbers compared in tests/test_zoo.py)

Notation: N batch, H, W spatial, C channels, T positions, E energies `[N, C, C]`.
As in the code, neither softmax has a scale: that over the channels, of sums over all
positions, comes close to a choice of one.
Deviations from the code:
  - the channels' softmax is of -E instead of max(E) - E, row by row, which is the same;
  - `DualAttention` is the sum in SCSA's repository, on maps of any shape (there it
    raises unless they are square). DANet's head has convolutions before and after both.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.attention.non_local import attend
from jaxattn.errors import require
from jaxattn.ops.conv import Conv
from jaxattn.ops.inputs import as_feature_map


class PositionAttention(nn.Module):
    """Adds to every position a mean of all, weighted by similarity (PAM).

        gamma * softmax(Q K^T) V + x,  Q, K, V 1x1 convolutions of x

    It starts as the identity: gamma, one number, is 0.

    Attributes:
        reduction: Channels of the input per channel of Q and K.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as is
            the softmax.
    """

    reduction: int = 8
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the attention.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Unused; part of every block's signature.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            UserError: If `x` has fewer channels than `reduction`.
        """
        del train
        x = as_feature_map(self, x)
        C, reduction = x.shape[-1], self.reduction
        wanted = f"in [1, {C}], the channels of x"
        require("reduction", reduction, 1 <= reduction <= C, wanted)
        q = Conv(C // reduction, 1, use_bias=True, name="query_conv")(x)
        k = Conv(C // reduction, 1, use_bias=True, name="key_conv")(x)
        v = Conv(C, 1, use_bias=True, name="value_conv")(x)
        return _gamma(self, x) * attend(q, k, v) + x


class ChannelSelfAttention(nn.Module):
    """Adds to every channel a mean of all, weighted by dissimilarity (CAM).

        gamma * softmax(max(E) - E) X + X,  E = X X^T,  X `[C, T]` the map

    It starts as the identity: gamma, one number, is 0.

    Attributes:
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as
            are energies and softmax.
    """

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the attention.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Unused; part of every block's signature.

        Returns:
            Same shape as `x`, in `dtype`.
        """
        del train
        x = as_feature_map(self, x)
        N, H, W, C = x.shape
        X = x.reshape(N, H * W, C)
        energy = jnp.einsum(
            "ntc,ntd->ncd",
            X,
            X,
            # Sums in the thousands, of which the softmax sees differences about 1:
            # accelerators would round them to fewer digits.
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
        )
        weights = nn.softmax(-energy).astype(x.dtype)
        y = jnp.einsum("ncd,ntd->ntc", weights, X).reshape(x.shape)
        return _gamma(self, x) * y + x


class DualAttention(nn.Module):
    """The sum of both attentions, which starts as twice the map.

    Attributes:
        reduction: See `PositionAttention`.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
    """

    reduction: int = 8
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies both.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Unused; part of every block's signature.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            UserError: If `x` has fewer channels than `reduction`.
        """
        x = as_feature_map(self, x)
        pam = PositionAttention(self.reduction, name="pam")
        cam = ChannelSelfAttention(name="cam")
        return pam(x, train=train) + cam(x, train=train)


def _gamma(module: nn.Module, x: jax.Array) -> jax.Array:
    """Returns the factor of what is added `[1, 1, 1, 1]`, the dtype of `x`."""
    gamma = module.param("gamma", nn.initializers.zeros, (1,), jnp.float32)
    return gamma.astype(x.dtype).reshape(1, 1, 1, 1)
