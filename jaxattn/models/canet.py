"""CANet: six residual blocks with competitive attention.

Course project "CANet" (PRML, Fudan University, 2024), no paper.
Reference code read: tyyyyy333/Fdu_DS_DL24spring_collection, pj2/cifar10/model.py
(numbers compared in tests/test_models.py)

Notation: N batch, H, W spatial, C channels.
Deviations from the code:
  - `num_classes` is honoured (the code always has 10 outputs).
"""

import math

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from jaxattn.attention.canet import AttResBlock
from jaxattn.ops.features import mark_features
from jaxattn.ops.inputs import as_feature_map, at_least_float32
from jaxattn.ops.linear import Linear
from jaxattn.ops.norm import BatchNorm
from jaxattn.ops.pool import adaptive_avg_pool

# Of every block: width in units of the first, stride, side of the spatial gate.
_BLOCKS = ((1, 1, 7), (1, 1, 7), (2, 2, 5), (2, 1, 5), (4, 2, 3), (4, 2, 3))
_STRIDE = 8  # of the network: the product of its blocks'


class CANet(nn.Module):
    """The CANet family; `width` 16, 32, 64 and 128 are tiny, light, CANet and pro.

    Attributes:
        num_classes: Number of logits.
        width: Channels of the first block, a multiple of 16.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    num_classes: int = 10
    width: int = 64
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Classifies images.

        Args:
            x: Normalised images `[N, H, W, C]`; H and W multiples of 8.
            train: Selects batch statistics in BatchNorm.

        Returns:
            float32 logits `[N, num_classes]`.

        Raises:
            ValueError: If H or W is not a multiple of 8.
        """
        x = as_feature_map(self, x)
        H, W = x.shape[1:3]
        if H % _STRIDE or W % _STRIDE:
            raise ValueError(
                f"CANet: image height {H} and width {W} must be multiples of {_STRIDE}"
            )
        for i, (multiple, stride, spatial_kernel_size) in enumerate(_BLOCKS):
            x = AttResBlock(
                multiple * self.width,
                stride,
                spatial_kernel_size=spatial_kernel_size,
                axis_name=self.axis_name,
                name=f"res_{i}",
            )(x, train=train)
        x = adaptive_avg_pool(mark_features(self, x), 2)
        x = BatchNorm(axis_name=self.axis_name, name="bn")(x, train=train)
        # Channel-major, so that the weights of fc1 are the published ones. An exported
        # batch has a symbol for its length, which `len` refuses.
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], math.prod(x.shape[1:]))
        x = nn.relu(Linear(27 * self.width // 16, name="fc1")(x))
        return at_least_float32(Linear(self.num_classes, name="fc2")(x))
