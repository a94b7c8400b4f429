"""CANet, as tyyyyy333/Fdu_DS_DL24spring_collection, pj2/cifar10, has it.

Notation: N batch, C channels, H, W spatial; feature maps are `[N, C, H, W]`.
"""
# pyright: reportMissingImports=false

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from benchmarks.pytorch.cbam import gate_positions
from benchmarks.pytorch.layers import bottleneck, conv, relu


class SpatialGate(nn.Module):
    """`SpatialAttention` under CANet's parameter names.

    Args:
        kernel_size: Side of the gate's convolution, odd.
    """

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        self.conv1 = conv(2, 1, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the gate to `x` `[N, C, H, W]`."""
        return gate_positions(x, self.conv1)


class MultiKernelECA(nn.Module):
    """A gate of channels from their neighbours, by three weighted 1-D convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv1d(1, 1, k, padding=k // 2, bias=False) for k in (3, 5, 7)
        )
        self.w = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """Applies the gate to `x` `[N, C, H, W]`."""
        y = x.mean((2, 3))[:, None]
        y = (
            self.w[0] * self.conv1(y)
            + self.w[1] * self.conv2(y)
            + self.w[2] * self.conv3(y)
        )
        return x * y.sigmoid()[:, 0, :, None, None]


class CompetitiveAttention(nn.Module):
    """Adds a spatially and a channel-wise gated copy of a map.

    Args:
        channels: Of the map.
        hidden: Channels of the shared bottleneck; None is half of the map's.
        spatial_kernel_size: Side of the spatial gate's convolution, odd.
    """

    def __init__(
        self, channels: int, hidden: int | None = None, spatial_kernel_size: int = 7
    ) -> None:
        super().__init__()
        hidden = channels // 2 if hidden is None else hidden
        self.SAlayer = SpatialGate(spatial_kernel_size)
        self.SELayer = MultiKernelECA()
        self.unit_transform = bottleneck(channels, hidden, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to `x` `[N, C, H, W]`."""
        spatial = self.unit_transform(self.SAlayer(x))
        channel = self.unit_transform(self.SELayer(x))
        return x * spatial + x * channel


class AttResBlock(nn.Module):
    """CANet's block: two convolutional branches that compete through their gates.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Step along H and W, a divisor of both.
        spatial_kernel_size: Side of the spatial gate's convolution, odd.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        spatial_kernel_size: int = 7,
    ) -> None:
        super().__init__()
        C = out_channels
        self.conv1, self.conv2 = conv(in_channels, C, 3), conv(C, C, 3, stride)
        self.conv3, self.conv4 = conv(in_channels, C, 3), conv(C, C, 3, stride)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(C) for _ in range(3))
        size, padding = (3, 1) if stride == 1 else (stride, 0)
        self.downsample = nn.Sequential(
            nn.Conv2d(in_channels, C, size, stride, padding, bias=False),
            nn.BatchNorm2d(C),
        )
        self.sa, self.se = SpatialGate(spatial_kernel_size), MultiKernelECA()
        self.unit_transform = bottleneck(C, C // 2, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to `x` `[N, C, H, W]`."""
        out1 = relu(self.bn1(self.conv2(relu(self.conv1(x)))))
        out2 = relu(self.bn2(self.conv4(relu(self.conv3(x)))))
        u1, u2 = self.unit_transform(self.sa(out1)), self.unit_transform(self.se(out2))
        return relu(self.bn3(u1 * out1 + u2 * out2 + self.downsample(x)))


class CANet(nn.Module):
    """The CANet family.

    Args:
        num_classes: Number of logits.
        width: Channels of the first block, a multiple of 16.
    """

    def __init__(self, num_classes: int = 10, width: int = 64) -> None:
        super().__init__()
        w = width
        self.res_0 = AttResBlock(3, w, stride=1, spatial_kernel_size=7)
        self.res_1 = AttResBlock(w, w, stride=1, spatial_kernel_size=7)
        self.res_2 = AttResBlock(w, 2 * w, stride=2, spatial_kernel_size=5)
        self.res_3 = AttResBlock(2 * w, 2 * w, stride=1, spatial_kernel_size=5)
        self.res_4 = AttResBlock(2 * w, 4 * w, stride=2, spatial_kernel_size=3)
        self.res_5 = AttResBlock(4 * w, 4 * w, stride=2, spatial_kernel_size=3)
        self.bn = nn.BatchNorm2d(4 * w)
        self.fc1 = nn.Linear(16 * w, 27 * w // 16)
        self.fc2 = nn.Linear(27 * w // 16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits of images `[N, 3, H, W]`."""
        x = self.res_2(self.res_1(self.res_0(x)))
        x = self.res_5(self.res_4(self.res_3(x)))
        x = self.bn(F.adaptive_avg_pool2d(x, 2)).flatten(1)
        return self.fc2(relu(self.fc1(x)))
