"""Style-based Recalibration Module (SRM).

Lee, Kim, Nam, "SRM: A Style-based Recalibration Module for Convolutional Neural
Networks", ICCV 2019.
https://arxiv.org/abs/1903.10829
Reference code: EvgenyKashin/SRMnet @a7ebdbe, models/layer_blocks.py, a third
party's, MIT licence (numbers compared in tests/test_zoo.py). The authors have published
none.

Notation: N batch, H, W spatial, C channels.
Deviations from the code:
  - the gradient of the standard deviation is 0 on channels that are constant, where the
    code's is not a number (see `jaxattn.ops.deviation`);
  - a channel of one position has the deviation 0, in the code not a number.
"""

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from jaxattn.ops.conv import ConvKernel
from jaxattn.ops.deviation import mean_and_deviation
from jaxattn.ops.inputs import as_feature_map
from jaxattn.ops.norm import BatchNorm


class StyleRecalibration(nn.Module):
    """Scales every channel by a gate from its own mean and deviation (eq. 1 to 5).

        x * sigmoid(BN(w_0 mean_hw(x) + w_1 std_hw(x))),  w of each channel

    Attributes:
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as is
            all that is computed of mean and deviation.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the gate.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Selects batch statistics in BatchNorm, which sees one value of every
                example.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            ValueError: If `train` and N is 1.
        """
        x = as_feature_map(self, x)
        N, C = x.shape[0], x.shape[-1]
        w = ConvKernel((2, 1, C), name="cfc")()
        mean, deviation = mean_and_deviation(x, (1, 2))
        z = w[0] * mean.reshape(N, C) + w[1] * deviation.reshape(N, C)
        z = BatchNorm(axis_name=self.axis_name, name="bn")(z, train=train)
        gate = nn.sigmoid(z).astype(x.dtype)[:, None, None, :]
        self.sow("intermediates", "channel_gate", gate)
        return x * gate
