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
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.attention.canet import MultiKernelECA
from jaxattn.attention.cbam import CBAM
from jaxattn.attention.scsa import SCSA
from jaxattn.errors import UserError, choose, suggest
from jaxattn.ops.conv import Conv
from jaxattn.ops.features import mark_features
from jaxattn.ops.init import kaiming_normal, torch_bias, torch_kernel
from jaxattn.ops.norm import BatchNorm
from jaxattn.ops.pool import max_pool

STEMS = ("imagenet", "cifar")
_NUM_STAGES = 4
_ATTENTION: dict[str, type[nn.Module]] = {
    "cbam": CBAM,
    "scsa": SCSA,
    "eca": MultiKernelECA,
}

# Called with `name=`, returns the attention module of one block.
AttentionFactory = Callable[..., nn.Module]


def make_attention(
    attention: str | AttentionFactory | None,
    attention_kwargs: Mapping[str, Any] | None,
    scsa_window_size: int,
) -> AttentionFactory | None:
    """Returns what makes the attention module of a block, from a network's keywords.

    Args:
        attention: "cbam", "scsa", "eca", a factory, or None.
        attention_kwargs: Keywords of the module or factory.
        scsa_window_size: SCSA's window, unless the keywords say otherwise.

    Raises:
        UserError: If the name is unknown, or `attention` is a module instead of what
            makes one.
    """
    kwargs = dict(attention_kwargs or {})
    if attention is None:
        if kwargs:
            raise UserError(f"attention_kwargs={kwargs}: needs attention to be set")
        return None
    if isinstance(attention, str):
        choose("attention", attention, _ATTENTION)
        make: AttentionFactory = _ATTENTION[attention]
    elif isinstance(attention, nn.Module) or not callable(attention):
        choices = suggest(attention, _ATTENTION)
        raise UserError(f"attention={attention!r}: {choices}, or a module factory")
    else:
        make = attention
    if attention == "scsa":
        defaults = {"window_size": scsa_window_size, "kernel_init": kaiming_normal}
        kwargs = {**defaults, "bias_init": nn.initializers.zeros, **kwargs}
    return lambda name: make(name=name, **kwargs)


def classify(
    x: jax.Array, num_classes: int, name: str, *, small_init: bool
) -> jax.Array:
    """Applies the fully connected layer that ends a network.

    Call it in a network's `__call__`.

    Args:
        x: Pooled features `[N, C]`.
        num_classes: Number of logits.
        name: Of the layer in the parameter tree.
        small_init: Starts the kernel normal with deviation 0.01 and the bias at 0,
            instead of torch's default.

    Returns:
        float32 logits `[N, num_classes]`.
    """
    kernel_init, bias_init = torch_kernel, torch_bias(x.shape[-1])
    if small_init:
        kernel_init, bias_init = nn.initializers.normal(0.01), nn.initializers.zeros
    dense = nn.Dense(
        num_classes,
        dtype=x.dtype,
        kernel_init=kernel_init,
        bias_init=bias_init,
        name=name,
    )
    return dense(x).astype(jnp.float32)


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
        attention: Makes the block's attention module.
        attention_inside: Places it after the inner ReLU, as SCSA is; otherwise after
            the last normalisation, before the sum.
        zero_init: Starts the last normalisation's scale at 0.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    features: int
    stride: int = 1
    attention: AttentionFactory | None = None
    attention_inside: bool = False
    zero_init: bool = False
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

    def _norm(
        self, x: jax.Array, name: str, train: bool, zero_init: bool = False
    ) -> jax.Array:
        norm = ZeroBatchNorm if zero_init else BatchNorm
        return norm(axis_name=self.axis_name, name=name)(x, train=train)

    def _attend(self, x: jax.Array, train: bool, inside: bool) -> jax.Array:
        """Applies the attention if `inside` is its place."""
        if self.attention is None or self.attention_inside != inside:
            return x
        return self.attention(name="attn")(x, train=train)

    def _shortcut(self, x: jax.Array, train: bool) -> jax.Array:
        if (self.stride, x.shape[-1]) == (1, self.features):
            return x
        y = self._conv(x, self.features, 1, self.stride, "downsample.0")
        return self._norm(y, "downsample.1", train)


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
        y = nn.relu(self._norm(y, "bn1", train))
        y = self._attend(y, train, inside=True)
        y = self._conv(y, self.features, 3, 1, "conv2")
        y = self._norm(y, "bn2", train, self.zero_init)
        y = self._attend(y, train, inside=False)
        return nn.relu(y + self._shortcut(x, train))


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
        y = nn.relu(self._norm(y, "bn1", train))
        y = self._conv(y, width, 3, self.stride, "conv2")
        y = nn.relu(self._norm(y, "bn2", train))
        y = self._attend(y, train, inside=True)
        y = self._conv(y, self.features, 1, 1, "conv3")
        y = self._norm(y, "bn3", train, self.zero_init)
        y = self._attend(y, train, inside=False)
        return nn.relu(y + self._shortcut(x, train))


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
            `train=`.
        attention_kwargs: Keywords of the attention module, or of the factory.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    stage_sizes: Sequence[int]
    bottleneck: bool = False
    widths: Sequence[int] = (64, 128, 256, 512)
    num_classes: int = 10
    stem: str = "imagenet"
    attention: str | AttentionFactory | None = None
    attention_kwargs: Mapping[str, Any] | None = None
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, return_features: bool = False
    ) -> Any:
        """Classifies images.

        Args:
            x: Normalised images `[N, H, W, C]`, of any size; SCSA needs every stage's
                map to be as large as its window (193 pixels, or 25 with the stem
                "cifar", unless `attention_kwargs` has a smaller `window_size`).
            train: Selects batch statistics in BatchNorm, and dropout in the attention.
            return_features: Returns the stages' maps instead of logits.

        Returns:
            float32 logits `[N, num_classes]`; or, if `return_features`, four maps
            `[N, H', W', C']` in `dtype`, whose strides are 4, 8, 16, 32 (with the
            stem "cifar" 1, 2, 4, 8).

        Raises:
            ValueError: If `stem` or `attention` is unknown, `stage_sizes` or `widths`
                are not four, or the attention module refuses its input.
        """
        self._check()
        x = x if self.dtype is None else x.astype(self.dtype)
        maps = self._stages(self._stem(x, train), train)
        if return_features:
            return maps
        pooled = jnp.mean(mark_features(self, maps[-1]), (1, 2))
        return classify(pooled, self.num_classes, "fc", small_init=self._has_scsa)

    def _stem(self, x: jax.Array, train: bool) -> jax.Array:
        is_imagenet = self.stem == "imagenet"
        size, stride = (7, 2) if is_imagenet else (3, 1)
        init = kaiming_normal if is_imagenet or self._has_scsa else torch_kernel
        conv = Conv(
            self.widths[0], size, stride, size // 2, kernel_init=init, name="conv1"
        )
        x = BatchNorm(axis_name=self.axis_name, name="bn1")(conv(x), train=train)
        x = nn.relu(x)
        return max_pool(x, 3, stride=2, padding=1) if is_imagenet else x

    def _stages(self, x: jax.Array, train: bool) -> tuple[jax.Array, ...]:
        """Returns the map after each stage."""
        window = 7 if self.stem == "imagenet" else 4
        attention = make_attention(self.attention, self.attention_kwargs, window)
        block, expansion = (Bottleneck, 4) if self.bottleneck else (BasicBlock, 1)
        maps = []
        stages = zip(self.stage_sizes, self.widths, strict=True)
        for i, (size, width) in enumerate(stages):
            for j in range(size):
                x = block(
                    width * expansion,
                    stride=2 if i > 0 and j == 0 else 1,
                    attention=attention,
                    attention_inside=self._has_scsa,
                    zero_init=self._has_scsa,
                    axis_name=self.axis_name,
                    name=f"layer{i + 1}.{j}",
                )(x, train=train)
            maps.append(x)
        return tuple(maps)

    @property
    def _has_scsa(self) -> bool:
        return self.attention == "scsa"

    def _check(self) -> None:
        choose("stem", self.stem, STEMS)
        for key in ("stage_sizes", "widths"):
            if len(values := getattr(self, key)) != _NUM_STAGES:
                raise ValueError(
                    f"{key}={tuple(values)}: must be {_NUM_STAGES} numbers"
                )
