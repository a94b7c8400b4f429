"""Attention blocks: modules from `[N, H, W, C]` to `[N, H, W, C]`, one paper a file."""

from jaxattn.attention.canet import (
    AttResBlock,
    CompetitiveAttention,
    MultiKernelECA,
    SpatialGate,
)
from jaxattn.attention.cbam import (
    CBAM,
    AttentionResidualBlock,
    ChannelAttention,
    ChannelAttentionBlock,
    SpatialAttention,
)

__all__ = [
    "CBAM",
    "AttResBlock",
    "AttentionResidualBlock",
    "ChannelAttention",
    "ChannelAttentionBlock",
    "CompetitiveAttention",
    "MultiKernelECA",
    "SpatialAttention",
    "SpatialGate",
]
