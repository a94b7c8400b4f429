"""RetinaNet: a detector that classifies every anchor of a pyramid.

Lin, Goyal, Girshick, He, Dollar, "Focal Loss for Dense Object Detection", ICCV 2017.
https://arxiv.org/abs/1708.02002
Numbers are torchvision's (`layout="torchvision"`, from which the file of weights is)
or MMDetection's (`layout="mm"`), whose parameter names these are.

The logits of class k are at index k in both: torchvision's COCO file has 91, of which
0 and some others are of no object.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxattn.errors import choose
from jaxattn.models.anchors import Pyramid, retina_pyramid
from jaxattn.models.detection import (
    BoxTargets,
    Detections,
    at_least_one,
    per_image,
    sizes_of,
)
from jaxattn.models.detector import Detector
from jaxattn.models.fpn import FPN
from jaxattn.models.heads.retina import RetinaHead
from jaxattn.ops.boxes import box_iou, clip_boxes, decode_boxes, encode_boxes, nms
from jaxattn.ops.detection_losses import giou_loss, sigmoid_focal_loss, smooth_l1_loss
from jaxattn.ops.matching import IGNORED, match

BOX_LOSSES = ("l1", "smooth_l1", "giou")
# Of an anchor's IoU: from which on it has a box, below which the background.
_HIGH, _LOW = 0.5, 0.4


class _Settings(NamedTuple):
    """What `RetinaNet` says of its outputs; see there."""

    is_mm: bool
    score_threshold: float
    nms_threshold: float
    max_detections: int
    num_candidates: int
    axis_name: str | None


@struct.dataclass
class RetinaOutputs:
    """What RetinaNet computes for every anchor.

    Attributes:
        logits: float32 `[N, A, K]`.
        deltas: float32 `[N, A, 4]`.
        image_sizes: float32 `[N, 2]`: heights and widths without padding.
        pyramid: The anchors.
        settings: Of the network.
    """

    logits: jax.Array
    deltas: jax.Array
    image_sizes: jax.Array
    pyramid: Pyramid = struct.field(pytree_node=False)
    settings: _Settings = struct.field(pytree_node=False)

    def matched(self, targets: BoxTargets) -> jax.Array:
        """Returns the index `[N, A]` of the box that an anchor learns from.

        Args:
            targets: What the images show.

        Returns:
            int32; `BACKGROUND` or `IGNORED` of `jaxattn.ops.matching` where there is
            none.
        """
        anchors = self.pyramid.anchors()
        is_mm = self.settings.is_mm
        rules = functools.partial(
            match,
            high=_HIGH,
            low=_LOW,
            low_quality="mmdet" if is_mm else "torchvision",
        )
        overlap = functools.partial(box_iou, least_union=1e-6 if is_mm else 0.0)
        if not is_mm:
            one = lambda boxes, valid: rules(overlap(boxes, anchors), valid)  # noqa: E731
            return jax.vmap(one)(targets.boxes, targets.valid)
        one = lambda boxes, valid, inside: rules(  # noqa: E731
            overlap(boxes, anchors), valid, candidates=inside
        )
        inside = self.pyramid.inside(self.image_sizes)
        return jax.vmap(one)(targets.boxes, targets.valid, inside)

    def losses(
        self, targets: BoxTargets, *, box_loss: str = "l1"
    ) -> dict[str, jax.Array]:
        """Returns the losses by image, whose means and sum are to be made less.

        Args:
            targets: What the images show.
            box_loss: One of `BOX_LOSSES`.

        Returns:
            "classification" and "box", float32 `[N]`. In layout "mm" the images of a
            batch are divided by one number, so that a single one's say little.
        """
        choose("box_loss", box_loss, BOX_LOSSES)
        targets = at_least_one(targets)
        loss = functools.partial(_image_sums, self.pyramid.anchors(), box_loss)
        sums = jax.vmap(loss)(
            self.logits,
            self.deltas,
            self.matched(targets),
            targets.boxes,
            targets.labels,
        )
        *sums, positives = sums
        count = jnp.maximum(positives, 1)
        if self.settings.is_mm:
            divide = lambda v: per_image(v, count, self.settings.axis_name)  # noqa: E731
        else:
            divide = lambda v: v / count  # noqa: E731
        return {"classification": divide(sums[0]), "box": divide(sums[1])}

    def predict(self) -> Detections:
        """Returns what is found in the images, after non-maximum suppression."""
        detect = functools.partial(_detect, self.pyramid, self.settings)
        return jax.vmap(detect)(self.logits, self.deltas, self.image_sizes)


def _image_sums(
    anchors: jax.Array,
    box_loss: str,
    logits: jax.Array,
    deltas: jax.Array,
    matched: jax.Array,
    boxes: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the sums of both losses of an image, and the number of its positives."""
    positive = matched >= 0
    index = jnp.maximum(matched, 0)
    K = logits.shape[-1]
    own = labels[index][:, None] == jnp.arange(K)[None]
    classes = (own & positive[:, None]).astype(logits.dtype)
    focal = sigmoid_focal_loss(logits, classes)
    focal = jnp.sum(jnp.where((matched != IGNORED)[:, None], focal, 0))
    # What has no box takes the anchor, whose code has no logarithm of 0.
    target = jnp.where(positive[:, None], boxes[index], anchors)
    if box_loss == "giou":
        loss = giou_loss(decode_boxes(deltas, anchors), target, clamps=True)[:, None]
    else:
        beta = 0.0 if box_loss == "l1" else 1 / 9
        loss = smooth_l1_loss(deltas, encode_boxes(target, anchors), beta=beta)
    return focal, jnp.sum(jnp.where(positive[:, None], loss, 0)), jnp.sum(positive)


def _detect(
    pyramid: Pyramid,
    settings: _Settings,
    logits: jax.Array,
    deltas: jax.Array,
    image_size: jax.Array,
) -> Detections:
    """Returns what is found in one image."""
    anchors, candidates, start = pyramid.anchors(), [], 0
    for count in pyramid.counts:
        own = slice(start, start + count)
        candidates.append(
            _best_of_level(logits[own], deltas[own], anchors[own], settings)
        )
        start += count
    boxes, scores, labels = (
        jnp.concatenate(values) for values in zip(*candidates, strict=True)
    )
    boxes = clip_boxes(boxes, image_size)
    valid = scores > settings.score_threshold
    if settings.is_mm:
        valid &= jnp.all(boxes[:, 2:] > boxes[:, :2], 1)
    indices, found = nms(
        boxes,
        scores,
        settings.nms_threshold,
        max_outputs=settings.max_detections,
        ids=labels,
        valid=valid,
    )
    return Detections(
        jnp.where(found[:, None], boxes[indices], 0),
        jnp.where(found, scores[indices], 0),
        jnp.where(found, labels[indices], 0),
        found,
    )


def _best_of_level(
    logits: jax.Array, deltas: jax.Array, anchors: jax.Array, settings: _Settings
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns boxes, scores and classes of the pairs of anchor and class that are best.

    They are of the anchors whose best classes are best, of which there are far fewer
    than of pairs. Of equal ones the first count, so these stay in their order.
    """
    n, K = logits.shape
    best = min(settings.num_candidates, n)
    _, places = jax.lax.top_k(jax.nn.sigmoid(jnp.max(logits, 1)), best)
    places = jnp.sort(places)
    scores = jax.nn.sigmoid(logits[places]).reshape(-1)
    # What is below the threshold comes last, and NMS does not see it.
    scores, pairs = jax.lax.top_k(scores, min(settings.num_candidates, best * K))
    chosen = places[pairs // K]
    is_mm = settings.is_mm
    boxes = decode_boxes(deltas[chosen], anchors[chosen], clamps_shrinking=is_mm)
    return boxes, scores, (pairs % K).astype(jnp.int32)


class RetinaNet(Detector, kw_only=True):
    """A detector that classifies every anchor of a pyramid of five levels.

    `anchor_base` is 4 by default: at the first level anchors are from 32 pixels on.

    Attributes:
        num_candidates: Pairs of anchor and class of a level that the detections are
            chosen from.
    """

    num_candidates: int = 1000

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool = False,
        targets: BoxTargets | None = None,
        image_sizes: jax.Array | None = None,
    ) -> RetinaOutputs:
        """Returns logits and deltas of every anchor.

        Args:
            x: Normalised images `[N, H, W, C]`, padded right and below.
            train: As of the backbone.
            targets: What the images show; of it only the images' sizes.
            image_sizes: `[N, 2]`: heights and widths without padding, where there are
                no targets. None: nothing is padded.

        Raises:
            UserError: If the images, or an attribute, are not accepted.
        """
        x = self._checked(x)
        neck = FPN(
            self.fpn_features,
            extra="input" if self._is_mm else "output",
            relu=not self._is_mm,
            layout=self.layout,
            name="neck",
        )
        levels = neck(self._maps(x, train))
        head = RetinaHead(self.num_classes, name="bbox_head")
        return RetinaOutputs(
            *head(levels),
            sizes_of(x, targets, image_sizes),
            retina_pyramid(x.shape[1:3], levels, self.anchor_base, self.layout),
            _Settings(
                self._is_mm,
                self.score_threshold,
                self.nms_threshold,
                self.max_detections,
                self.num_candidates,
                self.axis_name,
            ),
        )

    @staticmethod
    def _stages() -> tuple[int, ...]:
        return (2, 3, 4)
