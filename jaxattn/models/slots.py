"""Where an attention module sits in a network, and what comes with it.

A network (`jaxattn.models.attention_network`) has one `Slot` a stage, and hands them to
its blocks, which ask them at every place: neither names an attention. A new block is
one entry of `_SLOTS`; a new place is one of `PLACES`, and a line in the blocks that
have it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from jaxattn.attention.bam import BAM
from jaxattn.attention.canet import MultiKernelECA
from jaxattn.attention.cbam import CBAM
from jaxattn.attention.cond_conv import CondConv
from jaxattn.attention.coordinate import CoordinateAttention
from jaxattn.attention.cpca import CPCA
from jaxattn.attention.dual_attention import DualAttention
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
from jaxattn.attention.scsa import SCSA
from jaxattn.attention.se import SE, EffectiveSE
from jaxattn.attention.selective_kernel import SelectiveKernel
from jaxattn.attention.self_calibrated_conv import SelfCalibratedConv
from jaxattn.attention.sge import SpatialGroupEnhance
from jaxattn.attention.shuffle import ShuffleAttention
from jaxattn.attention.simam import SimAM
from jaxattn.attention.split_attention import SplitAttention
from jaxattn.attention.srm import StyleRecalibration
from jaxattn.attention.strip_pooling import StripPooling
from jaxattn.attention.triplet import TripletAttention
from jaxattn.errors import UserError, choose, require, suggest
from jaxattn.ops.init import kaiming_normal, torch_kernel

PLACES = ("inside", "after", "before_norm", "before_convs", "replace", "stage")

INITS = ("identity",)

# Called with `name=`, and its slot's `hints`; returns an attention module.
AttentionFactory = Callable[..., nn.Module]


class ResidualScale(nn.Module):
    """A share of a module's change, learnt, 0 at the start: x + gamma (y - x).

    So starts ReZero (Bachlechner and others, UAI 2021, https://arxiv.org/abs/2003.04887)
    a branch, here the one that turns x into y. It does so for any module, whereas no
    choice of its own weights opens a gate such as SE's.
    """

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Returns the mixture of two maps of the same shape, in their dtype."""
        gamma = self.param("gamma", nn.initializers.zeros, (1,), jnp.float32)
        return x + gamma.astype(x.dtype)[0] * (y - x)


@dataclasses.dataclass(frozen=True)
class Slot:
    """An attention module's place in a network.

    Networks take one as `attention=`, too: `Slot(MyBlock, "inside")`. The place is

    - "inside" every block, behind its 3x3 convolution (of a basic block the first one),
      normalisation and activation;
    - "after" its last normalisation, before the residual sum (in ShuffleNetV2, at the
      end of the branch);
    - "before_norm": between its 3x3 convolution (of a basic block the last one) and the
      normalisation;
    - "before_convs": before every convolution, a module each, those of stem, shortcut
      and head included;
    - "replace": instead of the 3x3 convolution (of a basic block the last one);
    - "stage": once a stage, behind its last block.

    Attributes:
        factory: Called with `name=`, returns the module of one place, which is called
            as `module(x, train=train)`; None is a network without attention.
        place: One of `PLACES`.
        stages: The stages that have the module, unless `attention_stages` says others;
            counted from 1, from the last by -1. 0 is what comes before the first stage:
            the stem, and MobileNetV2's first block. None is all.
        by_stage: Keywords of the factory of which `attention_kwargs` may have a tuple
            of values, one a stage, instead of one.
        hints: Keywords of the factory that the network sets, unless `attention_kwargs`
            does. Any of "window_size", the side of the last map of an image of the
            stem's usual size; "dct_size", height and width of the stage's maps of such
            an image; and of the convolution that a module replaces, "features",
            "stride", "groups" and "dilation".
        by_channels: Keywords of the factory that follow the channels of the map, unless
            `attention_kwargs` sets them: pairs of a keyword and a function of their
            number. So authors' groups are fewer where they do not divide the channels.
        normalizes: At "replace", the module ends with a normalisation of its own:
            bottlenecks, MobileNetV2 and ShuffleNetV2 leave out theirs.
        cifar_stem_init: Initialiser of the kernel of the stem "cifar"; by default
            torch's, as of a layer that replaces torchvision's.
        zero_init: Starts the scale of a residual block's last normalisation at 0, so
            that the block starts as its shortcut.
        small_head_init: Starts the last layer's kernel normal with deviation 0.01 and
            its bias at 0, also where torchvision's would have torch's default.
        init: "identity" puts a `ResidualScale` behind the module, so that the network
            starts as the one without attention; None starts it as its authors do.

    Raises:
        UserError: If `place` or `init` is unknown, or a module that replaces a
            convolution is to start as the identity.
    """

    factory: AttentionFactory | None = None
    place: str = "after"
    stages: tuple[int, ...] | None = None
    by_stage: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    by_channels: tuple[tuple[str, Callable[[int], Any]], ...] = ()
    normalizes: bool = False
    cifar_stem_init: Initializer = torch_kernel
    zero_init: bool = False
    small_head_init: bool = False
    init: str | None = None

    def __post_init__(self) -> None:
        choose("place", self.place, PLACES)
        if self.init is not None:
            choose("attention_init", self.init, INITS)
            holds = self.place != "replace"
            wanted = "None for a module that replaces a convolution"
            require("attention_init", self.init, holds, wanted)

    def is_at(self, place: str) -> bool:
        """Whether there is a module at a place, one of `PLACES`."""
        return self.factory is not None and place == self.place

    def attend(
        self, x: jax.Array, place: str, *, train: bool, name: str = "attn"
    ) -> jax.Array:
        """Applies the module; call it in a block's `__call__`.

        Args:
            x: Feature map `[N, H, W, C]` at a place of the block.
            place: That place, one of `PLACES`.
            train: Passed to the module.
            name: Of the module in the parameter tree.

        Returns:
            What the module makes of the map, or the map where its place is another.
        """
        if not self.is_at(place):
            return x
        module = self._make(name, features=x.shape[-1], stride=1, groups=1)
        y = module(x, train=train)
        if self.init is None:
            return y
        return ResidualScale(name=f"{name}_scale")(x, y)

    def convolve(
        self,
        x: jax.Array,
        features: int,
        stride: int,
        *,
        groups: int = 1,
        dilation: int = 1,
        train: bool,
        name: str,
    ) -> jax.Array:
        """Applies the module whose place is "replace"; call it in a block's `__call__`.

        Args:
            x: Feature map `[N, H, W, C]`.
            features: Output channels of the convolution that it replaces.
            stride: Step of that convolution along H and W.
            groups: Of that convolution.
            dilation: Of that convolution.
            train: Passed to the module.
            name: Of the convolution, which the module takes over.

        Returns:
            `[N, ceil(H / stride), ceil(W / stride), features]`.

        Raises:
            UserError: If the module makes another shape, or cannot be dilated.
        """
        known = {"features": features, "stride": stride, "groups": groups}
        if dilation > 1 and "dilation" not in self.hints:
            raise UserError(
                "output_stride: dilates a convolution in whose place the attention is,"
                " which takes no dilation; one of your own is told it by Slot.hints"
            )
        module = self._make(name, **known, dilation=dilation)
        y = module(x, train=train)
        N, H, W, _ = x.shape
        if y.shape != (N, -(-H // stride), -(-W // stride), features):
            raise UserError(
                f"attention_place='replace': {type(module).__name__} makes"
                f" {list(y.shape[1:])} of {list(x.shape[1:])}, must be of stride"
                f" {stride} and have {features} channels as the convolution"
            )
        return y

    def _make(self, name: str, **known: Any) -> nn.Module:
        assert self.factory is not None
        hints = {key: known[key] for key in self.hints if key in known}
        hints |= {key: of(known["features"]) for key, of in self.by_channels}
        return self.factory(name=name, **hints)


def _divisor(most: int, share: int = 1) -> Callable[[int], int]:
    """Returns what gives the most groups, up to a number, of a share of C channels."""
    return lambda channels: math.gcd(most, channels // share)


# What a module is told of the convolution that it replaces.
_CONVOLUTION = ("features", "stride", "groups", "dilation")
# Every block where its authors have it; where they say nothing of the kind, "after".
_SLOTS = {
    "bam": Slot(BAM, "stage", stages=(1, 2, 3)),
    "ca": Slot(CoordinateAttention),
    "cbam": Slot(CBAM),
    "cond_conv": Slot(CondConv, "replace", hints=_CONVOLUTION),
    "cpca": Slot(CPCA),
    "da": Slot(DualAttention, "stage", stages=(-1,)),
    "eca": Slot(ECA, by_stage=("kernel_size",)),
    "ela": Slot(ELA, by_channels=(("norm_groups", _divisor(16)),)),
    "ema": Slot(EfficientMultiscaleAttention, by_channels=(("groups", _divisor(32)),)),
    "ese": Slot(EffectiveSE),
    "fca": Slot(
        FrequencyChannelAttention,
        hints=("dct_size",),
        by_channels=(("freq_sel_method", lambda C: f"top{math.gcd(16, C)}"),),
    ),
    "gc": Slot(GlobalContext),
    "gct": Slot(GatedChannelTransformation, "before_convs"),
    "ge": Slot(GatherExcite),
    "lsk": Slot(LargeSelectiveKernel),
    "mca": Slot(MCA),
    "multi_kernel_eca": Slot(MultiKernelECA),
    "non_local": Slot(NonLocal, "stage", stages=(2, 3)),
    # Each group has two halves.
    "sa": Slot(ShuffleAttention, by_channels=(("groups", _divisor(64, 2)),)),
    "scconv": Slot(
        ReconstructionConv, "replace", hints=("features", "stride", "dilation")
    ),
    "scnet": Slot(
        SelfCalibratedConv,
        "replace",
        hints=_CONVOLUTION,
        normalizes=True,
    ),
    # All that its code starts otherwise than torchvision: see jaxattn.models.resnet.
    "scsa": Slot(
        functools.partial(
            SCSA, kernel_init=kaiming_normal, bias_init=nn.initializers.zeros
        ),
        place="inside",
        hints=("window_size",),
        cifar_stem_init=kaiming_normal,
        zero_init=True,
        small_head_init=True,
    ),
    "se": Slot(SE),
    "sge": Slot(SpatialGroupEnhance, by_channels=(("groups", _divisor(64)),)),
    "simam": Slot(SimAM, "before_norm"),
    "sk": Slot(
        SelectiveKernel,
        "replace",
        hints=_CONVOLUTION,
        normalizes=True,
    ),
    "sp": Slot(StripPooling, "inside"),
    "split": Slot(
        SplitAttention,
        "replace",
        hints=("features", "stride", "dilation"),
        normalizes=True,
    ),
    "srm": Slot(StyleRecalibration),
    "triplet": Slot(TripletAttention),
}
# Where authors put theirs otherwise in a network, by the network's class.
_SLOTS_OF = {
    # On the channels that a block widens its input to, if it does.
    ("ca", "MobileNetV2"): Slot(CoordinateAttention, "inside", stages=(1, 2, 3, 4)),
}


def list_attention() -> list[str]:
    """Returns the names that networks take as `attention=`, sorted."""
    return sorted(_SLOTS)


def find_slot(
    attention: str | Slot | AttentionFactory | None, network: str = ""
) -> Slot:
    """Returns the slot that a value of `attention=` stands for.

    Args:
        attention: See `jaxattn.models.AttentionNetwork`.
        network: Name of the network's class, in which authors may have another place.

    Raises:
        UserError: If the name is unknown, or if `attention` is a module instead of what
            makes one.
    """
    if attention is None:
        return Slot()
    if isinstance(attention, Slot):
        return attention
    if isinstance(attention, str):
        choose("attention", attention, _SLOTS)
        return _SLOTS_OF.get((attention, network), _SLOTS[attention])
    if isinstance(attention, nn.Module) or not callable(attention):
        choices = suggest(attention, _SLOTS)
        raise UserError(f"attention={attention!r}: {choices}, or a module factory")
    return Slot(attention)
