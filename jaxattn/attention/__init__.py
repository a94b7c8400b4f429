"""Attention blocks: modules from `[N, H, W, C]` to `[N, H, W, C]`, one paper a file."""

from jaxattn.attention.canet import (
    AttResBlock,
    CompetitiveAttention,
    MultiKernelECA,
    SpatialGate,
)
from jaxattn.attention.cbam import SpatialAttention

__all__ = [
    "AttResBlock",
    "CompetitiveAttention",
    "MultiKernelECA",
    "SpatialAttention",
    "SpatialGate",
]
