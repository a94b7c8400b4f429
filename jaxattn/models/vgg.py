"""VGG with 11 layers: torchvision's, and the small ones of the BatchNorm study.

Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", ICLR 2015. https://arxiv.org/abs/1409.1556
VGG-A, with and without batch normalisation, its light version and the one with dropout
are those of a course project (PRML, Fudan University, 2025).
Reference code read: tyyyyy333/Fdu_DS_DL24spring_collection,
pj2/codes/VGG_BatchNorm/models/vgg.py (VGG-A light: numbers compared in
tests/test_attention.py)
Parameter names are those of that code, and torchvision's for VGG-11.

Notation: N batch, H, W spatial, C channels.
Initialisation: torch's default; of VGG-11 torchvision's, whose last layer has torch's
default, as a layer that replaces torchvision's does.
Deviations from the code:
  - `num_classes` and `width` can be chosen (the code has 10 outputs, and one width);
  - an image whose last map is not of the size that the classifier is made for is
    refused (the code reshapes it into images that were not there).
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from jaxattn.ops.conv import Conv
from jaxattn.ops.features import mark_features
from jaxattn.ops.init import kaiming_normal, torch_kernel
from jaxattn.ops.inputs import as_feature_map, at_least_float32
from jaxattn.ops.linear import Linear
from jaxattn.ops.norm import BatchNorm
from jaxattn.ops.pool import adaptive_avg_pool, max_pool

# Of every stage, which a max-pool ends: its convolutions' widths, the first being 1.
_STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))
_POOLED = 7  # side of the map before VGG-11's classifier


class Convolutions(nn.Module):
    """3x3 convolutions with ReLUs, and max-pools between the stages.

    They are named as in torch's `Sequential`, which ends with a max-pool, too.

    Attributes:
        stages: Output channels of the convolutions of each stage.
        batch_norm: Normalises between convolution and ReLU.
        kernel_init: Initialiser of the kernels.
        bias_init: Initialiser of the biases; None is torch's default.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    stages: Sequence[Sequence[int]]
    batch_norm: bool = False
    kernel_init: Initializer = torch_kernel
    bias_init: Initializer | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Applies them to `x` `[N, H, W, C]`; H and W are halved between stages."""
        place = 0  # in the sequence
        for i, widths in enumerate(self.stages):
            if i > 0:
                x = _halve(x)
                place += 1
            for width in widths:
                x = Conv(
                    width,
                    3,
                    padding=1,
                    use_bias=True,
                    kernel_init=self.kernel_init,
                    bias_init=self.bias_init,
                    name=str(place),
                )(x)
                if self.batch_norm:
                    place += 1
                    norm = BatchNorm(axis_name=self.axis_name, name=str(place))
                    x = norm(x, train=train, activation="relu")
                else:
                    x = nn.relu(x)
                place += 2
        return x


class Classifier(nn.Module):
    """Three fully connected layers, named as in torch's `Sequential`.

    Attributes:
        features: Outputs of the three.
        places: Theirs in the sequence.
        dropped: Which of the three have dropout before them.
        dropout_rate: Of that.
        small_init: Starts the first two normal with deviation 0.01 and bias 0.
    """

    features: tuple[int, int, int]
    places: tuple[int, int, int] = (0, 2, 4)
    dropped: tuple[int, ...] = ()
    dropout_rate: float = 0.0
    small_init: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns float32 logits of `x` `[N, H, W, C]`, flattened channel-major."""
        x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], math.prod(x.shape[1:]))
        for i, (features, place) in enumerate(
            zip(self.features, self.places, strict=True)
        ):
            if i in self.dropped:
                drop = nn.Dropout(self.dropout_rate, name=f"dropout{i}")
                x = drop(x, deterministic=not train)
            init: dict[str, Any] = {}
            if self.small_init and i < 2:
                init["kernel_init"] = nn.initializers.normal(0.01)
                init["bias_init"] = nn.initializers.zeros
            x = Linear(features, name=str(place), **init)(x)
            x = x if i == 2 else nn.relu(x)
        return at_least_float32(x)


class VGGA(nn.Module):
    """VGG-A for images of 32 pixels.

    Attributes:
        num_classes: Number of logits.
        width: Channels of the first convolution; the last ones have eight times as
            many.
        batch_norm: Normalises between convolution and ReLU.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    num_classes: int = 10
    width: int = 64
    batch_norm: bool = False
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Classifies images.

        Args:
            x: Normalised images `[N, H, W, C]`; H and W in 32..63.
            train: Selects batch statistics in BatchNorm.

        Returns:
            float32 logits `[N, num_classes]`.

        Raises:
            ValueError: If H or W is not in 32..63.
        """
        x = as_feature_map(self, x)
        _check_size("VGG-A", x, 32, 63)
        convolutions = Convolutions(
            _widths(self.width),
            batch_norm=self.batch_norm,
            axis_name=self.axis_name,
            name="features",
        )
        x = _halve(mark_features(self, convolutions(x, train=train)))
        hidden = x.shape[-1]
        return Classifier((hidden, hidden, self.num_classes), name="classifier")(x)


class VGGADropout(nn.Module):
    """VGG-A with dropout in its classifier.

    Attributes:
        num_classes: Number of logits.
        width: Channels of the first convolution; the last ones have eight times as
            many.
        dropout_rate: Share of the classifier's inputs, and of its first layer's
            outputs, that training sets to 0, by the rng stream "dropout".
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
        axis_name: Taken as by every network; nothing here needs it.
    """

    num_classes: int = 10
    width: int = 64
    dropout_rate: float = 0.5
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Classifies images.

        Args:
            x: Normalised images `[N, H, W, C]`; H and W in 32..63.
            train: Selects dropout.

        Returns:
            float32 logits `[N, num_classes]`.

        Raises:
            ValueError: If H or W is not in 32..63.
        """
        x = as_feature_map(self, x)
        _check_size("VGG-A with dropout", x, 32, 63)
        x = _named_stages(x, _widths(self.width))
        x = _halve(mark_features(self, x))
        classifier = Classifier(
            (x.shape[-1], x.shape[-1], self.num_classes),
            places=(1, 4, 6),
            dropped=(0, 1),
            dropout_rate=self.dropout_rate,
            name="classifier",
        )
        return classifier(x, train=train)


class VGGALight(nn.Module):
    """Two convolutions and VGG-A's classifier, for images of 32 pixels.

    Attributes:
        num_classes: Number of logits.
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
        axis_name: Taken as by every network; nothing here needs it.
    """

    num_classes: int = 10
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Classifies images.

        Args:
            x: Normalised images `[N, H, W, C]`; H and W in 32..35.
            train: Changes nothing.

        Returns:
            float32 logits `[N, num_classes]`.

        Raises:
            ValueError: If H or W is not in 32..35.
        """
        del train
        x = as_feature_map(self, x)
        _check_size("VGG-A light", x, 32, 35)
        x = _named_stages(x, ((16,), (32,)))
        x = _halve(mark_features(self, x))
        return Classifier((128, 128, self.num_classes), name="classifier")(x)


class VGG11(nn.Module):
    """VGG-11 without batch normalisation.

    Attributes:
        num_classes: Number of logits.
        dropout_rate: Share of the classifier's hidden values that training sets to 0,
            by the rng stream "dropout".
        dtype: Computation dtype; None keeps the input's. Parameters are float32.
        axis_name: Taken as by every network; nothing here needs it.
    """

    num_classes: int = 10
    dropout_rate: float = 0.5
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Classifies images.

        Args:
            x: Normalised images `[N, H, W, C]`; H and W at least 32.
            train: Selects dropout.

        Returns:
            float32 logits `[N, num_classes]`.

        Raises:
            ValueError: If H or W is below 32.
        """
        x = as_feature_map(self, x)
        _check_size("VGG-11", x, 32)
        x = Convolutions(
            _widths(64),
            kernel_init=kaiming_normal,
            bias_init=nn.initializers.zeros,
            name="features",
        )(x)
        x = _halve(mark_features(self, x))
        classifier = Classifier(
            (4096, 4096, self.num_classes),
            places=(0, 3, 6),
            dropped=(1, 2),
            dropout_rate=self.dropout_rate,
            small_init=True,
            name="classifier",
        )
        return classifier(adaptive_avg_pool(x, _POOLED), train=train)


def _named_stages(x: jax.Array, stages: Sequence[Sequence[int]]) -> jax.Array:
    """The stages of networks that have a module for each, called in `__call__`."""
    for i, widths in enumerate(stages, 1):
        x = x if i == 1 else _halve(x)
        x = Convolutions((widths,), name=f"stage{i}")(x)
    return x


def _halve(x: jax.Array) -> jax.Array:
    return max_pool(x, 2, stride=2, padding=0)


def _widths(width: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(width * multiple for multiple in stage) for stage in _STAGES)


def _check_size(
    network: str, x: jax.Array, smallest: int, largest: int | None = None
) -> None:
    H, W = x.shape[1:3]
    if min(H, W) < smallest or max(H, W) > (largest or max(H, W)):
        wanted = f"at least {smallest}" if largest is None else f"{smallest}..{largest}"
        raise ValueError(
            f"{network}: image height {H} and width {W} must be {wanted} pixels"
        )
