"""Spatial Group-wise Enhance (SGE).

Li, Hu, Yang, "Spatial Group-wise Enhance: Improving Semantic Feature Learning in
Convolutional Networks", 2019.
https://arxiv.org/abs/1905.09646
Written from the formulas; the authors' repository, implus/PytorchInsight @2864528, has
no licence (numbers compared in tests/test_zoo.py).

Notation: N batch, H, W spatial, C channels, G groups of them.
Deviations from the code:
  - the gradient of the standard deviation is 0 on maps that are constant, where the
    code's is not a number (see `jaxattn.ops.deviation`);
  - a map of one position is normalised to 0, in the code not a number.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.errors import require
from jaxattn.ops.deviation import mean_and_deviation
from jaxattn.ops.inputs import as_feature_map, at_least_float32

_EPSILON = 1e-5


class SpatialGroupEnhance(nn.Module):
    """Scales every position of a group of channels by how like the group's mean it is.

        t = sum_c(x * mean_hw(x)) of each group
        x * sigmoid(weight * (t - mean_hw(t)) / (std_hw(t) + 1e-5) + bias)

    Attributes:
        groups: Groups of consecutive channels; divides their number.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as
            are sums and statistics.
    """

    groups: int = 64
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the gates.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Unused; part of every block's signature.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            UserError: If C is not a multiple of `groups`.
        """
        del train
        x = as_feature_map(self, x)
        (N, H, W, C), G = x.shape, self.groups
        divides = G >= 1 and C % G == 0
        require("groups", G, divides, f"a divisor of the {C} channels")
        # In PyTorch's shape.
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        weight = self.param("weight", zeros, (1, G, 1, 1), jnp.float32)
        bias = self.param("bias", ones, (1, G, 1, 1), jnp.float32)
        grouped = x.reshape(N, H, W, G, C // G)
        wide = at_least_float32(grouped)
        t = jnp.sum(wide * jnp.mean(wide, (1, 2), keepdims=True), -1)
        mean, deviation = mean_and_deviation(t, (1, 2))
        t = (t - mean) / (deviation + _EPSILON)
        t = t * weight.reshape(1, 1, 1, G) + bias.reshape(1, 1, 1, G)
        gate = nn.sigmoid(t).astype(x.dtype)[..., None]
        every = jnp.broadcast_to(gate, grouped.shape).reshape(x.shape)
        self.sow("intermediates", "group_gate", every)
        return x * every
