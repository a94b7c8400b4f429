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

from collections.abc import Iterator

import flax.linen as nn
import jax
from jax.nn.initializers import Initializer

from jaxattn.errors import choose
from jaxattn.models.attention_network import AttentionNetwork
from jaxattn.models.heads.classification import classify
from jaxattn.models.slots import Slot
from jaxattn.models.stems import STEMS, dilate
from jaxattn.ops.conv import Conv
from jaxattn.ops.init import kaiming_normal
from jaxattn.ops.norm import BatchNorm
from jaxattn.ops.stochastic_depth import depth_rates, drop_path

# Of every stage its groups of blocks: expansion, output channels, blocks, stride of the
# first. The first group comes before the stages: its map is not returned.
_STAGES = (
    ((1, 16, 1, 1),),
    ((6, 24, 2, 2),),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)
_NUM_BLOCKS = sum(size for stage in _STAGES for _, _, size, _ in stage)
_STEM_WIDTH, _LAST_WIDTH = 32, 1280
# Of the first stage's map, at the size of images that a stem is for.
_FIRST_SIDE = {"imagenet": 56, "cifar": 16}


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
        dilation: Distance between the taps of the kernel.
        kernel_init: Initialiser of the kernel.
        slot: An attention module at one of the places around the convolution; in place
            of it, or between it and its normalisation, where it is depthwise.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    kernel_init: Initializer = kaiming_normal
    slot: Slot = Slot()
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the three to `x` `[N, H, W, C]`; train selects batch statistics."""
        x = self.slot.attend(x, "before_convs", train=train)
        replaced = self.groups > 1 and self.slot.is_at("replace")
        x = self._replaced(x, train) if replaced else self._conv(x)
        if replaced and self.slot.normalizes:
            return nn.relu6(x)
        if self.groups > 1:
            x = self.slot.attend(x, "before_norm", train=train)
        norm = BatchNorm(axis_name=self.axis_name, name="1")
        return norm(x, train=train, activation="relu6")

    def _conv(self, x: jax.Array) -> jax.Array:
        conv = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            padding=self.dilation * (self.kernel_size // 2),
            dilation=self.dilation,
            groups=self.groups,
            kernel_init=self.kernel_init,
            name="0",
        )
        return conv(x)

    def _replaced(self, x: jax.Array, train: bool) -> jax.Array:
        return self.slot.convolve(
            x,
            self.features,
            self.stride,
            groups=self.groups,
            dilation=self.dilation,
            train=train,
            name="0",
        )


class InvertedResidual(nn.Module):
    """Widens, convolves every channel by itself and narrows to few channels again.

    out = bn(conv1x1(relu6(bn(depthwise3x3(relu6(bn(conv1x1(x)))))))) [+ x]

    The sum is there where stride and channels allow, the first convolution where
    `expand_ratio` is above 1.

    Attributes:
        features: Output channels.
        stride: Step of the block along H and W.
        expand_ratio: Channels in between, in units of the input's.
        dilation: Distance between the taps of the depthwise convolution.
        slot: The block's attention module, and where it sits.
        drop_path_rate: Share of the images whose branch training leaves out, where
            there is a sum.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    features: int
    stride: int = 1
    expand_ratio: int = 6
    dilation: int = 1
    slot: Slot = Slot()
    drop_path_rate: float = 0.0
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
        y, hidden = x, x.shape[-1] * self.expand_ratio
        slot, axis_name = self.slot, self.axis_name
        i = 0  # place in the sequence `conv`
        if self.expand_ratio > 1:
            widen = ConvNorm(hidden, slot=slot, axis_name=axis_name, name="conv.0")
            y = widen(y, train=train)
            i = 1
        depthwise = ConvNorm(
            hidden,
            3,
            self.stride,
            hidden,
            self.dilation,
            slot=slot,
            axis_name=axis_name,
            name=f"conv.{i}",
        )
        y = slot.attend(depthwise(y, train=train), "inside", train=train)
        name = f"conv.{i + 1}"
        y = slot.attend(y, "before_convs", train=train, name=f"{name}.attn")
        project = Conv(self.features, 1, kernel_init=kaiming_normal, name=name)
        norm = BatchNorm(axis_name=axis_name, name=f"conv.{i + 2}")
        residual = x if (self.stride, self.features) == (1, x.shape[-1]) else None
        if not (slot.is_at("after") or self.drop_path_rate):
            return norm(project(y), train=train, residual=residual)
        y = slot.attend(norm(project(y), train=train), "after", train=train)
        if residual is None:
            return y
        return drop_path(y, self.drop_path_rate, train=train) + residual


class MobileNetV2(AttentionNetwork):
    """MobileNetV2, for images of any size.

    Its maps are the last of each stride 4, 8, 16, 32 (with the stem "cifar" 2, 4, 8,
    16). SCSA needs every block's map to be as large as its window (images of 193
    pixels, or 17 with the stem "cifar", unless `attention_kwargs` has a smaller
    `window_size`).

    Attributes:
        num_classes: Number of logits; 0: the pooled features are returned.
        width_multiplier: Factor of every width but the last, which it only widens.
        stem: "imagenet", of stride 2; or "cifar", of stride 1, for images of about 32
            pixels.
        output_stride: The most that the last map's stride may be, 8, 16 or 32: stages
            that would exceed it are dilated instead, from their first block on, as
            mmseg's.
        dropout_rate: Share of the pooled features that training sets to 0, by the rng
            stream "dropout".
        drop_path_rate: Share of the images whose last residual branch training leaves
            out; 0 of the first branch, and rising evenly (rng stream "dropout").
    """

    num_classes: int = 10
    width_multiplier: float = 1.0
    stem: str = "imagenet"
    output_stride: int = 32
    dropout_rate: float = 0.2
    drop_path_rate: float = 0.0

    @nn.nowrap
    def _stages(self, x: jax.Array, train: bool) -> Iterator[jax.Array]:
        choose("stem", self.stem, STEMS)
        slots = self._slots(_FIRST_SIDE[self.stem])
        x = self._stem(x, slots[0], train)
        rates = depth_rates(self.drop_path_rate, _NUM_BLOCKS)
        strides = [stage[0][-1] for stage in _STAGES]
        steps = dilate(strides, STEMS[self.stem].stride, self.output_stride)
        index = 1
        for i, (groups, slot, step) in enumerate(
            zip(_STAGES, slots, steps, strict=True)
        ):
            for k, (ratio, width, size, _) in enumerate(groups):
                for j in range(size):
                    x = InvertedResidual(
                        round_width(width * self.width_multiplier),
                        step.stride if (k, j) == (0, 0) else 1,
                        ratio,
                        step.dilation,
                        slot=slot,
                        drop_path_rate=rates[index - 1],
                        axis_name=self.axis_name,
                        name=f"features.{index}",
                    )(x, train=train)
                    index += 1
            if i > 0:
                x = slot.attend(x, "stage", train=train, name=f"attn{i}")
                yield x

    def _head(self, x: jax.Array, train: bool) -> jax.Array:
        width = round_width(_LAST_WIDTH * max(1.0, self.width_multiplier))
        name = f"features.{1 + _NUM_BLOCKS}"
        slot = self._slots(_FIRST_SIDE[self.stem])[-1]
        last = ConvNorm(width, slot=slot, axis_name=self.axis_name, name=name)
        return classify(
            self,
            last(x, train=train),
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
            slot=slot,
            axis_name=self.axis_name,
            name="features.0",
        )
        return stem(x, train=train)
