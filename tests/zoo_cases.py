"""The zoo's blocks: from the arguments of their authors' constructors, and tiny ones.

Each block has its lines in both tables, which are in alphabetical order.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

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
    ChannelSelfAttention,
    CompetitiveAttention,
    CondConv,
    CoordinateAttention,
    DualAttention,
    EffectiveSE,
    EfficientMultiscaleAttention,
    FrequencyChannelAttention,
    GatedChannelTransformation,
    GatherExcite,
    GlobalContext,
    LargeSelectiveKernel,
    MixedPooling,
    MultiKernelECA,
    NonLocal,
    PositionAttention,
    ReconstructionConv,
    SelectiveKernel,
    SelfCalibratedConv,
    ShuffleAttention,
    SimAM,
    SpatialAttention,
    SpatialGate,
    SpatialGroupEnhance,
    SplitAttention,
    StripPooling,
    StyleRecalibration,
    TripletAttention,
)
from jaxattn.attention.eca import adaptive_kernel_size
from jaxattn.ops import BatchNorm, Conv


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


def timm_width(config: dict[str, Any], divisor: int = 8, least: float = 0) -> int:
    """Returns a bottleneck's width: to the nearest multiple, and at least one.

    If that is less than a share `least` of what is wanted, it is one more.
    """
    if config.get("rd_channels"):
        return config["rd_channels"]
    divisor = config.get("rd_divisor", divisor)
    width = config["channels"] * config.get("rd_ratio", 1 / 16)
    width *= config.get("se_factor", 1)
    multiple = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return multiple + divisor if multiple < least * width else multiple


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


def condconv(config: dict[str, Any]) -> nn.Module:
    return CondConv(
        **of_convolution(config, "out_channels", padding=""),
        num_experts=config.get("num_experts", 4),
        use_bias=config.get("bias", False),
    )


def mpm(config: dict[str, Any]) -> nn.Module:
    return MixedPooling(tuple(config["pool_size"]))


def non_local(config: dict[str, Any]) -> nn.Module:
    return NonLocal(
        config.get("inter_channels"),
        sub_sample=config.get("sub_sample", True),
        norm=config.get("bn_layer", True),
    )


def non_local_timm(config: dict[str, Any]) -> nn.Module:
    config = {"rd_ratio": 1 / 8, "channels": config["in_channels"], **config}
    hidden = timm_width(config, least=0.9)
    use_scale = config.get("use_scale", True)
    return NonLocal(hidden, sub_sample=False, use_scale=use_scale)


def sc_scconv(config: dict[str, Any]) -> nn.Module:
    return ReconstructionConv(
        num_groups=config.get("group_num", 4),
        gate_threshold=config.get("gate_threshold", 0.5),
        alpha=config.get("alpha", 0.5),
        squeeze_ratio=config.get("squeeze_ratio", 2),
        groups=config.get("groups", 2),
        stride=config.get("stride", 1),
    )


def sk(config: dict[str, Any]) -> nn.Module:
    return SelectiveKernel(
        config["out_chans"],
        num_branches=config.get("num", 2),
        kernel_size=config.get("kernel_size", 3),
        stride=config.get("stride", 1),
        groups=config.get("groups", 1),
        reduction=config.get("reduction", 16),
    )


def sk_timm(config: dict[str, Any]) -> nn.Module:
    features = config.get("out_channels") or config["in_channels"]
    hidden = timm_width({"channels": features, **config}, least=0.9)
    sizes = config.get("kernel_size") or [3, 5]
    sizes = sizes if isinstance(sizes, list) else [sizes] * 2
    dilation = config.get("dilation", 1)
    if config.get("keep_3x3", True):
        dilations = [dilation * (k - 1) // 2 for k in sizes]
        sizes = [3] * len(sizes)
    else:
        dilations = [dilation] * len(sizes)
    return SelectiveKernel(
        features,
        num_branches=len(sizes),
        kernel_size=tuple(sizes),
        stride=config.get("stride", 1),
        dilation=tuple(dilations),
        groups=min(config.get("groups", 1), features),
        reduction=features,  # `hidden` is larger than the quotient of 1
        min_hidden=hidden,
        split_input=config.get("split_input", True),
    )


def scnet(config: dict[str, Any]) -> nn.Module:
    return SelfCalibratedConv(
        **of_convolution(config, "planes"), pool_size=config.get("pooling_r", 4)
    )


def split_attention(config: dict[str, Any]) -> nn.Module:
    return SplitAttention(
        **of_convolution(config, "channels"),
        radix=config.get("radix", 2),
        reduction=config.get("reduction_factor", 4),
        use_bias=config.get("bias", True),
    )


def of_convolution(
    config: dict[str, Any], features: str, padding: Any = 0
) -> dict[str, Any]:
    """Returns the keywords of what replaces a convolution that keeps a map's size."""
    keys = {"kernel_size": 3, "stride": 1, "dilation": 1, "groups": 1}
    kwargs = {key: config.get(key, default) for key, default in keys.items()}
    kwargs = {
        key: value[0] if isinstance(value, list) else value
        for key, value in kwargs.items()
    }
    kept = kwargs["dilation"] * (kwargs["kernel_size"] // 2)
    assert config.get("padding", padding) in ("", kept, [kept, kept])
    return {"features": config[features], **kwargs}


class StripGate(StripPooling):
    """The gate that SPBlock returns."""

    features: int = 0

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        return self.gate(x, self.features, train=train)


class SKStarBottleneck(nn.Module):
    """The bottleneck of PytorchInsight's SK*, of which the shortcut is the identity."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        y = Conv(self.width, 1, name="conv1")(x)
        y = BatchNorm(name="bn1")(y, train=train, activation="relu")
        sk = SelectiveKernel(self.width, dilation=(1, 1), groups=(1, 32), name="conv2")
        y = Conv(4 * self.width, 1, name="conv3")(sk(y, train=train))
        norm = BatchNorm(name="bn3")
        return norm(y, train=train, residual=x, activation="relu")


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
    "condconv": condconv,
    "cpca": cpca,
    "da": lambda _: DualAttention(),
    "danet_channel": lambda _: ChannelSelfAttention(),
    "danet_position": lambda _: PositionAttention(),
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
    "lsk": lambda _: LargeSelectiveKernel(),
    "mca": lambda c: MCA(c.get("no_spatial", False)),
    "nonlocal": non_local,
    "nonlocal_timm": non_local_timm,
    "sa": lambda c: ShuffleAttention(c.get("groups", 64)),
    "sa_scsa": lambda c: ShuffleAttention(c.get("group_num", 64)),
    "sc_scconv": sc_scconv,
    "scnet": scnet,
    "se": lambda c: SE(c.get("reduction", 16)),
    "se_conv": lambda c: SE(c.get("reduction", 16), norm=True),
    "se_timm": se_timm,
    "sge": lambda c: SpatialGroupEnhance(c.get("groups", 64)),
    "simam": lambda c: SimAM(c.get("e_lambda", 1e-4)),
    "sk": sk,
    "sk_star": lambda c: SKStarBottleneck(c["planes"]),
    "sk_timm": sk_timm,
    "split_attention": split_attention,
    "srm": lambda c: StyleRecalibration(),  # noqa: ARG005
    "strip_pool_mpm": mpm,
    "strip_pool_sp": lambda c: StripGate(features=c["outplanes"]),
    "triplet": lambda c: TripletAttention(c.get("no_spatial", False)),
}

# By class: a block that takes maps `[2, 5, 7, 32]`, and gives the same shape.
BLOCKS: dict[str, nn.Module] = {
    "AttResBlock": AttResBlock(32),
    "AttentionResidualBlock": AttentionResidualBlock(32),
    "BAM": BAM(4),
    "CBAM": CBAM(),
    "CPCA": CPCA(),
    "ChannelAttention": ChannelAttention(),
    "ChannelAttentionBlock": ChannelAttentionBlock(32),
    "ChannelSelfAttention": ChannelSelfAttention(),
    "CompetitiveAttention": CompetitiveAttention(),
    "CondConv": CondConv(),
    "CoordinateAttention": CoordinateAttention(),
    "DualAttention": DualAttention(),
    "ECA": ECA(),
    "ELA": ELA(),
    "EffectiveSE": EffectiveSE(),
    "EfficientMultiscaleAttention": EfficientMultiscaleAttention(8),
    "FrequencyChannelAttention": FrequencyChannelAttention(4),
    "GatedChannelTransformation": GatedChannelTransformation(),
    # Of all positions it takes maps of one size.
    "GatherExcite": GatherExcite("theta_plus", extent=4, reduction=4),
    "GlobalContext": GlobalContext(4, fusion_types=("channel_add", "channel_mul")),
    "LargeSelectiveKernel": LargeSelectiveKernel(),
    "MCA": MCA(),
    "MixedPooling": MixedPooling((3, 2)),
    "MultiKernelECA": MultiKernelECA(),
    "NonLocal": NonLocal(),
    "PositionAttention": PositionAttention(),
    "ReconstructionConv": ReconstructionConv(),
    "SCC": SCC(32),
    "SCSA": SCSA(window_size=2),
    "SE": SE(),
    "SelectiveKernel": SelectiveKernel(reduction=4),
    "SelfCalibratedConv": SelfCalibratedConv(),
    "ShuffleAttention": ShuffleAttention(4),
    "SimAM": SimAM(),
    "SpatialAttention": SpatialAttention(),
    "SpatialGate": SpatialGate(),
    "SpatialGroupEnhance": SpatialGroupEnhance(8),
    "SplitAttention": SplitAttention(),
    "StripPooling": StripPooling(),
    "StyleRecalibration": StyleRecalibration(),
    "TripletAttention": TripletAttention(),
}
