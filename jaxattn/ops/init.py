"""PyTorch's initialisers.

By default kernel and bias of `nn.Conv*d` and `nn.Linear` are uniform in
+-1/sqrt(fan_in). `kaiming_normal` is `nn.init.kaiming_normal_(mode="fan_out")`.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.nn.initializers import Initializer, variance_scaling

torch_kernel: Initializer = variance_scaling(1 / 3, "fan_in", "uniform")
kaiming_normal: Initializer = variance_scaling(2.0, "fan_out", "normal")


def torch_bias(fan_in: int) -> Initializer:
    """Returns torch's bias initialiser for a layer with `fan_in` inputs a unit.

    Args:
        fan_in: Input channels times kernel area (per group) of the layer.
    """
    bound = 1 / math.sqrt(fan_in)

    def init(
        key: jax.Array,
        shape: Sequence[int],
        dtype: Any = float,
        out_sharding: Any = None,
    ) -> jax.Array:
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
