"""The zoo's blocks: from the arguments of their authors' constructors, and tiny ones.

Each block has its lines in both tables, which are in alphabetical order.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from jaxattn.attention import (
    CBAM,
    SCC,
    SCSA,
    SE,
    AttentionResidualBlock,
    AttResBlock,
    ChannelAttention,
    ChannelAttentionBlock,
    CompetitiveAttention,
    EffectiveSE,
    MultiKernelECA,
    SpatialAttention,
    SpatialGate,
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
    "ese": lambda c: EffectiveSE(maximum=c.get("add_maxpool", False)),
    "se": lambda c: SE(c.get("reduction", 16)),
    "se_conv_bn": lambda c: SE(c.get("reduction", 16), norm=True),
    "se_timm": make_se_timm,
}

# By class: a block that takes maps `[2, 5, 7, 32]`, and gives the same shape.
BLOCKS: dict[str, nn.Module] = {
    "AttResBlock": AttResBlock(32),
    "AttentionResidualBlock": AttentionResidualBlock(32),
    "CBAM": CBAM(),
    "ChannelAttention": ChannelAttention(),
    "ChannelAttentionBlock": ChannelAttentionBlock(32),
    "CompetitiveAttention": CompetitiveAttention(),
    "EffectiveSE": EffectiveSE(),
    "MultiKernelECA": MultiKernelECA(),
    "SCC": SCC(32),
    "SCSA": SCSA(window_size=2),
    "SE": SE(),
    "SpatialAttention": SpatialAttention(),
    "SpatialGate": SpatialGate(),
}
