"""CANet: six residual blocks with competitive attention.

Course project "CANet" (PRML, Fudan University, 2024), no paper.
Reference code read: tyyyyy333/Fdu_DS_DL24spring_collection, pj2/cifar10/model.py
(numbers compared in tests/test_models.py)

Notation: N batch, H, W spatial, C channels.
Deviations from the code:
  - `num_classes` is honoured (the code always has 10 outputs).
"""

import math
from collections.abc import Iterator

import flax.linen as nn
import jax

from jaxattn.attention.canet import AttResBlock
from jaxattn.models.heads.classification import last_layer
from jaxattn.models.network import Network
from jaxattn.ops.features import mark_features
from jaxattn.ops.linear import Linear
from jaxattn.ops.norm import BatchNorm
from jaxattn.ops.pool import adaptive_avg_pool
from jaxattn.ops.stochastic_depth import depth_rates

# Of every block: width in units of the first, stride, side of the spatial gate.
_BLOCKS = ((1, 1, 7), (1, 1, 7), (2, 2, 5), (2, 1, 5), (4, 2, 3), (4, 2, 3))
_STRIDE = 8  # of the network: the product of its blocks'


class CANet(Network):
    """The CANet family; `width` 16, 32, 64 and 128 are tiny, light, CANet and pro.

    It takes images whose height and width are multiples of 8. Its stages end before
    every block that halves the map, so that there are maps of strides 1, 2, 4 and 8.

    Attributes:
        num_classes: Number of logits; 0 returns what they would be made of.
        width: Channels of the first block, a multiple of 16.
        drop_path_rate: Share of the images whose last residual branch training leaves
            out; 0 of the first branch, and rising evenly (rng stream "dropout").
    """

    num_classes: int = 10
    width: int = 64
    drop_path_rate: float = 0.0

    def _check_size(self, x: jax.Array) -> None:
        H, W = x.shape[1:3]
        if H % _STRIDE or W % _STRIDE:
            raise ValueError(
                f"CANet: image height {H} and width {W} must be multiples of {_STRIDE}"
            )

    @nn.nowrap
    def _stages(self, x: jax.Array, train: bool) -> Iterator[jax.Array]:
        rates = depth_rates(self.drop_path_rate, len(_BLOCKS))
        for i, (multiple, stride, spatial_kernel_size) in enumerate(_BLOCKS):
            if stride > 1:
                yield x
            x = AttResBlock(
                multiple * self.width,
                stride,
                spatial_kernel_size=spatial_kernel_size,
                drop_path_rate=rates[i],
                axis_name=self.axis_name,
                name=f"res_{i}",
            )(x, train=train)
        yield x

    def _head(self, x: jax.Array, train: bool) -> jax.Array:
        x = adaptive_avg_pool(mark_features(self, x), 2)
        x = BatchNorm(axis_name=self.axis_name, name="bn")(x, train=train)
        # Channel-major, so that the weights of fc1 are the published ones. An exported
        # batch has a symbol for its length, which `len` refuses.
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], math.prod(x.shape[1:]))
        x = nn.relu(Linear(27 * self.width // 16, name="fc1")(x))
        return last_layer(x, Linear(self.num_classes, name="fc2"))
