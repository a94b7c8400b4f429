"""ShuffleNetV2: units that convolve one half of the channels and shuffle them.

Ma, Zhang, Zheng, Sun, "ShuffleNet V2: Practical Guidelines for Efficient CNN
Architecture Design", ECCV 2018. https://arxiv.org/abs/1807.11164
Parameter names are torchvision's.

Notation: N batch, H, W spatial, C channels, G groups.
Initialisation: torch's default, as in torchvision.
An attention module is in the branch that has all three convolutions, where a block has
its 3x3 convolution: "inside" behind the depthwise one and its normalisation.
"""

from collections.abc import Iterator, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxattn.models.attention_network import AttentionNetwork
from jaxattn.models.heads.classification import classify
from jaxattn.models.slots import Slot
from jaxattn.ops.conv import Conv
from jaxattn.ops.norm import BatchNorm
from jaxattn.ops.pool import max_pool

_STAGE_SIZES = (4, 8, 4)  # units, the first of which has stride 2
_FIRST_SIDE = 56  # of the first stage's map, which is the stem's, at 224 pixels


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
        slot: The branch's attention module, and where it sits.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    features: int
    stride: int = 1
    expands: bool = True
    slot: Slot = Slot()
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the branch.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Selects batch statistics in BatchNorm, and is passed to the
                attention.

        Returns:
            `[N, ceil(H / stride), ceil(W / stride), features]`, the dtype of `x`.
        """
        slot, place = self.slot, 0  # in torch's `Sequential`, where a ReLU counts
        if self.expands:
            x = self._norm(self._pointwise(x, 0, train), 1, train, "relu")
            place = 3
        x = self._depthwise(x, place, train)
        if not (slot.is_at("replace") and slot.normalizes):
            x = self._norm(x, place + 1, train)
        x = slot.attend(x, "inside", train=train)
        x = self._pointwise(x, place + 2, train)
        x = self._norm(x, place + 3, train, "relu")
        return slot.attend(x, "after", train=train)

    def _pointwise(self, x: jax.Array, place: int, train: bool) -> jax.Array:
        x = self.slot.attend(x, "before_convs", train=train, name=f"{place}.attn")
        return Conv(self.features, 1, name=str(place))(x)

    def _depthwise(self, x: jax.Array, place: int, train: bool) -> jax.Array:
        slot, stride, C, name = self.slot, self.stride, x.shape[-1], str(place)
        if slot.is_at("replace"):
            return slot.convolve(x, C, stride, groups=C, train=train, name=name)
        x = slot.attend(x, "before_convs", train=train, name=f"{place}.attn")
        x = Conv(C, 3, stride, padding=1, groups=C, name=name)(x)
        return slot.attend(x, "before_norm", train=train)

    def _norm(
        self, x: jax.Array, place: int, train: bool, activation: str | None = None
    ) -> jax.Array:
        norm = BatchNorm(axis_name=self.axis_name, name=str(place))
        return norm(x, train=train, activation=activation)


class ShuffleUnit(nn.Module):
    """A branch beside what goes past it, shuffled together.

    At stride 1 the second half of the channels goes through the branch and the first
    half past it; at stride 2 all of them go through two branches.

    Attributes:
        features: Output channels, even; at stride 1 those of the input.
        stride: Step of the unit along H and W, 1 or 2.
        slot: The attention module of `branch2`, and where it sits; of both branches
            where it is before every convolution.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    features: int
    stride: int = 1
    slot: Slot = Slot()
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies the unit.

        Args:
            x: Feature map `[N, H, W, C]`, any float dtype.
            train: Selects batch statistics in BatchNorm, and is passed to the
                attention.

        Returns:
            `[N, ceil(H / stride), ceil(W / stride), features]`, the dtype of `x`.
        """
        half, stride, axis_name = self.features // 2, self.stride, self.axis_name
        if stride == 1:
            past, x = x[..., :half], x[..., half:]
        else:
            slot = self.slot if self.slot.is_at("before_convs") else Slot()
            branch1 = Branch(half, stride, False, slot, axis_name, name="branch1")
            past = branch1(x, train=train)
        branch2 = Branch(
            half, stride, slot=self.slot, axis_name=axis_name, name="branch2"
        )
        return shuffle_channels(jnp.concatenate([past, branch2(x, train=train)], -1), 2)


class ShuffleNetV2(AttentionNetwork):
    """ShuffleNetV2, for images of any size.

    Its stem divides height and width by 4 also where images are small: those of 32
    pixels end as one position. The strides of its maps are 4, 8, 16 and 32; the first
    is the stem's.

    Attributes:
        widths: Channels of the stem, of the three stages and of the last convolution.
        num_classes: Number of logits; 0: the pooled features are returned.
    """

    widths: Sequence[int]
    num_classes: int = 10

    @nn.nowrap
    def _stages(self, x: jax.Array, train: bool) -> Iterator[jax.Array]:
        stem, *widths, _ = self.widths
        before, first, *slots = self._slots(_FIRST_SIDE)
        x = self._conv_norm(x, stem, 3, 2, "conv1", before, train)
        x = max_pool(x, 3, stride=2, padding=1)
        x = first.attend(x, "stage", train=train, name="attn1")
        yield x
        stages = zip(_STAGE_SIZES, widths, slots, strict=True)
        for i, (size, width, slot) in enumerate(stages, 2):
            for j in range(size):
                x = ShuffleUnit(
                    width,
                    stride=2 if j == 0 else 1,
                    slot=slot,
                    axis_name=self.axis_name,
                    name=f"stage{i}.{j}",
                )(x, train=train)
            x = slot.attend(x, "stage", train=train, name=f"attn{i}")
            yield x

    def _head(self, x: jax.Array, train: bool) -> jax.Array:
        slot = self._slots(_FIRST_SIDE)[-1]
        x = self._conv_norm(x, self.widths[-1], 1, 1, "conv5", slot, train)
        return classify(self, x, self.num_classes, name="fc")

    def _conv_norm(
        self,
        x: jax.Array,
        features: int,
        size: int,
        stride: int,
        name: str,
        slot: Slot,
        train: bool,
    ) -> jax.Array:
        x = slot.attend(x, "before_convs", train=train, name=f"{name}.attn")
        conv = Conv(features, size, stride, padding=size // 2, name=f"{name}.0")
        norm = BatchNorm(axis_name=self.axis_name, name=f"{name}.1")
        return norm(conv(x), train=train, activation="relu")
