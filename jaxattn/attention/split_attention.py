"""Split attention: a grouped convolution whose splits are mixed by channel.

Zhang, Wu, Zhang, Zhu, Lin, Zhang, Sun, He, Mueller, Manmatha, Li, Smola, "ResNeSt:
Split-Attention Networks", 2020. https://arxiv.org/abs/2004.08955
Reference code read: zhanghang1989/ResNeSt @1dfb3e8 (Apache-2.0),
resnest/torch/models/splat.py (numbers compared in tests/test_zoo.py)

Notation: N batch, H, W spatial, C input and O output channels, R radix (splits), K
cardinality (groups).
It replaces a convolution with its normalisation and ReLU.
Deviations from the code:
  - the padding keeps the size of the map, and is no argument;
  - the convolution has no bias unless asked for, as in the code's networks;
  - neither rectified convolutions nor DropBlock.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.attention.se import squeeze
from jaxattn.attention.selective_kernel import mix
from jaxattn.errors import require
from jaxattn.ops.conv import Conv
from jaxattn.ops.inputs import as_feature_map
from jaxattn.ops.norm import BatchNorm

_MIN_HIDDEN = 32


class SplitAttention(nn.Module):
    """A convolution to R maps, of which every channel chooses its mixture.

        u = relu(bn(conv(x))),  u_r its r-th O channels
        a = softmax_r(fc2(relu(bn(fc1(mean_hw(sum_r u_r))))))
        out = sum_r a_r * u_r

    Of one map (radix 1) the softmax is a sigmoid.

    Attributes:
        features: Output channels O; None is as many as the input has.
        kernel_size: Side of the kernel, odd.
        stride: Step along H and W.
        dilation: Distance between the taps of the kernel.
        groups: Cardinality K, a divisor of O: groups that do not see each other, each
            of which is split into R.
        radix: Splits R.
        reduction: R * C / `reduction` channels has the bottleneck, 32 at least.
        use_bias: Adds a bias to the convolution.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as is
            all that is computed of the means.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    features: int | None = None
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    radix: int = 2
    reduction: int = 4
    use_bias: bool = False
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Convolves and mixes.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Selects batch statistics; the bottleneck's, of N values a channel,
                need a batch of two or more.

        Returns:
            `[N, ceil(H / stride), ceil(W / stride), features]`, in `dtype`.

        Raises:
            UserError: If an attribute is out of its range, or R and K do not divide
                the channels.
        """
        x = as_feature_map(self, x)
        C, R = x.shape[-1], self.radix
        O = C if self.features is None else self.features  # noqa: E741
        hidden = self._hidden(C, O)
        u = self._convolve(x, O, train)
        pooled = jnp.sum(squeeze(u).reshape(-1, R, O), 1)
        return mix(self, jnp.split(u, R, -1), self._weigh(pooled, hidden, train))

    def _convolve(self, x: jax.Array, features: int, train: bool) -> jax.Array:
        """Returns all splits side by side `[N, H', W', R * O]`."""
        k = self.kernel_size
        conv = Conv(
            features * self.radix,
            k,
            self.stride,
            padding=self.dilation * (k // 2),
            dilation=self.dilation,
            groups=self.groups * self.radix,
            use_bias=self.use_bias,
            name="conv",
        )
        return self._norm("bn0")(conv(x), train=train, activation="relu")

    def _weigh(self, pooled: jax.Array, hidden: int, train: bool) -> jax.Array:
        """Returns the weights of the splits `[N, R, O]` of means `[N, O]`."""
        (N, O), K, R = pooled.shape, self.groups, self.radix  # noqa: E741
        fc1 = Conv(hidden, 1, groups=K, use_bias=True, name="fc1")
        fc2 = Conv(O * R, 1, groups=K, use_bias=True, name="fc2")
        z = fc1(pooled[:, None, None])
        z = self._norm("bn1")(z, train=train, activation="relu")
        # Channels of `fc2` are by group, then by split; those of u by split first.
        logits = fc2(z).reshape(N, K, R, O // K)
        weights = nn.softmax(logits, 2) if R > 1 else nn.sigmoid(logits)
        return weights.swapaxes(1, 2).reshape(N, R, O)

    def _hidden(self, C: int, O: int) -> int:  # noqa: E741
        """Returns the channels of the bottleneck, of attributes that are checked."""
        K, R, size = self.groups, self.radix, self.kernel_size
        for key in ("dilation", "groups", "radix", "reduction"):
            require(key, getattr(self, key), getattr(self, key) >= 1, "at least 1")
        require("kernel_size", size, size > 0 and size % 2 == 1, "odd and above 0")
        hidden = max(C * R // self.reduction, _MIN_HIDDEN)
        require("radix", R, C % R == 0, f"a divisor of the {C} input channels")
        divides = C // R % K == O % K == hidden % K == 0
        wanted = f"a divisor of {C // R} input channels a split, features={O} and the"
        require("groups", K, divides, f"{wanted} bottleneck's {hidden} channels")
        return hidden

    def _norm(self, name: str) -> BatchNorm:
        return BatchNorm(axis_name=self.axis_name, name=name)
