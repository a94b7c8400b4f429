"""Mask R-CNN: Faster R-CNN with a branch that says which pixels are of an object.

He, Gkioxari, Dollar, Girshick, "Mask R-CNN", ICCV 2017.
https://arxiv.org/abs/1703.06870
Numbers are torchvision's (`layout="torchvision"`) or MMDetection's (`layout="mm"`),
whose parameter names these are.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxattn.errors import UserError
from jaxattn.models.detection import BoxTargets, Detections, at_least_one
from jaxattn.models.faster_rcnn import FasterRCNN, TwoStageOutputs
from jaxattn.models.heads.mask import MaskHead, MaskOutputs, of_class
from jaxattn.models.heads.roi import POSITIVE_FRACTION, Regions, pool_regions
from jaxattn.models.heads.rpn import RPNOutputs

_POOLED = 14  # rows and columns of a region; masks have twice as many


@struct.dataclass
class MaskRCNNOutputs(TwoStageOutputs):
    """What Mask R-CNN computes.

    Attributes:
        masks: Of the regions that learn; None without targets.
        detections: What is found, with masks; None with targets.
    """

    masks: MaskOutputs | None = None
    detections: Detections | None = None

    def losses(self, targets: BoxTargets) -> dict[str, jax.Array]:
        """Returns the losses by image; see `TwoStageOutputs`.

        Args:
            targets: What the images show, with masks.

        Returns:
            "mask" too, float32 `[N]`.
        """
        assert self.masks is not None
        own = self.masks.losses(at_least_one(targets))
        return {**super().losses(targets), **own}

    def predict(self) -> Detections:
        """Returns what is found in the images, with masks.

        Given targets the network has looked at what these say, and there are none.
        """
        return super().predict() if self.detections is None else self.detections


class MaskRCNN(FasterRCNN, kw_only=True):
    """Faster R-CNN that segments what it finds. Its targets have masks."""

    def _outputs(
        self,
        rpn: RPNOutputs,
        regions: Regions,
        pooling: Mapping[str, Any],
        targets: BoxTargets | None,
        keys: jax.Array | None,
    ) -> MaskRCNNOutputs:
        outputs = super()._outputs(rpn, regions, pooling, targets, keys)
        thresholds = outputs.thresholds
        if targets is None:
            found = outputs.predict()
            logits = self._segment(found.boxes, found.labels, pooling)
            probabilities = jax.nn.sigmoid(logits) * found.valid[..., None, None]
            found = found.replace(masks=probabilities)  # pyright: ignore
            return MaskRCNNOutputs(rpn, outputs.heads, thresholds, detections=found)
        if targets.masks is None:
            raise UserError("targets: must have masks, of which Mask R-CNN learns")
        head = outputs.heads[0]
        chosen = positive_regions(head.regions, self.roi_samples)
        assert chosen.matched is not None
        index = jnp.maximum(chosen.matched, 0)
        labels = jnp.take_along_axis(targets.labels, index, 1)
        logits = self._segment(chosen.boxes, labels, pooling)
        masks = MaskOutputs(chosen, logits, self._is_mm, self.axis_name)
        return MaskRCNNOutputs(rpn, outputs.heads, thresholds, masks=masks)

    def _segment(
        self, boxes: jax.Array, labels: jax.Array, pooling: Mapping[str, Any]
    ) -> jax.Array:
        """Returns the logits `[N, R, 28, 28]` of the classes of boxes."""
        pooled = pool_regions(boxes=boxes, size=_POOLED, **pooling)
        first = 0 if self._is_mm else 1  # the background has masks, too
        head = MaskHead(
            self.num_classes + first, is_mm=self._is_mm, name="roi_head.mask_head"
        )
        logits = of_class(head(pooled), labels.reshape(-1) + first)
        return logits.reshape(*labels.shape, *logits.shape[1:])


def positive_regions(regions: Regions, number: int) -> Regions:
    """Returns the regions that have a box, as many as may be sampled.

    Args:
        regions: Those that learn.
        number: How many learn, at most.
    """
    assert regions.matched is not None
    positive = regions.valid & (regions.matched >= 0)
    most = min(max(1, int(number * POSITIVE_FRACTION)), positive.shape[1])
    # Ties keep their order, so that the first are those there are.
    there, places = jax.lax.top_k(positive.astype(jnp.float32), most)
    boxes = jnp.take_along_axis(regions.boxes, places[..., None], 1)
    matched = jnp.take_along_axis(regions.matched, places, 1)
    return Regions(boxes, there > 0, matched)
