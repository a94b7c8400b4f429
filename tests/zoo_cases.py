"""The zoo's blocks: from the arguments of their authors' constructors, and tiny ones.

Each block has its lines in both tables, which are in alphabetical order.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from jaxattn.attention import (
    BAM,
    CBAM,
    CPCA,
    ECA,
    ELA,
    MCA,
    SCC,
    SCSA,
    SE,
    AttentionResidualBlock,
    AttResBlock,
    ChannelAttention,
    ChannelAttentionBlock,
    CompetitiveAttention,
    CoordinateAttention,
    EffectiveSE,
    EfficientMultiscaleAttention,
    FrequencyChannelAttention,
    GatedChannelTransformation,
    GatherExcite,
    GlobalContext,
    MultiKernelECA,
    ShuffleAttention,
    SimAM,
    SpatialAttention,
    SpatialGate,
    SpatialGroupEnhance,
    StyleRecalibration,
    TripletAttention,
)
from jaxattn.attention.eca import adaptive_kernel_size


def make(file: str, config: dict[str, Any]) -> nn.Module:
    """Returns the block of a golden file.

    Args:
        file: Its name without suffix, as "se_scsa": the block, then words of the code
            it is from and of what it shows.
        config: Its entry `config`: arguments of the authors' constructor.
    """
    words = file.split("_")
    keys = {tuple(key.split("_")): key for key in MAKERS}
    fitting = [k for k in keys if k[0] == words[0] and set(k) <= set(words)]
    return MAKERS[keys[max(fitting, key=len)]](config)


def timm_width(config: dict[str, Any], divisor: int = 8) -> int:
    """Returns a bottleneck's width: to the nearest multiple, and at least one."""
    if config.get("rd_channels"):
        return config["rd_channels"]
    divisor = config.get("rd_divisor", divisor)
    width = config["channels"] * config.get("rd_ratio", 1 / 16)
    width *= config.get("se_factor", 1)
    return max(divisor, int(width + divisor / 2) // divisor * divisor)


def cpca(config: dict[str, Any]) -> nn.Module:
    if "in_channels" in config:  # CPCANet's
        return CPCA(config.get("channelAttention_reduce", 4))
    return CPCA(config.get("reduction", 16))


def fca(config: dict[str, Any]) -> nn.Module:
    return FrequencyChannelAttention(
        config.get("reduction", 16),
        config.get("freq_sel_method", "top16"),
        (config["dct_h"], config["dct_w"]),
    )


def gc(config: dict[str, Any]) -> nn.Module:
    if "channels" in config:
        return gc_timm(config)
    return GlobalContext(
        hidden=int(config["inplanes"] * config["ratio"]),
        pooling_type=config.get("pooling_type", "att"),
        fusion_types=tuple(config.get("fusion_types", ["channel_add"])),
    )


def gc_timm(config: dict[str, Any]) -> nn.Module:
    adds, scales = config.get("fuse_add", False), config.get("fuse_scale", True)
    return GlobalContext(
        hidden=timm_width({"rd_ratio": 1 / 8, **config}, divisor=1),
        pooling_type="att" if config.get("use_attn", True) else "avg",
        fusion_types=("channel_add",) * adds + ("channel_mul",) * scales,
        epsilon=1e-6,
    )


def gct(config: dict[str, Any]) -> nn.Module:
    keys = ("mode", "epsilon", "after_relu")
    return GatedChannelTransformation(**{k: config[k] for k in keys if k in config})


def ge(config: dict[str, Any]) -> nn.Module:
    if "kind" in config:
        return GatherExcite(config["kind"], reduction=config.get("reduction", 16))
    kind = {
        (False, False): "theta_minus",
        (False, True): "theta_minus_mlp",
        (True, False): "theta",
        (True, True): "theta_plus",
    }[config.get("extra_params", False), config.get("use_mlp", True)]
    return GatherExcite(
        kind, config.get("extent", 0), hidden=timm_width(config, divisor=1)
    )


def ca_timm(config: dict[str, Any]) -> CoordinateAttention:
    bias = config.get("bias", False)
    width = timm_width({"se_factor": 2 / 3, **config})
    return CoordinateAttention(config["channels"], width, bias, bias)


def cbam(config: dict[str, Any]) -> CBAM:
    return CBAM(
        config.get("reduction_ratio", 16),
        biases=True,
        pool_types=tuple(config.get("pool_types", ("avg", "max"))),
        no_spatial=config.get("no_spatial", False),
        spatial_norm=True,
    )


def cbam_timm(config: dict[str, Any]) -> CBAM:
    return CBAM(
        config["channels"],
        config.get("spatial_kernel_size", 7),
        min_channels=timm_width(config, divisor=1),
        biases=config.get("mlp_bias", False),
        spatial_norm=True,
        max_first=False,
        norm_momentum=0.9,
    )


def eca_scsa(config: dict[str, Any]) -> ECA:
    """With its own default; its rule overrules a `kernel_size` where it has an even."""
    channels, size = config["in_chans"], config.get("kernel_size")
    if config.get("auto", False):
        gamma, b = config.get("gamma", 2), config.get("b", 1)
        t = int(abs((math.log2(channels) + b) / gamma))
        return ECA((size or t) if t % 2 else t + 1)
    return ECA(size or (1 if channels < 96 else 3))


def eca_timm(config: dict[str, Any], padding: str = "zero") -> ECA:
    size = config.get("kernel_size", 3)
    if (channels := config.get("channels")) is not None:
        gamma, b = config.get("gamma", 2), config.get("beta", 1)
        size = max(3, adaptive_kernel_size(channels, gamma, b))
    return ECA(size, padding=padding)


def ela(config: dict[str, Any]) -> ELA:
    keys = ("kernel_size", "conv_groups", "norm_groups")
    return ELA(**{key: config[key] for key in keys if key in config})


def se_timm(config: dict[str, Any]) -> SE:
    return SE(
        hidden=timm_width(config),
        biases=config.get("bias", True),
        maximum=config.get("add_maxpool", False),
    )


# By words of a file's name, of which the most that fit are taken: of "se_timm" two, of
# "se_reduction8" one.
MAKERS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "bam": lambda c: BAM(c.get("reduction_ratio", 16), square_window=True),
    "ca": lambda c: CoordinateAttention(c.get("reduction", 32)),
    "ca_scsa": lambda c: CoordinateAttention(
        c.get("reduction", 32), squeeze_bias=False
    ),
    "ca_timm": ca_timm,
    "cbam": cbam,
    "cbam_scsa": lambda c: CBAM(
        c.get("reduction", 16), min_channels=c.get("min_channels", 8)
    ),
    "cbam_timm": cbam_timm,
    "ceca_timm": lambda c: eca_timm(c, "circular"),
    "cpca": cpca,
    "eca": lambda c: ECA(c.get("k_size", 3)),
    "eca_scsa": eca_scsa,
    "eca_timm": eca_timm,
    "ela": ela,
    "ela_timm": lambda c: ELA(c.get("kernel_size", 7), norm_groups=1, shared=False),
    "ema": lambda c: EfficientMultiscaleAttention(c.get("factor", 32)),
    "ese": lambda c: EffectiveSE(c.get("add_maxpool", False)),
    "fca": fca,
    "gc": gc,
    "gct": gct,
    "ge": ge,
    "mca": lambda c: MCA(c.get("no_spatial", False)),
    "sa": lambda c: ShuffleAttention(c.get("groups", 64)),
    "sa_scsa": lambda c: ShuffleAttention(c.get("group_num", 64)),
    "se": lambda c: SE(c.get("reduction", 16)),
    "se_conv": lambda c: SE(c.get("reduction", 16), norm=True),
    "se_timm": se_timm,
    "sge": lambda c: SpatialGroupEnhance(c.get("groups", 64)),
    "simam": lambda c: SimAM(c.get("e_lambda", 1e-4)),
    "srm": lambda c: StyleRecalibration(),  # noqa: ARG005
    "triplet": lambda c: TripletAttention(c.get("no_spatial", False)),
}

# By class: a block that takes maps `[2, 5, 7, 32]`, and gives the same shape.
BLOCKS: dict[str, nn.Module] = {
    "AttResBlock": AttResBlock(32),
    "AttentionResidualBlock": AttentionResidualBlock(32),
    "BAM": BAM(),
    "CBAM": CBAM(),
    "CPCA": CPCA(),
    "ChannelAttention": ChannelAttention(),
    "ChannelAttentionBlock": ChannelAttentionBlock(32),
    "CompetitiveAttention": CompetitiveAttention(),
    "CoordinateAttention": CoordinateAttention(),
    "ECA": ECA(),
    "ELA": ELA(),
    "EffectiveSE": EffectiveSE(),
    "EfficientMultiscaleAttention": EfficientMultiscaleAttention(8),
    "FrequencyChannelAttention": FrequencyChannelAttention(4),
    "GatedChannelTransformation": GatedChannelTransformation(),
    # Of all positions it takes maps of one size.
    "GatherExcite": GatherExcite("theta_plus", extent=4, reduction=4),
    "GlobalContext": GlobalContext(4, fusion_types=("channel_add", "channel_mul")),
    "MCA": MCA(),
    "MultiKernelECA": MultiKernelECA(),
    "SCC": SCC(32),
    "SCSA": SCSA(window_size=2),
    "SE": SE(),
    "ShuffleAttention": ShuffleAttention(4),
    "SimAM": SimAM(),
    "SpatialAttention": SpatialAttention(),
    "SpatialGate": SpatialGate(),
    "SpatialGroupEnhance": SpatialGroupEnhance(8),
    "StyleRecalibration": StyleRecalibration(),
    "TripletAttention": TripletAttention(),
}
