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
from jaxattn.attention.scc import SCC
from jaxattn.attention.scsa import SCSA

__all__ = [
    "CBAM",
    "SCC",
    "SCSA",
    "AttResBlock",
    "AttentionResidualBlock",
    "ChannelAttention",
    "ChannelAttentionBlock",
    "CompetitiveAttention",
    "MultiKernelECA",
    "SpatialAttention",
    "SpatialGate",
]
