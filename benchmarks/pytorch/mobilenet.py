"""MobileNetV2, as torchvision has it.

Notation: N batch, C channels, H, W spatial; feature maps are `[N, C, H, W]`.
"""
# pyright: reportMissingImports=false

from typing import Any

from torch import Tensor, nn

from benchmarks.pytorch.layers import conv_norm, pooled

# Of MobileNetV2's groups of blocks: expansion, channels, blocks, stride of the first.
_MOBILE_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """MobileNetV2's block.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Step along H and W.
        ratio: Channels in between, in units of the input's.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, ratio: int
    ) -> None:
        super().__init__()
        hidden = in_channels * ratio
        widen = [_conv_norm6(in_channels, hidden, 1)] if ratio > 1 else []
        self.conv = nn.Sequential(
            *widen,
            _conv_norm6(hidden, hidden, 3, stride, groups=hidden),
            *conv_norm(hidden, out_channels, 1),
        )
        self.adds = (stride, in_channels) == (1, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to `x` `[N, C, H, W]`."""
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2.

    Args:
        num_classes: Number of logits.
        stem: "imagenet" or "cifar".
        dropout_rate: Share of the pooled features that training sets to 0.
    """

    def __init__(
        self, num_classes: int = 10, stem: str = "imagenet", dropout_rate: float = 0.2
    ) -> None:
        super().__init__()
        stride = 2 if stem == "imagenet" else 1
        blocks: list[Any] = [_conv_norm6(3, 32, 3, stride)]
        C = 32
        for ratio, width, size, stride in _MOBILE_GROUPS:
            for i in range(size):
                step = stride if i == 0 else 1
                blocks.append(InvertedResidual(C, width, step, ratio))
                C = width
        self.features = nn.Sequential(*blocks, _conv_norm6(C, 1280, 1))
        self.classifier = nn.Sequential(
            nn.Dropout(dropout_rate), nn.Linear(1280, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits of images `[N, 3, H, W]`."""
        return self.classifier(pooled(self.features(x)))


def _conv_norm6(
    in_channels: int, out_channels: int, size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(
        in_channels, out_channels, size, stride, size // 2, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True))
