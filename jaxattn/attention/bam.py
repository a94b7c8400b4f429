"""Bottleneck Attention Module (BAM).

Park, Woo, Lee, Kweon, "BAM: Bottleneck Attention Module", BMVC 2018.
https://arxiv.org/abs/1807.06514
Reference code: Jongchan/attention-module @459efad, MODELS/bam.py (numbers
compared in tests/test_zoo.py)

Notation: N batch, H, W spatial, C channels, R = C / r of the bottleneck.
Where paper and code differ the block follows the code, to which the published weights
belong:
  - the branches are multiplied; the paper adds them;
  - the hidden layers are normalised; the paper normalises the end of each branch.
Deviations from the code:
  - the channel branch averages the whole map. The code's window is H x H, so that of a
    map of W > H only the first H columns count (`square_window=True`); it fails where
    W < H or W >= 2H.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.errors import UserError, require
from jaxattn.ops.activations import sigmoid
from jaxattn.ops.conv import Conv
from jaxattn.ops.inputs import as_feature_map, at_least_float32
from jaxattn.ops.linear import Linear
from jaxattn.ops.norm import BatchNorm


class BAM(nn.Module):
    """Adds to a map its copy gated by the product of a channel and a spatial branch.

        x * (1 + sigmoid(c * p))
        c = V relu(BN(U mean_hw(x))),
        p = conv1x1(f(f(relu(BN(conv1x1(x)))))),  f = relu(BN(conv3x3, dilated))

    All layers have biases. Its authors place it between the stages of a network.

    Attributes:
        reduction: Channels of the input per channel of either bottleneck.
        dilation: Of the two 3x3 convolutions.
        square_window: Averages the first H columns alone, as the authors' code does.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as is
            the channel branch.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    reduction: int = 16
    dilation: int = 4
    square_window: bool = False
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the gate.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype; in training N is at least 2.
            train: Selects batch statistics in BatchNorm.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            UserError: If `x` has fewer channels than `reduction`, or `dilation` is less
                than 1.
        """
        x = as_feature_map(self, x)
        C = x.shape[-1]
        require("reduction", self.reduction, self.reduction >= 1, "at least 1")
        if self.reduction > C:
            raise UserError(f"BAM: reduction={self.reduction} exceeds the {C} channels")
        hidden = C // self.reduction
        c = self._channel_branch(x, hidden, train).astype(x.dtype)
        p = self._spatial_branch(x, hidden, train)
        gate = sigmoid(c[:, None, None, :] * p)
        self.sow("intermediates", "product_gate", gate)
        return x * (1 + gate)

    def _channel_branch(self, x: jax.Array, hidden: int, train: bool) -> jax.Array:
        """Returns c `[N, C]`, float32."""
        layer = "channel_att.gate_c.gate_c_{}".format
        window = x[:, :, : x.shape[1]] if self.square_window else x
        z = jnp.mean(at_least_float32(window), (1, 2))
        z = Linear(hidden, name=layer("fc_0"))(z)
        norm = BatchNorm(axis_name=self.axis_name, name=layer("bn_1"))
        z = norm(z, train=train, activation="relu")
        return Linear(x.shape[-1], name=layer("fc_final"))(z)

    def _spatial_branch(self, x: jax.Array, hidden: int, train: bool) -> jax.Array:
        """Returns p `[N, H, W, 1]`, in the dtype of `x`."""
        layer = "spatial_att.gate_s.gate_s_{}".format
        d = self.dilation

        def norm(name: str, y: jax.Array) -> jax.Array:
            module = BatchNorm(axis_name=self.axis_name, name=layer(name))
            return module(y, train=train, activation="relu")

        y = Conv(hidden, 1, use_bias=True, name=layer("conv_reduce0"))(x)
        y = norm("bn_reduce0", y)
        for i in range(2):
            name = layer(f"conv_di_{i}")
            conv = Conv(hidden, 3, padding=d, dilation=d, use_bias=True, name=name)
            y = norm(f"bn_di_{i}", conv(y))
        return Conv(1, 1, use_bias=True, name=layer("conv_final"))(y)
