"""The zoo's blocks: from the arguments of their authors' constructors, and tiny ones.

Each block has its lines in both tables, which are in alphabetical order.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from jaxattn.attention import (
    CBAM,
    CPCA,
    MCA,
    SCC,
    SCSA,
    SE,
    AttentionResidualBlock,
    AttResBlock,
    ChannelAttention,
    ChannelAttentionBlock,
    CompetitiveAttention,
    EffectiveSE,
    FrequencyChannelAttention,
    GatedChannelTransformation,
    GatherExcite,
    GlobalContext,
    MultiKernelECA,
    SimAM,
    SpatialAttention,
    SpatialGate,
    SpatialGroupEnhance,
    StyleRecalibration,
    TripletAttention,
)


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


def rounded(channels: float, divisor: int = 8) -> int:
    """Returns timm's width of a bottleneck: to the nearest multiple, at least one."""
    return max(divisor, int(channels + divisor / 2) // divisor * divisor)


def make_cpca(config: dict[str, Any]) -> nn.Module:
    if "in_channels" in config:  # CPCANet's
        return CPCA(config.get("channelAttention_reduce", 4))
    return CPCA(config.get("reduction", 16))


def make_fca(config: dict[str, Any]) -> nn.Module:
    return FrequencyChannelAttention(
        config.get("reduction", 16),
        config.get("freq_sel_method", "top16"),
        (config["dct_h"], config["dct_w"]),
    )


def make_gc(config: dict[str, Any]) -> nn.Module:
    if "channels" in config:
        return make_gc_timm(config)
    return GlobalContext(
        hidden=int(config["inplanes"] * config["ratio"]),
        pooling_type=config.get("pooling_type", "att"),
        fusion_types=tuple(config.get("fusion_types", ["channel_add"])),
    )


def make_gc_timm(config: dict[str, Any]) -> nn.Module:
    adds, scales = config.get("fuse_add", False), config.get("fuse_scale", True)
    return GlobalContext(
        hidden=timm_hidden(config, 1 / 8),
        pooling_type="att" if config.get("use_attn", True) else "avg",
        fusion_types=("channel_add",) * adds + ("channel_mul",) * scales,
        epsilon=1e-6,
    )


def make_gct(config: dict[str, Any]) -> nn.Module:
    keys = ("mode", "epsilon", "after_relu")
    return GatedChannelTransformation(**{k: config[k] for k in keys if k in config})


def make_ge(config: dict[str, Any]) -> nn.Module:
    if "kind" in config:
        return GatherExcite(config["kind"], reduction=config.get("reduction", 16))
    kind = {
        (False, False): "theta_minus",
        (False, True): "theta_minus_mlp",
        (True, False): "theta",
        (True, True): "theta_plus",
    }[config.get("extra_params", False), config.get("use_mlp", True)]
    return GatherExcite(
        kind, config.get("extent", 0), hidden=timm_hidden(config, 1 / 16)
    )


def timm_hidden(config: dict[str, Any], rd_ratio: float) -> int:
    """Returns the width of a bottleneck of timm's whose divisor is 1 by default."""
    return config.get("rd_channels") or rounded(
        config["channels"] * config.get("rd_ratio", rd_ratio),
        config.get("rd_divisor", 1),
    )


def make_se_timm(config: dict[str, Any]) -> nn.Module:
    hidden = config.get("rd_channels") or rounded(
        config["channels"] * config.get("rd_ratio", 1 / 16), config.get("rd_divisor", 8)
    )
    return SE(
        hidden=hidden,
        biases=config.get("bias", True),
        maximum=config.get("add_maxpool", False),
    )


# By words of a file's name, of which the most that fit are taken: of "se_timm" two, of
# "se_reduction8" one.
MAKERS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "cpca": make_cpca,
    "ese": lambda c: EffectiveSE(maximum=c.get("add_maxpool", False)),
    "fca": make_fca,
    "gc": make_gc,
    "gct": make_gct,
    "ge": make_ge,
    "mca": lambda c: MCA(c.get("no_spatial", False)),
    "se": lambda c: SE(c.get("reduction", 16)),
    "se_conv_bn": lambda c: SE(c.get("reduction", 16), norm=True),
    "se_timm": make_se_timm,
    "sge": lambda c: SpatialGroupEnhance(c.get("groups", 64)),
    "simam": lambda c: SimAM(c.get("e_lambda", 1e-4)),
    "srm": lambda c: StyleRecalibration(),  # noqa: ARG005
    "triplet": lambda c: TripletAttention(c.get("no_spatial", False)),
}

# By class: a block that takes maps `[2, 5, 7, 32]`, and gives the same shape.
BLOCKS: dict[str, nn.Module] = {
    "AttResBlock": AttResBlock(32),
    "AttentionResidualBlock": AttentionResidualBlock(32),
    "CBAM": CBAM(),
    "CPCA": CPCA(),
    "ChannelAttention": ChannelAttention(),
    "ChannelAttentionBlock": ChannelAttentionBlock(32),
    "CompetitiveAttention": CompetitiveAttention(),
    "EffectiveSE": EffectiveSE(),
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
    "SimAM": SimAM(),
    "SpatialAttention": SpatialAttention(),
    "SpatialGate": SpatialGate(),
    "SpatialGroupEnhance": SpatialGroupEnhance(8),
    "StyleRecalibration": StyleRecalibration(),
    "TripletAttention": TripletAttention(),
}
