"""Residual networks with CBAM-like attention in every block.

Reference code read: prathamssaraf/Attention-Enhanced-ResNet-for-CIFAR-10-Classification
@847ab2b, src/models/resnet.py (numbers compared in tests/test_attention.py)

Notation: N batch, H, W spatial, C channels.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from jaxattn.attention.cbam import AttentionResidualBlock, ChannelAttentionBlock
from jaxattn.models.heads.classification import classify
from jaxattn.ops.conv import Conv
from jaxattn.ops.init import kaiming_normal
from jaxattn.ops.inputs import as_feature_map
from jaxattn.ops.norm import BatchNorm

# Of every stage of two blocks: width in units of the stem's, stride of the first block.
_ENHANCED_STAGES = ((2, 1), (4, 2), (8, 2), (8, 1))
_EFFICIENT_STAGES = ((2, 1), (4, 2), (8, 2))
_BLOCKS_PER_STAGE = 2


class EnhancedEfficientResNet(nn.Module):
    """Four stages with channel and spatial attention, for images of about 32 pixels.

    Attributes:
        num_classes: Number of logits.
        base_width: Channels of the stem.
        dropout_rate: Share of the pooled features that training sets to 0, by the rng
            stream "dropout".
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    num_classes: int = 10
    base_width: int = 31
    dropout_rate: float = 0.3
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Classifies images.

        Args:
            x: Normalised images `[N, H, W, C]`, of any size.
            train: Selects batch statistics in BatchNorm, and dropout.

        Returns:
            float32 logits `[N, num_classes]`.
        """
        x = as_feature_map(self, x)
        x = self._conv_norm_relu(x, self.base_width, 3, "conv1", "bn1", train)

        def block(features: int, stride: int, name: str) -> nn.Module:
            return AttentionResidualBlock(
                features,
                stride,
                kernel_init=kaiming_normal,
                axis_name=self.axis_name,
                name=name,
            )

        x = _stages(x, block, _ENHANCED_STAGES, self.base_width, train)
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


class EfficientResNet(nn.Module):
    """Three stages with channel attention alone: the project's earlier network.

    Attributes:
        num_classes: Number of logits.
        base_width: Channels of the stem.
        dropout_rate: Share of the pooled features that training sets to 0, by the rng
            stream "dropout".
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    num_classes: int = 10
    base_width: int = 32
    dropout_rate: float = 0.25
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Classifies images.

        Args:
            x: Normalised images `[N, H, W, C]`, of any size.
            train: Selects batch statistics in BatchNorm, and dropout.

        Returns:
            float32 logits `[N, num_classes]`.
        """
        x = as_feature_map(self, x)
        x = Conv(self.base_width, 3, padding=1, name="conv1")(x)
        norm = BatchNorm(axis_name=self.axis_name, name="bn1")
        x = norm(x, train=train, activation="relu")

        def block(features: int, stride: int, name: str) -> nn.Module:
            return ChannelAttentionBlock(
                features, stride, axis_name=self.axis_name, name=name
            )

        x = _stages(x, block, _EFFICIENT_STAGES, self.base_width, train)
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
    block: Callable[[int, int, str], nn.Module],
    stages: tuple[tuple[int, int], ...],
    base_width: int,
    train: bool,
) -> jax.Array:
    """Runs the stages, whose blocks are named `layer<stage>.<block>`."""
    for i, (multiple, stride) in enumerate(stages, 1):
        for j in range(_BLOCKS_PER_STAGE):
            step = stride if j == 0 else 1
            x = block(multiple * base_width, step, f"layer{i}.{j}")(x, train=train)
    return x
