"""Detectors of two stages: regions that may be of an object, and what they are of.

Faster R-CNN: Ren, He, Girshick, Sun, NeurIPS 2015, https://arxiv.org/abs/1506.01497,
with a feature pyramid (Lin et al., CVPR 2017).
Numbers are torchvision's (`layout="torchvision"`) or MMDetection's (`layout="mm"`),
whose parameter names these are. torchvision counts the background among its classes:
its COCO files have 91, which are 90 here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax import struct

from jaxattn.errors import require
from jaxattn.models.anchors import level_strides, rpn_pyramid
from jaxattn.models.detection import BoxTargets, Detections, at_least_one, sizes_of
from jaxattn.models.detector import Detector
from jaxattn.models.fpn import FPN
from jaxattn.models.heads.roi import (
    BoxHead,
    Regions,
    RoIOutputs,
    Rules,
    detect_regions,
    pool_regions,
    sample_regions,
)
from jaxattn.models.heads.rpn import RPNHead, RPNOutputs

_POOLED = 7  # rows and columns of a region


@struct.dataclass
class TwoStageOutputs:
    """What a detector of two stages computes.

    Attributes:
        rpn: Of every anchor.
        heads: Of the regions, by every head; more than one in a cascade.
        thresholds: Keywords of `detect_regions`, as pairs.
    """

    rpn: RPNOutputs
    heads: tuple[RoIOutputs, ...]
    thresholds: tuple[tuple[str, Any], ...] = struct.field(pytree_node=False)

    def losses(self, targets: BoxTargets) -> dict[str, jax.Array]:
        """Returns the losses by image, whose means and sum are to be made less.

        Args:
            targets: What the images show; the network must have been given them.

        Returns:
            "objectness", "rpn_box", "classification" and "box", float32 `[N]`. The
            images of a batch are divided by one number, so that a single one's say
            little.
        """
        targets = at_least_one(targets)
        return {**self.rpn.losses(targets), **self.heads[-1].losses(targets)}

    def predict(self) -> Detections:
        """Returns what is found in the images, after non-maximum suppression."""
        last = self.heads[-1]
        sizes = self.rpn.image_sizes
        return detect_regions(last, last.logits, sizes, **dict(self.thresholds))


class FasterRCNN(Detector, kw_only=True):
    """A detector that proposes regions and looks at each.

    `anchor_base` is 8 by default: at the first level anchors are of 32 pixels.

    Attributes:
        hidden: Features of the fully connected layers.
        proposals_before: Proposals of a level, in training and else, of which
            overlapping ones are dropped.
        proposals_after: Of all levels then, in training and else; None: as the layout
            has it, 1000, of torchvision 2000 in training.
        rpn_samples: Anchors of an image that learn.
        roi_samples: Regions of an image that learn.
        finest_scale: Side in pixels up to twice which a region is pooled from the first
            level; half as small ones for images of half the usual size.
    """

    anchor_base: float = 8.0
    hidden: int = 1024
    proposals_before: Sequence[int] = (2000, 1000)
    proposals_after: Sequence[int] | None = None
    rpn_samples: int = 256
    roi_samples: int = 512
    finest_scale: float = 56.0

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool = False,
        targets: BoxTargets | None = None,
        image_sizes: jax.Array | None = None,
    ) -> TwoStageOutputs:
        """Returns what the network says of anchors, and of regions.

        Args:
            x: Normalised images `[N, H, W, C]`, padded right and below.
            train: As of the backbone.
            targets: What the images show. With them anchors and regions are drawn that
                learn (rng stream "sampling"), which `losses` needs; without them
                regions are those of `predict`.
            image_sizes: `[N, 2]`: heights and widths without padding, where there are
                no targets. None: nothing is padded.

        Raises:
            UserError: If the images, or an attribute, are not accepted.
        """
        x = self._checked(x)
        sizes = sizes_of(x, targets, image_sizes)
        targets = None if targets is None else at_least_one(targets)
        neck = FPN(self.fpn_features, layout=self.layout, name="neck")
        levels = neck(self._maps(x, train))
        rpn = RPNOutputs(
            *RPNHead(name="rpn_head")(levels),
            sizes,
            matched=None,
            sampled=None,
            pyramid=rpn_pyramid(x.shape[1:3], levels, self.anchor_base, self.layout),
            is_mm=self._is_mm,
            axis_name=self.axis_name,
        )
        keys = None
        if targets is not None:
            keys = jax.random.split(self.make_rng("sampling"), len(x))
            keys, own = jax.vmap(lambda key: jax.random.split(key), 0, 1)(keys)
            rpn = rpn.assigned(targets, own, self.rpn_samples)
        regions = Regions(*rpn.proposals(*self._counts(targets is not None)))
        strides = level_strides(x.shape[1:3], levels)[:-1]
        pooling = {
            "maps": levels[:-1],  # the last is for proposals alone
            "strides": strides,
            "finest_scale": self.finest_scale,
            "is_mm": self._is_mm,
        }
        return self._outputs(rpn, regions, pooling, targets, keys)

    def _outputs(
        self,
        rpn: RPNOutputs,
        regions: Regions,
        pooling: Mapping[str, Any],
        targets: BoxTargets | None,
        keys: jax.Array | None,
    ) -> TwoStageOutputs:
        """Looks at the regions.

        Args:
            rpn: What is said of anchors.
            regions: The proposals.
            pooling: Keywords of `pool_regions`.
            targets: What the images show, if they are to be learnt.
            keys: PRNG keys `[N]`, with targets.
        """
        rules = Rules(
            self._is_mm,
            beta=0.0 if self._is_mm else 1 / 9,
            axis_name=self.axis_name,
        )
        if targets is not None:
            assert keys is not None
            regions = sample_regions(keys, regions, targets, rules, self.roi_samples)
        outputs = self._look(regions, pooling, rules, "roi_head.bbox_head")
        return TwoStageOutputs(rpn, (outputs,), self._thresholds())

    def _look(
        self, regions: Regions, pooling: Mapping[str, Any], rules: Rules, name: str
    ) -> RoIOutputs:
        """Returns what a head of this name says of regions."""
        pooled = pool_regions(boxes=regions.boxes, size=_POOLED, **pooling)
        head = BoxHead(
            self.num_classes, self.hidden, self._is_mm, rules.is_agnostic, name=name
        )
        logits, deltas = head(pooled)
        N, R = regions.valid.shape
        logits, deltas = (v.reshape(N, R, *v.shape[1:]) for v in (logits, deltas))
        return RoIOutputs(regions, logits, deltas, rules)

    def _thresholds(self) -> tuple[tuple[str, Any], ...]:
        keys = ("score_threshold", "nms_threshold", "max_detections")
        return tuple((key, getattr(self, key)) for key in keys)

    def _counts(self, trains: bool) -> tuple[int, int]:
        """Returns the numbers of proposals before and after some are dropped."""
        after = self.proposals_after or (1000 if self._is_mm else 2000, 1000)
        counts = self.proposals_before, after
        for key, pair in zip(("before", "after"), counts, strict=True):
            holds = len(pair) == 2 and min(pair) >= 1
            require(f"proposals_{key}", pair, holds, "two integers from 1 on")
        before, after = (pair[0 if trains else 1] for pair in counts)
        return before, after

    @staticmethod
    def _stages() -> tuple[int, ...]:
        return (1, 2, 3, 4)
