"""What all detectors share: a backbone's maps, a pyramid of them, and their keywords.

Names in the parameter tree are MMDetection's: `backbone.*`, which are the backbone's
own inside, `neck.*`, and the heads'.
"""

import abc
from collections.abc import Sequence

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from jaxattn.errors import choose, require
from jaxattn.models.detection import LAYOUTS
from jaxattn.models.network import Network
from jaxattn.ops.features import mark_features
from jaxattn.ops.inputs import as_feature_map


class Detector(nn.Module, abc.ABC, kw_only=True):
    """Finds objects: their boxes and classes.

    Attributes:
        backbone: A network whose maps of four stages the pyramid is made of. Its
            `out_stages`, `dtype` and `axis_name` are set here.
        num_classes: Classes; there is none of the background.
        fpn_features: Channels of the pyramid.
        layout: One of `jaxattn.models.detection.LAYOUTS`.
        anchor_base: The least anchor of a level in units of its stride.
        score_threshold: Detections have higher scores.
        nms_threshold: IoU above which the lower of two detections of a class is
            dropped.
        max_detections: Of an image.
        dtype: Computation dtype; None keeps the input's. Parameters, and what boxes and
            losses are made of, are float32.
        axis_name: Mapped axis over which BatchNorm averages its statistics, and losses
            what they are divided by.
    """

    backbone: Network
    num_classes: int = 10
    fpn_features: int = 256
    layout: str = "mm"
    anchor_base: float = 4.0
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100
    dtype: DTypeLike | None = None
    axis_name: str | None = None

    def __post_init__(self) -> None:
        # Here, so that a clone of another dtype has such a backbone.
        own = {"dtype": self.dtype, "axis_name": self.axis_name}
        self.backbone = self.backbone.clone(out_stages=self._stages(), **own)
        super().__post_init__()

    @staticmethod
    @abc.abstractmethod
    def _stages() -> tuple[int, ...]:
        """Returns the stages whose maps the pyramid is made of, counted from 1."""

    @property
    def _is_mm(self) -> bool:
        return self.layout == "mm"

    @nn.nowrap
    def _checked(self, x: jax.Array) -> jax.Array:
        """Returns images in the computation dtype."""
        choose("layout", self.layout, LAYOUTS)
        for key in ("num_classes", "fpn_features", "max_detections"):
            require(key, getattr(self, key), getattr(self, key) >= 1, "at least 1")
        require("anchor_base", self.anchor_base, self.anchor_base > 0, "above 0")
        return as_feature_map(self, x)

    @nn.nowrap
    def _maps(self, x: jax.Array, train: bool) -> Sequence[jax.Array]:
        """Returns the backbone's maps that the pyramid is made of."""
        *maps, last = self.backbone(x, train=train)
        return [*maps, mark_features(self, last)]
