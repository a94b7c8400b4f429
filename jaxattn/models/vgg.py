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
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.nn.initializers import Initializer

from jaxattn.models.heads.classification import last_layer
from jaxattn.models.network import Network
from jaxattn.ops.conv import Conv
from jaxattn.ops.features import mark_features
from jaxattn.ops.init import kaiming_normal, torch_kernel
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
    def __call__(
        self, x: jax.Array, stage: int = 0, *, train: bool = False
    ) -> jax.Array:
        """Applies those of one stage, counted from 0.

        Args:
            x: The map of the stage before, `[N, H, W, C]`, which is halved first; of
                the first stage, the image.
            stage: Which one.
            train: Selects batch statistics in BatchNorm.
        """
        layers = 3 if self.batch_norm else 2  # of a convolution, in the sequence
        place = sum(layers * len(widths) + 1 for widths in self.stages[:stage])
        x = x if stage == 0 else _halve(x)
        for width in self.stages[stage]:
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
                norm = BatchNorm(axis_name=self.axis_name, name=str(place + 1))
                x = norm(x, train=train, activation="relu")
            else:
                x = nn.relu(x)
            place += layers
        return x


class Classifier(nn.Module):
    """Three fully connected layers, named as in torch's `Sequential`.

    Attributes:
        features: Outputs of the three; where the last is 0, there are only two.
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
            if i in self.dropped and features > 0:
                drop = nn.Dropout(self.dropout_rate, name=f"dropout{i}")
                x = drop(x, deterministic=not train)
            init: dict[str, Any] = {}
            if self.small_init and i < 2:
                init["kernel_init"] = nn.initializers.normal(0.01)
                init["bias_init"] = nn.initializers.zeros
            linear = Linear(features, name=str(place), **init)
            x = last_layer(x, linear) if i == 2 else nn.relu(linear(x))
        return x


class VGGA(Network):
    """VGG-A for images of 32 pixels.

    It takes images of 32 to 63 pixels; its five maps have the strides 1, 2, 4, 8, 16.

    Attributes:
        num_classes: Number of logits; 0 returns what they would be made of.
        width: Channels of the first convolution; the last ones have eight times as
            many.
        batch_norm: Normalises between convolution and ReLU.
    """

    num_classes: int = 10
    width: int = 64
    batch_norm: bool = False

    def _check_size(self, x: jax.Array) -> None:
        _check_size("VGG-A", x, 32, 63)

    @nn.nowrap
    def _stages(self, x: jax.Array, train: bool) -> Iterator[jax.Array]:
        convolutions = Convolutions(
            _widths(self.width),
            batch_norm=self.batch_norm,
            axis_name=self.axis_name,
            name="features",
        )
        for i in range(len(_STAGES)):
            x = convolutions(x, i, train=train)
            yield x

    def _head(self, x: jax.Array, train: bool) -> jax.Array:
        x = _halve(mark_features(self, x))
        hidden = x.shape[-1]
        classifier = Classifier((hidden, hidden, self.num_classes), name="classifier")
        return classifier(x, train=train)


class VGGADropout(Network):
    """VGG-A with dropout in its classifier.

    It takes images of 32 to 63 pixels; its five maps have the strides 1, 2, 4, 8, 16.

    Attributes:
        num_classes: Number of logits; 0 returns what they would be made of.
        width: Channels of the first convolution; the last ones have eight times as
            many.
        dropout_rate: Share of the classifier's inputs, and of its first layer's
            outputs, that training sets to 0, by the rng stream "dropout".
    """

    num_classes: int = 10
    width: int = 64
    dropout_rate: float = 0.5

    def _check_size(self, x: jax.Array) -> None:
        _check_size("VGG-A with dropout", x, 32, 63)

    @nn.nowrap
    def _stages(self, x: jax.Array, train: bool) -> Iterator[jax.Array]:
        yield from _named_stages(x, _widths(self.width), train)

    def _head(self, x: jax.Array, train: bool) -> jax.Array:
        x = _halve(mark_features(self, x))
        classifier = Classifier(
            (x.shape[-1], x.shape[-1], self.num_classes),
            places=(1, 4, 6),
            dropped=(0, 1),
            dropout_rate=self.dropout_rate,
            name="classifier",
        )
        return classifier(x, train=train)


class VGGALight(Network):
    """Two convolutions and VGG-A's classifier.

    It takes images of 32 to 35 pixels; its two maps have the strides 1 and 2.

    Attributes:
        num_classes: Number of logits; 0 returns what they would be made of.
    """

    num_classes: int = 10

    def _check_size(self, x: jax.Array) -> None:
        _check_size("VGG-A light", x, 32, 35)

    @nn.nowrap
    def _stages(self, x: jax.Array, train: bool) -> Iterator[jax.Array]:
        yield from _named_stages(x, ((16,), (32,)), train)

    def _head(self, x: jax.Array, train: bool) -> jax.Array:
        x = _halve(mark_features(self, x))
        classifier = Classifier((128, 128, self.num_classes), name="classifier")
        return classifier(x, train=train)


class VGG11(Network):
    """VGG-11 without batch normalisation.

    It takes images of 32 pixels or more; its five maps have the strides 1, 2, 4, 8, 16.

    Attributes:
        num_classes: Number of logits; 0 returns what they would be made of.
        dropout_rate: Share of the classifier's hidden values that training sets to 0,
            by the rng stream "dropout".
    """

    num_classes: int = 10
    dropout_rate: float = 0.5

    def _check_size(self, x: jax.Array) -> None:
        _check_size("VGG-11", x, 32)

    @nn.nowrap
    def _stages(self, x: jax.Array, train: bool) -> Iterator[jax.Array]:
        convolutions = Convolutions(
            _widths(64),
            kernel_init=kaiming_normal,
            bias_init=nn.initializers.zeros,
            name="features",
        )
        for i in range(len(_STAGES)):
            x = convolutions(x, i, train=train)
            yield x

    def _head(self, x: jax.Array, train: bool) -> jax.Array:
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


def _named_stages(
    x: jax.Array, stages: Sequence[Sequence[int]], train: bool
) -> Iterator[jax.Array]:
    """Yields the maps of networks that have a module for each stage."""
    for i, widths in enumerate(stages, 1):
        x = x if i == 1 else _halve(x)
        x = Convolutions((widths,), name=f"stage{i}")(x, train=train)
        yield x


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
