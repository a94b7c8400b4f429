"""Global context block of GCNet (GC).

Cao, Xu, Lin, Wei, Hu, "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and
Beyond", ICCV workshops 2019.
https://arxiv.org/abs/1904.11492
Reference code: xvjiarui/GCNet @029db54, mmdet/ops/gcb/context_block.py; also
pytorch-image-models @aa4b585, timm/layers/global_context.py; both Apache 2.0 (numbers
compared in tests/test_zoo.py)

Notation: N batch, H, W spatial, C channels, R of the bottleneck.
timm's block is `fusion_types=("channel_mul",), reduction=8, epsilon=1e-6`.
Deviations from the code:
  - the bias of the attention's convolution is not added: a softmax does not change by
    it, nor has it a gradient.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import variance_scaling
from jax.typing import DTypeLike

from jaxattn.errors import UserError, choose, require
from jaxattn.ops.conv import Conv
from jaxattn.ops.inputs import as_feature_map, at_least_float32

FUSION_TYPES = ("channel_add", "channel_mul")
"""What `fusion_types` may hold."""
_POOLING_TYPES = ("att", "avg")
_zeros = nn.initializers.zeros


class GlobalContext(nn.Module):
    """Adds to every channel what is made of a weighted mean over positions (eq. 5).

        z = sum_hw(x * softmax_hw(conv1x1(x)))
        x * sigmoid(t_mul(z)) + t_add(z),  t(z) = W2 relu(LN(W1 z))

    The factor or the sum is left out if `fusion_types` lacks it. The sum starts at 0.

    Attributes:
        reduction: Channels of the input per channel of the bottleneck.
        hidden: Channels of the bottleneck; None is C // `reduction`.
        pooling_type: "att", the weighted mean, or "avg", the mean.
        fusion_types: "channel_add", "channel_mul" or both, in any order.
        epsilon: Added to the variance in the bottleneck's normalisation.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as are
            the softmax and all that is computed of z.
    """

    reduction: int = 16
    hidden: int | None = None
    pooling_type: str = "att"
    fusion_types: Sequence[str] = ("channel_add",)
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the block.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Unused; part of every block's signature.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            UserError: If an attribute is not as described above, or the bottleneck
                would have no channel.
        """
        del train
        x = as_feature_map(self, x)
        hidden = self._hidden(x.shape[-1])
        choose("pooling_type", self.pooling_type, _POOLING_TYPES)
        some = bool(self.fusion_types) and set(self.fusion_types) <= set(FUSION_TYPES)
        wanted = f"one or more of {', '.join(FUSION_TYPES)}"
        require("fusion_types", tuple(self.fusion_types), some, wanted)
        z = self._context(at_least_float32(x))
        y = x
        if "channel_mul" in self.fusion_types:
            t = Bottleneck(hidden, self.epsilon, name="channel_mul_conv")(z)
            gate = nn.sigmoid(t).astype(x.dtype)
            self.sow("intermediates", "channel_gate", gate)
            y = y * gate
        if "channel_add" in self.fusion_types:
            t = Bottleneck(hidden, self.epsilon, name="channel_add_conv")(z)
            y = y + t.astype(x.dtype)
        return y

    def _hidden(self, C: int) -> int:
        if self.hidden is not None:
            require("hidden", self.hidden, self.hidden >= 1, "at least 1")
            return self.hidden
        require("reduction", self.reduction, self.reduction >= 1, "at least 1")
        if self.reduction > C:
            raise UserError(
                f"GlobalContext: reduction={self.reduction} exceeds the {C} channels"
            )
        return C // self.reduction

    def _context(self, x: jax.Array) -> jax.Array:
        """Returns the mean over positions `[N, 1, 1, C]`, weighted or not."""
        if self.pooling_type == "avg":
            return jnp.mean(x, (1, 2), keepdims=True)
        scores = PositionScores(name="conv_mask")(x)
        weights = nn.softmax(scores, (1, 2))
        self.sow("intermediates", "context_gate", weights)
        return jnp.sum(x * weights, (1, 2), keepdims=True)


class PositionScores(nn.Module):
    """A 1x1 convolution to one channel, whose bias is a parameter without effect."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns scores `[N, H, W, 1]` of `x` `[N, H, W, C]`."""
        C = x.shape[-1]
        init = variance_scaling(2.0, "fan_in", "normal")
        kernel = self.param("kernel", init, (1, 1, C, 1), jnp.float32)
        self.param("bias", _zeros, (1,), jnp.float32)
        # A sum, not a product of matrices: float32 on every device, and no slower.
        return jnp.sum(x * kernel.reshape(1, 1, 1, C), -1, keepdims=True)


class Bottleneck(nn.Module):
    """The transform t of the context, named by its place in the authors' sequence.

    Attributes:
        hidden: Channels of the bottleneck.
        epsilon: Added to the variance.
    """

    hidden: int
    epsilon: float

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """Returns t(z) `[N, 1, 1, C]` of z, same shape, float32."""
        y = Conv(self.hidden, 1, use_bias=True, name="0")(z)
        y = nn.relu(ChannelNorm(self.epsilon, name="1")(y))
        # The sum starts as the identity, a factor of its own at 0.5.
        last = Conv(
            z.shape[-1],
            1,
            use_bias=True,
            kernel_init=_zeros,
            bias_init=_zeros,
            name="3",
        )
        return last(y)


class ChannelNorm(nn.Module):
    """Layer normalisation of `[N, 1, 1, C]` over its channels.

    Attributes:
        epsilon: Added to the variance.
    """

    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `x`; same shape and dtype."""
        C = x.shape[-1]
        # In PyTorch's shape.
        scale = self.param("scale", nn.initializers.ones, (C, 1, 1), jnp.float32)
        bias = self.param("bias", _zeros, (C, 1, 1), jnp.float32)
        centred = x - jnp.mean(x, -1, keepdims=True)
        var = jnp.mean(jnp.square(centred), -1, keepdims=True)
        y = centred * jax.lax.rsqrt(var + self.epsilon)
        return y * scale.reshape(1, 1, 1, C) + bias.reshape(1, 1, 1, C)
