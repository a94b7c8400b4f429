"""Channel prior convolutional attention (CPCA).

Huang, Chen, Zou, Lu, Chen, "Channel prior convolutional attention for medical image
segmentation", Computers in Biology and Medicine 178, 2024.
https://arxiv.org/abs/2306.05196
Reference code: HZAI-ZJNU/SCSA @8c46866, mmpretrain/models/attentions/CPCA.py; also
the authors' Cuthbert-Huang/CPCANet @550b49a,
CPCANet/nnunet/network_architecture/CPCANet.py (RepBlock, which has `reduction=4`, and
`dconv` in its names for `dwc`); both Apache 2.0 (numbers compared in tests/test_zoo.py)

Notation: N batch, H, W spatial, C channels, K the one 1x1 convolution.
It mixes channels: its result is not a multiple of its input. No deviations.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.errors import UserError, require
from jaxattn.ops.conv import Conv
from jaxattn.ops.depthwise import depthwise_conv2d
from jaxattn.ops.init import torch_bias, torch_kernel
from jaxattn.ops.inputs import as_feature_map, at_least_float32
from jaxattn.ops.pool import max_along

_STRIPS = (7, 11, 21)


class CPCA(nn.Module):
    """Scales channels, then values by a map of depthwise convolutions (eq. 1 to 4).

        x' = gelu(K x)
        x'' = x' * (sigmoid(M mean_hw(x')) + sigmoid(M max_hw(x')))
        i = conv5x5(x''),  t = i + sum_k(conv_kx1(conv_1xk(i))),  k of 7, 11, 21
        K (x'' * K t)

    K is a 1x1 convolution, the same each time; M is W2 relu(W1 .). All have biases.

    Attributes:
        reduction: Channels of the input per channel of the bottleneck M.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as is
            all that is computed of mean and maximum.
    """

    reduction: int = 16
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
            UserError: If the bottleneck would have no channel.
        """
        del train
        x = as_feature_map(self, x)
        C = x.shape[-1]
        require("reduction", self.reduction, self.reduction >= 1, "at least 1")
        if self.reduction > C:
            raise UserError(
                f"CPCA: reduction={self.reduction} exceeds the {C} channels"
            )
        mix = Conv(C, 1, use_bias=True, name="conv")
        x = nn.gelu(mix(x), approximate=False)
        gate = ChannelPrior(C // self.reduction, name="ca")(x).astype(x.dtype)
        self.sow("intermediates", "channel_gate", gate)
        x = x * gate
        i = DepthwiseConv((5, 5), name="dwc5_5")(x)
        t = i
        for k in _STRIPS:
            row = DepthwiseConv((1, k), name=f"dwc1_{k}")(i)
            t = t + DepthwiseConv((k, 1), name=f"dwc{k}_1")(row)
        gate = mix(t)
        self.sow("intermediates", "unit_gate", gate)
        return mix(x * gate)


class ChannelPrior(nn.Module):
    """The channel gates of mean and maximum, added.

    Attributes:
        hidden: Channels of the bottleneck.
    """

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the gate `[N, 1, 1, C]`, float32 in (0, 2), of `x` `[N, H, W, C]`."""
        N, H, W, C = x.shape
        mean = jnp.mean(at_least_float32(x), (1, 2)).reshape(N, 1, 1, C)
        largest = at_least_float32(max_along(x.reshape(N, H * W, 1, C), 1))
        # One batch of both: the bottleneck runs once.
        z = jnp.concatenate([mean, largest])
        z = nn.relu(Conv(self.hidden, 1, use_bias=True, name="fc1")(z))
        z = nn.sigmoid(Conv(C, 1, use_bias=True, name="fc2")(z))
        return jnp.sum(z.reshape(2, N, 1, 1, C), 0)


class DepthwiseConv(nn.Module):
    """A convolution of every channel by itself, with a bias, which keeps the size.

    Attributes:
        kernel_size: Height and width of the kernel, odd.
    """

    kernel_size: tuple[int, int]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves `x` `[N, H, W, C]`; same shape and dtype."""
        (h, w), C = self.kernel_size, x.shape[-1]
        kernel = self.param("kernel", torch_kernel, (h, w, 1, C), jnp.float32)
        bias = self.param("bias", torch_bias(h * w), (C,), jnp.float32)
        y = depthwise_conv2d(x, kernel.astype(x.dtype))
        return y + bias.astype(x.dtype).reshape(1, 1, 1, C)
