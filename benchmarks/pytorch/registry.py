"""Our networks in plain PyTorch by name, to be timed beside ours. Needs PyTorch.

They are restated from the published projects, with their parameter names; each file
says which. They compute what ours compute (tests/test_torch_models.py) in the way those
projects do, so that their speed is what a user of PyTorch has. They are for timing
alone: of the blocks' options the networks' are here, and weights start from PyTorch's
defaults.
"""
# pyright: reportMissingImports=false

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from benchmarks.pytorch.canet import (
    AttResBlock,
    CANet,
    CompetitiveAttention,
    MultiKernelECA,
    SpatialGate,
)
from benchmarks.pytorch.cbam import CBAM
from benchmarks.pytorch.cbam_resnet import (
    AttentionResidualBlock,
    EfficientResNet,
    EnhancedEfficientResNet,
)
from benchmarks.pytorch.layers import conv_norm
from benchmarks.pytorch.mobilenet import MobileNetV2
from benchmarks.pytorch.resnet import ResNet
from benchmarks.pytorch.sccnet import SCC, SCCNet
from benchmarks.pytorch.scsa import SCSA
from benchmarks.pytorch.shufflenet import ShuffleNetV2
from benchmarks.pytorch.vgg import VGG, VGGADropout

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
        conv, norm = conv_norm(channels, channels, int(size[0]))
        return nn.Sequential(conv, norm, nn.ReLU(inplace=True))
    if kind == "SCC":
        return SCC(channels, channels, int(size[0]))
    if kind not in _BLOCKS:
        choices = ", ".join(("conv", "SCC", *_BLOCKS))
        raise ValueError(f"name={name!r}: choices: {choices}")
    return _BLOCKS[kind](channels)
