"""CBAM: Woo et al., ECCV 2018, with a hidden width of C / reduction.

Notation: N batch, C channels, H, W spatial; feature maps are `[N, C, H, W]`.
"""
# pyright: reportMissingImports=false

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from benchmarks.pytorch.layers import bottleneck, conv


class SpatialAttention(nn.Module):
    """CBAM's gate of positions, from the channel mean and maximum.

    Args:
        kernel_size: Side of the gate's convolution, odd.
    """

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        self.conv = conv(2, 1, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the gate to `x` `[N, C, H, W]`."""
        return gate_positions(x, self.conv)


class ChannelAttention(nn.Module):
    """CBAM's gate of channels, from their mean and maximum.

    Args:
        channels: Of the map.
        hidden: Channels of the bottleneck.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.shared_mlp = bottleneck(channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the gate to `x` `[N, C, H, W]`."""
        mean, largest = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
        return x * (self.shared_mlp(mean) + self.shared_mlp(largest)).sigmoid()


class CBAM(nn.Module):
    """Channel attention, then spatial attention.

    Args:
        channels: Of the map.
        reduction: Channels per channel of the bottleneck.
        kernel_size: Side of the spatial gate's convolution, odd.
    """

    def __init__(
        self, channels: int, reduction: int = 16, kernel_size: int = 7
    ) -> None:
        super().__init__()
        self.channel_attention = ChannelAttention(channels, channels // reduction)
        self.spatial_attention = SpatialAttention(kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Applies both gates to `x` `[N, C, H, W]`."""
        return self.spatial_attention(self.channel_attention(x))


def gate_positions(x: Tensor, conv: nn.Module) -> Tensor:
    """Applies the gate that `conv` makes of the channels' mean and maximum."""
    maps = torch.cat((x.mean(1, keepdim=True), x.max(1, keepdim=True).values), 1)
    return x * conv(maps).sigmoid()
