"""MobileNetV2, with an attention module in every block if wanted.

Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear
Bottlenecks", CVPR 2018. https://arxiv.org/abs/1801.04381
Parameter names are torchvision's.
Reference code read, for SCSA's place: HZAI-ZJNU/SCSA, in mmpretrain/models/backbones
mobilenet_v2_scsa.py (numbers compared in tests/test_scsa.py)

Notation: N batch, H, W spatial, C channels.
Initialisation: convolutions Kaiming normal (fan out), classifier normal with deviation
0.01, as in both codes. With the stem "cifar" and without SCSA, the stem's convolution
and the classifier have torch's default, as layers that replace torchvision's do.
Deviations from SCSA's code:
  - its module is `attn` beside the block's sequence `conv`, whose names stay
    torchvision's, instead of an entry of it;
  - its window is 2 with the stem "cifar", which has no counterpart there (7 with
    "imagenet"): the side of the last map of a 32-pixel image.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from jaxattn.errors import choose
from jaxattn.models.heads.classification import classify
from jaxattn.models.slots import AttentionFactory, Slot, make_slot
from jaxattn.models.stems import STEMS
from jaxattn.ops.conv import Conv
from jaxattn.ops.init import kaiming_normal
from jaxattn.ops.inputs import as_feature_map
from jaxattn.ops.norm import BatchNorm

# Of every group of blocks: expansion, output channels, blocks, stride of the first.
_GROUPS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM_WIDTH, _LAST_WIDTH = 32, 1280
# Of the last map, at the size of images that a stem is for.
_LAST_SIDE = {"imagenet": 7, "cifar": 2}


def round_width(width: float) -> int:
    """Returns the multiple of 8 nearest to `width`, not below 8 nor 90 % of it."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


class ConvNorm(nn.Module):
    """A convolution, its normalisation and a ReLU6.

    Attributes:
        features: Output channels.
        kernel_size: Side of the kernel, odd.
        stride: Step along H and W.
        groups: Groups of channels that do not see each other.
        kernel_init: Initialiser of the kernel.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    groups: int = 1
    kernel_init: Initializer = kaiming_normal
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the three to `x` `[N, H, W, C]`; train selects batch statistics."""
        conv = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            padding=self.kernel_size // 2,
            groups=self.groups,
            kernel_init=self.kernel_init,
            name="0",
        )
        norm = BatchNorm(axis_name=self.axis_name, name="1")
        return norm(conv(x), train=train, activation="relu6")


class InvertedResidual(nn.Module):
    """Widens, convolves every channel by itself and narrows to few channels again.

    out = bn(conv1x1(relu6(bn(depthwise3x3(relu6(bn(conv1x1(x)))))))) [+ x]

    The sum is there where stride and channels allow, the first convolution where
    `expand_ratio` is above 1.

    Attributes:
        features: Output channels.
        stride: Step of the block along H and W.
        expand_ratio: Channels in between, in units of the input's.
        slot: The block's attention module, and where it sits.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    features: int
    stride: int = 1
    expand_ratio: int = 6
    slot: Slot = Slot()
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the block.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Selects batch statistics in BatchNorm, and dropout in the attention.

        Returns:
            `[N, ceil(H / stride), ceil(W / stride), features]`, the dtype of `x`.
        """
        y, hidden, axis_name = x, x.shape[-1] * self.expand_ratio, self.axis_name
        i = 0  # place in the sequence `conv`
        if self.expand_ratio > 1:
            y = ConvNorm(hidden, axis_name=axis_name, name="conv.0")(y, train=train)
            i = 1
        depthwise = ConvNorm(
            hidden, 3, self.stride, hidden, axis_name=axis_name, name=f"conv.{i}"
        )
        y = self.slot.attend(depthwise(y, train=train), "inside", train=train)
        project = Conv(
            self.features, 1, kernel_init=kaiming_normal, name=f"conv.{i + 1}"
        )
        norm = BatchNorm(axis_name=axis_name, name=f"conv.{i + 2}")
        residual = x if (self.stride, self.features) == (1, x.shape[-1]) else None
        if not self.slot.is_at("after"):
            return norm(project(y), train=train, residual=residual)
        y = self.slot.attend(norm(project(y), train=train), "after", train=train)
        return y if residual is None else y + residual


class MobileNetV2(nn.Module):
    """MobileNetV2.

    Attributes:
        num_classes: Number of logits.
        width_multiplier: Factor of every width but the last, which it only widens.
        stem: "imagenet", of stride 2; or "cifar", of stride 1, for images of about 32
            pixels.
        attention: Module in every block: "scsa", after the depthwise convolution's
            ReLU6; "cbam" or "eca" (multi-kernel), before the sum, as is the module of
            a factory: a callable that takes `name=`, such as a module class, whose
            module is called with `train=`; or a `jaxattn.models.Slot`, which says the
            place.
        attention_kwargs: Keywords of the attention module, or of the factory.
        dropout_rate: Share of the pooled features that training sets to 0, by the rng
            stream "dropout".
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    num_classes: int = 10
    width_multiplier: float = 1.0
    stem: str = "imagenet"
    attention: str | Slot | AttentionFactory | None = None
    attention_kwargs: Mapping[str, Any] | None = None
    dropout_rate: float = 0.2
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, return_features: bool = False
    ) -> jax.Array | tuple[jax.Array, ...]:
        """Classifies images.

        Args:
            x: Normalised images `[N, H, W, C]`, of any size; SCSA needs every block's
                map to be as large as its window (193 pixels, or 17 with the stem
                "cifar", unless `attention_kwargs` has a smaller `window_size`).
            train: Selects batch statistics in BatchNorm, and dropout.
            return_features: Returns the stages' maps instead, and needs no parameters
                of the last convolution and the head.

        Returns:
            float32 logits `[N, num_classes]`; or, if `return_features`, four maps
            `[N, H', W', C']` in `dtype`, the last of each stride 4, 8, 16, 32 (with
            the stem "cifar" 2, 4, 8, 16).

        Raises:
            ValueError: If `stem` or `attention` is unknown, or the attention module
                refuses its input.
        """
        choose("stem", self.stem, STEMS)
        x = as_feature_map(self, x)
        window = _LAST_SIDE[self.stem]
        slot = make_slot(self.attention, self.attention_kwargs, window_size=window)
        maps = self._stages(self._stem(x, slot, train), slot, train)
        if return_features:
            return maps
        width = round_width(_LAST_WIDTH * max(1.0, self.width_multiplier))
        name = f"features.{1 + sum(group[2] for group in _GROUPS)}"
        last = ConvNorm(width, axis_name=self.axis_name, name=name)
        return classify(
            self,
            last(maps[-1], train=train),
            self.num_classes,
            name="classifier.1",
            dropout_rate=self.dropout_rate,
            small_init=self.stem == "imagenet" or slot.small_head_init,
            train=train,
        )

    def _stem(self, x: jax.Array, slot: Slot, train: bool) -> jax.Array:
        init = slot.cifar_stem_init if self.stem == "cifar" else kaiming_normal
        stem = ConvNorm(
            round_width(_STEM_WIDTH * self.width_multiplier),
            3,
            STEMS[self.stem].stride,
            kernel_init=init,
            axis_name=self.axis_name,
            name="features.0",
        )
        return stem(x, train=train)

    def _stages(self, x: jax.Array, slot: Slot, train: bool) -> tuple[jax.Array, ...]:
        """Returns the last map of each stride, without that of the first blocks."""
        index, maps = 1, []
        for ratio, width, size, stride in _GROUPS:
            if stride == 2:
                maps.append(x)
            for j in range(size):
                x = InvertedResidual(
                    round_width(width * self.width_multiplier),
                    stride if j == 0 else 1,
                    ratio,
                    slot=slot,
                    axis_name=self.axis_name,
                    name=f"features.{index}",
                )(x, train=train)
                index += 1
        return (*maps[1:], x)
