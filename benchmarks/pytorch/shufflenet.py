"""ShuffleNetV2, as torchvision has it.

Notation: N batch, C channels, H, W spatial; feature maps are `[N, C, H, W]`.
"""
# pyright: reportMissingImports=false

import torch
from torch import Tensor, nn

from benchmarks.pytorch.layers import conv_norm, pooled, stage


class ShuffleUnit(nn.Module):
    """ShuffleNetV2's unit of two branches, the first empty at stride 1.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Step along H and W.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        half = out_channels // 2
        self.stride = stride
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(*_separable(in_channels, half, stride))
        self.branch2 = nn.Sequential(
            *conv_norm(in_channels if stride > 1 else half, half, 1),
            nn.ReLU(inplace=True),
            *_separable(half, half, stride),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Applies the unit to `x` `[N, C, H, W]`."""
        past, x = x.chunk(2, 1) if self.stride == 1 else (self.branch1(x), x)
        x = torch.cat((past, self.branch2(x)), 1)
        N, C, H, W = x.shape
        return x.view(N, 2, C // 2, H, W).transpose(1, 2).reshape(N, C, H, W)


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2, half as wide.

    Args:
        num_classes: Number of logits.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(*conv_norm(3, 24, 3, 2), nn.ReLU(inplace=True))
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.stage2 = stage(ShuffleUnit, 4, 24, 48, 2)
        self.stage3 = stage(ShuffleUnit, 8, 48, 96, 2)
        self.stage4 = stage(ShuffleUnit, 4, 96, 192, 2)
        self.conv5 = nn.Sequential(*conv_norm(192, 1024, 1), nn.ReLU(inplace=True))
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits of images `[N, 3, H, W]`."""
        x = self.stage2(self.maxpool(self.conv1(x)))
        return self.fc(pooled(self.conv5(self.stage4(self.stage3(x)))))


def _separable(
    in_channels: int, out_channels: int, stride: int
) -> tuple[nn.Module, ...]:
    depthwise = nn.Conv2d(
        in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False
    )
    pointwise = conv_norm(in_channels, out_channels, 1)
    return depthwise, nn.BatchNorm2d(in_channels), *pointwise, nn.ReLU(inplace=True)
