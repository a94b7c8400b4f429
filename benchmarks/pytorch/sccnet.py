"""SCC and SCCNet, as Raven-Z-china/SCCNet has them.

Notation: N batch, C channels, H, W spatial; feature maps are `[N, C, H, W]`.
"""
# pyright: reportMissingImports=false

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

from benchmarks.pytorch.layers import (
    STEMS,
    WIDTHS,
    conv,
    conv_norm,
    pooled,
    stage,
    stem_pool,
)


class SCC(nn.Module):
    """A convolution whose kernel sizes compete for every output element.

    Every centred crop of the kernel convolves; an element takes the largest response.
    Training forces each branch on a share of `mask_prob` of the elements.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the largest crop, odd.
        stride: Step along H and W.
        mask_prob: Share of the elements that training forces to each branch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        mask_prob: float = 0.005,
    ) -> None:
        super().__init__()
        self.stride, self.mask_prob = stride, mask_prob
        branches, size = kernel_size // 2 + 1, (kernel_size, kernel_size)
        self.weight = _uniform(0.2, out_channels, in_channels, *size)
        self.bias = _uniform(2.0, branches, out_channels)
        self.alpha = _uniform(2.0, branches, out_channels, 1, 1)
        self.beta = _uniform(2.0, branches, out_channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Convolves `x` `[N, C, H, W]` and selects."""
        largest, out = self._branch(x, 0)
        forces = self.training and self.mask_prob > 0
        locked = self._draw(largest, 0) if forces else None
        for i in range(1, len(self.bias)):
            response, scaled = self._branch(x, i)
            take = response > largest
            if locked is not None:
                selected = self._draw(response, i)
                take = (take | selected) & ~locked
                locked = locked | selected
            largest = torch.where(take, response, largest)
            out = torch.where(take, scaled, out)
        return out

    def _branch(self, x: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """Returns the response of branch i, and the output where it is chosen."""
        r = self.weight.shape[-1] // 2
        crop = self.weight[:, :, r - i : r + i + 1, r - i : r + i + 1]
        response = F.conv2d(x, crop, self.bias[i], self.stride, padding=i)
        return response, response * (1 + torch.tanh(self.alpha[i])) + self.beta[i]

    def _draw(self, response: Tensor, i: int) -> Tensor:
        """Draws what branch i forces of the elements that none before it has."""
        p = self.mask_prob / (1 - i * self.mask_prob)
        # bfloat16 has too few values for a probability that small.
        return torch.rand_like(response, dtype=torch.float32) < p


def _uniform(bound: float, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class SCCBlock(nn.Module):
    """A residual block of two SCC, without any other activation.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Step along H and W.
        downsample: The shortcut's convolution: "conv" or "scc", and its kernel size.
        mask_prob: See `SCC`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        downsample: str = "scc5",
        mask_prob: float = 0.005,
    ) -> None:
        super().__init__()
        scc = partial(SCC, mask_prob=mask_prob)
        self.conv1 = scc(in_channels, out_channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = scc(out_channels, out_channels, 3)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = nn.Sequential()
        if (stride, in_channels) != (1, out_channels):
            make = scc if downsample.startswith("scc") else conv
            first = make(in_channels, out_channels, int(downsample[-1]), stride)
            self.downsample = nn.Sequential(first, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to `x` `[N, C, H, W]`."""
        y = self.bn1(self.conv1(x))
        y = self.bn2(self.conv2(y))
        return y + self.downsample(x)


class SCCNet(nn.Module):
    """Four stages of `SCCBlock` after a linear stem.

    Args:
        stage_sizes: Blocks of the four stages.
        widths: Channels of the four stages; the stem has the first's.
        num_classes: Number of logits.
        downsample: See `SCCBlock`.
        stem: "imagenet" or "cifar".
        mask_prob: See `SCC`.
    """

    def __init__(
        self,
        stage_sizes: Sequence[int],
        widths: Sequence[int] = WIDTHS,
        num_classes: int = 10,
        downsample: str = "scc5",
        stem: str = "imagenet",
        mask_prob: float = 0.005,
    ) -> None:
        super().__init__()
        block = partial(SCCBlock, downsample=downsample, mask_prob=mask_prob)
        a, b, c, d = widths
        self.conv, self.bn1 = conv_norm(3, a, *STEMS[stem])
        self.maxpool = stem_pool(stem)
        self.layer1 = stage(block, stage_sizes[0], a, a, 1)
        self.layer2 = stage(block, stage_sizes[1], a, b, 2)
        self.layer3 = stage(block, stage_sizes[2], b, c, 2)
        self.layer4 = stage(block, stage_sizes[3], c, d, 2)
        self.head = nn.Linear(d, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits of images `[N, 3, H, W]`."""
        x = self.maxpool(self.bn1(self.conv(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.head(pooled(x))
