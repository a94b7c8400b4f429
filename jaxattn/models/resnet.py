"""Residual networks, with an attention module in every block if wanted.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016.
https://arxiv.org/abs/1512.03385
Parameter names and the place of the stride (bottlenecks have it on their 3x3) are
torchvision's.
Reference code read, for SCSA's place: HZAI-ZJNU/SCSA,
mmpretrain/models/backbones/resnet_scsa.py (numbers compared in tests/test_scsa.py)

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

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from jaxattn.errors import choose
from jaxattn.models.heads.classification import classify
from jaxattn.models.slots import AttentionFactory, Slot, make_slot
from jaxattn.models.stems import STEMS
from jaxattn.ops.conv import Conv
from jaxattn.ops.init import kaiming_normal
from jaxattn.ops.inputs import as_feature_map
from jaxattn.ops.norm import BatchNorm
from jaxattn.ops.pool import max_pool

_NUM_STAGES = 4
# Of the last map, at the size of images that a stem is for.
_LAST_SIDE = {"imagenet": 7, "cifar": 4}


class ZeroBatchNorm(BatchNorm):
    """A `BatchNorm` whose scale starts at 0."""

    def param(
        self, name: str, init_fn: Callable[..., Any], *init_args: Any, **kwargs: Any
    ) -> Any:
        """Declares a parameter as every module does, the scale with zeros."""
        init_fn = nn.initializers.zeros if name == "scale" else init_fn
        return super().param(name, init_fn, *init_args, **kwargs)


class ResidualBlock(nn.Module):
    """What both kinds of residual block share.

    Attributes:
        features: Output channels.
        stride: Step of the block along H and W.
        slot: The block's attention module, where it sits and what it starts at 0.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    features: int
    stride: int = 1
    slot: Slot = Slot()
    axis_name: str | None = None

    def _conv(
        self, x: jax.Array, features: int, size: int, stride: int, name: str
    ) -> jax.Array:
        conv = Conv(
            features,
            size,
            stride,
            padding=size // 2,
            kernel_init=kaiming_normal,
            name=name,
        )
        return conv(x)

    def _norm(self, name: str, zero_init: bool = False) -> BatchNorm:
        norm = ZeroBatchNorm if zero_init else BatchNorm
        return norm(axis_name=self.axis_name, name=name)

    def _close(self, y: jax.Array, name: str, x: jax.Array, train: bool) -> jax.Array:
        """Returns relu(norm(y) + shortcut(x)), attention in between if it is there."""
        shortcut = self._shortcut(x, train)
        norm = self._norm(name, self.slot.zero_init)
        if not self.slot.is_at("after"):
            return norm(y, train=train, residual=shortcut, activation="relu")
        y = self.slot.attend(norm(y, train=train), "after", train=train)
        return nn.relu(y + shortcut)

    def _shortcut(self, x: jax.Array, train: bool) -> jax.Array:
        if (self.stride, x.shape[-1]) == (1, self.features):
            return x
        y = self._conv(x, self.features, 1, self.stride, "downsample.0")
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
        y = self._conv(x, self.features, 3, self.stride, "conv1")
        y = self._norm("bn1")(y, train=train, activation="relu")
        y = self.slot.attend(y, "inside", train=train)
        y = self._conv(y, self.features, 3, 1, "conv2")
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
        y = self._conv(x, width, 1, 1, "conv1")
        y = self._norm("bn1")(y, train=train, activation="relu")
        y = self._conv(y, width, 3, self.stride, "conv2")
        y = self._norm("bn2")(y, train=train, activation="relu")
        y = self.slot.attend(y, "inside", train=train)
        y = self._conv(y, self.features, 1, 1, "conv3")
        return self._close(y, "bn3", x, train)


class ResNet(nn.Module):
    """A residual network of four stages.

    Attributes:
        stage_sizes: Blocks of the four stages.
        bottleneck: Bottlenecks, four times as wide outside, instead of basic blocks.
        widths: Channels of the stages' 3x3 convolutions; the stem has the first.
        num_classes: Number of logits.
        stem: "imagenet", 7x7 of stride 2 and a max-pool of stride 2; or "cifar", 3x3
            of stride 1, for images of about 32 pixels.
        attention: Module in every block: "scsa", after the inner ReLU; "cbam" or "eca"
            (multi-kernel), before the sum, as is the module of a factory: a callable
            that takes `name=`, such as a module class, whose module is called with
            `train=`; or a `jaxattn.models.Slot`, which says the place.
        attention_kwargs: Keywords of the attention module, or of the factory.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    stage_sizes: Sequence[int]
    bottleneck: bool = False
    widths: Sequence[int] = (64, 128, 256, 512)
    num_classes: int = 10
    stem: str = "imagenet"
    attention: str | Slot | AttentionFactory | None = None
    attention_kwargs: Mapping[str, Any] | None = None
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, return_features: bool = False
    ) -> jax.Array | tuple[jax.Array, ...]:
        """Classifies images.

        Args:
            x: Normalised images `[N, H, W, C]`, of any size; SCSA needs every stage's
                map to be as large as its window (193 pixels, or 25 with the stem
                "cifar", unless `attention_kwargs` has a smaller `window_size`).
            train: Selects batch statistics in BatchNorm, and dropout in the attention.
            return_features: Returns the stages' maps instead, and needs no parameters
                of the head.

        Returns:
            float32 logits `[N, num_classes]`; or, if `return_features`, four maps
            `[N, H', W', C']` in `dtype`, whose strides are 4, 8, 16, 32 (with the
            stem "cifar" 1, 2, 4, 8).

        Raises:
            ValueError: If `stem` or `attention` is unknown, `stage_sizes` or `widths`
                are not four, or the attention module refuses its input.
        """
        x = as_feature_map(self, x)
        self._check()
        window = _LAST_SIDE[self.stem]
        slot = make_slot(self.attention, self.attention_kwargs, window_size=window)
        maps = self._stages(self._stem(x, slot, train), slot, train)
        if return_features:
            return maps
        return classify(
            self,
            maps[-1],
            self.num_classes,
            name="fc",
            small_init=slot.small_head_init,
        )

    def _stem(self, x: jax.Array, slot: Slot, train: bool) -> jax.Array:
        size, stride, pools = STEMS[self.stem]
        init = slot.cifar_stem_init if self.stem == "cifar" else kaiming_normal
        conv = Conv(
            self.widths[0], size, stride, size // 2, kernel_init=init, name="conv1"
        )
        norm = BatchNorm(axis_name=self.axis_name, name="bn1")
        x = norm(conv(x), train=train, activation="relu")
        return max_pool(x, 3, stride=2, padding=1) if pools else x

    def _stages(self, x: jax.Array, slot: Slot, train: bool) -> tuple[jax.Array, ...]:
        """Returns the map after each stage."""
        block, expansion = (Bottleneck, 4) if self.bottleneck else (BasicBlock, 1)
        maps = []
        stages = zip(self.stage_sizes, self.widths, strict=True)
        for i, (size, width) in enumerate(stages):
            for j in range(size):
                x = block(
                    width * expansion,
                    stride=2 if i > 0 and j == 0 else 1,
                    slot=slot,
                    axis_name=self.axis_name,
                    name=f"layer{i + 1}.{j}",
                )(x, train=train)
            maps.append(x)
        return tuple(maps)

    def _check(self) -> None:
        choose("stem", self.stem, STEMS)
        for key in ("stage_sizes", "widths"):
            if len(values := getattr(self, key)) != _NUM_STAGES:
                raise ValueError(
                    f"{key}={tuple(values)}: must be {_NUM_STAGES} numbers"
                )
