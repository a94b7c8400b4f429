"""Strip pooling: attention from means over whole rows and columns.

Hou, Zhang, Cheng, Feng, "Strip Pooling: Rethinking Spatial Pooling for Scene Parsing",
CVPR 2020. https://arxiv.org/abs/2003.13328
Reference code read: Andrew-Qibin/SPNet @5e97da3 (MIT), models/resnet.py (SPBlock) and
models/customize.py (StripPooling) (numbers compared in tests/test_zoo.py)

Notation: N batch, H, W spatial, C channels, L length of a strip (H or W).
`StripPooling` is SPBlock: a gate. `MixedPooling` is the paper's mixed pooling module
(MPM), which the code calls StripPooling: a head's block.
Deviation from the code:
  - SPBlock returns the gate, by which its network multiplies; ours returns the product.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.errors import require
from jaxattn.ops.activations import sigmoid
from jaxattn.ops.conv import Conv, ConvKernel
from jaxattn.ops.inputs import as_feature_map, at_least_float32
from jaxattn.ops.norm import BatchNorm
from jaxattn.ops.pool import adaptive_avg_pool
from jaxattn.ops.resize import resize_bilinear

_TAPS = 3


class StripPooling(nn.Module):
    """Scales every element by a gate from the means of its row and of its column.

        x * sigmoid(conv1x1(relu(bn1(conv3x1(mean_w(x))) + bn2(conv1x3(mean_h(x))))))

    Attributes:
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    dtype: DTypeLike | None = None
    axis_name: str | None = None

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the gate.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Selects batch statistics, over the strips: two rows, and two columns,
                or more are needed in the batch.

        Returns:
            Same shape as `x`, in `dtype`.
        """
        x = as_feature_map(self, x)
        gate = self.gate(x, x.shape[-1], train=train)
        self.sow("intermediates", "unit_gate", gate)
        return x * gate

    @nn.compact
    def gate(self, x: jax.Array, features: int, *, train: bool = False) -> jax.Array:
        """Returns the gate `[N, H, W, features]` of a feature map `[N, H, W, C]`."""
        rows = convolve_strip(x, 2, features, "conv1")
        columns = convolve_strip(x, 1, features, "conv2")
        norms = [BatchNorm(axis_name=self.axis_name, name=f"bn{i}") for i in (1, 2)]
        rows, columns = (
            norm(strip, train=train)
            for norm, strip in zip(norms, (rows, columns), strict=True)
        )
        y = nn.relu(rows[:, :, None] + columns[:, None])
        return sigmoid(Conv(features, 1, use_bias=True, name="conv3")(y))


class MixedPooling(nn.Module):
    """Adds what pooling at several sizes, and over strips, makes of a map (MPM).

        a, b = relu(bn(conv1x1(x))) to C / 4 channels each
        y1 = relu(conv3x3(a) + up(conv3x3(pool_1(a))) + up(conv3x3(pool_2(a))))
        y2 = relu(up(conv1x3(mean_h(b))) + up(conv3x1(mean_w(b))))
        out = relu(x + bn(conv1x1([relu(conv3x3(y1)), relu(conv3x3(y2))])))

    A normalisation follows every convolution; `up` is bilinear, the corners kept.

    Attributes:
        pool_sizes: Windows along H, and along W, of both poolings.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    pool_sizes: tuple[int, int] = (20, 12)
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the block.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype, of 4 channels or more.
            train: Selects batch statistics, of the strips too: two rows, and two
                columns, or more are needed in the batch.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            UserError: If the pool sizes are not two above 0, or `x` has fewer than 4
                channels.
        """
        x = as_feature_map(self, x)
        C, sizes = x.shape[-1], tuple(self.pool_sizes)
        fits = len(sizes) == 2 and min(sizes) >= 1
        require("pool_sizes", sizes, fits, "two numbers above 0")
        require(
            "channels of x", C, C >= 4, "at least 4, for MixedPooling takes a quarter"
        )
        a = self._convolve(x, C // 4, 1, "conv1_1", train, "relu")
        b = self._convolve(x, C // 4, 1, "conv1_2", train, "relu")
        y1 = self._squares(a, sizes, train)
        y2 = self._strips(b, train)
        y1 = self._convolve(y1, C // 4, 3, "conv2_5", train, "relu")
        y2 = self._convolve(y2, C // 4, 3, "conv2_6", train, "relu")
        y = Conv(C, 1, name="conv3.0")(jnp.concatenate([y1, y2], -1))
        return self._norm("conv3")(y, train=train, residual=x, activation="relu")

    def _squares(self, a: jax.Array, sizes: tuple[int, ...], train: bool) -> jax.Array:
        """Returns the sum at three sizes, after its ReLU."""
        _, H, W, C = a.shape
        total = self._convolve(a, C, 3, "conv2_0", train)
        for i, size in enumerate(sizes, 1):
            pooled = adaptive_avg_pool(a, size)
            y = self._convolve(pooled, C, 3, f"conv2_{i}", train)
            total += resize_bilinear(y, (H, W), align_corners=True)
        return nn.relu(total)

    def _strips(self, b: jax.Array, train: bool) -> jax.Array:
        """Returns the sum of both strips, after its ReLU."""
        columns = convolve_strip(b, 1, b.shape[-1], "conv2_3.0")
        rows = convolve_strip(b, 2, b.shape[-1], "conv2_4.0")
        columns = self._norm("conv2_3")(columns, train=train)
        rows = self._norm("conv2_4")(rows, train=train)
        return nn.relu(columns[:, None] + rows[:, :, None])

    def _convolve(
        self,
        x: jax.Array,
        features: int,
        size: int,
        name: str,
        train: bool,
        activation: str | None = None,
    ) -> jax.Array:
        y = Conv(features, size, padding=size // 2, name=f"{name}.0")(x)
        return self._norm(name)(y, train=train, activation=activation)

    def _norm(self, name: str) -> BatchNorm:
        """Returns the normalisation of a sequence."""
        return BatchNorm(axis_name=self.axis_name, name=f"{name}.1")


def convolve_strip(x: jax.Array, axis: int, features: int, name: str) -> jax.Array:
    """Averages a map over an axis and convolves along the other; call it in `compact`.

    Args:
        x: Feature map `[N, H, W, C]`.
        axis: 1 or 2, the one that is averaged.
        features: Output channels.
        name: Of the convolution, whose kernel is 1x3 or 3x1.

    Returns:
        `[N, L, features]`, the dtype of `x`.
    """
    C, L = x.shape[-1], x.shape[3 - axis]
    sides = (1, _TAPS) if axis == 1 else (_TAPS, 1)
    kernel = ConvKernel((*sides, C, features), name=name)().astype(x.dtype)
    strip = jnp.mean(at_least_float32(x), axis).astype(x.dtype)
    # One matrix product: libraries are slow on maps of one row.
    padded = jnp.pad(strip, ((0, 0), (1, 1), (0, 0)))
    taps = jnp.concatenate([padded[:, i : i + L] for i in range(_TAPS)], -1)
    return taps @ kernel.reshape(-1, features)
