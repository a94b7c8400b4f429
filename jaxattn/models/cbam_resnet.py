"""Residual networks with CBAM-like attention in every block.

Reference code read: prathamssaraf/Attention-Enhanced-ResNet-for-CIFAR-10-Classification
@847ab2b, src/models/resnet.py (numbers compared in tests/test_attention.py)

Notation: N batch, H, W spatial, C channels.
"""

from collections.abc import Callable, Iterator, Sequence

import flax.linen as nn
import jax

from jaxattn.attention.cbam import AttentionResidualBlock, ChannelAttentionBlock
from jaxattn.models.heads.classification import classify
from jaxattn.models.network import Network
from jaxattn.ops.conv import Conv
from jaxattn.ops.init import kaiming_normal
from jaxattn.ops.norm import BatchNorm
from jaxattn.ops.stochastic_depth import depth_rates

# Of every stage of two blocks: width in units of the stem's, stride of the first block.
_ENHANCED_STAGES = ((2, 1), (4, 2), (8, 2), (8, 1))
_EFFICIENT_STAGES = ((2, 1), (4, 2), (8, 2))
_BLOCKS_PER_STAGE = 2


class EnhancedEfficientResNet(Network):
    """Four stages with channel and spatial attention, for images of about 32 pixels.

    It takes images of any size; the strides of its maps are 1, 2, 4 and 4.

    Attributes:
        num_classes: Number of logits; 0: the pooled features are returned.
        base_width: Channels of the stem.
        dropout_rate: Share of the pooled features that training sets to 0, by the rng
            stream "dropout".
        drop_path_rate: Share of the images whose last residual branch training leaves
            out; 0 of the first branch, and rising evenly (rng stream "dropout").
    """

    num_classes: int = 10
    base_width: int = 31
    dropout_rate: float = 0.3
    drop_path_rate: float = 0.0

    @nn.nowrap
    def _stages(self, x: jax.Array, train: bool) -> Iterator[jax.Array]:
        x = self._conv_norm_relu(x, self.base_width, 3, "conv1", "bn1", train)

        def block(features: int, stride: int, rate: float, name: str) -> nn.Module:
            return AttentionResidualBlock(
                features,
                stride,
                kernel_init=kaiming_normal,
                drop_path_rate=rate,
                axis_name=self.axis_name,
                name=name,
            )

        widths = [(m * self.base_width, stride) for m, stride in _ENHANCED_STAGES]
        yield from _stages(x, block, widths, self.drop_path_rate, train)

    def _head(self, x: jax.Array, train: bool) -> jax.Array:
        x = self._conv_norm_relu(x, x.shape[-1], 1, "extra_conv", "extra_bn", train)
        return classify(
            self,
            x,
            self.num_classes,
            name="fc",
            dropout_rate=self.dropout_rate,
            train=train,
        )

    def _conv_norm_relu(
        self, x: jax.Array, features: int, size: int, conv: str, norm: str, train: bool
    ) -> jax.Array:
        y = Conv(
            features, size, padding=size // 2, kernel_init=kaiming_normal, name=conv
        )(x)
        return BatchNorm(axis_name=self.axis_name, name=norm)(
            y, train=train, activation="relu"
        )


class EfficientResNet(Network):
    """Three stages with channel attention alone: the project's earlier network.

    It takes images of any size; the strides of its maps are 1, 2 and 4.

    Attributes:
        num_classes: Number of logits; 0: the pooled features are returned.
        base_width: Channels of the stem.
        dropout_rate: Share of the pooled features that training sets to 0, by the rng
            stream "dropout".
        drop_path_rate: Share of the images whose last residual branch training leaves
            out; 0 of the first branch, and rising evenly (rng stream "dropout").
    """

    num_classes: int = 10
    base_width: int = 32
    dropout_rate: float = 0.25
    drop_path_rate: float = 0.0

    @nn.nowrap
    def _stages(self, x: jax.Array, train: bool) -> Iterator[jax.Array]:
        x = Conv(self.base_width, 3, padding=1, name="conv1")(x)
        norm = BatchNorm(axis_name=self.axis_name, name="bn1")
        x = norm(x, train=train, activation="relu")

        def block(features: int, stride: int, rate: float, name: str) -> nn.Module:
            return ChannelAttentionBlock(
                features,
                stride,
                drop_path_rate=rate,
                axis_name=self.axis_name,
                name=name,
            )

        widths = [(m * self.base_width, stride) for m, stride in _EFFICIENT_STAGES]
        yield from _stages(x, block, widths, self.drop_path_rate, train)

    def _head(self, x: jax.Array, train: bool) -> jax.Array:
        return classify(
            self,
            x,
            self.num_classes,
            name="fc",
            dropout_rate=self.dropout_rate,
            train=train,
        )


def _stages(
    x: jax.Array,
    block: Callable[[int, int, float, str], nn.Module],
    stages: Sequence[tuple[int, int]],
    drop_path_rate: float,
    train: bool,
) -> Iterator[jax.Array]:
    """Yields the map after every stage, whose blocks are named `layer<stage>.<block>`.

    Stages are given by their width and the stride of their first block.
    """
    rates = iter(depth_rates(drop_path_rate, len(stages) * _BLOCKS_PER_STAGE))
    for i, (width, stride) in enumerate(stages, 1):
        for j in range(_BLOCKS_PER_STAGE):
            step = stride if j == 0 else 1
            x = block(width, step, next(rates), f"layer{i}.{j}")(x, train=train)
        yield x
