"""Competitive attention of CANet: a spatial and a channel branch that share one gate.

Course project "CANet" (PRML, Fudan University, 2024), no paper. Its channel branch is
ECA (Wang et al., "ECA-Net", CVPR 2020, https://arxiv.org/abs/1910.03151) with three
kernels, its spatial branch CBAM's (https://arxiv.org/abs/1807.06521).
Reference code read: tyyyyy333/Fdu_DS_DL24spring_collection, pj2/cifar10/model.py
(numbers compared in tests/test_attention.py)

Notation: N batch, H, W spatial, C channels, K kernel taps.
Deviations from the report, where the code differs and the published parameter counts
follow the code:
  - the layer that the project names SE is a multi-kernel ECA;
  - the second branch's gate comes from the channel attention, not the spatial one;
  - batch normalisation follows only the second convolution of a branch.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.attention.cbam import SpatialAttention
from jaxattn.errors import require
from jaxattn.ops.activations import relu, sigmoid
from jaxattn.ops.conv import Conv, ConvKernel
from jaxattn.ops.inputs import as_feature_map
from jaxattn.ops.norm import BatchNorm
from jaxattn.ops.stochastic_depth import drop_path


class SpatialGate(SpatialAttention):
    """CBAM's spatial attention under CANet's parameter names ("SALayer").

    Attributes:
        kernel_size: Side of the gate's convolution, odd.
        conv_name: Name of the convolution in the parameter tree.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
    """

    conv_name: str = "conv1"


class MultiKernelECA(nn.Module):
    """Scales every channel by a gate from its neighbours in channel order ("SELayer").

        x * sigmoid(sum_i w_i * conv_i(mean_hw(x))),  conv_i along the channels

    Attributes:
        kernel_sizes: Taps of the convolutions, odd.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
    """

    kernel_sizes: Sequence[int] = (3, 5, 7)
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
            ValueError: If a kernel size is even.
        """
        del train
        x = as_feature_map(self, x)
        sizes = tuple(self.kernel_sizes)
        odd = bool(sizes) and all(k > 0 and k % 2 for k in sizes)
        require("kernel_sizes", sizes, odd, "odd numbers above 0")
        kernel = self._combined_kernel().astype(x.dtype)
        K, C = kernel.size, x.shape[-1]
        # Shift and add: libraries have no fast 1-D convolution of one channel.
        pooled = jnp.pad(jnp.mean(x, (1, 2)), ((0, 0), (K // 2, K // 2)))
        gate = nn.sigmoid(sum(kernel[i] * pooled[:, i : i + C] for i in range(K)))
        gate = gate[:, None, None, :]
        self.sow("intermediates", "channel_gate", gate)
        return x * gate

    def _combined_kernel(self) -> jax.Array:
        """Sums the weighted kernels `[K]`: convolution is linear in its kernel."""
        count, largest = len(self.kernel_sizes), max(self.kernel_sizes)
        w = self.param("w", nn.initializers.ones, (count,), jnp.float32)
        combined = jnp.zeros(largest)
        for i, k in enumerate(self.kernel_sizes):
            kernel = ConvKernel((k, 1, 1), name=f"conv{i + 1}")().reshape(k)
            combined += w[i] * jnp.pad(kernel, (largest - k) // 2)
        return combined


class UnitTransform(nn.Module):
    """Turns a feature map into a gate in (0, 1) through a bottleneck.

        sigmoid(conv1x1(relu(conv1x1(x))))

    Attributes:
        hidden: Channels of the bottleneck.
    """

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the gate of `x` `[N, H, W, C]`, same shape and dtype."""
        wanted = f"at least 1; half of the {x.shape[-1]} channels unless given"
        require("hidden", self.hidden, self.hidden >= 1, wanted)
        y = relu(Conv(self.hidden, 1, name="0")(x))
        return sigmoid(Conv(x.shape[-1], 1, name="2")(y))


class CompetitiveAttention(nn.Module):
    """Adds a spatially and a channel-wise gated copy of a feature map ("CompetAtt").

        x * T(SA(x)) + x * T(ECA(x)),  T one bottleneck shared by both

    Attributes:
        hidden: Channels of the bottleneck; None is half of the input's.
        spatial_kernel_size: Side of the spatial gate's convolution, odd.
        eca_kernel_sizes: Taps of the channel gate's convolutions, odd.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
    """

    hidden: int | None = None
    spatial_kernel_size: int = 7
    eca_kernel_sizes: Sequence[int] = (3, 5, 7)
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the block.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Unused; part of every block's signature.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            ValueError: If a kernel size is even.
        """
        x = as_feature_map(self, x)
        hidden = x.shape[-1] // 2 if self.hidden is None else self.hidden
        sa = SpatialGate(self.spatial_kernel_size, name="SAlayer")
        eca = MultiKernelECA(self.eca_kernel_sizes, name="SELayer")
        transform = UnitTransform(hidden, name="unit_transform")
        u1, u2 = transform(sa(x, train=train)), transform(eca(x, train=train))
        self.sow("intermediates", "spatial_unit_gate", u1)
        self.sow("intermediates", "channel_unit_gate", u2)
        return x * u1 + x * u2


class AttResBlock(nn.Module):
    """A residual block of two convolutional branches that compete through their gates.

        out = relu(bn3(T(SA(out1)) * out1 + T(ECA(out2)) * out2 + shortcut(x)))
        out_i = relu(bn_i(conv3x3(relu(conv3x3(x))))),  the stride on the second

    The shortcut is a convolution and a batch normalisation: 3x3 at stride 1, else of
    patches of `stride` x `stride`.

    Attributes:
        features: Output channels C.
        stride: Step of the block along H and W; H and W must be divisible by it.
        downsample: False makes the shortcut the identity (stride 1, equal channels).
        spatial_kernel_size: Side of the spatial gate's convolution, odd.
        eca_kernel_sizes: Taps of the channel gate's convolutions, odd.
        drop_path_rate: See `jaxattn.ops.drop_path`.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    features: int
    stride: int = 1
    downsample: bool = True
    spatial_kernel_size: int = 7
    eca_kernel_sizes: Sequence[int] = (3, 5, 7)
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
            `[N, H / stride, W / stride, features]`, in `dtype`.

        Raises:
            ValueError: If H or W is not divisible by `stride`, the identity shortcut
                does not fit, or a kernel size is even.
        """
        x = as_feature_map(self, x)
        self._check(x)
        out1 = self._branch(x, "conv1", "conv2", "bn1", train)
        out2 = self._branch(x, "conv3", "conv4", "bn2", train)
        sa = SpatialGate(self.spatial_kernel_size, name="sa")
        eca = MultiKernelECA(self.eca_kernel_sizes, name="se")
        transform = UnitTransform(self.features // 2, name="unit_transform")
        u1 = transform(sa(out1, train=train))
        u2 = transform(eca(out2, train=train))
        self.sow("intermediates", "spatial_unit_gate", u1)
        self.sow("intermediates", "channel_unit_gate", u2)
        out = drop_path(u1 * out1 + u2 * out2, self.drop_path_rate, train=train)
        out = out + self._shortcut(x, train)
        return self._norm("bn3")(out, train=train, activation="relu")

    def _branch(
        self, x: jax.Array, conv1: str, conv2: str, norm: str, train: bool
    ) -> jax.Array:
        y = relu(Conv(self.features, 3, padding=1, name=conv1)(x))
        y = Conv(self.features, 3, stride=self.stride, padding=1, name=conv2)(y)
        return self._norm(norm)(y, train=train, activation="relu")

    def _shortcut(self, x: jax.Array, train: bool) -> jax.Array:
        if not self.downsample:
            return x
        # Patches that do not overlap, or 3x3 where there is no stride.
        size, padding = (3, 1) if self.stride == 1 else (self.stride, 0)
        y = Conv(
            self.features, size, self.stride, padding=padding, name="downsample.0"
        )(x)
        return self._norm("downsample.1")(y, train=train)

    def _norm(self, name: str) -> BatchNorm:
        return BatchNorm(axis_name=self.axis_name, name=name)

    def _check(self, x: jax.Array) -> None:
        H, W, C = x.shape[1:]
        require("stride", self.stride, self.stride >= 1, "at least 1")
        if H % self.stride or W % self.stride:
            raise ValueError(
                f"AttResBlock: height {H} and width {W} must be divisible by its"
                f" stride {self.stride}"
            )
        if not self.downsample and (self.stride, C) != (1, self.features):
            raise ValueError(
                f"AttResBlock: downsample=False needs stride 1 and {self.features}"
                f" input channels, got stride {self.stride} and {C}"
            )
