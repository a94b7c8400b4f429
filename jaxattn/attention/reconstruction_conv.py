"""ScConv: spatial and channel reconstruction in place of a convolution.

Li, Wen, He, "SCConv: Spatial and Channel Reconstruction Convolution for Feature
Redundancy", CVPR 2023.
https://openaccess.thecvf.com/content/CVPR2023/papers/Li_SCConv_Spatial_and_Channel_Reconstruction_Convolution_for_Feature_Redundancy_CVPR_2023_paper.pdf
Reference code read: HZAI-ZJNU/SCSA @8c46866 (Apache-2.0), mmpretrain/models/attentions/
SC.py, which is a third party's (numbers compared in tests/test_zoo.py)

Notation: N batch, H, W spatial, C input and O output channels, m a mask of 0 and 1.
It replaces a convolution; normalisation and activation come after it. It is not SCNet's
self-calibrated convolution, which has the same abbreviation.
As in the code:
  - m is a step of the normalised map: the output is continuous, its gradient is not;
  - the normalised map is passed on, not x;
  - the softmax is over the channels of both halves together, so that outputs are small.
Deviations from the code:
  - the mask compares w * y with the logit of the threshold instead of a sigmoid with
    the threshold, which is the same but for rounding;
  - there may be more or fewer output than input channels.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.attention.se import squeeze
from jaxattn.attention.selective_kernel import mix
from jaxattn.errors import require
from jaxattn.ops.conv import Conv
from jaxattn.ops.group_norm import GroupNorm
from jaxattn.ops.inputs import as_feature_map, at_least_float32


class SpatialReconstruction(nn.Module):
    """Parts a normalised map by a mask, and adds the parts with halves exchanged (SRU).

        y = GN(x),  m = [sigmoid(gamma / sum(gamma) * y) >= threshold]
        a = m * y,  b = (1 - m) * y,  out = [a_1 + b_2, a_2 + b_1]

    1 and 2 are the halves of the channels, gamma the scale of the normalisation.

    Attributes:
        num_groups: Of the normalisation.
        gate_threshold: In (0, 1).
    """

    num_groups: int
    gate_threshold: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the reconstructed map of `x` `[N, H, W, C]`, same shape and dtype."""
        norm = GroupNorm(self.num_groups, name="gn")
        y = norm(x)
        gamma = norm.get_variable("params", "scale")
        w = (gamma / jnp.sum(gamma)).reshape(1, 1, 1, -1)
        level = math.log(self.gate_threshold / (1 - self.gate_threshold))
        mask = at_least_float32(y) * w >= level
        self.sow("intermediates", "unit_gate", mask.astype(y.dtype))
        rich, poor = jnp.where(mask, y, 0), jnp.where(mask, 0, y)
        return rich + jnp.roll(poor, y.shape[-1] // 2, -1)


class ChannelReconstruction(nn.Module):
    """Convolves two shares of the channels, at unequal cost, and weighs the results.

        up, low = conv1x1(x[:U]), conv1x1(x[U:])                               (CRU)
        Y1 = gwc3x3(up) + pwc1x1(up),  Y2 = [low, pwc1x1(low)]
        s = softmax([mean_hw(Y1), mean_hw(Y2)]),  out = s_1 * Y1 + s_2 * Y2

    Attributes:
        features: Output channels.
        alpha: Share of the channels in `up`.
        squeeze_ratio: Channels of a share per channel of its squeezed map.
        groups: Of the 3x3 convolution.
        stride: Step along H and W, of the first convolutions.
        dilation: Distance between the taps of the 3x3 convolution.
    """

    features: int
    alpha: float
    squeeze_ratio: int
    groups: int
    stride: int
    dilation: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[N, ceil(H / stride), ceil(W / stride), features]`."""
        upper, lower, up_width, low_width = self._widths(x.shape[-1])
        up, low = x[..., :upper], x[..., -lower:]
        up = Conv(up_width, 1, self.stride, name="squeeze_up")(up)
        low = Conv(low_width, 1, self.stride, name="squeeze_low")(low)
        gwc = Conv(
            self.features,
            3,
            padding=self.dilation,
            dilation=self.dilation,
            groups=self.groups,
            use_bias=True,
            name="gwc",
        )
        y1 = gwc(up) + Conv(self.features, 1, name="pwc1")(up)
        rest = Conv(self.features - low_width, 1, name="pwc2")(low)
        y2 = jnp.concatenate([low, rest], -1)
        pooled = jnp.stack([squeeze(y1), squeeze(y2)], 1)
        return mix(self, [y1, y2], nn.softmax(pooled, (1, 2)))

    def _widths(self, C: int) -> tuple[int, int, int, int]:
        """Returns the shares' channels, before and after they are squeezed."""
        for key in ("squeeze_ratio", "groups", "stride", "dilation"):
            require(key, getattr(self, key), getattr(self, key) >= 1, "at least 1")
        ratio, O = self.squeeze_ratio, self.features  # noqa: E741
        upper = int(C * self.alpha)
        lower = C - upper
        leaves = 0 < self.alpha < 1 and min(upper, lower) >= ratio
        wanted = f"such that both shares of {C} channels have {ratio} or more"
        require("alpha", self.alpha, leaves, f"in (0, 1) and {wanted}")
        up_width, low_width = upper // ratio, lower // ratio
        require("features", O, low_width < O, f"more than {low_width}, those passed on")
        divides = up_width % self.groups == O % self.groups == 0
        wanted = f"a divisor of {up_width} squeezed channels and features={O}"
        require("groups", self.groups, divides, wanted)
        return upper, lower, up_width, low_width


class ReconstructionConv(nn.Module):
    """Spatial, then channel reconstruction (ScConv).

    Attributes:
        features: Output channels; None is as many as the input has.
        stride: Step along H and W.
        dilation: Distance between the taps of the 3x3 convolution inside.
        groups: Of the 3x3 convolution inside.
        num_groups: Of the normalisation.
        gate_threshold: That parts informative from other elements, in (0, 1).
        alpha: Share of the channels that the 3x3 convolution sees, in (0, 1).
        squeeze_ratio: Channels of a share per channel of its squeezed map.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as
            are normalisation, mask and softmax.
    """

    features: int | None = None
    stride: int = 1
    dilation: int = 1
    groups: int = 2
    num_groups: int = 4
    gate_threshold: float = 0.5
    alpha: float = 0.5
    squeeze_ratio: int = 2
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the block.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype, C even.
            train: Unused; part of every block's signature.

        Returns:
            `[N, ceil(H / stride), ceil(W / stride), features]`, in `dtype`.

        Raises:
            UserError: If an attribute is out of its range, or the channels cannot be
                divided as it says.
        """
        del train
        x = as_feature_map(self, x)
        C, threshold = x.shape[-1], self.gate_threshold
        require(
            "channels of x", C, C % 2 == 0, "even, for ScConv exchanges their halves"
        )
        require("gate_threshold", threshold, 0 < threshold < 1, "in (0, 1)")
        x = SpatialReconstruction(self.num_groups, threshold, name="sru")(x)
        cru = ChannelReconstruction(
            C if self.features is None else self.features,
            self.alpha,
            self.squeeze_ratio,
            self.groups,
            self.stride,
            self.dilation,
            name="cru",
        )
        return cru(x)
