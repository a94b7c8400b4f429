"""Efficient Local Attention (ELA).

Xu, Wan, "ELA: Efficient Local Attention for Deep Convolutional Neural Networks", 2024.
https://arxiv.org/abs/2403.01123
Its authors published no code. Code read: HZAI-ZJNU/SCSA @8c46866,
mmpretrain/models/attentions/ELA.py; pytorch-image-models @aa4b585,
timm/layers/coord_attn.py (numbers compared in tests/test_zoo.py)

Notation: N batch, H, W spatial, C channels, L length of a strip (H or W), K taps,
G groups of the normalisation.
`ELA()` is SCSA's code, the paper's setting B. The paper's others, as third parties
quote them: T `kernel_size=5, norm_groups=32`; S `kernel_size=5, conv_groups=C // 8`;
L `conv_groups=C // 8`. timm's block of that name is `ELA(shared=False, norm_groups=1)`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.errors import UserError, require
from jaxattn.ops.conv import ConvKernel, conv2d
from jaxattn.ops.group_norm import GroupNorm
from jaxattn.ops.inputs import as_feature_map, at_least_float32


class ELA(nn.Module):
    """Scales every position by a gate from its row and one from its column.

        x * gate(mean_w(x)) * gate(mean_h(x)),  gate(z) = sigmoid(GN(conv(z)))

    Attributes:
        kernel_size: Taps of the convolution along a strip, odd.
        conv_groups: Groups of channels of the convolution; None is one a channel.
        norm_groups: Groups of channels of the normalisation.
        shared: Both strips have one convolution and one normalisation. Else each has
            its own, and a SiLU precedes the sigmoid.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as are
            strips and normalisations.
    """

    kernel_size: int = 7
    conv_groups: int | None = None
    norm_groups: int = 16
    shared: bool = True
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies both gates.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype; C a multiple of
                `conv_groups` and of `norm_groups`.
            train: Unused; part of every block's signature.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            UserError: If the channels are no such multiple, or `kernel_size` is even.
        """
        del train
        x = as_feature_map(self, x)
        self._check(x.shape[-1])
        wide = at_least_float32(x)
        strips = [jnp.mean(wide, axis) for axis in (2, 1)]
        if self.shared:
            gates = self._gates(strips, (self.kernel_size,), "conv", "gn")
        else:
            # Convolutions of two axes in PyTorch, of which one has a single tap.
            (rows, columns), K = strips, self.kernel_size
            gates = [
                *self._gates([rows], (K, 1), "conv_h", "norm_h"),
                *self._gates([columns], (1, K), "conv_w", "norm_w"),
            ]
        a_h, a_w = (gate.astype(x.dtype) for gate in gates)
        a_h, a_w = a_h[:, :, None, :], a_w[:, None, :, :]
        self.sow("intermediates", "height_gate", a_h)
        self.sow("intermediates", "width_gate", a_w)
        return x * (a_h * a_w)

    def _gates(
        self, strips: list[jax.Array], size: tuple[int, ...], conv: str, norm: str
    ) -> list[jax.Array]:
        """Returns the gates of strips `[N, L, C]`, of one set of parameters."""
        K, C = self.kernel_size, strips[0].shape[-1]
        inputs = C // (self.conv_groups or C)
        kernel = ConvKernel((*size, inputs, C), name=conv)().reshape(K, inputs, C)
        # All strips as one: K // 2 zeros keep them apart.
        pad = ((0, 0), (K // 2, 0), (0, 0))
        row = jnp.concatenate([jnp.pad(strip, pad) for strip in strips], 1)
        y = _convolve(jnp.pad(row, ((0, 0), (0, K // 2), (0, 0))), kernel)
        module, gates, start = GroupNorm(self.norm_groups, name=norm), [], 0
        for strip in strips:
            L = strip.shape[1]
            z = module(y[:, start : start + L])
            gates.append(nn.sigmoid(z if self.shared else nn.silu(z)))
            start += L + K // 2
        return gates

    def _check(self, C: int) -> None:
        size = self.kernel_size
        require("kernel_size", size, size > 0 and size % 2 == 1, "odd and above 0")
        for key in ("conv_groups", "norm_groups"):
            groups = getattr(self, key)
            if groups is not None and (groups < 1 or C % groups):
                raise UserError(
                    f"ELA: {key}={groups}: must be a divisor of the {C} channels"
                )


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves `[N, L + K - 1, C]` with `[K, C / groups, C]` to `[N, L, C]`."""
    (K, inputs, C), L = kernel.shape, x.shape[1] - len(kernel) + 1
    if inputs == 1:
        # Shift and add: libraries have no fast depthwise 1-D convolution.
        taps = kernel.reshape(K, 1, 1, C)
        return sum((taps[i] * x[:, i : i + L] for i in range(K)), jnp.zeros(()))
    return conv2d(x[:, :, None], kernel[:, None], groups=C // inputs)[:, :, 0]
