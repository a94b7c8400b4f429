"""Networks of semantic segmentation: a backbone, and a head that classifies its maps.

Names in the parameter tree are mmsegmentation's: `backbone.*`, which are the backbone's
own inside, `decode_head.*` and `auxiliary_head.*`.
"""

import abc
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from jaxattn.errors import choose, require
from jaxattn.models.heads.deeplabv3 import DeepLabV3Head
from jaxattn.models.heads.dense import LAYOUTS, DenseHead
from jaxattn.models.heads.fcn import FCNHead
from jaxattn.models.heads.upernet import UPerHead
from jaxattn.models.network import Network
from jaxattn.ops.features import mark_features
from jaxattn.ops.inputs import as_feature_map
from jaxattn.ops.resize import resize_bilinear

_STAGES = (1, 2, 3, 4)
_AUXILIARY_STAGE = 3


class Segmenter(nn.Module, abc.ABC, kw_only=True):
    """Tells for every pixel of an image of which class it is.

    Attributes:
        backbone: A network whose maps of four stages the heads see. Its `out_stages`,
            `dtype` and `axis_name` are set here.
        num_classes: Logits of a pixel.
        channels: Of the head's maps; None: a quarter of the channels that it sees.
        aux: Has an auxiliary head, an `FCNHead` on the map of the third stage, whose
            loss helps the training.
        aux_channels: Of the auxiliary head; None: a quarter of those that it sees.
        dropout_rate: Share of the heads' last maps that training sets to 0 (rng stream
            "dropout"); None: as the layout has it.
        layout: Whose start of the heads and whose dropout, "mm" (mmsegmentation's) or
            "torchvision". Names in the parameter tree are the same.
        dtype: Computation dtype; None keeps the input's. Parameters, logits and their
            resizing are float32.
        axis_name: Mapped axis over which BatchNorm averages its statistics.
    """

    backbone: Network
    num_classes: int = 10
    channels: int | None = None
    aux: bool = True
    aux_channels: int | None = None
    dropout_rate: float | None = None
    layout: str = "mm"
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    def __post_init__(self) -> None:
        # Here, so that a clone of another dtype has such a backbone.
        own = {"dtype": self.dtype, "axis_name": self.axis_name}
        self.backbone = self.backbone.clone(out_stages=_STAGES, **own)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Classifies the pixels of images.

        Args:
            x: Normalised images `[N, H, W, C]`, of any size that the backbone takes.
            train: Selects batch statistics in BatchNorm, and what the network draws:
                dropout and stochastic depth (rng stream "dropout"), and forcing in SCC
                ("forcing").

        Returns:
            float32 logits `[N, H, W, num_classes]`; in training with `aux` a pair of
            them and the auxiliary head's, of the same shape.

        Raises:
            UserError: If the images, or an attribute, are not accepted.
        """
        x = as_feature_map(self, x)
        choose("layout", self.layout, LAYOUTS)
        require("num_classes", self.num_classes, self.num_classes >= 1, "at least 1")
        maps = tuple(self.backbone(x, train=train))
        size = (x.shape[1], x.shape[2])
        head = self._head(self._channels(self.channels, maps[-1]))
        logits = head(maps, train=train, mark=lambda y: mark_features(self, y))
        logits = resize_bilinear(logits, size)
        if not self.aux or not (train or self.is_initializing()):
            return logits
        channels = self._channels(self.aux_channels, maps[_AUXILIARY_STAGE - 1])
        auxiliary = FCNHead(
            stage=_AUXILIARY_STAGE, name="auxiliary_head", **self._common(channels)
        )
        other = auxiliary(maps, train=train)
        return (logits, resize_bilinear(other, size)) if train else logits

    @abc.abstractmethod
    def _head(self, channels: int) -> DenseHead:
        """Returns the head, whose name is "decode_head"."""

    def _common(self, channels: int, dropout_rate: float = 0.1) -> dict[str, Any]:
        """Returns the keywords that all heads take."""
        given = self.dropout_rate
        return {
            "num_classes": self.num_classes,
            "channels": channels,
            "dropout_rate": dropout_rate if given is None else given,
            "layout": self.layout,
            "axis_name": self.axis_name,
        }

    @staticmethod
    def _channels(given: int | None, x: jax.Array) -> int:
        return max(1, x.shape[-1] // 4) if given is None else given


class FCN(Segmenter):
    """A fully convolutional network: an `FCNHead` on the last map."""

    def _head(self, channels: int) -> DenseHead:
        return FCNHead(name="decode_head", **self._common(channels))


class DeepLabV3(Segmenter):
    """DeepLabV3: a `DeepLabV3Head`, atrous spatial pyramid pooling, on the last map.

    Attributes:
        atrous_rates: See `DeepLabV3Head`; for maps of stride 8.
    """

    channels: int | None = 256
    atrous_rates: Sequence[int] = (12, 24, 36)

    def _head(self, channels: int) -> DenseHead:
        rate = 0.5 if self.layout == "torchvision" else 0.1
        return DeepLabV3Head(
            atrous_rates=self.atrous_rates,
            name="decode_head",
            **self._common(channels, rate),
        )


class UPerNet(Segmenter):
    """UPerNet: a `UPerHead` on all maps.

    Attributes:
        pool_scales: See `UPerHead`.
    """

    channels: int | None = 512
    aux_channels: int | None = 256
    pool_scales: Sequence[int] = (1, 2, 3, 6)

    def _head(self, channels: int) -> DenseHead:
        return UPerHead(
            pool_scales=self.pool_scales, name="decode_head", **self._common(channels)
        )
