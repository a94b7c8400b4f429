"""Efficient Channel Attention (ECA), and its circular form (cECA).

Wang, Wu, Zhu, Li, Zuo, Hu, "ECA-Net: Efficient Channel Attention for Deep
Convolutional Neural Networks", CVPR 2020. https://arxiv.org/abs/1910.03151
Reference code: BangguWu/ECANet @b332f6b, models/eca_module.py; HZAI-ZJNU/SCSA
@8c46866, mmpretrain/models/attentions/ECA.py; pytorch-image-models @aa4b585,
timm/layers/eca.py (numbers compared in tests/test_zoo.py)

Notation: N batch, H, W spatial, C channels, K kernel taps.
Deviations from ECANet:
  - without a kernel size the block takes the paper's, by the number of channels
    (eq. 12); the code never does, and its ResNet-50 has 3, 5, 5 and 7 by stage where
    the rule says 5, 5, 5 and 7: `attention_kwargs={"kernel_size": (3, 5, 5, 7)}`.
CANet's ECA of three kernels is `MultiKernelECA`.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.errors import choose, require
from jaxattn.ops.conv import ConvKernel
from jaxattn.ops.inputs import as_feature_map, at_least_float32

_PADDINGS = {"zero": "constant", "circular": "wrap"}


class ECA(nn.Module):
    """Scales every channel by a gate from its neighbours in channel order.

        x * sigmoid(conv(mean_hw(x))),  the convolution along the channels

    Attributes:
        kernel_size: Taps of the convolution, odd; None is the paper's rule, see
            `adaptive_kernel_size`. A network takes a tuple of them, one a stage.
        gamma: Of the rule.
        b: Of the rule.
        padding: What is beyond the first and the last channel: "zero", or "circular",
            the channels of the other end.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as is
            all that is computed of the means.
    """

    kernel_size: int | None = None
    gamma: float = 2
    b: float = 1
    padding: str = "zero"
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
            UserError: If `kernel_size` is no odd number, `gamma` is not above 0,
                `padding` is unknown, or as "circular" longer than there are channels.
        """
        del train
        x = as_feature_map(self, x)
        C = x.shape[-1]
        K = self._taps(C)
        kernel = ConvKernel((K, 1, 1), name="conv")().reshape(K)
        pooled = jnp.mean(at_least_float32(x), (1, 2))
        padded = jnp.pad(
            pooled, ((0, 0), (K // 2, K // 2)), mode=_PADDINGS[self.padding]
        )
        # Shift and add: libraries have no fast 1-D convolution of one channel.
        z = sum(kernel[i] * padded[:, i : i + C] for i in range(K))
        gate = nn.sigmoid(z).astype(x.dtype)[:, None, None, :]
        self.sow("intermediates", "channel_gate", gate)
        return x * gate

    def _taps(self, C: int) -> int:
        choose("padding", self.padding, _PADDINGS)
        K = self.kernel_size
        if K is None:
            require("gamma", self.gamma, self.gamma > 0, "above 0")
            return adaptive_kernel_size(C, self.gamma, self.b)
        odd = isinstance(K, int) and K > 0 and K % 2 == 1
        require("kernel_size", K, odd, "an odd number above 0")
        if self.padding == "circular":
            fits = f"at most 2 * {C} + 1, as many as {C} channels fill"
            require("kernel_size", K, K // 2 <= C, fits)
        return K


def adaptive_kernel_size(channels: int, gamma: float = 2, b: float = 1) -> int:
    """Returns the odd number of taps that C channels take (eq. 12).

    It is next to `|log2(C) + b| / gamma`, the odd number above for an even integer
    part: 3 for 16 to 64 channels, 5 for 128 to 1024, 7 for 2048.

    Args:
        channels: At least 1.
        gamma: Divisor, above 0.
        b: Added to the logarithm.
    """
    t = int(abs((math.log2(channels) + b) / gamma))
    return t if t % 2 else t + 1
