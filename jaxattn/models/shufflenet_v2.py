"""ShuffleNetV2: units that convolve one half of the channels and shuffle them.

Ma, Zhang, Zheng, Sun, "ShuffleNet V2: Practical Guidelines for Efficient CNN
Architecture Design", ECCV 2018. https://arxiv.org/abs/1807.11164
Parameter names are torchvision's.

Notation: N batch, H, W spatial, C channels, G groups.
Initialisation: torch's default, as in torchvision.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxattn.models.heads.classification import classify
from jaxattn.ops.conv import Conv
from jaxattn.ops.inputs import as_feature_map
from jaxattn.ops.norm import BatchNorm
from jaxattn.ops.pool import max_pool

_STAGE_SIZES = (4, 8, 4)  # units, the first of which has stride 2


def shuffle_channels(x: jax.Array, groups: int) -> jax.Array:
    """Returns `x` with its channels dealt out: one of every group in turn.

    Args:
        x: Feature map `[N, H, W, C]`, of `groups` equal groups of channels.
        groups: G, a divisor of C.
    """
    N, H, W, C = x.shape
    return x.reshape(N, H, W, groups, C // groups).swapaxes(3, 4).reshape(x.shape)


class Branch(nn.Module):
    """1x1, depthwise 3x3 and 1x1 convolution, each normalised, named as by torch.

    relu(bn(conv1x1(bn(depthwise3x3(relu(bn(conv1x1(x))))))))

    Attributes:
        features: Output channels.
        stride: Of the depthwise convolution.
        expands: Has the first 1x1 convolution.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    features: int
    stride: int = 1
    expands: bool = True
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the branch.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Selects batch statistics in BatchNorm.

        Returns:
            `[N, ceil(H / stride), ceil(W / stride), features]`, the dtype of `x`.
        """

        def norm(x: jax.Array, place: int, activation: str | None = None) -> jax.Array:
            module = BatchNorm(axis_name=self.axis_name, name=str(place))
            return module(x, train=train, activation=activation)

        place = 0  # in torch's `Sequential`, where a ReLU counts
        if self.expands:
            x = norm(Conv(self.features, 1, name="0")(x), 1, "relu")
            place = 3
        C = x.shape[-1]
        depthwise = Conv(C, 3, self.stride, padding=1, groups=C, name=str(place))
        x = norm(depthwise(x), place + 1)
        x = Conv(self.features, 1, name=str(place + 2))(x)
        return norm(x, place + 3, "relu")


class ShuffleUnit(nn.Module):
    """A branch beside what goes past it, shuffled together.

    At stride 1 the second half of the channels goes through the branch and the first
    half past it; at stride 2 all of them go through two branches.

    Attributes:
        features: Output channels, even; at stride 1 those of the input.
        stride: Step of the unit along H and W, 1 or 2.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    features: int
    stride: int = 1
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the unit.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Selects batch statistics in BatchNorm.

        Returns:
            `[N, ceil(H / stride), ceil(W / stride), features]`, the dtype of `x`.
        """
        half, stride, axis_name = self.features // 2, self.stride, self.axis_name
        if stride == 1:
            past, x = x[..., :half], x[..., half:]
        else:
            branch1 = Branch(half, stride, False, axis_name, name="branch1")
            past = branch1(x, train=train)
        branch2 = Branch(half, stride, axis_name=axis_name, name="branch2")
        return shuffle_channels(jnp.concatenate([past, branch2(x, train=train)], -1), 2)


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2.

    Its stem divides height and width by 4 also where images are small: those of 32
    pixels end as one position.

    Attributes:
        widths: Channels of the stem, of the three stages and of the last convolution.
        num_classes: Number of logits.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    widths: Sequence[int]
    num_classes: int = 10
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, return_features: bool = False
    ) -> jax.Array | tuple[jax.Array, ...]:
        """Classifies images.

        Args:
            x: Normalised images `[N, H, W, C]`, of any size.
            train: Selects batch statistics in BatchNorm.
            return_features: Returns the stages' maps instead, and needs no parameters
                of the last convolution and the head.

        Returns:
            float32 logits `[N, num_classes]`; or, if `return_features`, four maps
            `[N, H', W', C']` in `dtype`, whose strides are 4, 8, 16, 32; the first is
            the stem's.
        """
        x = as_feature_map(self, x)
        stem, *widths, last = self.widths
        x = self._conv_norm(x, stem, 3, 2, "conv1", train)
        x = max_pool(x, 3, stride=2, padding=1)
        maps = [x]
        for i, (size, width) in enumerate(zip(_STAGE_SIZES, widths, strict=True), 2):
            for j in range(size):
                name, stride = f"stage{i}.{j}", 2 if j == 0 else 1
                unit = ShuffleUnit(width, stride, self.axis_name, name=name)
                x = unit(x, train=train)
            maps.append(x)
        if return_features:
            return tuple(maps)
        x = self._conv_norm(x, last, 1, 1, "conv5", train)
        return classify(self, x, self.num_classes, name="fc")

    def _conv_norm(
        self,
        x: jax.Array,
        features: int,
        size: int,
        stride: int,
        name: str,
        train: bool,
    ) -> jax.Array:
        conv = Conv(features, size, stride, padding=size // 2, name=f"{name}.0")
        norm = BatchNorm(axis_name=self.axis_name, name=f"{name}.1")
        return norm(conv(x), train=train, activation="relu")
