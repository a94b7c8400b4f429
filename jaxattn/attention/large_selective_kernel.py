"""Large selective kernel (LSK): a gate that chooses between two receptive fields.

Li, Hou, Zheng, Cheng, Yang, Li, "Large Selective Kernel Network for Remote Sensing
Object Detection", ICCV 2023. https://arxiv.org/abs/2303.09030
The authors' code, zcablii/LSKNet @cbe06ca, mmrotate/models/backbones/lsknet.py
(LSKblock), is under CC BY-NC 4.0, as are its weights: written from the formulas
(numbers compared in tests/test_zoo.py)

Notation: N batch, H, W spatial, C channels.
In LSKNet it stands between two 1x1 convolutions, in a block like a transformer's.
As in the code, there is no sigmoid at the end: the product has no bounds.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.errors import require
from jaxattn.ops.conv import Conv
from jaxattn.ops.inputs import as_feature_map
from jaxattn.ops.pool import max_along


class LargeSelectiveKernel(nn.Module):
    """Scales every element by what two depthwise convolutions see, mixed by position.

        a = conv5x5(x),  b = conv7x7(a),  depthwise, the latter dilated 3 times
        a, b = conv1x1(a), conv1x1(b) to C / 2 channels each
        q = sigmoid(conv7x7([mean_c; max_c] of [a; b]))
        out = x * conv1x1(a * q_0 + b * q_1)

    Attributes:
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
    """

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the gate.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype, of 2 channels or more.
            train: Unused; part of every block's signature.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            UserError: If `x` has one channel.
        """
        del train
        x = as_feature_map(self, x)
        C = x.shape[-1]
        require(
            "channels of x",
            C,
            C >= 2,
            "at least 2, for LargeSelectiveKernel halves them",
        )
        a = Conv(C, 5, padding=2, groups=C, use_bias=True, name="conv0")(x)
        wide = Conv(C, 7, 1, 9, 3, groups=C, use_bias=True, name="conv_spatial")
        b = Conv(C // 2, 1, use_bias=True, name="conv2")(wide(a))
        a = Conv(C // 2, 1, use_bias=True, name="conv1")(a)
        squeeze = Conv(2, 7, padding=3, use_bias=True, name="conv_squeeze")
        q = nn.sigmoid(squeeze(_pooled(a, b)))
        near, far = q[..., :1], q[..., 1:]
        self.sow("intermediates", "branch_0_gate", near)
        self.sow("intermediates", "branch_1_gate", far)
        gate = Conv(C, 1, use_bias=True, name="conv")(a * near + b * far)
        self.sow("intermediates", "unit_gate", gate)
        return x * gate


def _pooled(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns mean and maximum over the channels of both maps, of equal width."""
    means = [jnp.mean(v, -1, keepdims=True) for v in (a, b)]
    # The maximum of maxima: the maps are not copied side by side.
    largest = jnp.concatenate([max_along(a, -1), max_along(b, -1)], -1)
    return jnp.concatenate([0.5 * (means[0] + means[1]), max_along(largest, -1)], -1)
