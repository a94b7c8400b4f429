"""Convolutional Block Attention Module (CBAM).

Woo, Park, Lee, Kweon, "CBAM: Convolutional Block Attention Module", ECCV 2018.
https://arxiv.org/abs/1807.06521
Reference code read: prathamssaraf/Attention-Enhanced-ResNet-for-CIFAR-10-Classification
@847ab2b, src/models/{attention,blocks}.py (numbers compared in tests/test_attention.py)

Notation: N batch, H, W spatial, C channels.
`CBAM` is the paper's module. Deviations from the paper:
  - no batch normalisation after the 7x7 convolution, as in the reference code and in
    equation 5 (the paper's own released code has one); effect not measured.
`AttentionResidualBlock` is the reference code's, whose channel attention differs:
  - each pooling's response goes through its own sigmoid and the gates are added, so
    that the sum lies in (0, 2) (eq. 2 has the sigmoid of the summed responses);
  - the bottleneck has C / max(C / 16, 4) channels, about 16 whatever C is (the paper
    has C / 16): the code's minimum of 4 bounds the divisor.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from jaxattn.errors import require
from jaxattn.ops.conv import Conv, ConvKernel, conv2d
from jaxattn.ops.init import torch_kernel
from jaxattn.ops.inputs import as_feature_map
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
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
    """

    kernel_size: int = 7
    conv_name: str = "conv"
    kernel_init: Initializer = torch_kernel
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
            ValueError: If `kernel_size` is even.
        """
        del train
        x = as_feature_map(self, x)
        size = self.kernel_size
        require("kernel_size", size, size > 0 and size % 2 == 1, "odd and above 0")
        shape = (self.kernel_size, self.kernel_size, 2, 1)
        kernel = ConvKernel(shape, self.kernel_init, name=self.conv_name)()
        maps = jnp.concatenate([jnp.mean(x, -1, keepdims=True), max_along(x, -1)], -1)
        padding = self.kernel_size // 2
        gate = nn.sigmoid(conv2d(maps, kernel.astype(x.dtype), padding=padding))
        self.sow("intermediates", "spatial_gate", gate)
        return x * gate


class PooledMLP(nn.Module):
    """The channel attention's bottleneck, shared by the mean and the maximum.

        conv1x1(relu(conv1x1(pooled)))

    Attributes:
        hidden: Channels of the bottleneck.
        kernel_init: Initialiser of both kernels.
    """

    hidden: int
    kernel_init: Initializer = torch_kernel

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the responses to mean and maximum over positions.

        Args:
            x: Feature map `[N, H, W, C]`.

        Returns:
            `[2, N, 1, 1, C]`, the dtype of `x`.
        """
        N, H, W, C = x.shape
        if self.hidden < 1:
            raise ValueError(
                f"channel attention: {C} channels leave its bottleneck none"
            )
        mean = jnp.mean(x, (1, 2)).reshape(N, 1, 1, C)
        largest = max_along(x.reshape(N, H * W, 1, C), 1)
        # One batch of both: the bottleneck runs once.
        pooled = jnp.concatenate([mean, largest])
        y = nn.relu(
            Conv(self.hidden, 1, kernel_init=self.kernel_init, name="0")(pooled)
        )
        y = Conv(C, 1, kernel_init=self.kernel_init, name="2")(y)
        return y.reshape(2, N, 1, 1, C)


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
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
    """

    hidden: int | None = None
    reduction: int = 16
    kernel_init: Initializer = torch_kernel
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
            ValueError: If the bottleneck would have no channel, as of fewer than 4.
        """
        del train
        x = as_feature_map(self, x)
        hidden = self.hidden
        if hidden is None:
            require("reduction", self.reduction, self.reduction >= 1, "at least 1")
            hidden = reference_hidden(x.shape[-1], self.reduction)
        mean, largest = PooledMLP(hidden, self.kernel_init, name="shared_mlp")(x)
        gate = nn.sigmoid(mean + largest)
        self.sow("intermediates", "channel_gate", gate)
        return x * gate


class CBAM(nn.Module):
    """The paper's module: channel attention, then spatial attention (eq. 1).

    Attributes:
        reduction: Channels of the input per channel of the bottleneck.
        kernel_size: Side of the spatial gate's convolution, odd.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
    """

    reduction: int = 16
    kernel_size: int = 7
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies both gates.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Unused; part of every block's signature.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            ValueError: If `x` has fewer channels than `reduction`, or `kernel_size` is
                even.
        """
        x = as_feature_map(self, x)
        require("reduction", self.reduction, self.reduction >= 1, "at least 1")
        hidden, dtype = x.shape[-1] // self.reduction, self.dtype
        if hidden == 0:
            raise ValueError(
                f"CBAM: reduction={self.reduction} exceeds the {x.shape[-1]} channels"
            )
        x = ChannelAttention(hidden, dtype=dtype, name="channel_attention")(
            x, train=train
        )
        spatial = SpatialAttention(
            self.kernel_size, dtype=dtype, name="spatial_attention"
        )
        return spatial(x, train=train)


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
