"""Attention blocks: modules from `[N, H, W, C]` to `[N, H, W, C]`, one paper a file.

They refuse what has not four axes, and take integers as float32.

What a block attends to comes out with `apply(..., mutable=["intermediates"])`, and
costs nothing without. Every block sows the arrays that it multiplies with, in a shape
that broadcasts against the map they multiply, under one of these names:

  - `spatial_gate` `[N, H, W, 1]`, `channel_gate` `[N, 1, 1, C]`;
  - `height_gate` `[N, H, 1, C]`, `width_gate` `[N, 1, W, C]`: of strips; MCA's have
    one channel;
  - `group_gate` `[N, H, W, C]`: one map for each group of channels;
  - `product_gate`, `unit_gate` `[N, H, W, C]`: BAM's, and SA's before its shuffle;
    SimAM's and CPCA's of every value, as are others';
  - `neighbourhood_gate` `[N, H, W, C]`: GE's of extents;
  - `context_gate` `[N, H, W, 1]`: the weights of GC's mean over positions;
  - `spatial_unit_gate`, `channel_unit_gate` `[N, H, W, C]`: u1 and u2 of CANet, with
    which its two branches compete;
  - `branch_<i>_gate` `[N, 1, 1, C]` or `[N, H, W, 1]`: the share of branch i in a sum;
  - `winner` `[N, H, W, C]` uint8: the branch i, of kernel size 2i + 1, that SCC took.

Matrices, with which positions or channels attend to each other, are not sown.

`jaxattn.viz.attention_maps` draws them, and any other that is sown as `..._gate`.
"""

from jaxattn.attention.bam import BAM
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
from jaxattn.attention.cond_conv import CondConv
from jaxattn.attention.coordinate import CoordinateAttention
from jaxattn.attention.cpca import CPCA
from jaxattn.attention.dual_attention import (
    ChannelSelfAttention,
    DualAttention,
    PositionAttention,
)
from jaxattn.attention.eca import ECA
from jaxattn.attention.ela import ELA
from jaxattn.attention.ema import EfficientMultiscaleAttention
from jaxattn.attention.fca import FrequencyChannelAttention
from jaxattn.attention.gather_excite import GatherExcite
from jaxattn.attention.gc import GlobalContext
from jaxattn.attention.gct import GatedChannelTransformation
from jaxattn.attention.large_selective_kernel import LargeSelectiveKernel
from jaxattn.attention.mca import MCA
from jaxattn.attention.non_local import NonLocal
from jaxattn.attention.reconstruction_conv import ReconstructionConv
from jaxattn.attention.scc import SCC
from jaxattn.attention.scsa import SCSA
from jaxattn.attention.se import SE, EffectiveSE
from jaxattn.attention.selective_kernel import SelectiveKernel
from jaxattn.attention.self_calibrated_conv import SelfCalibratedConv
from jaxattn.attention.sge import SpatialGroupEnhance
from jaxattn.attention.shuffle import ShuffleAttention
from jaxattn.attention.simam import SimAM
from jaxattn.attention.split_attention import SplitAttention
from jaxattn.attention.srm import StyleRecalibration
from jaxattn.attention.strip_pooling import MixedPooling, StripPooling
from jaxattn.attention.triplet import TripletAttention

__all__ = [
    "BAM",
    "CBAM",
    "CPCA",
    "ECA",
    "ELA",
    "MCA",
    "SCC",
    "SCSA",
    "SE",
    "AttResBlock",
    "AttentionResidualBlock",
    "ChannelAttention",
    "ChannelAttentionBlock",
    "ChannelSelfAttention",
    "CompetitiveAttention",
    "CondConv",
    "CoordinateAttention",
    "DualAttention",
    "EffectiveSE",
    "EfficientMultiscaleAttention",
    "FrequencyChannelAttention",
    "GatedChannelTransformation",
    "GatherExcite",
    "GlobalContext",
    "LargeSelectiveKernel",
    "MixedPooling",
    "MultiKernelECA",
    "NonLocal",
    "PositionAttention",
    "ReconstructionConv",
    "SelectiveKernel",
    "SelfCalibratedConv",
    "ShuffleAttention",
    "SimAM",
    "SpatialAttention",
    "SpatialGate",
    "SpatialGroupEnhance",
    "SplitAttention",
    "StripPooling",
    "StyleRecalibration",
    "TripletAttention",
]
