"""Layers that several families have.

Notation: N batch, C channels, H, W spatial; feature maps are `[N, C, H, W]`.
"""
# pyright: reportMissingImports=false

from collections.abc import Callable

import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

STEMS = {"imagenet": (7, 2), "cifar": (3, 1)}  # side and stride of the convolution
WIDTHS = (64, 128, 256, 512)


def conv(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
) -> nn.Conv2d:
    """Returns a convolution without bias, padded to keep the size at stride 1."""
    padding = kernel_size // 2
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding, bias=False
    )


def conv_norm(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Returns a `conv` and its normalisation."""
    layer = conv(in_channels, out_channels, kernel_size, stride)
    return layer, nn.BatchNorm2d(out_channels)


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Returns a residual block's 1x1 convolution, or nothing where shapes agree."""
    if (stride, in_channels) == (1, out_channels):
        return nn.Sequential()
    return nn.Sequential(*conv_norm(in_channels, out_channels, 1, stride))


def stage(
    block: Callable[[int, int, int], nn.Module],
    blocks: int,
    in_channels: int,
    out_channels: int,
    stride: int,
) -> nn.Sequential:
    """Returns `blocks` blocks in a row; the first changes the shape."""
    first = block(in_channels, out_channels, stride)
    rest = [block(out_channels, out_channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def stem_pool(stem: str) -> nn.Module:
    """Returns what follows the stem's convolution: "imagenet" pools, "cifar" not."""
    return nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()


def bottleneck(channels: int, hidden: int, *last: nn.Module) -> nn.Sequential:
    """Returns two 1x1 convolutions with a ReLU between, and what comes last."""
    narrow, widen = conv(channels, hidden, 1), conv(hidden, channels, 1)
    return nn.Sequential(narrow, nn.ReLU(inplace=True), widen, *last)


def relu(x: Tensor) -> Tensor:
    """Returns the ReLU, in the input's own memory."""
    return F.relu(x, inplace=True)


def pooled(x: Tensor) -> Tensor:
    """Returns the mean `[N, C]` over the positions of `[N, C, H, W]`."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)
