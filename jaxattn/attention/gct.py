"""Gated Channel Transformation (GCT).

Yang, Zhu, Wu, Yang, "Gated Channel Transformation for Visual Recognition", CVPR 2020.
https://arxiv.org/abs/1909.11519
Written from the formulas; the authors' repository, z-x-yang/GCT @68983ed, has no
licence for its PyTorch part, PyTorch/GCT.py (numbers compared in tests/test_zoo.py).
changzy00's gct.py is another block, the Gaussian Context Transformer.

Notation: N batch, H, W spatial, C channels.
It stands before convolutions, the first one too, and is the identity at start. The
authors train `beta` without weight decay. No deviations.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.errors import choose, require
from jaxattn.ops.inputs import as_feature_map, at_least_float32


class GatedChannelTransformation(nn.Module):
    """Scales every channel by a gate from its norm among those of all channels (eq. 4).

        e = alpha * sqrt(sum_hw(x^2) + epsilon)
        x * (1 + tanh(gamma * e / sqrt(mean_c(e^2) + epsilon) + beta))

    Mode "l1" has `e = alpha * sum_hw(|x|)`, and `mean_c(|e|) + epsilon` as divisor.

    Attributes:
        mode: Norm of a channel, "l2" or "l1".
        epsilon: Added to sums and means, above 0.
        after_relu: Leaves out the `|x|` of "l1", for maps without negative values.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as is
            all that is computed of the sums.
    """

    mode: str = "l2"
    epsilon: float = 1e-5
    after_relu: bool = False
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
            UserError: If `mode` is unknown or `epsilon` is not above 0.
        """
        del train
        x = as_feature_map(self, x)
        choose("mode", self.mode, ("l2", "l1"))
        require("epsilon", self.epsilon, self.epsilon > 0, "above 0")
        alpha = self._parameter("alpha", nn.initializers.ones, x)
        gamma = self._parameter("gamma", nn.initializers.zeros, x)
        beta = self._parameter("beta", nn.initializers.zeros, x)
        e = alpha * self._norms(at_least_float32(x))
        if self.mode == "l2":
            scale = jnp.sqrt(jnp.mean(e * e, 1, keepdims=True) + self.epsilon)
        else:
            scale = jnp.mean(jnp.abs(e), 1, keepdims=True) + self.epsilon
        gate = (1 + jnp.tanh(e * (gamma / scale) + beta)).astype(x.dtype)
        gate = gate[:, None, None, :]
        self.sow("intermediates", "channel_gate", gate)
        return x * gate

    def _norms(self, x: jax.Array) -> jax.Array:
        """Returns the norm of every channel `[N, C]`."""
        if self.mode == "l2":
            return jnp.sqrt(jnp.sum(jnp.square(x), (1, 2)) + self.epsilon)
        return jnp.sum(x if self.after_relu else jnp.abs(x), (1, 2))

    def _parameter(
        self, name: str, init: nn.initializers.Initializer, x: jax.Array
    ) -> jax.Array:
        """Returns a parameter `[1, C]`, stored in PyTorch's shape."""
        C = x.shape[-1]
        return self.param(name, init, (1, C, 1, 1), jnp.float32).reshape(1, C)
