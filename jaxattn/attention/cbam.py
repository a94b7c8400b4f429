"""Convolutional Block Attention Module (CBAM).

Woo, Park, Lee, Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018.
https://arxiv.org/abs/1807.06521
Reference code read: prathamssaraf/Attention-Enhanced-ResNet-for-CIFAR-10-Classification
@847ab2b, src/models/{attention,blocks}.py (numbers compared in tests/test_attention.py)
and, for `CBAM` alone (tests/test_zoo.py), the paper's own: Jongchan/attention-module
@459efad, MODELS/cbam.py; HZAI-ZJNU/SCSA @8c46866, mmpretrain/models/attentions/CBAM.py;
pytorch-image-models @aa4b585, timm/layers/cbam.py

Notation: N batch, H, W spatial, C channels.
`CBAM()` is the paper's equations, and SCSA's code. The paper's own code has biases in
the bottleneck, the maximum before the mean, and a batch normalisation after the 7x7
convolution: `CBAM(biases=True, spatial_norm=True)`. Its networks start that one's scale
at 0, so that the gate is 0.5 everywhere; here it starts at 1. timm's is
`CBAM(spatial_norm=True, max_first=False, norm_momentum=0.9)`.
`AttentionResidualBlock` is the reference code's, whose channel attention differs:
  - each pooling's response goes through its own sigmoid and the gates are added, so
    that the sum lies in (0, 2) (eq. 2 has the sigmoid of the summed responses);
  - the bottleneck has C / max(C / 16, 4) channels, about 16 whatever C is (the paper
    has C / 16): the code's minimum of 4 bounds the divisor.
"""

import functools
import operator
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from jaxattn.errors import UserError, choose, require
from jaxattn.ops.conv import Conv, ConvKernel, conv2d
from jaxattn.ops.init import torch_kernel
from jaxattn.ops.inputs import as_feature_map, at_least_float32
from jaxattn.ops.norm import BatchNorm
from jaxattn.ops.pool import max_along
from jaxattn.ops.stochastic_depth import drop_path


class SpatialAttention(nn.Module):
    """Scales every position by a gate from the channel mean and maximum (eq. 5).

        x * sigmoid(conv([mean_c(x); max_c(x)]))

    Attributes:
        kernel_size: Side of the gate's convolution, odd.
        conv_name: Name of the convolution in the parameter tree.
        kernel_init: Initialiser of its kernel.
        max_first: The convolution sees the maximum before the mean.
        norm: Normalises what it makes of them.
        norm_momentum: Share of its running statistics that a training step keeps.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    kernel_size: int = 7
    conv_name: str = "conv"
    kernel_init: Initializer = torch_kernel
    max_first: bool = False
    norm: bool = False
    norm_momentum: float = 0.99
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the gate.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Selects batch statistics where there is a normalisation.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            ValueError: If `kernel_size` is even.
        """
        x = as_feature_map(self, x)
        size = self.kernel_size
        require("kernel_size", size, size > 0 and size % 2 == 1, "odd and above 0")
        shape = (self.kernel_size, self.kernel_size, 2, 1)
        kernel = ConvKernel(shape, self.kernel_init, name=self.conv_name)()
        maps = [jnp.mean(x, -1, keepdims=True), max_along(x, -1)]
        maps = jnp.concatenate(maps[::-1] if self.max_first else maps, -1)
        padding = self.kernel_size // 2
        z = conv2d(maps, kernel.astype(x.dtype), padding=padding)
        if self.norm:
            norm = BatchNorm(self.norm_momentum, axis_name=self.axis_name, name="bn")
            z = norm(z, train=train)
        gate = nn.sigmoid(z)
        self.sow("intermediates", "spatial_gate", gate)
        return x * gate


def _mean(x: jax.Array) -> jax.Array:
    return jnp.mean(x, (1, 2))


def _max(x: jax.Array) -> jax.Array:
    N, H, W, C = x.shape
    return max_along(x.reshape(N, H * W, 1, C), 1)


def _root_of_squares(x: jax.Array) -> jax.Array:
    squares = jnp.sum(jnp.square(at_least_float32(x)), (1, 2))
    # Where it is 0, PyTorch's gradient is not a number; of a map of zeros it is 0.
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1)), 0)


def _log_sum_of_exponentials(x: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(at_least_float32(x), (1, 2))


# Of `[N, H, W, C]` to N * C values, under the names of the paper's code.
_POOLS = {
    "avg": _mean,
    "max": _max,
    "lp": _root_of_squares,
    "lse": _log_sum_of_exponentials,
}


class PooledMLP(nn.Module):
    """The channel attention's bottleneck, shared by all ways to pool.

        conv1x1(relu(conv1x1(pooled)))

    Attributes:
        hidden: Channels of the bottleneck.
        kernel_init: Initialiser of both kernels.
        biases: Adds biases to both convolutions.
        pool_types: Ways to pool positions, P of "avg", "max", "lp" (the root of the sum
            of squares) and "lse" (the logarithm of the sum of exponentials).
    """

    hidden: int
    kernel_init: Initializer = torch_kernel
    biases: bool = False
    pool_types: Sequence[str] = ("avg", "max")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the responses to the positions' pools.

        Args:
            x: Feature map `[N, H, W, C]`.

        Returns:
            `[P, N, 1, 1, C]`, the dtype of `x`.
        """
        N, C = x.shape[0], x.shape[-1]
        if self.hidden < 1:
            raise ValueError(
                f"channel attention: {C} channels leave its bottleneck none"
            )
        require("pool_types", self.pool_types, bool(self.pool_types), "one or more")
        for name in self.pool_types:
            choose("pool_types", name, _POOLS)
        pools = [_POOLS[name](x).reshape(N, 1, 1, C) for name in self.pool_types]
        # One batch of all: the bottleneck runs once.
        pooled = jnp.concatenate(pools).astype(x.dtype)
        y = nn.relu(self._conv(self.hidden, "0")(pooled))
        return self._conv(C, "2")(y).reshape(len(pools), N, 1, 1, C)

    def _conv(self, features: int, name: str) -> Conv:
        init, biases = self.kernel_init, self.biases
        return Conv(features, 1, use_bias=biases, kernel_init=init, name=name)


def reference_hidden(channels: int, reduction: int = 16) -> int:
    """Returns the reference code's bottleneck width for a number of channels."""
    return channels // max(channels // reduction, 4)


class ChannelAttention(nn.Module):
    """Scales every channel by a gate from its mean and maximum (eq. 2).

        x * sigmoid(MLP(mean_hw(x)) + MLP(max_hw(x)))

    Attributes:
        hidden: Channels of the bottleneck; None is the reference code's
            C / max(C / reduction, 4).
        reduction: See `hidden`.
        kernel_init: Initialiser of both kernels.
        biases: Adds biases to both convolutions.
        pool_types: Ways to pool positions, whose responses are added; see `PooledMLP`.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
    """

    hidden: int | None = None
    reduction: int = 16
    kernel_init: Initializer = torch_kernel
    biases: bool = False
    pool_types: Sequence[str] = ("avg", "max")
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the gate.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Unused; part of every block's signature.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            ValueError: If the bottleneck would have no channel, as of fewer than 4, or
                a way to pool is unknown.
        """
        del train
        x = as_feature_map(self, x)
        hidden = self.hidden
        if hidden is None:
            require("reduction", self.reduction, self.reduction >= 1, "at least 1")
            hidden = reference_hidden(x.shape[-1], self.reduction)
        mlp = PooledMLP(
            hidden, self.kernel_init, self.biases, self.pool_types, name="shared_mlp"
        )
        gate = nn.sigmoid(functools.reduce(operator.add, mlp(x)))
        self.sow("intermediates", "channel_gate", gate)
        return x * gate


class CBAM(nn.Module):
    """The paper's module: channel attention, then spatial attention (eq. 1).

    Attributes:
        reduction: Channels of the input per channel of the bottleneck.
        kernel_size: Side of the spatial gate's convolution, odd.
        min_channels: Least number of channels of the bottleneck; None refuses fewer
            channels than `reduction`.
        biases: Adds biases to the bottleneck.
        pool_types: Ways to pool positions, one or more of "avg", "max", "lp" (the root
            of the sum of squares) and "lse" (the logarithm of the sum of exponentials).
        no_spatial: Leaves out the spatial attention.
        spatial_norm: Normalises what the spatial attention's convolution makes.
        max_first: Its convolution sees the maximum before the mean; None is so where
            `spatial_norm` is, as in the paper's own code.
        norm_momentum: Share of the running statistics that a training step keeps.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    reduction: int = 16
    kernel_size: int = 7
    min_channels: int | None = None
    biases: bool = False
    pool_types: Sequence[str] = ("avg", "max")
    no_spatial: bool = False
    spatial_norm: bool = False
    max_first: bool | None = None
    norm_momentum: float = 0.99
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies both gates.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Selects batch statistics where there is a normalisation.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            ValueError: If `x` has fewer channels than `reduction` and there is no
                `min_channels`, `kernel_size` is even, or a way to pool is unknown.
        """
        x = as_feature_map(self, x)
        channel = ChannelAttention(
            self._hidden(x.shape[-1]),
            biases=self.biases,
            pool_types=self.pool_types,
            dtype=self.dtype,
            name="channel_attention",
        )
        x = channel(x, train=train)
        if self.no_spatial:
            return x
        max_first = self.spatial_norm if self.max_first is None else self.max_first
        spatial = SpatialAttention(
            self.kernel_size,
            max_first=max_first,
            norm=self.spatial_norm,
            norm_momentum=self.norm_momentum,
            dtype=self.dtype,
            axis_name=self.axis_name,
            name="spatial_attention",
        )
        return spatial(x, train=train)

    def _hidden(self, C: int) -> int:
        require("reduction", self.reduction, self.reduction >= 1, "at least 1")
        least = self.min_channels
        if least is not None:
            require("min_channels", least, least >= 1, "at least 1")
        hidden = max(C // self.reduction, least or 0)
        if hidden == 0:
            raise UserError(
                f"CBAM: reduction={self.reduction} exceeds the {C} channels"
            )
        return hidden


class AttentionResidualBlock(nn.Module):
    """A basic residual block with both gates before its sum.

        out = relu(SA(CA(bn2(conv3x3(relu(bn1(conv3x3(x))))))) + shortcut(x))
        CA(y) = y * (sigmoid(MLP(mean_hw(y))) + sigmoid(MLP(max_hw(y))))

    The stride is on the first convolution. The shortcut is the identity where stride
    and channels allow, else a 1x1 convolution and a batch normalisation.

    Attributes:
        features: Output channels C.
        stride: Step of the block along H and W.
        channel_attention_name: Of the bottleneck in the parameter tree.
        spatial_kernel_size: Side of the spatial gate's convolution, odd; None leaves
            the spatial gate out.
        kernel_init: Initialiser of every kernel.
        drop_path_rate: See `jaxattn.ops.drop_path`.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    features: int
    stride: int = 1
    channel_attention_name: str = "channel_attention"
    spatial_kernel_size: int | None = 7
    kernel_init: Initializer = torch_kernel
    drop_path_rate: float = 0.0
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the block.

        Args:
            x: Feature map `[N, H, W, C_in]`, any float dtype.
            train: Selects batch statistics in BatchNorm.

        Returns:
            `[N, ceil(H / stride), ceil(W / stride), features]`, in `dtype`.

        Raises:
            ValueError: If `features` are fewer than 4.
        """
        x = as_feature_map(self, x)
        y = self._conv(3, self.stride, "conv1")(x)
        y = self._norm("bn1")(y, train=train, activation="relu")
        y = self._conv(3, 1, "conv2")(y)
        y = self._norm("bn2")(y, train=train)
        hidden, init = reference_hidden(self.features), self.kernel_init
        responses = PooledMLP(hidden, init, name=self.channel_attention_name)(y)
        gate = jnp.sum(nn.sigmoid(responses), 0)
        self.sow("intermediates", "channel_gate", gate)
        y = y * gate
        if self.spatial_kernel_size is not None:
            size = self.spatial_kernel_size
            gate = SpatialAttention(size, kernel_init=init, name="spatial_attention")
            y = gate(y, train=train)
        y = drop_path(y, self.drop_path_rate, train=train)
        return self._close(y, x, train)

    def _close(self, y: jax.Array, x: jax.Array, train: bool) -> jax.Array:
        """Returns relu(shortcut(x) + y)."""
        if (self.stride, x.shape[-1]) == (1, self.features):
            return nn.relu(y + x)
        x = self._conv(1, self.stride, "shortcut.0")(x)
        norm = self._norm("shortcut.1")
        return norm(x, train=train, residual=y, activation="relu")

    def _conv(self, kernel_size: int, stride: int, name: str) -> Conv:
        return Conv(
            self.features,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            kernel_init=self.kernel_init,
            name=name,
        )

    def _norm(self, name: str) -> BatchNorm:
        return BatchNorm(axis_name=self.axis_name, name=name)


class ChannelAttentionBlock(AttentionResidualBlock):
    """`AttentionResidualBlock` without its spatial gate."""

    channel_attention_name: str = "attention"
    spatial_kernel_size: int | None = None
