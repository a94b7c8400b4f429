"""SCSA, as HZAI-ZJNU/SCSA has it.

Notation: N batch, C channels, H, W spatial; feature maps are `[N, C, H, W]`.
"""
# pyright: reportMissingImports=false

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class SCSA(nn.Module):
    """Spatial gates from strips, then channel gates from attention between channels.

    Args:
        channels: Of the map, a multiple of 4 and of `head_num`.
        head_num: Heads of the attention.
        window_size: Side of the windows that are averaged into tokens.
        group_kernel_sizes: Taps of the four groups' strip convolutions, odd.
        attn_drop_ratio: Share of the attention that training sets to 0.
    """

    def __init__(
        self,
        channels: int,
        head_num: int = 1,
        window_size: int = 7,
        group_kernel_sizes: Sequence[int] = (3, 5, 7, 9),
        attn_drop_ratio: float = 0.0,
    ) -> None:
        super().__init__()
        g = channels // 4
        self.local_dwc, self.global_dwc_s, self.global_dwc_m, self.global_dwc_l = (
            nn.Conv1d(g, g, k, padding=k // 2, groups=g) for k in group_kernel_sizes
        )
        self.norm_h = nn.GroupNorm(4, channels)
        self.norm_w = nn.GroupNorm(4, channels)
        self.norm = nn.GroupNorm(1, channels)
        self.pool = nn.AvgPool2d(window_size)
        self.q, self.k, self.v = (
            nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
            for _ in range(3)
        )
        self.dropout = nn.Dropout(attn_drop_ratio)
        self.head_num = head_num

    def forward(self, x: Tensor) -> Tensor:
        """Applies both gates to `x` `[N, C, H, W]`."""
        a_h = self.norm_h(self._strip(x.mean(3))).sigmoid()
        a_w = self.norm_w(self._strip(x.mean(2))).sigmoid()
        x = x * a_h[:, :, :, None] * a_w[:, :, None, :]
        return x * self._channel_gate(x)

    def _strip(self, strip: Tensor) -> Tensor:
        """Convolves `[N, C, L]`, each group of channels with its kernel size."""
        a, b, c, d = strip.chunk(4, dim=1)
        groups = (
            self.local_dwc(a),
            self.global_dwc_s(b),
            self.global_dwc_m(c),
            self.global_dwc_l(d),
        )
        return torch.cat(groups, 1)

    def _channel_gate(self, x: Tensor) -> Tensor:
        """Returns the gate `[N, C, 1, 1]`."""
        N, C = x.shape[:2]
        d = C // self.head_num
        tokens = self.norm(self.pool(x))
        q, k, v = (
            scale(tokens).reshape(N, self.head_num, d, -1)
            for scale in (self.q, self.k, self.v)
        )
        attention = (q @ k.transpose(-2, -1) * d**-0.5).softmax(-1)
        z = self.dropout(attention) @ v
        return z.reshape(N, C, -1).mean(2).sigmoid()[:, :, None, None]
