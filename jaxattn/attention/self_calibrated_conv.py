"""Self-calibrated convolution (SCNet): one that a smaller copy of its input gates.

Liu, Hou, Cheng, Wang, Feng, "Improving Convolutional Networks with Self-Calibrated
Convolutions", CVPR 2020. https://mftp.mmcheng.net/Papers/20cvprSCNet.pdf
Reference code read: MCG-NKU/SCNet @c0b5bd6 (MIT), scnet.py (numbers compared in
tests/test_zoo.py)

Notation: N batch, H, W spatial, C input and O output channels, r side of the pooling.
It replaces a convolution with its normalisation; the activation comes after it. In
SCNet it has half of the channels, and a plain convolution beside it the others.
Deviations from the code:
  - a map narrower than r is pooled over all its width; there it is an error;
  - there may be more or fewer output than input channels;
  - the padding keeps the size of the map, and is no argument.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.errors import require
from jaxattn.ops.activations import sigmoid
from jaxattn.ops.conv import Conv
from jaxattn.ops.inputs import as_feature_map
from jaxattn.ops.norm import BatchNorm
from jaxattn.ops.resize import resize_nearest


class SelfCalibratedConv(nn.Module):
    """Two convolutions in a row, with a gate between them.

        k4(k3(x) * sigmoid(x + up(k2(avg_pool_r(x))))),  k_i(x) = bn(conv(x))

    `up` repeats the nearest position.

    Attributes:
        features: Output channels; None is as many as the input has.
        kernel_size: Side of the kernels, odd.
        stride: Step along H and W, of the last convolution.
        dilation: Distance between the taps of the kernels.
        groups: Groups of channels that do not see each other.
        pool_size: Side r of the windows that are averaged.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    features: int | None = None
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    pool_size: int = 4
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Convolves and calibrates.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Selects batch statistics; those of the pooled map need two positions
                or more in the batch.

        Returns:
            `[N, ceil(H / stride), ceil(W / stride), features]`, in `dtype`.

        Raises:
            UserError: If an attribute is out of its range, or `groups` does not divide
                the channels.
        """
        x = as_feature_map(self, x)
        _, H, W, C = x.shape
        features = C if self.features is None else self.features
        self._check(C, features)
        context = self._convolve(_average(x, self.pool_size), C, 1, "k2", 1, train)
        gate = sigmoid(x + resize_nearest(context, (H, W)))
        self.sow("intermediates", "unit_gate", gate)
        y = self._convolve(x, C, 1, "k3", 0, train) * gate
        return self._convolve(y, features, self.stride, "k4", 0, train)

    def _convolve(
        self, x: jax.Array, features: int, stride: int, name: str, i: int, train: bool
    ) -> jax.Array:
        """Convolves and normalises; i is the convolution's place in its sequence."""
        k = self.kernel_size
        conv = Conv(
            features,
            k,
            stride,
            padding=self.dilation * (k // 2),
            dilation=self.dilation,
            groups=self.groups,
            name=f"{name}.{i}",
        )
        norm = BatchNorm(axis_name=self.axis_name, name=f"{name}.{i + 1}")
        return norm(conv(x), train=train)

    def _check(self, C: int, features: int) -> None:
        for key in ("stride", "dilation", "groups", "pool_size"):
            require(key, getattr(self, key), getattr(self, key) >= 1, "at least 1")
        size, G = self.kernel_size, self.groups
        require("kernel_size", size, size > 0 and size % 2 == 1, "odd and above 0")
        wanted = f"a divisor of {C} input channels and {features=}"
        require("groups", G, C % G == features % G == 0, wanted)


def _average(x: jax.Array, size: int) -> jax.Array:
    """Means of windows that do not overlap, as wide as the map where it is narrower."""
    N, H, W, C = x.shape
    down, right = min(size, H), min(size, W)
    h, w = H // down, W // right  # torch drops what does not fill a window
    windows = x[:, : h * down, : w * right].reshape(N, h, down, w, right, C)
    return jnp.mean(windows, (2, 4))
