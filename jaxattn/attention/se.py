"""Squeeze-and-Excitation (SE), and its effective form of one layer (eSE).

Hu, Shen, Sun, "Squeeze-and-Excitation Networks", CVPR 2018.
https://arxiv.org/abs/1709.01507
Lee, Park, "CenterMask: Real-Time Anchor-Free Instance Segmentation", CVPR 2020 (eSE).
https://arxiv.org/abs/1911.06667
Reference code: moskomule/senet.pytorch @8cb2669, senet/se_module.py;
HZAI-ZJNU/SCSA @8c46866, mmpretrain/models/attentions/SE.py; pytorch-image-models
@aa4b585, timm/layers/squeeze_excite.py (numbers compared in tests/test_zoo.py)

Notation: N batch, H, W spatial, C channels, R of the bottleneck, r the reduction C / R.
`SE` without keywords is senet.pytorch's, without biases. The paper's own code has them
(`biases=True`). Deviations from senet.pytorch:
  - fewer channels than the reduction are an error; there they make a bottleneck
    without channels, whose gate is 0.5.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.errors import UserError, require
from jaxattn.ops.inputs import as_feature_map, at_least_float32
from jaxattn.ops.linear import Linear
from jaxattn.ops.norm import BatchNorm
from jaxattn.ops.pool import max_along


class SE(nn.Module):
    """Scales every channel by a gate from the means of all channels (eq. 3).

        x * sigmoid(W2 relu(W1 mean_hw(x)))

    Attributes:
        reduction: Channels of the input per channel of the bottleneck.
        hidden: Channels of the bottleneck; None is C // `reduction`.
        biases: Adds biases to both layers, as the paper's own code does.
        norm: Normalises the bottleneck over the batch, before its ReLU; training then
            takes a batch of two or more.
        maximum: Squeezes to the mean of mean and maximum.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as is
            all that is computed of the means.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    reduction: int = 16
    hidden: int | None = None
    biases: bool = False
    norm: bool = False
    maximum: bool = False
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the gate.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Selects batch statistics where there is a normalisation.

        Returns:
            Same shape as `x`, in `dtype`.

        Raises:
            UserError: If the bottleneck would have no channel.
        """
        x = as_feature_map(self, x)
        hidden = self._hidden(x.shape[-1])
        z = Linear(hidden, use_bias=self.biases, name="fc.0")(squeeze(x, self.maximum))
        if self.norm:
            norm = BatchNorm(axis_name=self.axis_name, name="fc.1")
            z = norm(z, train=train, activation="relu")
        else:
            z = nn.relu(z)
        # Named by their place in the authors' sequence.
        last = "fc.3" if self.norm else "fc.2"
        z = Linear(x.shape[-1], use_bias=self.biases, name=last)(z)
        gate = nn.sigmoid(z).astype(x.dtype)[:, None, None, :]
        self.sow("intermediates", "channel_gate", gate)
        return x * gate

    def _hidden(self, C: int) -> int:
        if self.hidden is not None:
            require("hidden", self.hidden, self.hidden >= 1, "at least 1")
            return self.hidden
        require("reduction", self.reduction, self.reduction >= 1, "at least 1")
        if self.reduction > C:
            raise UserError(f"SE: reduction={self.reduction} exceeds the {C} channels")
        return C // self.reduction


class EffectiveSE(nn.Module):
    """Scales every channel by a gate from one layer on the means of all channels.

        x * hard_sigmoid(W mean_hw(x) + b),  hard_sigmoid(z) = relu6(z + 3) / 6

    Attributes:
        maximum: Squeezes to the mean of mean and maximum.
        dtype: Computation dtype; None keeps the input's. Parameters are float32, as is
            all that is computed of the means.
    """

    maximum: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the gate.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Unused; part of every block's signature.

        Returns:
            Same shape as `x`, in `dtype`.
        """
        del train
        x = as_feature_map(self, x)
        z = Linear(x.shape[-1], name="fc")(squeeze(x, self.maximum))
        gate = nn.hard_sigmoid(z).astype(x.dtype)[:, None, None, :]
        self.sow("intermediates", "channel_gate", gate)
        return x * gate


def squeeze(x: jax.Array, maximum: bool = False) -> jax.Array:
    """Returns the means over positions `[N, C]` of `x` `[N, H, W, C]`, float32.

    Args:
        x: Feature map `[N, H, W, C]`.
        maximum: Averages them with the maxima over positions.
    """
    N, H, W, C = x.shape
    mean = jnp.mean(at_least_float32(x), (1, 2))
    if not maximum:
        return mean
    largest = max_along(x.reshape(N, H * W, C), 1).reshape(N, C)
    return 0.5 * mean + 0.5 * at_least_float32(largest)
