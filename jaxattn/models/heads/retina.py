"""The head of RetinaNet: classes and boxes of every anchor, the same at all levels."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxattn.ops.conv import Conv
from jaxattn.ops.inputs import at_least_float32

_PRIOR = 0.01  # probability of every class at the start


class RetinaHead(nn.Module):
    """Two towers of convolutions with ReLU, and a last convolution each.

    Attributes:
        num_classes: Classes K.
        num_anchors: Of a position.
        num_convs: Of a tower.
    """

    num_classes: int
    num_anchors: int = 9
    num_convs: int = 4

    @nn.compact
    def __call__(self, levels: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
        """Returns float32 logits `[N, A, K]` and deltas `[N, A, 4]` of all anchors.

        Args:
            levels: `[N, H, W, C]` each.
        """
        logits = self._tower(levels, "cls_convs", "retina_cls", self.num_classes)
        deltas = self._tower(levels, "reg_convs", "retina_reg", 4)
        return logits, deltas

    def _tower(
        self, levels: Sequence[jax.Array], names: str, last_name: str, values: int
    ) -> jax.Array:
        width = levels[0].shape[-1]
        convs = [
            _conv(width, f"{names}.{i}.conv", nn.initializers.zeros)
            for i in range(self.num_convs)
        ]
        bias = -math.log((1 - _PRIOR) / _PRIOR) if names == "cls_convs" else 0.0
        init = nn.initializers.constant(bias)
        last = _conv(values * self.num_anchors, last_name, init)
        found = []
        for x in levels:
            for conv in convs:
                x = nn.relu(conv(x))
            found.append(at_least_float32(last(x)).reshape(x.shape[0], -1, values))
        return jnp.concatenate(found, 1)


def _conv(features: int, name: str, bias_init: nn.initializers.Initializer) -> Conv:
    return Conv(
        features,
        3,
        padding=1,
        use_bias=True,
        kernel_init=nn.initializers.normal(0.01),
        bias_init=bias_init,
        name=name,
    )
