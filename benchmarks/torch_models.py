"""Our networks in plain PyTorch, to be timed beside ours. Needs PyTorch.

Restated from the published projects, with their parameter names:
  - SCC, SCCNet: Raven-Z-china/SCCNet;
  - SCSA and where it sits: HZAI-ZJNU/SCSA;
  - CANet: tyyyyy333/Fdu_DS_DL24spring_collection, pj2/cifar10;
  - the blocks with CBAM-like gates:
    prathamssaraf/Attention-Enhanced-ResNet-for-CIFAR-10-Classification;
  - VGG-A: tyyyyy333/Fdu_DS_DL24spring_collection, pj2/codes/VGG_BatchNorm;
  - ResNet, MobileNetV2, ShuffleNetV2, VGG-11: torchvision.
They compute what ours compute (tests/test_torch_models.py) in the way those projects
do, so that their speed is what a user of PyTorch has. They are for timing alone: of the
blocks' options the networks' are here, and weights start from PyTorch's defaults.

Notation: N batch, C channels, H, W spatial; feature maps are `[N, C, H, W]`.
"""
# pyright: reportMissingImports=false

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn

_STEMS = {"imagenet": (7, 2), "cifar": (3, 1)}  # side and stride of the convolution
_WIDTHS = (64, 128, 256, 512)
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


def create_torch_model(name: str, num_classes: int = 10, **kwargs: Any) -> nn.Module:
    """Returns the PyTorch network that computes what `jaxattn.create_model`'s does.

    It maps normalised images `[N, 3, H, W]` to logits `[N, num_classes]`.

    Args:
        name: Of the network, the same as ours.
        num_classes: Number of logits.
        **kwargs: Keywords of the network, such as `stem`; named as ours.

    Raises:
        ValueError: If there is no such network here.
    """
    if name not in _MODELS:
        raise ValueError(f"name={name!r}: choices: {', '.join(_MODELS)}")
    return _MODELS[name](num_classes=num_classes, **kwargs)


def create_torch_block(name: str, channels: int) -> nn.Module:
    """Returns a block by name, with as many output as input channels.

    Args:
        name: "SCC 3x3", or another size; "conv 3x3", or another size, a convolution
            with batch normalisation and ReLU; or the class of another attention block.
        channels: Of the map.

    Raises:
        ValueError: If there is no such block here.
    """
    kind, _, size = name.partition(" ")
    if kind == "conv":
        conv, norm = _conv_norm(channels, channels, int(size[0]))
        return nn.Sequential(conv, norm, nn.ReLU(inplace=True))
    if kind == "SCC":
        return SCC(channels, channels, int(size[0]))
    if kind not in _BLOCKS:
        choices = ", ".join(("conv", "SCC", *_BLOCKS))
        raise ValueError(f"name={name!r}: choices: {choices}")
    return _BLOCKS[kind](channels)


# Attention -------------------------------------------------------------------------


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


class SpatialAttention(nn.Module):
    """CBAM's gate of positions, from the channel mean and maximum.

    Args:
        kernel_size: Side of the gate's convolution, odd.
    """

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        self.conv = _conv(2, 1, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the gate to `x` `[N, C, H, W]`."""
        return _gate_positions(x, self.conv)


class SpatialGate(nn.Module):
    """`SpatialAttention` under CANet's parameter names.

    Args:
        kernel_size: Side of the gate's convolution, odd.
    """

    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        self.conv1 = _conv(2, 1, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the gate to `x` `[N, C, H, W]`."""
        return _gate_positions(x, self.conv1)


def _gate_positions(x: Tensor, conv: nn.Module) -> Tensor:
    maps = torch.cat((x.mean(1, keepdim=True), x.max(1, keepdim=True).values), 1)
    return x * conv(maps).sigmoid()


class ChannelAttention(nn.Module):
    """CBAM's gate of channels, from their mean and maximum.

    Args:
        channels: Of the map.
        hidden: Channels of the bottleneck.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.shared_mlp = _bottleneck(channels, hidden)

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
        self.unit_transform = _bottleneck(channels, hidden, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to `x` `[N, C, H, W]`."""
        spatial = self.unit_transform(self.SAlayer(x))
        channel = self.unit_transform(self.SELayer(x))
        return x * spatial + x * channel


# Residual blocks -------------------------------------------------------------------


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
        self.conv1, self.conv2 = _conv(in_channels, C, 3), _conv(C, C, 3, stride)
        self.conv3, self.conv4 = _conv(in_channels, C, 3), _conv(C, C, 3, stride)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(C) for _ in range(3))
        size, padding = (3, 1) if stride == 1 else (stride, 0)
        self.downsample = nn.Sequential(
            nn.Conv2d(in_channels, C, size, stride, padding, bias=False),
            nn.BatchNorm2d(C),
        )
        self.sa, self.se = SpatialGate(spatial_kernel_size), MultiKernelECA()
        self.unit_transform = _bottleneck(C, C // 2, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to `x` `[N, C, H, W]`."""
        out1 = _relu(self.bn1(self.conv2(_relu(self.conv1(x)))))
        out2 = _relu(self.bn2(self.conv4(_relu(self.conv3(x)))))
        u1, u2 = self.unit_transform(self.sa(out1)), self.unit_transform(self.se(out2))
        return _relu(self.bn3(u1 * out1 + u2 * out2 + self.downsample(x)))


class AttentionResidualBlock(nn.Module):
    """A basic residual block, with channel and spatial gate before its sum.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Step along H and W.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv_norm(in_channels, out_channels, 3, stride)
        self.conv2, self.bn2 = _conv_norm(out_channels, out_channels, 3)
        self.channel_attention = _reference_bottleneck(out_channels)
        self.spatial_attention = SpatialAttention()
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to `x` `[N, C, H, W]`."""
        y = _relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y = self.spatial_attention(_gate_channels(y, self.channel_attention))
        return _relu(y + self.shortcut(x))


class ChannelAttentionBlock(nn.Module):
    """`AttentionResidualBlock` without its spatial gate.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Step along H and W.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv_norm(in_channels, out_channels, 3, stride)
        self.conv2, self.bn2 = _conv_norm(out_channels, out_channels, 3)
        self.attention = _reference_bottleneck(out_channels)
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to `x` `[N, C, H, W]`."""
        y = _relu(self.bn1(self.conv1(x)))
        y = _gate_channels(self.bn2(self.conv2(y)), self.attention)
        return _relu(y + self.shortcut(x))


def _reference_bottleneck(channels: int) -> nn.Sequential:
    """About 16 channels wide, whatever it is for: see `jaxattn/attention/cbam.py`."""
    return _bottleneck(channels, channels // max(channels // 16, 4), nn.Sigmoid())


def _gate_channels(x: Tensor, bottleneck: nn.Module) -> Tensor:
    mean, largest = F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)
    return x * (bottleneck(mean) + bottleneck(largest))


class BasicBlock(nn.Module):
    """ResNet's block of two 3x3 convolutions.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Step along H and W.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv_norm(in_channels, out_channels, 3, stride)
        self.conv2, self.bn2 = _conv_norm(out_channels, out_channels, 3)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to `x` `[N, C, H, W]`."""
        y = _relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return _relu(y + self.downsample(x))


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
        self.conv1, self.bn1 = _conv_norm(in_channels, width, 1)
        self.conv2, self.bn2 = _conv_norm(width, width, 3, stride)
        self.attn = nn.Identity() if scsa is None else SCSA(width, **scsa)
        self.conv3, self.bn3 = _conv_norm(width, out_channels, 1)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to `x` `[N, C, H, W]`."""
        y = _relu(self.bn1(self.conv1(x)))
        y = _relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self.attn(y)))
        return _relu(y + self.downsample(x))


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
            make = scc if downsample.startswith("scc") else _conv
            conv = make(in_channels, out_channels, int(downsample[-1]), stride)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Applies the block to `x` `[N, C, H, W]`."""
        y = self.bn1(self.conv1(x))
        y = self.bn2(self.conv2(y))
        return y + self.downsample(x)


# Networks --------------------------------------------------------------------------


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
        return self.fc2(_relu(self.fc1(x)))


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
        self.conv1, self.bn1 = _conv_norm(3, w, 3)
        self.layer1 = _stage(AttentionResidualBlock, 2, w, 2 * w, 1)
        self.layer2 = _stage(AttentionResidualBlock, 2, 2 * w, 4 * w, 2)
        self.layer3 = _stage(AttentionResidualBlock, 2, 4 * w, 8 * w, 2)
        self.layer4 = _stage(AttentionResidualBlock, 2, 8 * w, 8 * w, 1)
        self.extra_conv, self.extra_bn = _conv_norm(8 * w, 8 * w, 1)
        self.dropout = nn.Dropout(dropout_rate)
        self.fc = nn.Linear(8 * w, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits of images `[N, 3, H, W]`."""
        x = _relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = _relu(self.extra_bn(self.extra_conv(x)))
        return self.fc(self.dropout(_pooled(x)))


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
        self.conv1, self.bn1 = _conv_norm(3, w, 3)
        self.layer1 = _stage(ChannelAttentionBlock, 2, w, 2 * w, 1)
        self.layer2 = _stage(ChannelAttentionBlock, 2, 2 * w, 4 * w, 2)
        self.layer3 = _stage(ChannelAttentionBlock, 2, 4 * w, 8 * w, 2)
        self.dropout = nn.Dropout(dropout_rate)
        self.fc = nn.Linear(8 * w, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits of images `[N, 3, H, W]`."""
        x = _relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.dropout(_pooled(x)))


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
        a, b, c, d = (4 * w if bottleneck else w for w in _WIDTHS)
        self.conv1, self.bn1 = _conv_norm(3, _WIDTHS[0], *_STEMS[stem])
        self.maxpool = _stem_pool(stem)
        self.layer1 = _stage(block, stage_sizes[0], _WIDTHS[0], a, 1)
        self.layer2 = _stage(block, stage_sizes[1], a, b, 2)
        self.layer3 = _stage(block, stage_sizes[2], b, c, 2)
        self.layer4 = _stage(block, stage_sizes[3], c, d, 2)
        self.fc = nn.Linear(d, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits of images `[N, 3, H, W]`."""
        x = self.maxpool(_relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(_pooled(x))


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
        widths: Sequence[int] = _WIDTHS,
        num_classes: int = 10,
        downsample: str = "scc5",
        stem: str = "imagenet",
        mask_prob: float = 0.005,
    ) -> None:
        super().__init__()
        block = partial(SCCBlock, downsample=downsample, mask_prob=mask_prob)
        a, b, c, d = widths
        self.conv, self.bn1 = _conv_norm(3, a, *_STEMS[stem])
        self.maxpool = _stem_pool(stem)
        self.layer1 = _stage(block, stage_sizes[0], a, a, 1)
        self.layer2 = _stage(block, stage_sizes[1], a, b, 2)
        self.layer3 = _stage(block, stage_sizes[2], b, c, 2)
        self.layer4 = _stage(block, stage_sizes[3], c, d, 2)
        self.head = nn.Linear(d, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits of images `[N, 3, H, W]`."""
        x = self.maxpool(self.bn1(self.conv(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.head(_pooled(x))


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
            *_conv_norm(in_channels if stride > 1 else half, half, 1),
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
        self.conv1 = nn.Sequential(*_conv_norm(3, 24, 3, 2), nn.ReLU(inplace=True))
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.stage2 = _stage(ShuffleUnit, 4, 24, 48, 2)
        self.stage3 = _stage(ShuffleUnit, 8, 48, 96, 2)
        self.stage4 = _stage(ShuffleUnit, 4, 96, 192, 2)
        self.conv5 = nn.Sequential(*_conv_norm(192, 1024, 1), nn.ReLU(inplace=True))
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits of images `[N, 3, H, W]`."""
        x = self.stage2(self.maxpool(self.conv1(x)))
        return self.fc(_pooled(self.conv5(self.stage4(self.stage3(x)))))


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
            *_conv_norm(hidden, out_channels, 1),
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
        return self.classifier(_pooled(self.features(x)))


class VGG(nn.Module):
    """VGG-A, with batch normalisation or dropout if wanted; and VGG-11.

    Args:
        num_classes: Number of logits.
        width: Channels of the first convolution.
        batch_norm: Normalises between convolution and ReLU.
        hidden: Outputs of the classifier's hidden layers; None: 8 * width.
        pooled: Side of the map before the classifier.
        dropout_rate: Of VGG-11's classifier; 0 leaves the layers out.
    """

    def __init__(
        self,
        num_classes: int = 10,
        width: int = 64,
        batch_norm: bool = False,
        hidden: int | None = None,
        pooled: int = 1,
        dropout_rate: float = 0.0,
    ) -> None:
        super().__init__()
        stages = _vgg_stages(width, batch_norm)
        self.features = nn.Sequential(*(m for stage in stages for m in stage))
        self.avgpool = nn.AdaptiveAvgPool2d(pooled)
        C = 8 * width
        hidden = hidden or C
        drop = [nn.Dropout(dropout_rate)] if dropout_rate else []
        relu = nn.ReLU(inplace=True)
        first = nn.Linear(C * pooled * pooled, hidden)
        second, last = nn.Linear(hidden, hidden), nn.Linear(hidden, num_classes)
        layers = first, relu, *drop, second, relu, *drop, last
        self.classifier = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits of images `[N, 3, H, W]`."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class VGGADropout(nn.Module):
    """VGG-A with dropout, whose five stages are modules of their own.

    Args:
        num_classes: Number of logits.
        width: Channels of the first convolution.
    """

    def __init__(self, num_classes: int = 10, width: int = 64) -> None:
        super().__init__()
        self.stage1, self.stage2, self.stage3, self.stage4, self.stage5 = (
            nn.Sequential(*stage) for stage in _vgg_stages(width, batch_norm=False)
        )
        C = 8 * width
        relu, drop = nn.ReLU(inplace=True), nn.Dropout(0.5)
        layers = drop, nn.Linear(C, C), relu, drop, nn.Linear(C, C), relu
        self.classifier = nn.Sequential(*layers, nn.Linear(C, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits of images `[N, 3, H, W]`."""
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.classifier(self.stage5(self.stage4(x)).flatten(1))


# What they share -------------------------------------------------------------------


def _vgg_stages(width: int, batch_norm: bool) -> list[list[nn.Module]]:
    stages, C = [], 3
    for multiples in ((1,), (2,), (4, 4), (8, 8), (8, 8)):
        stage: list[nn.Module] = []
        for multiple in multiples:
            stage.append(nn.Conv2d(C, multiple * width, 3, padding=1))
            C = multiple * width
            stage += [nn.BatchNorm2d(C)] if batch_norm else []
            stage.append(nn.ReLU(inplace=True))
        stages.append([*stage, nn.MaxPool2d(2)])
    return stages


def _separable(
    in_channels: int, out_channels: int, stride: int
) -> tuple[nn.Module, ...]:
    depthwise = nn.Conv2d(
        in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False
    )
    pointwise = _conv_norm(in_channels, out_channels, 1)
    return depthwise, nn.BatchNorm2d(in_channels), *pointwise, nn.ReLU(inplace=True)


def _conv_norm6(
    in_channels: int, out_channels: int, size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(
        in_channels, out_channels, size, stride, size // 2, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True))


def _conv(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
) -> nn.Conv2d:
    padding = kernel_size // 2
    return nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding, bias=False
    )


def _conv_norm(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = _conv(in_channels, out_channels, kernel_size, stride)
    return conv, nn.BatchNorm2d(out_channels)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    if (stride, in_channels) == (1, out_channels):
        return nn.Sequential()
    return nn.Sequential(*_conv_norm(in_channels, out_channels, 1, stride))


def _stage(
    block: Callable[[int, int, int], nn.Module],
    blocks: int,
    in_channels: int,
    out_channels: int,
    stride: int,
) -> nn.Sequential:
    first = block(in_channels, out_channels, stride)
    rest = [block(out_channels, out_channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def _stem_pool(stem: str) -> nn.Module:
    return nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()


def _bottleneck(channels: int, hidden: int, *last: nn.Module) -> nn.Sequential:
    narrow, widen = _conv(channels, hidden, 1), _conv(hidden, channels, 1)
    return nn.Sequential(narrow, nn.ReLU(inplace=True), widen, *last)


def _relu(x: Tensor) -> Tensor:
    return F.relu(x, inplace=True)


def _pooled(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


_MODELS: dict[str, Callable[..., nn.Module]] = {
    "canet": partial(CANet, width=64),
    "canet_light": partial(CANet, width=32),
    "canet_pro": partial(CANet, width=128),
    "canet_tiny": partial(CANet, width=16),
    "efficient_resnet": EfficientResNet,
    "enhanced_efficient_resnet": EnhancedEfficientResNet,
    "mobilenet_v2": MobileNetV2,
    "resnet18": partial(ResNet, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, (3, 4, 6, 3), bottleneck=True),
    "resnet50_scsa": partial(ResNet, (3, 4, 6, 3), bottleneck=True, scsa={}),
    "resnet101_scsa": partial(
        ResNet, (3, 4, 23, 3), bottleneck=True, scsa={"attn_drop_ratio": 0.1}
    ),
    "sccnet18": partial(SCCNet, (2, 2, 2, 2)),
    "sccnet34": partial(SCCNet, (3, 4, 6, 3)),
    "shufflenet_v2_x0_5": ShuffleNetV2,
    "vgg11": partial(VGG, hidden=4096, pooled=7, dropout_rate=0.5),
    "vgg_a": VGG,
    "vgg_a_bn": partial(VGG, batch_norm=True),
    "vgg_a_dropout": VGGADropout,
}
_BLOCKS: dict[str, Callable[[int], nn.Module]] = {
    "SCSA": SCSA,
    "CBAM": CBAM,
    "MultiKernelECA": lambda _: MultiKernelECA(),
    "SpatialGate": lambda _: SpatialGate(),
    "CompetitiveAttention": CompetitiveAttention,
    "AttResBlock": lambda channels: AttResBlock(channels, channels),
    "AttentionResidualBlock": lambda channels: AttentionResidualBlock(
        channels, channels
    ),
}
