"""ResNet, as torchvision has it, and with SCSA as HZAI-ZJNU/SCSA has it.

Notation: N batch, C channels, H, W spatial; feature maps are `[N, C, H, W]`.
"""
# pyright: reportMissingImports=false

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from benchmarks.pytorch.layers import (
    STEMS,
    WIDTHS,
    conv_norm,
    pooled,
    relu,
    shortcut,
    stage,
    stem_pool,
)
from benchmarks.pytorch.scsa import SCSA


class BasicBlock(nn.Module):
    """ResNet's block of two 3x3 convolutions.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Step along H and W.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_norm(in_channels, out_channels, 3, stride)
        self.conv2, self.bn2 = conv_norm(out_channels, out_channels, 3)
        self.downsample = shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to `x` `[N, C, H, W]`."""
        y = relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return relu(y + self.downsample(x))


class Bottleneck(nn.Module):
    """ResNet's block of a 3x3 convolution between two 1x1, with SCSA if wanted.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output, a multiple of 4.
        stride: Step along H and W.
        scsa: Keywords of SCSA, after the inner ReLU; None leaves it out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        scsa: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        width = out_channels // 4
        self.conv1, self.bn1 = conv_norm(in_channels, width, 1)
        self.conv2, self.bn2 = conv_norm(width, width, 3, stride)
        self.attn = nn.Identity() if scsa is None else SCSA(width, **scsa)
        self.conv3, self.bn3 = conv_norm(width, out_channels, 1)
        self.downsample = shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to `x` `[N, C, H, W]`."""
        y = relu(self.bn1(self.conv1(x)))
        y = relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self.attn(y)))
        return relu(y + self.downsample(x))


class ResNet(nn.Module):
    """A residual network of four stages, with SCSA in every bottleneck if wanted.

    Args:
        stage_sizes: Blocks of the four stages.
        num_classes: Number of logits.
        stem: "imagenet" or "cifar".
        bottleneck: Bottlenecks instead of basic blocks.
        scsa: Keywords of SCSA that the network has; None for none.
        attention_kwargs: Further keywords of SCSA.
    """

    def __init__(
        self,
        stage_sizes: Sequence[int],
        num_classes: int = 10,
        stem: str = "imagenet",
        bottleneck: bool = False,
        scsa: Mapping[str, Any] | None = None,
        attention_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if scsa is not None:
            window = {"window_size": 7 if stem == "imagenet" else 4}
            scsa = {**window, **scsa, **(attention_kwargs or {})}
        block = partial(Bottleneck, scsa=scsa) if bottleneck else BasicBlock
        a, b, c, d = (4 * w if bottleneck else w for w in WIDTHS)
        self.conv1, self.bn1 = conv_norm(3, WIDTHS[0], *STEMS[stem])
        self.maxpool = stem_pool(stem)
        self.layer1 = stage(block, stage_sizes[0], WIDTHS[0], a, 1)
        self.layer2 = stage(block, stage_sizes[1], a, b, 2)
        self.layer3 = stage(block, stage_sizes[2], b, c, 2)
        self.layer4 = stage(block, stage_sizes[3], c, d, 2)
        self.fc = nn.Linear(d, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits of images `[N, 3, H, W]`."""
        x = self.maxpool(relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(pooled(x))
