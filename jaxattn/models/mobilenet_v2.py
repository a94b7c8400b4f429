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
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from jaxattn.errors import choose
from jaxattn.models.resnet import STEMS, AttentionFactory, classify, make_attention
from jaxattn.ops.conv import Conv
from jaxattn.ops.features import mark_features
from jaxattn.ops.init import kaiming_normal, torch_kernel
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
        return nn.relu6(norm(conv(x), train=train))


class InvertedResidual(nn.Module):
    """Widens, convolves every channel by itself and narrows to few channels again.

    out = bn(conv1x1(relu6(bn(depthwise3x3(relu6(bn(conv1x1(x)))))))) [+ x]

    The sum is there where stride and channels allow, the first convolution where
    `expand_ratio` is above 1.

    Attributes:
        features: Output channels.
        stride: Step of the block along H and W.
        expand_ratio: Channels in between, in units of the input's.
        attention: Makes the block's attention module.
        attention_inside: Places it after the depthwise convolution's ReLU6, as SCSA is;
            otherwise after the last normalisation, before the sum.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    features: int
    stride: int = 1
    expand_ratio: int = 6
    attention: AttentionFactory | None = None
    attention_inside: bool = False
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
        y = self._attend(depthwise(y, train=train), train, inside=True)
        project = Conv(
            self.features, 1, kernel_init=kaiming_normal, name=f"conv.{i + 1}"
        )
        y = BatchNorm(axis_name=axis_name, name=f"conv.{i + 2}")(
            project(y), train=train
        )
        y = self._attend(y, train, inside=False)
        return y + x if (self.stride, y.shape[-1]) == (1, x.shape[-1]) else y

    def _attend(self, x: jax.Array, train: bool, inside: bool) -> jax.Array:
        """Applies the attention if `inside` is its place."""
        if self.attention is None or self.attention_inside != inside:
            return x
        return self.attention(name="attn")(x, train=train)


class MobileNetV2(nn.Module):
    """MobileNetV2.

    Attributes:
        num_classes: Number of logits.
        width_multiplier: Factor of every width but the last, which it only widens.
        stem: "imagenet", of stride 2; or "cifar", of stride 1, for images of about 32
            pixels.
        attention: Module in every block: "scsa", after the depthwise convolution's
            ReLU6; "cbam" or "eca" (multi-kernel), before the sum, as is the module of
            a factory: a callable that takes `name=`, such as a module class; it is
            called with `train=`.
        attention_kwargs: Keywords of the attention module, or of the factory.
        dropout_rate: Share of the pooled features that training sets to 0, by the rng
            stream "dropout".
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    num_classes: int = 10
    width_multiplier: float = 1.0
    stem: str = "imagenet"
    attention: str | AttentionFactory | None = None
    attention_kwargs: Mapping[str, Any] | None = None
    dropout_rate: float = 0.2
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Classifies images.

        Args:
            x: Normalised images `[N, H, W, C]`, of any size; SCSA needs every block's
                map to be as large as its window (193 pixels, or 17 with the stem
                "cifar", unless `attention_kwargs` has a smaller `window_size`).
            train: Selects batch statistics in BatchNorm, and dropout.

        Returns:
            float32 logits `[N, num_classes]`.

        Raises:
            ValueError: If `stem` or `attention` is unknown, or the attention module
                refuses its input.
        """
        choose("stem", self.stem, STEMS)
        x = x if self.dtype is None else x.astype(self.dtype)
        stride, replaced = 2, False
        if self.stem == "cifar":
            stride, replaced = 1, self.attention != "scsa"
        init = torch_kernel if replaced else kaiming_normal
        multiplier, axis_name = self.width_multiplier, self.axis_name
        width = round_width(_STEM_WIDTH * multiplier)
        stem = ConvNorm(
            width, 3, stride, kernel_init=init, axis_name=axis_name, name="features.0"
        )
        x = self._blocks(stem(x, train=train), train)
        width = round_width(_LAST_WIDTH * max(1.0, multiplier))
        name = f"features.{1 + sum(group[2] for group in _GROUPS)}"
        x = ConvNorm(width, axis_name=axis_name, name=name)(x, train=train)
        x = jnp.mean(mark_features(self, x), (1, 2))
        x = nn.Dropout(self.dropout_rate, deterministic=not train, name="dropout")(x)
        return classify(x, self.num_classes, "classifier.1", small_init=not replaced)

    def _blocks(self, x: jax.Array, train: bool) -> jax.Array:
        window = 7 if self.stem == "imagenet" else 2
        attention = make_attention(self.attention, self.attention_kwargs, window)
        index = 1
        for ratio, width, size, stride in _GROUPS:
            for j in range(size):
                x = InvertedResidual(
                    round_width(width * self.width_multiplier),
                    stride if j == 0 else 1,
                    ratio,
                    attention=attention,
                    attention_inside=self.attention == "scsa",
                    axis_name=self.axis_name,
                    name=f"features.{index}",
                )(x, train=train)
                index += 1
        return x
