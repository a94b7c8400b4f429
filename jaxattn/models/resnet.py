"""Residual networks, with an attention module in every block if wanted.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.
https://arxiv.org/abs/1512.03385
Parameter names and the place of the stride (bottlenecks have it on their 3x3) are
torchvision's.
Reference code read, for SCSA's place: HZAI-ZJNU/SCSA,
mmpretrain/models/backbones/resnet_scsa.py (numbers compared in tests/test_scsa.py)

Dilated stages, where `output_stride` asks for them, are torchvision's and mmseg's: the
first block keeps the dilation of the stage before.

Notation: N batch, H, W spatial, C channels.
Initialisation, of which there are two:
  - without SCSA torchvision's: convolutions Kaiming normal (fan out), `fc` torch's
    default. The stem "cifar" has torch's default too, as a layer that replaces
    torchvision's does;
  - with SCSA its code's: every 2-D convolution Kaiming normal, those of SCSA included,
    `fc` normal with deviation 0.01, and the last normalisation of every block 0, so
    that a block starts as its shortcut.
Deviation from SCSA's code: its window is 4 with the stem "cifar", which has no
counterpart there (7 with "imagenet"): as many tokens in every stage.
"""

from collections.abc import Iterator, Sequence

import flax.linen as nn
import jax

from jaxattn.errors import choose
from jaxattn.models.attention_network import AttentionNetwork
from jaxattn.models.heads.classification import classify
from jaxattn.models.slots import Slot, find_slot
from jaxattn.models.stems import RESNET_STEMS, dilate
from jaxattn.ops.conv import Conv
from jaxattn.ops.init import kaiming_normal
from jaxattn.ops.norm import ACTIVATIONS, BatchNorm
from jaxattn.ops.pool import max_pool
from jaxattn.ops.stochastic_depth import depth_rates, drop_path

# Convolutions of the shortcuts that change the shape, and their kernel sizes.
DOWNSAMPLES = {"conv1": 1, "conv3": 3, "conv5": 5}

_NUM_STAGES = 4
# Of the first stage's map, at the size of images that a stem is for.
_FIRST_SIDE = {"imagenet": 56, "v1c": 56, "cifar": 32}


class ResidualBlock(nn.Module):
    """What both kinds of residual block share.

    Attributes:
        features: Output channels.
        stride: Step of the block along H and W.
        dilation: Distance between the taps of the 3x3 convolution that has the stride.
        slot: The block's attention module, where it sits and what it starts at 0.
        downsample: Convolution of a shortcut that changes the shape, of `DOWNSAMPLES`.
        activation: "relu" or "mish", wherever there is one.
        drop_path_rate: Share of the images whose branch training leaves out.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    features: int
    stride: int = 1
    dilation: int = 1
    slot: Slot = Slot()
    downsample: str = "conv1"
    activation: str = "relu"
    drop_path_rate: float = 0.0
    axis_name: str | None = None

    def _conv(
        self,
        x: jax.Array,
        features: int,
        size: int,
        stride: int,
        name: str,
        train: bool,
        dilation: int = 1,
    ) -> jax.Array:
        x = self.slot.attend(x, "before_convs", train=train, name=f"{name}.attn")
        conv = Conv(
            features,
            size,
            stride,
            padding=dilation * (size // 2),
            dilation=dilation,
            kernel_init=kaiming_normal,
            name=name,
        )
        return conv(x)

    def _main_conv(
        self,
        x: jax.Array,
        features: int,
        train: bool,
        *,
        stride: int = 1,
        dilation: int = 1,
    ) -> jax.Array:
        """The 3x3 convolution "conv2", or what is in its place."""
        if self.slot.is_at("replace"):
            return self.slot.convolve(
                x, features, stride, dilation=dilation, train=train, name="conv2"
            )
        x = self._conv(x, features, 3, stride, "conv2", train, dilation)
        return self.slot.attend(x, "before_norm", train=train)

    def _norm(self, name: str, zero_init: bool = False) -> BatchNorm:
        init = nn.initializers.zeros if zero_init else nn.initializers.ones
        return BatchNorm(scale_init=init, axis_name=self.axis_name, name=name)

    def _close(self, y: jax.Array, name: str, x: jax.Array, train: bool) -> jax.Array:
        """Returns relu(norm(y) + shortcut(x)), attention in between if it is there."""
        shortcut = self._shortcut(x, train)
        norm = self._norm(name, self.slot.zero_init)
        if not (self.slot.is_at("after") or self.drop_path_rate):
            return norm(y, train=train, residual=shortcut, activation=self.activation)
        y = self.slot.attend(norm(y, train=train), "after", train=train)
        y = drop_path(y, self.drop_path_rate, train=train)
        return ACTIVATIONS[self.activation](y + shortcut)

    def _shortcut(self, x: jax.Array, train: bool) -> jax.Array:
        if (self.stride, x.shape[-1]) == (1, self.features):
            return x
        size = DOWNSAMPLES[self.downsample]
        y = self._conv(x, self.features, size, self.stride, "downsample.0", train)
        return self._norm("downsample.1")(y, train=train)


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions, the stride on the first.

    out = relu(bn2(conv3x3(inner)) + shortcut(x)),  inner = relu(bn1(conv3x3(x)))
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the block.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Selects batch statistics in BatchNorm, and dropout in the attention.

        Returns:
            `[N, ceil(H / stride), ceil(W / stride), features]`, the dtype of `x`.
        """
        y = self._conv(x, self.features, 3, self.stride, "conv1", train, self.dilation)
        y = self._norm("bn1")(y, train=train, activation=self.activation)
        y = self.slot.attend(y, "inside", train=train)
        y = self._main_conv(y, self.features, train)
        return self._close(y, "bn2", x, train)


class Bottleneck(ResidualBlock):
    """A 3x3 convolution, with the stride, between two 1x1 that narrow and widen.

    out = relu(bn3(conv1x1(inner)) + shortcut(x))
    inner = relu(bn2(conv3x3(relu(bn1(conv1x1(x))))))

    A quarter of `features` are the channels in between.
    """

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the block.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Selects batch statistics in BatchNorm, and dropout in the attention.

        Returns:
            `[N, ceil(H / stride), ceil(W / stride), features]`, the dtype of `x`.
        """
        width = self.features // 4
        y = self._conv(x, width, 1, 1, "conv1", train)
        y = self._norm("bn1")(y, train=train, activation=self.activation)
        y = self._main_conv(y, width, train, stride=self.stride, dilation=self.dilation)
        if self.slot.is_at("replace") and self.slot.normalizes:
            y = ACTIVATIONS[self.activation](y)
        else:
            y = self._norm("bn2")(y, train=train, activation=self.activation)
        y = self.slot.attend(y, "inside", train=train)
        y = self._conv(y, self.features, 1, 1, "conv3", train)
        return self._close(y, "bn3", x, train)


class ResNet(AttentionNetwork):
    """A residual network of four stages, for images of any size.

    The strides of its maps are 4, 8, 16 and 32 (with the stem "cifar" 1, 2, 4 and 8).
    SCSA needs every one to be as large as its window (images of 193 pixels, or 25 with
    the stem "cifar", unless `attention_kwargs` has a smaller `window_size`).

    Attributes:
        stage_sizes: Blocks of the four stages.
        bottleneck: Bottlenecks, four times as wide outside, instead of basic blocks.
        widths: Channels of the stages' 3x3 convolutions; the stem has the first.
        num_classes: Number of logits; 0: the pooled features are returned.
        stem: "imagenet", 7x7 of stride 2 and a max-pool of stride 2; or "cifar", 3x3
            of stride 1, for images of about 32 pixels; or "v1c", mmseg's, three 3x3
            in place of the 7x7.
        output_stride: The most that the last map's stride may be, 8, 16 or 32: stages
            that would exceed it are dilated instead.
        downsample: Convolution of the shortcuts that change the shape: "conv1",
            "conv3" or "conv5", by its kernel size (torchvision's is "conv1").
        activation: "relu", or "mish" in place of every ReLU.
        drop_path_rate: Share of the images whose last residual branch training leaves
            out; 0 of the first branch, and rising evenly (rng stream "dropout").
    """

    stage_sizes: Sequence[int]
    bottleneck: bool = False
    widths: Sequence[int] = (64, 128, 256, 512)
    num_classes: int = 10
    stem: str = "imagenet"
    output_stride: int = 32
    downsample: str = "conv1"
    activation: str = "relu"
    drop_path_rate: float = 0.0

    @nn.nowrap
    def _stages(self, x: jax.Array, train: bool) -> Iterator[jax.Array]:
        self._check()
        slot, *slots = self._slots(_FIRST_SIDE[self.stem])
        x = self._stem(x, slot, train)
        block, expansion = (Bottleneck, 4) if self.bottleneck else (BasicBlock, 1)
        rates = iter(depth_rates(self.drop_path_rate, sum(self.stage_sizes)))
        stem = RESNET_STEMS[self.stem]
        before = stem.stride * (2 if stem.pools else 1)
        steps = dilate((1, 2, 2, 2), before, self.output_stride)
        stages = zip(self.stage_sizes, self.widths, slots, steps, strict=True)
        for i, (size, width, slot, step) in enumerate(stages, 1):
            for j in range(size):
                x = block(
                    width * expansion,
                    stride=step.stride if j == 0 else 1,
                    dilation=step.dilation_before if j == 0 else step.dilation,
                    slot=slot,
                    downsample=self.downsample,
                    activation=self.activation,
                    drop_path_rate=next(rates),
                    axis_name=self.axis_name,
                    name=f"layer{i}.{j}",
                )(x, train=train)
            x = slot.attend(x, "stage", train=train, name=f"attn{i}")
            yield x

    def _head(self, x: jax.Array, train: bool) -> jax.Array:
        del train
        small_init = find_slot(self.attention).small_head_init
        return classify(self, x, self.num_classes, name="fc", small_init=small_init)

    def _stem(self, x: jax.Array, slot: Slot, train: bool) -> jax.Array:
        stem, width = RESNET_STEMS[self.stem], self.widths[0]
        if stem.is_deep:  # places in mmseg's sequence, whose ReLUs count
            layers = [
                ("stem.0", "stem.1", width // 2, stem.stride),
                ("stem.3", "stem.4", width // 2, 1),
                ("stem.6", "stem.7", width, 1),
            ]
        else:
            layers = [("conv1", "bn1", width, stem.stride)]
        init = slot.cifar_stem_init if self.stem == "cifar" else kaiming_normal
        size = stem.kernel_size
        for name, norm_name, features, stride in layers:
            x = slot.attend(x, "before_convs", train=train, name=f"{name}.attn")
            conv = Conv(features, size, stride, size // 2, kernel_init=init, name=name)
            norm = BatchNorm(axis_name=self.axis_name, name=norm_name)
            x = norm(conv(x), train=train, activation=self.activation)
        return max_pool(x, 3, stride=2, padding=1) if stem.pools else x

    def _check(self) -> None:
        choose("stem", self.stem, RESNET_STEMS)
        choose("downsample", self.downsample, DOWNSAMPLES)
        choose("activation", self.activation, ("relu", "mish"))
        for key in ("stage_sizes", "widths"):
            if len(values := getattr(self, key)) != _NUM_STAGES:
                raise ValueError(
                    f"{key}={tuple(values)}: must be {_NUM_STAGES} numbers"
                )
