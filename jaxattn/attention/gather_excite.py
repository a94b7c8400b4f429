"""Gather-Excite (GE).

Hu, Shen, Albanie, Sun, Vedaldi, "Gather-Excite: Exploiting Feature Context in
Convolutional Neural Networks", NeurIPS 2018.
https://arxiv.org/abs/1810.12348
Written from the formulas: the authors' repository, hujie-frank/GENet @ae791f8, has
prototxt files for Caffe and no licence. For extents reference code read:
pytorch-image-models v1.0.20, @234907e, timm/layers/gather_excite.py, Apache 2.0
(numbers of both compared in tests/test_zoo.py)

Notation: N batch, H, W spatial, C channels, e extent. The gather has no parameters in
theta-minus, is learned in theta, and a bottleneck follows it in theta-plus.
A learned gather of all positions has a weight for each: it takes the map's size from
the input at `init`, and refuses maps of another.
Deviations:
  - after the learned gather of an extent there is no ReLU before the bottleneck, as in
    timm; the authors, who publish the gather of all positions alone, have one there;
  - timm's learned gather with extent 0 pads, and so does not see all: it is not here.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.errors import UserError, choose, require
from jaxattn.ops.conv import Conv
from jaxattn.ops.init import torch_kernel
from jaxattn.ops.inputs import as_feature_map, at_least_float32
from jaxattn.ops.norm import BatchNorm
from jaxattn.ops.resize import resize_nearest

# Whether the gather is learned, and whether a bottleneck follows.
_KINDS = {
    "theta_minus": (False, False),
    "theta_minus_mlp": (False, True),
    "theta": (True, False),
    "theta_plus": (True, True),
}


class GatherExcite(nn.Module):
    """Scales every channel by a gate from a neighbourhood of each position (eq. 1, 2).

        x * sigmoid(up(gather(x)))
        gather = mean                                 theta_minus
               = BN(depthwise convolution)            theta
        x * sigmoid(up(W2 relu(W1 gather(x))))        theta_plus, theta_minus_mlp

    Attributes:
        kind: "theta_minus"; "theta"; "theta_plus"; or "theta_minus_mlp", which with
            extent 0 is SE with biases.
        extent: Step e of the gather, whose means see 2e - 1 positions along each axis
            and whose convolutions are log2(e) of 3x3 and stride 2; a power of two. 0 is
            all positions.
        reduction: Channels of the input per channel of the bottleneck.
        hidden: Channels of the bottleneck; None is C // `reduction`.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as is
            all that is computed of means and sums.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    kind: str = "theta"
    extent: int = 0
    reduction: int = 16
    hidden: int | None = None
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the gate.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype; H and W as at `init` if the
                gather is learned and of all positions.
            train: Selects batch statistics in BatchNorm, which with extent 0 sees one
                value of every example.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            UserError: If an attribute is not as described above, the bottleneck would
                have no channel, or the map has another size than at `init`.
        """
        x = as_feature_map(self, x)
        choose("kind", self.kind, _KINDS)
        e = self.extent
        wanted = "0 or a power of two of at least 2"
        require("extent", e, e == 0 or (e >= 2 and e & (e - 1) == 0), wanted)
        is_learned, has_bottleneck = _KINDS[self.kind]
        if is_learned:
            z = self._learned_gather(x, has_bottleneck, train)
        else:
            z = _mean(x, e)
        if has_bottleneck:
            z = self._bottleneck(z, x.shape[-1])
        gate = nn.sigmoid(z).astype(x.dtype)
        if e == 0:
            self.sow("intermediates", "channel_gate", gate)
            return x * gate
        gate = resize_nearest(gate, (x.shape[1], x.shape[2]))
        self.sow("intermediates", "neighbourhood_gate", gate)
        return x * gate

    def _learned_gather(
        self, x: jax.Array, has_bottleneck: bool, train: bool
    ) -> jax.Array:
        """Returns the gathered map `[N, h, w, C]`, float32."""
        C = x.shape[-1]
        if self.extent == 0:
            z = WholeMapConv(name="gather")(x)
            relu = "relu" if has_bottleneck else None
            norm = BatchNorm(axis_name=self.axis_name, name="bn")
            return norm(z, train=train, activation=relu)
        count = self.extent.bit_length() - 1
        for i in range(1, count + 1):
            conv = Conv(C, 3, stride=2, padding=1, groups=C, name=f"gather.conv{i}")
            norm = BatchNorm(axis_name=self.axis_name, name=f"gather.norm{i}")
            relu = "relu" if i < count else None
            x = norm(conv(x), train=train, activation=relu)
        return at_least_float32(x)

    def _bottleneck(self, z: jax.Array, C: int) -> jax.Array:
        hidden = self.hidden
        if hidden is None:
            require("reduction", self.reduction, self.reduction >= 1, "at least 1")
            hidden = C // self.reduction
            if hidden == 0:
                raise UserError(
                    f"GatherExcite: reduction={self.reduction} exceeds the {C} channels"
                )
        require("hidden", hidden, hidden >= 1, "at least 1")
        z = nn.relu(Conv(hidden, 1, use_bias=True, name="down")(z))
        return Conv(C, 1, use_bias=True, name="up")(z)


def _mean(x: jax.Array, extent: int) -> jax.Array:
    """Returns means over positions `[N, h, w, C]`, float32; padding does not count."""
    x = at_least_float32(x)
    if extent == 0:
        return jnp.mean(x, (1, 2), keepdims=True)
    k, e = 2 * extent - 1, extent
    pads = ((e - 1, e - 1), (e - 1, e - 1))
    return nn.avg_pool(x, (k, k), (e, e), pads, count_include_pad=False)  # pyright: ignore


class WholeMapConv(nn.Module):
    """A depthwise convolution as large as the map: one weighted sum of each channel."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the sums `[N, 1, 1, C]` of `x` `[N, H, W, C]`, float32.

        Raises:
            UserError: If there are weights for another height or width.
        """
        H, W, C = x.shape[1:]
        if self.has_variable("params", "kernel"):
            h, w = self.get_variable("params", "kernel").shape[:2]
            if (h, w) != (H, W):
                raise UserError(
                    f"GatherExcite: a map of {H}x{W}: must be {h}x{w} as at init, for"
                    " its gather has a weight for each position; theta_minus or an"
                    " extent takes any size"
                )
        kernel = self.param("kernel", torch_kernel, (H, W, 1, C), jnp.float32)
        products = at_least_float32(x) * kernel.reshape(1, H, W, C)
        return jnp.sum(products, (1, 2), keepdims=True)
