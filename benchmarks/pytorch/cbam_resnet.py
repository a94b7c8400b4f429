"""The networks with CBAM-like gates of one project.

prathamssaraf/Attention-Enhanced-ResNet-for-CIFAR-10-Classification

Notation: N batch, C channels, H, W spatial; feature maps are `[N, C, H, W]`.
"""
# pyright: reportMissingImports=false

import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from benchmarks.pytorch.cbam import SpatialAttention
from benchmarks.pytorch.layers import (
    bottleneck,
    conv_norm,
    pooled,
    relu,
    shortcut,
    stage,
)


class AttentionResidualBlock(nn.Module):
    """A basic residual block, with channel and spatial gate before its sum.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Step along H and W.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(in_channels, out_channels, 3, stride)
        self.conv2, self.bn2 = conv_norm(out_channels, out_channels, 3)
        self.channel_attention = _reference_bottleneck(out_channels)
        self.spatial_attention = SpatialAttention()
        self.shortcut = shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to `x` `[N, C, H, W]`."""
        y = relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y = self.spatial_attention(_gate_channels(y, self.channel_attention))
        return relu(y + self.shortcut(x))


class ChannelAttentionBlock(nn.Module):
    """`AttentionResidualBlock` without its spatial gate.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Step along H and W.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(in_channels, out_channels, 3, stride)
        self.conv2, self.bn2 = conv_norm(out_channels, out_channels, 3)
        self.attention = _reference_bottleneck(out_channels)
        self.shortcut = shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to `x` `[N, C, H, W]`."""
        y = relu(self.bn1(self.conv1(x)))
        y = _gate_channels(self.bn2(self.conv2(y)), self.attention)
        return relu(y + self.shortcut(x))


class EnhancedEfficientResNet(nn.Module):
    """Four stages with channel and spatial attention.

    Args:
        num_classes: Number of logits.
        base_width: Channels of the stem.
        dropout_rate: Share of the pooled features that training sets to 0.
    """

    def __init__(
        self, num_classes: int = 10, base_width: int = 31, dropout_rate: float = 0.3
    ) -> None:
        super().__init__()
        w = base_width
        self.conv1, self.bn1 = conv_norm(3, w, 3)
        self.layer1 = stage(AttentionResidualBlock, 2, w, 2 * w, 1)
        self.layer2 = stage(AttentionResidualBlock, 2, 2 * w, 4 * w, 2)
        self.layer3 = stage(AttentionResidualBlock, 2, 4 * w, 8 * w, 2)
        self.layer4 = stage(AttentionResidualBlock, 2, 8 * w, 8 * w, 1)
        self.extra_conv, self.extra_bn = conv_norm(8 * w, 8 * w, 1)
        self.dropout = nn.Dropout(dropout_rate)
        self.fc = nn.Linear(8 * w, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits of images `[N, 3, H, W]`."""
        x = relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = relu(self.extra_bn(self.extra_conv(x)))
        return self.fc(self.dropout(pooled(x)))


class EfficientResNet(nn.Module):
    """Three stages with channel attention.

    Args:
        num_classes: Number of logits.
        base_width: Channels of the stem.
        dropout_rate: Share of the pooled features that training sets to 0.
    """

    def __init__(
        self, num_classes: int = 10, base_width: int = 32, dropout_rate: float = 0.25
    ) -> None:
        super().__init__()
        w = base_width
        self.conv1, self.bn1 = conv_norm(3, w, 3)
        self.layer1 = stage(ChannelAttentionBlock, 2, w, 2 * w, 1)
        self.layer2 = stage(ChannelAttentionBlock, 2, 2 * w, 4 * w, 2)
        self.layer3 = stage(ChannelAttentionBlock, 2, 4 * w, 8 * w, 2)
        self.dropout = nn.Dropout(dropout_rate)
        self.fc = nn.Linear(8 * w, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits of images `[N, 3, H, W]`."""
        x = relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.dropout(pooled(x)))


def _reference_bottleneck(channels: int) -> nn.Sequential:
    """About 16 channels wide, whatever it is for: see `jaxattn/attention/cbam.py`."""
    return bottleneck(channels, channels // max(channels // 16, 4), nn.Sigmoid())


def _gate_channels(x: Tensor, bottleneck: nn.Module) -> Tensor:
    mean, largest = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
    return x * (bottleneck(mean) + bottleneck(largest))
