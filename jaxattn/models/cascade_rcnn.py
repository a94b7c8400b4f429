"""Cascade R-CNN: three heads, each of which looks at the boxes of the one before.

Cai, Vasconcelos, "Cascade R-CNN: Delving into High Quality Object Detection", CVPR
2018. https://arxiv.org/abs/1712.00726
Numbers and parameter names are MMDetection's; torchvision has no such detector.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxattn.errors import require
from jaxattn.models.detection import BoxTargets, Detections, at_least_one
from jaxattn.models.faster_rcnn import FasterRCNN, TwoStageOutputs
from jaxattn.models.heads.roi import (
    Regions,
    RoIOutputs,
    Rules,
    detect_regions,
    sample_regions,
)
from jaxattn.models.heads.rpn import RPNOutputs

_IOUS = (0.5, 0.6, 0.7)
# One over the deviations of the code of boxes.
_WEIGHTS = (
    (10.0, 10.0, 5.0, 5.0),
    (20.0, 20.0, 10.0, 10.0),
    (1 / 0.033, 1 / 0.033, 1 / 0.067, 1 / 0.067),
)
_LOSS_WEIGHTS = (1.0, 0.5, 0.25)


@struct.dataclass
class CascadeOutputs(TwoStageOutputs):
    """What a cascade computes; see `TwoStageOutputs`."""

    def losses(self, targets: BoxTargets) -> dict[str, jax.Array]:
        """Returns the losses by image; see `TwoStageOutputs`.

        Args:
            targets: What the images show; the network must have been given them.

        Returns:
            "objectness", "rpn_box", and of each head "classification_1", "box_1" and so
            on, weighted; float32 `[N]`.
        """
        targets = at_least_one(targets)
        losses = self.rpn.losses(targets)
        for i, (head, weight) in enumerate(
            zip(self.heads, _LOSS_WEIGHTS, strict=True), 1
        ):
            own = head.losses(targets)
            losses |= {f"{key}_{i}": weight * value for key, value in own.items()}
        return losses

    def predict(self) -> Detections:
        """Returns what is found: boxes of the last head, logits the mean of all."""
        logits = sum(head.logits for head in self.heads) / len(self.heads)
        sizes, last = self.rpn.image_sizes, self.heads[-1]
        return detect_regions(last, jnp.asarray(logits), sizes, **dict(self.thresholds))


class CascadeRCNN(FasterRCNN, kw_only=True):
    """Faster R-CNN of three heads, of which each makes the boxes better."""

    def _outputs(
        self,
        rpn: RPNOutputs,
        regions: Regions,
        pooling: Mapping[str, Any],
        targets: BoxTargets | None,
        keys: jax.Array | None,
    ) -> CascadeOutputs:
        require("layout", self.layout, self._is_mm, "'mm' for a cascade")
        heads: list[RoIOutputs] = []
        for i, (weights, iou) in enumerate(zip(_WEIGHTS, _IOUS, strict=True)):
            if i:
                regions = _refined(heads[-1], rpn.image_sizes, targets)
            rules = Rules(True, weights, 1.0, True, iou, self.axis_name)
            if targets is not None:
                assert keys is not None
                own = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
                regions = sample_regions(own, regions, targets, rules, self.roi_samples)
            name = f"roi_head.bbox_head.{i}"
            heads.append(self._look(regions, pooling, rules, name))
        return CascadeOutputs(rpn, tuple(heads), self._thresholds())


def _refined(
    head: RoIOutputs, image_sizes: jax.Array, targets: BoxTargets | None
) -> Regions:
    """Returns the boxes that a head makes of its regions; they have no gradient.

    Those that were targets are left out: these are drawn from anew.
    """
    boxes = jax.lax.stop_gradient(head.decoded(image_sizes)[:, :, 0])
    valid = head.regions.valid
    if targets is not None:
        same = head.regions.boxes[:, :, None] == targets.boxes[:, None]
        is_target = jnp.all(same, -1) & targets.valid[:, None]
        valid = valid & ~jnp.any(is_target, 2)
    return Regions(boxes, valid)
