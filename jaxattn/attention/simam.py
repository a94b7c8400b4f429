"""SimAM, an attention module without parameters.

Yang, Zhang, Li, Xie, "SimAM: A Simple, Parameter-Free Attention Module for
Convolutional Neural Networks", ICML 2021.
https://proceedings.mlr.press/v139/yang21o.html
Written from the formulas; the authors' repository, ZjjConan/SimAM @ae98f43, has no
licence (numbers compared in tests/test_zoo.py).

Notation: N batch, H, W spatial, C channels.
The authors' ImageNet commands take `e_lambda=0.1`, their code 1e-4 by default.
Deviations from the code:
  - a map of one position, whose energy the code makes 0 / 0, has the energy 0.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.errors import require
from jaxattn.ops.activations import sigmoid
from jaxattn.ops.inputs import as_feature_map, at_least_float32


class SimAM(nn.Module):
    """Scales every value by a gate from how far it is from its channel's mean (eq. 5).

        d = (x - mean_hw(x))^2
        x * sigmoid(d / (4 (sum_hw(d) / (H W - 1) + lambda)) + 1/2)

    Attributes:
        e_lambda: Added to the variance, above 0.
        dtype: Computation dtype; None keeps the input's. Statistics are float32.
    """

    e_lambda: float = 1e-4
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
            UserError: If `e_lambda` is not above 0.
        """
        del train
        x = as_feature_map(self, x)
        require("e_lambda", self.e_lambda, self.e_lambda > 0, "above 0")
        count = max(x.shape[1] * x.shape[2] - 1, 1)
        wide = at_least_float32(x)
        d = jnp.square(wide - jnp.mean(wide, (1, 2), keepdims=True))
        variance = jnp.sum(d, (1, 2), keepdims=True) / count
        energy = d / (4 * (variance + self.e_lambda)) + 0.5
        gate = sigmoid(energy.astype(x.dtype))
        self.sow("intermediates", "unit_gate", gate)
        return x * gate
